"""Codecs: images to a state and back. Latent diffusion is the `vae` codec, pixel diffusion `identity`.

A codec has `.channels` of its state, `.random`, `.layout(height, width)`, `.encode(images (B, C, H, W), uint8 or
float32 in [-1, 1], noise) -> state float32`, `.values(state) -> float32` and `.decode(state) -> uint8`. Adding one: a section with a `kind` literal and
`.build` and `.resolved` (itself with what is known of its files filled in), and its line below. Around either,
`PyramidCodec` makes states of several resolutions.
"""

from typing import Annotated

from ditkit.codecs.base import POSTERIOR, Codec, CodecSection
from ditkit.codecs.identity import IdentityConfig
from ditkit.codecs.pyramid import PyramidCodec
from ditkit.codecs.vae import Vae, VaeConfig
from ditkit.config import KindOf

CODECS: dict[str, CodecSection] = {"identity": IdentityConfig(), "vae": VaeConfig()}

CodecConfig = Annotated[CodecSection, KindOf(CODECS)]

__all__ = [
    "CODECS",
    "POSTERIOR",
    "Codec",
    "CodecConfig",
    "CodecSection",
    "IdentityConfig",
    "PyramidCodec",
    "Vae",
    "VaeConfig",
]
