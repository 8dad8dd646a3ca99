"""Steps whose gradient was not finite: they are left out and counted; one must not end a long run, many must."""

import logging
from collections import deque
from pathlib import Path

from torch import Tensor

from ditkit.errors import NotFinite

WINDOW, MOST = 100, 50  # so many of the last steps, and going on makes no sense

log = logging.getLogger(__name__)


class Skipped:
    """Counts the steps that were left out."""

    def __init__(self, count: int = 0):
        """Goes on after `count` of them."""
        self.count = count
        self._last: deque[bool] = deque(maxlen=WINDOW)

    def taken(self, norm: Tensor) -> bool:
        """Whether the step with a gradient of this norm was taken. NotFinite when `MOST` of the last `WINDOW` were not."""
        finite = bool(norm.isfinite())
        self._last.append(not finite)
        self.count += not finite
        if sum(self._last) >= MOST:
            self._refuse()
        return finite

    def end(self, out: Path) -> None:
        """Say how many were left out of a run that ends. NotFinite when it was most of the last `WINDOW`."""
        if 2 * sum(self._last) > len(self._last):
            self._refuse()
        if self.count:
            log.warning(
                f"{out}: {self.count:,} step{'s were' if self.count > 1 else ' was'} skipped because the gradient was not "
                "finite; log.jsonl says when. If there were many, lower --train.lr, or use --train.precision fp32"
            )

    def _refuse(self) -> None:
        raise NotFinite(
            f"the gradient was not finite in {sum(self._last)} of the last {len(self._last)} steps, which were skipped; lower "
            "--train.lr, set --train.clip 1, or use --train.precision fp32"
        )
