"""What latents on disk are to the loader: a source of moments."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from ditkit.data.sources import Draw, Source
from ditkit.errors import InputError, NotFinite
from ditkit.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ditkit.data.latents.cache import Index

LOGVAR = (-30.0, 20.0)  # diffusers' limits


def channel_means(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Of each channel of latents with these moments (B, 2 channels, h, w), the mean over images, places and draws,
    and that of the square: float64 (channels,), on the CPU."""
    mean, logvar = moments.cpu().double().chunk(2, dim=1)
    square = mean.square() + logvar.clamp(*LOGVAR).exp()
    return mean.mean(dim=(0, 2, 3)), square.mean(dim=(0, 2, 3))


def shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of a safetensors file; InputError when it is missing or damaged."""
    try:
        with safe_open(file, "pt") as reader:
            return {name: tuple(reader.get_slice(name).get_shape()) for name in reader.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} is missing or damaged ({error}); encode it again") from None


class ShardFiles:
    """Safetensors files, mapped into memory when they are first read and kept so."""

    def __init__(self):
        self._open = {}

    def rows(self, file: Path, name: str, rows: slice | None = None) -> Tensor:
        """Rows of one tensor; all of them when none are named."""
        try:
            if file not in self._open:
                self._open[file] = safe_open(file, "pt")
            return self._open[file].get_slice(name)[rows or slice(None)]
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file} is missing or damaged ({error}); encode it again") from None


class Latents(Source):
    """The moments of a data set's images."""

    gives = "moments"
    shape: tuple[int, ...]
    """(2 channels, height, width) of the moments of one image."""
    flips: bool
    """Whether there are the mirrored images' moments, too."""
    note: str = ""
    """What the layout lacks."""
    index: Index | None = None
    """What they were made from and by which encoder, where the layout says it."""

    @abstractmethod
    def row(self, place: int, mirrored: bool) -> Tensor:
        """Mean and logvar of one image, or of the image mirrored: (2 channels, height, width)."""

    @abstractmethod
    def file(self, place: int) -> Path:
        """Where the moments of one image are."""

    @property
    def alone(self) -> None:
        return None

    def sizes(self, multiple: int = 1) -> Sequence[tuple[int, ...]]:
        return [self.shape[1:]] * len(self)

    def unmirrored(
        self, places: Sequence[int], draws: Sequence[Draw] | None = None, size: tuple[int, ...] | None = None
    ) -> Tensor:
        return self.moments(places, [False] * len(places), size)

    def read(
        self, places: Sequence[int], draws: Sequence[Draw] | None = None, size: tuple[int, ...] | None = None
    ) -> Tensor:
        mirrored = [False] * len(places) if draws is None else [draw.mirrored for draw in draws]
        return self.moments(places, mirrored, size)

    def moments(
        self, places: Sequence[int], mirrored: Sequence[bool], size: tuple[int, ...] | None = None
    ) -> Tensor:
        """Mean and logvar of these images, or of them mirrored, all of one size: float32 (B, 2 channels, height, width).
        NotFinite, naming the file, where they are no finite numbers."""
        rows = [self.row(place, flip) for place, flip in zip(places, mirrored, strict=True)]
        moments = (
            torch.stack(rows).float() if rows else torch.empty((0, self.shape[0], *(size or self.shape[1:])))
        )
        if not moments.isfinite().all():
            finite = moments.flatten(1).isfinite().all(1).tolist()
            place = places[finite.index(False)]
            raise NotFinite(
                f"{self.file(place)}: the latents of image {place} are not finite; encode or extract them again"
            )
        return moments
