"""The identity codec: the state is the image itself, in [-1, 1]."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from ditkit.codecs.base import CodecSection
from ditkit.layout import Layout, layout_of
from ditkit.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


def to_signed(images: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1], where numbers are already."""
    return images if images.is_floating_point() else images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] to uint8 by 127.5 x + 128, clamped and truncated: the rule of ADM's sample files."""
    return (127.5 * images + 128).clamp(0, 255).to(torch.uint8)


def as_uint8(images: Tensor) -> Tensor:
    """Images as pictures: uint8 as they are, numbers in [-1, 1] by `to_uint8`."""
    return to_uint8(images) if images.is_floating_point() else images


def to_bounds(values: Tensor, bounds: tuple[float, float]) -> Tensor:
    """[-1, 1] to float32 from `bounds[0]` to `bounds[1]`, clamped; on the CPU."""
    low, high = bounds
    return (low + (values.cpu().double().clamp(-1, 1) + 1) * ((high - low) / 2)).float()


def from_bounds(values: Tensor, bounds: tuple[float, float]) -> Tensor:
    """What `to_bounds` made, in [-1, 1]; on the CPU."""
    low, high = bounds
    return ((values.cpu().double() - low) * (2 / (high - low)) - 1).float()


class IdentityConfig(CodecSection):
    """Pixel space: no autoencoder."""

    pixels: ClassVar[bool] = True
    kind: Literal["identity"] = "identity"

    def build(self, image_channels: int, device: torch.device | str = "cpu") -> Identity:
        return Identity(image_channels)


class Identity:
    """Pixels scaled to [-1, 1]."""

    random = False

    def __init__(self, channels: int):
        self.channels = channels

    def layout(self, *size: int) -> Layout:
        return layout_of(self.channels, *size)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        return to_signed(images)

    def values(self, state: Tensor) -> Tensor:
        return state

    def decode(self, state: Tensor) -> Tensor:
        return to_uint8(state)

    def save(self, folder: Path) -> None:
        pass
