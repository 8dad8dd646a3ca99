"""The identity codec: the state is the image itself, in [-1, 1]."""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ditkit.codecs.base import CodecSection
from ditkit.layout import Layout, layout_of


def to_signed(images: Tensor) -> Tensor:
    """uint8 to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] to uint8 by 127.5 x + 128, clamped and truncated: the rule of ADM's sample files."""
    return (127.5 * images + 128).clamp(0, 255).to(torch.uint8)


class IdentityConfig(CodecSection):
    """Pixel space: no autoencoder."""

    kind: Literal["identity"] = "identity"

    def resolved(self) -> "IdentityConfig":
        return self

    def build(self, image_channels: int, device: torch.device | str = "cpu") -> "Identity":
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

    def decode(self, state: Tensor) -> Tensor:
        return to_uint8(state)

    def save(self, folder: Path) -> None:
        pass
