"""Steps whose gradient was not finite: they are left out and counted; one must not end a long run, many must."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from ditkit.device import numbers
from ditkit.errors import NotFinite

WINDOW, MOST = 100, 50  # so many of the last steps, and going on makes no sense
IN_A_ROW = 5  # so many, and it is worth a word

log = logging.getLogger(__name__)


class Skipped:
    """Counts the steps that were left out, on the device: nothing is read back until it is needed."""

    def __init__(self, count: int = 0, last: str = "", since: int = 0):
        """Goes on after `count` of them; `last` has a 1 for each of the last steps that was left out and a 0 for each that was
        not, and the last ones to be left out began after `since` images."""
        self._before, self._since = count, since
        self._known = last[-WINDOW:]
        self._steps = len(self._known)
        self._make(torch.device("cpu"))

    def _make(self, device: torch.device) -> None:
        """What is counted, on a device; again on that of the first step."""
        self._lost = torch.zeros((), dtype=torch.int64, device=device)
        self._begun = numbers(self._since, device)
        known = [mark == "1" for mark in self._known]
        self._last = numbers(known + [False] * (WINDOW - len(known)), device)

    def add(self, taken: Tensor, images: int = 0) -> None:
        """One more step, after so many images: bool (), whether it was taken."""
        if taken.device != self._lost.device:
            self._make(taken.device)
        lost = ~taken
        before = self._last[(self._steps - 1) % WINDOW]
        self._begun = torch.where(lost & ~before, images, self._begun)
        self._lost += lost
        self._last[self._steps % WINDOW] = lost
        self._steps += 1

    @property
    def facts(self) -> dict[str, int | str]:
        """What to go on with besides the count, by the names of the arguments; waits for the device."""
        ring = self._last.roll(-self._steps % WINDOW if self._steps > WINDOW else 0).tolist()
        last = "".join(str(int(lost)) for lost in ring[: min(self._steps, WINDOW)])
        return {"last": last, "since": int(self._begun)}

    @property
    def count(self) -> int:
        """How many there were in all; waits for the device."""
        return self._before + int(self._lost.sum())

    def well_until(self, images: int) -> int:
        """After `images` images: how many there were when the last steps began to be left out; waits for the device."""
        return int(self._begun) if self.in_a_row else images

    @property
    def in_a_row(self) -> int:
        """How many of the last steps, at most `WINDOW`, were left out one after the other; waits for the device."""
        if not self._steps:
            return 0
        last = self._last.roll(WINDOW - self._steps % WINDOW).flip(0)  # the newest first
        return int(last.long().cumprod(0).sum())

    def judge(self) -> None:
        """NotFinite when `MOST` of the last `WINDOW` steps were left out; waits for the device."""
        if self._of_the_last >= MOST:
            self._refuse()

    def end(self, out: Path) -> None:
        """Say how many were left out of a run that ends. NotFinite when it was most of the last `WINDOW`."""
        if 2 * self._of_the_last > min(self._steps, WINDOW):
            self._refuse()
        if count := self.count:
            log.warning(
                f"{out}: {count:,} step{'s were' if count > 1 else ' was'} skipped because the gradient was not "
                "finite; log.jsonl says when. If there were many, lower `train.lr`, or use `train.precision` fp32"
            )

    @property
    def _of_the_last(self) -> int:
        return int(self._last.sum())

    def _refuse(self) -> None:
        raise NotFinite(
            f"the gradient was not finite in {self._of_the_last} of the last {min(self._steps, WINDOW)} steps, which were "
            "skipped; lower `train.lr`, set `train.clip` 1, or use `train.precision` fp32"
        )
