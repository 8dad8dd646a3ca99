"""A folder of samples: written batch by batch, gone on with after an interruption, read to be scored.

    samples.json             what decides the images: sampler, labels, seeds, hash of the weights, versions
    images/000000-class3.png each image, where `png` is set; of clips clips/000000.gif
    samples.npz              all of them, where `npz` is set
    grid.png                 the first ones; of clips sheet.png
    unfinished/000000.npy    a batch that grid or samples.npz are still to be made of

Every file is written whole, so what is there of a batch is not made again. Image k is a function of the settings, of seed k
and in its last bits of its batch, and batches are always cut alike: stopped and gone on with equals not stopped.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ditkit.errors import InputError
from ditkit.files import DAMAGED_ARRAYS
from ditkit.records import finite, read_json, write_json, written_whole

RECORD = "samples.json"
NPZ = "samples.npz"
GRID, SHEET = "grid.png", "sheet.png"
IMAGES, CLIPS = "images", "clips"
UNFINISHED = "unfinished"
OUTPUTS = (GRID, SHEET, NPZ, IMAGES, CLIPS, UNFINISHED)


def settings_of(folder: Path) -> dict[str, Any] | None:
    """What the samples in a folder were made with; None where the folder holds no such record, or somebody else's file of
    that name. InputError where it is damaged."""
    found = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    return found if {"n", "weights", "ditkit"} <= found.keys() else None


def other_samples(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """What in a folder stands in the way of samples of these settings; None where nothing does: there are none, or they
    are those."""
    there = [name for name in OUTPUTS if (folder / name).exists()]
    try:
        before = settings_of(folder)
    except InputError as error:
        return str(error)
    if before is None and (folder / RECORD).exists():
        return f"its {RECORD} is not of `ditkit sample`"
    if before is None:
        return f"{there[0]} is there already, and no {RECORD} that says how it was made" if there else None
    now = json.loads(json.dumps(finite(settings)))
    for name in {**now, **before} if there else ():
        if before.get(name) != now.get(name):
            old, new = (_shown(some.get(name)) for some in (before, now))
            return f"it holds samples of {name} {old}, not {new}"
    return None


def claim_samples(folder: Path, settings: Mapping[str, Any], replace: bool) -> None:
    """Make a folder, which nobody else writes into meanwhile, that of samples of these settings; with `replace` other
    samples in it are removed. InputError where there are some otherwise, or files of which nothing says what they are."""
    if why := other_samples(folder, settings):
        if not _is_ours(folder):
            raise InputError(f"`out` {folder}: {why}; move it away, or give another `out`")
        if not replace:
            raise InputError(f"`out` {folder}: {why}; give another `out`, or `replace` to remove them")
        for name in OUTPUTS:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
    write_json(folder / RECORD, settings)


def _is_ours(folder: Path) -> bool:
    try:
        return settings_of(folder) is not None
    except InputError:
        return False


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


@dataclass(frozen=True)
class SampleFolder:
    """What a folder is to hold: `count` samples, made `batch` at a time."""

    folder: Path
    count: int
    batch: int
    sheet: str
    """File of the picture of the first ones."""
    shown: int
    """How many those are."""
    single: Callable[[int], str] | None = None
    """File of sample k, relative to the folder; None where none are written."""
    npz: bool = False
    """Whether all are kept as arrays, too."""

    @property
    def made(self) -> int:
        """How many are made: of those that nothing would keep, only what the sheet shows."""
        return self.count if self.single or self.npz else self.shown

    def batches(self) -> list[range]:
        """All that are made, as numbers of samples."""
        return self._batches(self.made)

    def missing(self) -> list[range]:
        """The batches that something is still to be made of."""
        return [part for part in self.batches() if not self._done(part)]

    def keep(self, part: range, samples: Tensor, save: Callable[[Tensor, Path], None]) -> None:
        """Write a batch, (B, C, H, W) or (B, C, F, H, W); `save` writes one sample as a file."""
        if self.single:
            for k, sample in zip(part, samples, strict=True):
                path = self.folder / self.single(k)
                path.parent.mkdir(parents=True, exist_ok=True)
                if not _is_there(path):
                    save(sample, path)
        if self._takes(part):
            (self.folder / UNFINISHED).mkdir(exist_ok=True)
            with written_whole(self._file(part)) as place:
                np.save(place, samples.numpy())

    def first(self) -> Tensor | None:
        """The samples that the sheet shows; None where there is one already."""
        if (self.folder / self.sheet).exists():
            return None
        return torch.cat(list(self._read(self._batches(self.shown))))[: self.shown]

    def all(self) -> Iterator[Tensor] | None:
        """All samples, batch by batch, for samples.npz; None where there is one already or none is wanted."""
        if not self.npz or (self.folder / NPZ).exists():
            return None
        return self._read(self._batches(self.count))

    def finish(self) -> None:
        """Remove the batches, of which everything has been made."""
        shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)

    def _batches(self, count: int) -> list[range]:
        """Those of the first `count` samples."""
        starts = range(0, count, self.batch)
        return [range(start, min(start + self.batch, self.count)) for start in starts]

    def _done(self, part: range) -> bool:
        if self.single and not all(_is_there(self.folder / self.single(k)) for k in part):
            return False
        return not self._takes(part) or _rows(self._file(part), len(part)) is not None

    def _takes(self, part: range) -> bool:
        """Whether something will be made of all its samples together with others'."""
        shown = part.start < self.shown and not (self.folder / self.sheet).exists()
        return shown or (self.npz and not (self.folder / NPZ).exists())

    def _file(self, part: range) -> Path:
        return self.folder / UNFINISHED / f"{part.start:06d}.npy"

    def _read(self, parts: list[range]) -> Iterator[Tensor]:
        for part in parts:
            rows = _rows(self._file(part), len(part))
            if rows is None:
                raise InputError(f"{self._file(part)} was removed or damaged; give the same command again")
            yield torch.from_numpy(np.array(rows))


def _is_there(path: Path) -> bool:
    """Whether a file is there; an empty one is what a loss of power left."""
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def _rows(file: Path, count: int) -> np.ndarray | None:
    """A batch's samples, mapped; None where they are not there or damaged."""
    try:
        rows = np.load(file, mmap_mode="r", allow_pickle=False)
    except DAMAGED_ARRAYS:
        return None
    return rows if rows.ndim and len(rows) == count else None
