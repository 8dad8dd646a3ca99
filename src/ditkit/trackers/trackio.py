"""Hugging Face's trackio: a database on this machine (TRACKIO_DIR), a Space (TRACKIO_SPACE_ID) or a server of one's own
(TRACKIO_SERVER_URL)."""

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from ditkit.trackers.base import PROJECT, TrackedRun


class Trackio:
    """A run of its own name, which is how trackio finds it again."""

    def __init__(self, run: TrackedRun):
        import trackio

        self.id = run.id or f"{run.name}-{uuid.uuid4().hex[:8]}"
        self._picture, self._finish = trackio.Image, trackio.finish
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=self.id,
            config=dict(run.settings),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def scalars(self, values: Mapping[str, float], images: int) -> None:
        self._run.log(dict(values), step=images)

    def picture(self, name: str, file: Path, images: int) -> None:
        self._run.log({name: self._picture(str(file))}, step=images)

    def close(self, failed: bool) -> None:
        self._finish()  # or it ends the run once more when Python ends
