"""What a source of clips is, the settings all of them share, and clips beside single frames and pictures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from ditkit.data.sources import DataSection, Draw, Source, Split, by_itself
from ditkit.errors import InputError
from ditkit.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

Length = Annotated[int, Field(ge=1, le=100_000, description="Frames of a clip.")]


class ClipSection(DataSection):
    """Settings every source of clips has."""

    frames: Length = 16
    aspect: Literal["square"] = "square"
    """Fixed: clips are square."""
    single_frames: float = Field(default=0.0, ge=0)
    """Also train on frames by themselves, clips of one frame: so many for each clip. Batches need train.tokens."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(F, H, W) of a clip."""
        return self.frames, self.size, self.size

    @property
    def several_sizes(self) -> bool:
        return self.single_frames > 0

    @abstractmethod
    def open(self, split: Split = "train") -> Clips:
        """The clips of one part; InputError when they cannot be found or read."""

    def training(self) -> Clips:
        clips = self.open("train")
        return Mixed(self, clips) if self.several_sizes else clips


class Clips(Source):
    """A source of videos, of which clips are cut, all of one size."""

    def __init__(self, config: ClipSection):
        self._config = config

    @abstractmethod
    def clip(self, index: int, draw: np.random.Generator | None = None) -> Tensor:
        """A clip of a video, uint8 (C, F, H, W): a random one by the draws of `draw`, the middle one for None."""

    def sizes(self, multiple: int = 1) -> Sequence[tuple[int, ...]]:
        return [self._config.shape] * len(self)

    def unmirrored(
        self, places: Sequence[int], draws: Sequence[Draw] | None = None, size: tuple[int, ...] | None = None
    ) -> Tensor:
        def read(place: int, draw: Draw | None) -> Tensor:
            return self.clip(place, None if draw is None else draw.start())

        return by_itself(read, places, draws, (self._config.channels, *(size or self._config.shape)))


class Mixed(Clips):
    """What clips are trained on with: the clips, then single frames of them, then pictures, each a clip of one frame."""

    decodes = True

    def __init__(self, config: ClipSection, clips: Clips, pictures: Source | None = None):
        """InputError where pictures have no classes or captions and clips have, or other classes."""
        super().__init__(config)
        self._clips, self._pictures = clips, pictures
        singles = round(config.single_frames * len(clips))
        self._of = [*range(len(clips)), *(k * len(clips) // singles for k in range(singles))]
        self.names = clips.names
        labels: list[int] = []
        captions: list[str] = []
        for part, places in ((clips, self._of), (pictures, range(0 if pictures is None else len(pictures)))):
            if part is None:
                continue
            lacking = "classes" if part.names != clips.names else "captions"
            if part.names != clips.names or (part.captions is None) != (clips.captions is None):
                raise InputError(
                    f"`data.pictures`: the pictures' {lacking} are not those of the clips; give both the same, or neither any"
                )
            labels += [] if part.labels is None else part.labels[list(places)].tolist()
            captions += [] if part.captions is None else [part.captions[place] for place in places]
        self.labels = None if clips.labels is None else torch.tensor(labels)
        self.captions: Sequence[str] | None = None if clips.captions is None else captions

    def __len__(self) -> int:
        return len(self._of) + (0 if self._pictures is None else len(self._pictures))

    @property
    def alone(self) -> Source:
        return self._clips

    def sizes(self, multiple: int = 1) -> Sequence[tuple[int, ...]]:
        clip = self._config.shape
        return [clip if index < len(self._clips) else (1, *clip[1:]) for index in range(len(self))]

    def clip(self, index: int, draw: np.random.Generator | None = None) -> Tensor:
        if index < len(self._of):
            clip = self._clips.clip(self._of[index], draw)
            return clip if index < len(self._clips) else clip[:, :1]
        assert self._pictures is not None
        return self._pictures.read([index - len(self._of)])[0][:, None]
