"""What the rest of the library needs of a codec."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Protocol, Self

from pydantic import Field

from ditkit.config import Section
from ditkit.layout import Layout
from ditkit.randomness import Stream

POSTERIOR = Stream("posterior", "codec", "normal")
"""What a random codec encodes a training image with."""

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Codec(Protocol):
    """Images, or clips, to a state and back."""

    channels: int
    random: bool
    """Whether encoding draws noise."""

    def layout(self, *size: int) -> Layout:
        """How the state of an image of that size, (H, W), or clip, (F, H, W), is made."""

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """uint8, or float32 in [-1, 1], (B, C, *size) to a state (B, *S); `noise` of the state's shape where encoding is
        random."""

    def values(self, state: Tensor) -> Tensor:
        """A state to images or clips as numbers, float32 (B, C, *size), -1 to 1 and somewhat beyond."""

    def decode(self, state: Tensor) -> Tensor:
        """A state to images or clips uint8 (B, C, *size)."""

    def save(self, folder: Path) -> None:
        """Copy what a snapshot must carry along, if there is something."""


class CodecSection(Section):
    """The configuration of a codec."""

    pixels: ClassVar[bool] = False
    """Whether states are pixels, between -1 and 1."""
    cached: ClassVar[bool] = False
    """Whether what it makes of images can be kept on disk (`ditkit encode`)."""
    kind: str
    level_scale: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """For a pyramid of resolutions, the factor of each level's state, highest first, so that its spread is about 1
    where averaging shrinks it (latents); by default 1."""

    def resolved(self) -> Self:
        """These settings with what is known of the codec's files filled in."""
        return self

    @abstractmethod
    def build(self, image_channels: int, device: torch.device | str = "cpu") -> Codec:
        """The codec of images of so many channels."""
