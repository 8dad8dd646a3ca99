"""Codecs: images to a state and back. Latent diffusion is the `vae` codec, pixel diffusion `identity`.

A codec has `.channels` of its state, `.random`, `.layout(height, width)`, `.encode(images uint8 (B, C, H, W),
noise) -> state float32` and `.decode(state) -> uint8`. Adding one: a section with a `kind` literal and
`.build` and `.resolved` (itself with what is known of its files filled in), and its line below.
"""

from typing import Annotated, Protocol

from pydantic import Field
from torch import Tensor

from ditkit.codecs.identity import IdentityConfig
from ditkit.codecs.vae import Vae, VaeConfig
from ditkit.layout import Layout


class Codec(Protocol):
    """What the rest of the library needs of a codec."""

    channels: int
    random: bool
    """Whether encoding draws noise."""

    def layout(self, height: int, width: int) -> Layout:
        """How the state of an image of that size is made."""

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """uint8 (B, C, H, W) to a state (B, *S); `noise` of the state's shape where encoding is random."""

    def decode(self, state: Tensor) -> Tensor:
        """A state to images uint8 (B, C, H, W)."""


CodecConfig = Annotated[IdentityConfig | VaeConfig, Field(discriminator="kind")]

CODECS: dict[str, IdentityConfig | VaeConfig] = {"identity": IdentityConfig(), "vae": VaeConfig()}

__all__ = ["CODECS", "Codec", "CodecConfig", "IdentityConfig", "Vae", "VaeConfig"]
