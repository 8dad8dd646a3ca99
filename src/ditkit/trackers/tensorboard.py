"""TensorBoard: event files in OUT/track/tensorboard; a sitting adds one."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ditkit.trackers.base import TrackedRun


class TensorBoard:
    """Writes with torch's SummaryWriter; every call reaches the disk, so that a kill loses nothing."""

    id = "tensorboard"

    def __init__(self, run: TrackedRun):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(run.folder / "tensorboard"))
        if run.id is None:
            self._writer.add_hparams(run.parameters, {}, run_name=".")

    def scalars(self, values: Mapping[str, float], images: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, images)
        self._writer.flush()

    def picture(self, name: str, file: Path, images: int) -> None:
        with Image.open(file) as picture:
            self._writer.add_image(name, np.asarray(picture.convert("RGB")), images, dataformats="HWC")
        self._writer.flush()

    def close(self, failed: bool) -> None:
        self._writer.close()
