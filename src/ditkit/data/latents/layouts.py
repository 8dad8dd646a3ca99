"""Latents that other projects' tools wrote, read as they lie.

| layout | files | holds |
|---|---|---|
| EDM2, REPA | dataset.json and .npy files (2 channels, h, w) | mean and std, unscaled; one way round |
| fast-DiT, U-DiT | X_features/I.npy (1, channels, h, w), X_labels/I.npy | one sample times 0.18215; one way round |
| LightningDiT | *.safetensors with latents, latents_flip, labels | one sample, unscaled; both ways round |

None says which autoencoder or images it was made from. A sample stands for moments without a spread. Zip
archives, and LightningDiT's latents_stats.pt, are not read.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from ditkit.data.latents.source import LOGVAR, Latents, ShardFiles, shapes
from ditkit.data.sources import each, numbered_classes
from ditkit.errors import InputError
from ditkit.files import DAMAGED_ARRAYS, first_line, load_npy
from ditkit.lazy import torch
from ditkit.records import parse_json

if TYPE_CHECKING:
    from torch import Tensor

FAST_DIT_SCALE = 0.18215  # what its extraction multiplies samples by


def read_npy(file: Path) -> Tensor:
    """The numbers of one .npy file, never anything pickled; InputError when it is missing or damaged."""
    try:
        array = load_npy(file)
    except DAMAGED_ARRAYS as error:
        raise InputError(
            f"{file} is missing or no .npy file of numbers ({first_line(error)}); extract it again"
        ) from None
    try:
        return torch.from_numpy(array)
    except (TypeError, ValueError) as error:  # an .npz, texts, numbers in another order of bytes
        raise InputError(
            f"{file} is no .npy file of numbers ({first_line(error)}); extract it again"
        ) from None


def without_spread(latent: Tensor) -> Tensor:
    """One sample (channels, h, w) as moments (2 channels, h, w) whose every draw is that sample."""
    return torch.cat([latent.float(), torch.full_like(latent, LOGVAR[0], dtype=torch.float32)])


def class_names(labels: Tensor, where: str) -> tuple[str, ...]:
    """Numbers for names, as none are written down. InputError when one is negative or too large for a class."""
    if int(labels.min()) < 0:
        raise InputError(
            f"{where}: class {int(labels.min())}, but classes are numbered from 0; correct the label"
        )
    return numbered_classes(int(labels.max()) + 1, where)


def check_shape(shape: Sequence[int], dimensions: int, what: str, file: Path) -> tuple[int, ...]:
    """The shape; InputError unless it has so many dimensions, none of them empty."""
    if len(shape) != dimensions or not all(shape):
        raise InputError(f"{file}: {tuple(shape)} is no {what}; extract it again")
    return tuple(shape)


class Edm2(Latents):
    """dataset.json {"labels": [["00000/img-mean-std-00000000.npy", 6], ...]} beside .npy files of mean and std."""

    flips = False
    note = (
        "EDM2's layout: mean and std, no mirrored images. EDM2's own were encoded from images in [0, 1], REPA's "
        "from images in [-1, 1] as here"
    )

    def __init__(self, folder: Path):
        """InputError when dataset.json is damaged or names other files than there are."""
        self._files = sorted(folder.rglob("*.npy"))
        names = [file.relative_to(folder).as_posix() for file in self._files]
        try:
            known = dict(parse_json((folder / "dataset.json").read_bytes())["labels"] or ())
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{folder / 'dataset.json'}: cannot be read ({error!r}); extract again"
            ) from None
        if not names:
            raise InputError(f"{folder}: no .npy files beside dataset.json; unpack the archive")
        if missing := [name for name in names if known and name not in known]:
            raise InputError(f"{folder / 'dataset.json'} has no label for {missing[0]}; extract again")
        labels = [known[name] for name in names] if known else []
        if wrong := [label for label in labels if not isinstance(label, int) or abs(label) >= 2**31]:
            raise InputError(f"{folder / 'dataset.json'}: {wrong[0]!r:.40} is no class; extract again")
        self.labels = torch.tensor(labels) if known else None
        self.names = class_names(self.labels, str(folder)) if self.labels is not None else ()
        first = self._files[0]
        self.shape = check_shape(read_npy(first).shape, 3, "mean and std (2 channels, h, w)", first)
        if self.shape[0] % 2:
            raise InputError(f"{first}: {self.shape[0]} channels are no mean and std; extract it again")

    def __len__(self) -> int:
        return len(self._files)

    def file(self, place: int) -> Path:
        return self._files[place]

    def row(self, place: int, mirrored: bool) -> Tensor:
        mean, std = read_npy(self._files[place]).float().chunk(2)
        return torch.cat([mean, 2 * std.clamp(min=math.exp(LOGVAR[0] / 2)).log()])


class FastDit(Latents):
    """Two folders of numbered .npy files, one for latents, one for labels, under the same names."""

    flips = False
    note = "fast-DiT's layout: one sample instead of moments, flipped or not once and for all"

    def __init__(self, folder: Path):
        """InputError when a folder is missing or their files are not the same."""
        features, labels = (
            {file.name: file for kind in folder.glob(f"*_{kind}") for file in kind.glob("*.npy")}
            for kind in ("features", "labels")
        )
        if not features or features.keys() != labels.keys():
            raise InputError(
                f"{folder}: {len(features)} files in *_features and {len(labels)} in *_labels do not belong together; "
                "both folders hold one file of the same name for each image"
            )
        self._files = [features[name] for name in sorted(features, key=_numbers)]
        paths = [labels[file.name] for file in self._files]
        read = each(
            lambda place: read_npy(paths[place]).long().flatten(), range(len(paths)), "reading labels"
        )
        self.labels = torch.cat(read)
        self.names = class_names(self.labels, str(folder))
        first = self._files[0]
        _, channels, *size = check_shape(read_npy(first).shape, 4, "latent (1, channels, h, w)", first)
        self.shape = (2 * channels, *size)

    def __len__(self) -> int:
        return len(self._files)

    def file(self, place: int) -> Path:
        return self._files[place]

    def row(self, place: int, mirrored: bool) -> Tensor:
        return without_spread(self._latent(place) / FAST_DIT_SCALE)

    def _latent(self, place: int) -> Tensor:
        return read_npy(self._files[place])[0].float()


class LightningDit(Latents):
    """Safetensors files of any length, one after the other by name."""

    note = "LightningDiT's layout: one sample instead of moments; its latents_stats.pt is not read, see `codec.scale`"

    def __init__(self, folder: Path):
        """InputError when a file is damaged or lacks latents or labels."""
        self._paths = sorted(folder.glob("*.safetensors"))
        found = [shapes(path) for path in self._paths]
        for path, tensors in zip(self._paths, found, strict=True):
            if not {"latents", "labels"} <= tensors.keys():
                raise InputError(f"{path}: holds {', '.join(tensors)}, not latents and labels; extract again")
            count = check_shape(tensors["latents"], 4, "latents (N, channels, h, w)", path)[0]
            if (
                tensors["labels"] != (count,)
                or tensors.get("latents_flip", tensors["latents"]) != tensors["latents"]
            ):
                raise InputError(
                    f"{path}: its labels or mirrored latents are not those of {count} latents; extract again"
                )
        self.flips = all("latents_flip" in tensors for tensors in found)
        self._ends = list(accumulate(tensors["latents"][0] for tensors in found))
        self._files = ShardFiles()
        self.labels = torch.cat([ShardFiles().rows(path, "labels").long() for path in self._paths])
        self.names = class_names(self.labels, str(folder))
        _, channels, *size = found[0]["latents"]
        self.shape = (2 * channels, *size)

    def __len__(self) -> int:
        return self._ends[-1]

    def file(self, place: int) -> Path:
        return self._paths[bisect(self._ends, place)]

    def row(self, place: int, mirrored: bool) -> Tensor:
        number = bisect(self._ends, place)
        place -= self._ends[number - 1] if number else 0
        name = "latents_flip" if mirrored else "latents"
        return without_spread(self._files.rows(self._paths[number], name, slice(place, place + 1))[0])


def _numbers(name: str) -> tuple[list[int], str]:
    """Files of 7.npy, or of 7_0.npy with the process that wrote it, in the order of their numbers."""
    return [int(part) for part in name.removesuffix(".npy").split("_") if part.isdigit()], name
