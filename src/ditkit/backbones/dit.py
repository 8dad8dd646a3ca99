"""DiT: a plain transformer over image patches (Peebles & Xie, "Scalable Diffusion Models with
Transformers", ICCV 2023). SiT (Ma et al., 2024) is the same network reading another clock.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ditkit.backbones.base import Backbone
from ditkit.config import Section
from ditkit.nn.blocks import CONDITIONINGS
from ditkit.nn.embeddings import LabelEmbedding, TimeEmbedding, sincos_positions
from ditkit.nn.patches import PatchEmbed, unpatchify


class DiTConfig(Section):
    """A DiT of any size; the paper's sizes have names (`ditkit list backbones`)."""

    kind: Literal["DiT"] = "DiT"
    width: Annotated[int, Field(ge=4, multiple_of=4)] = 384
    """Channels of a token; divisible by 4 (positions) and by the heads."""
    depth: Annotated[int, Field(ge=1)] = 12
    """Number of blocks."""
    heads: Annotated[int, Field(ge=1)] = 6
    """Attention heads per block."""
    patch: Annotated[int, Field(ge=1)] = 2
    """Side of a patch in pixels of the state (latent pixels behind an autoencoder)."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    """Width of the hidden layer of each MLP, relative to the token."""
    conditioning: Literal["adaln_zero", "adaln", "cross_attention", "in_context"] = "adaln_zero"
    """How blocks learn of time and label (`ditkit list conditionings`)."""
    time_scale: float = 1000.0
    """The network reads time_scale · t + time_shift: 1000 · t - 1 is DiT's index, 1 - t is SiT's clock."""
    time_shift: float = -1.0
    """See time_scale."""
    time_period: Annotated[float, Field(gt=1)] = 10_000.0
    """The time's frequencies are time_period^(-i/128); the released DiT's and SiT's."""

    def build(self, *, channels: int, classes: int, out_channels: int | None = None) -> "DiT":
        """The network, freshly initialised. `classes` 0: unconditional; out_channels: as `channels`."""
        return DiT(self, channels, classes, out_channels or channels)


class DiT(Backbone):
    """(x (B, C, H, W), t (B,) or per token (B, L), cond) -> (B, C', H, W); H, W multiples of the patch.

    A time per token needs one of the adaptive conditionings.
    """

    def __init__(self, config: DiTConfig, channels: int, classes: int, out_channels: int):
        width, patch = config.width, config.patch
        super().__init__()
        self.classes = classes
        self.patches = PatchEmbed(channels, patch, width)
        self.time = TimeEmbedding(width, config.time_scale, config.time_shift, config.time_period)
        self.label = LabelEmbedding(classes, width) if classes else None
        self.conditioning = CONDITIONINGS[config.conditioning]
        self.blocks = nn.ModuleList(
            self.conditioning.block(width, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.final = self.conditioning.head(width, patch * patch * out_channels)

    def told(self, time: Tensor, label: Tensor | None) -> Tensor:
        return self.conditioning.told(time, label)

    def embed(self, x: Tensor) -> Tensor:
        """Tokens (B, L, D) with their positions."""
        positions = sincos_positions(*self.patches.grid(*x.shape[2:]), self.patches.proj.out_channels)
        return self.patches(x) + positions.to(x.device)

    def body(self, h: Tensor, c: Tensor) -> Tensor:
        h = self.conditioning.enter(h, c)
        for block in self.blocks:
            h = block(h, c)
        return self.conditioning.leave(h, c)

    def head(self, h: Tensor, c: Tensor, size: torch.Size) -> Tensor:
        return unpatchify(self.final(h, c), self.patches.grid(*size), self.patches.patch)

    def check_size(self, height: int, width: int) -> None:
        self.patches.grid(height, width)


def _paper_sizes(prefix: str, time_scale: float, time_shift: float) -> dict[str, DiTConfig]:
    sizes: dict[str, Sequence[int]] = {
        "S": (384, 12, 6),
        "B": (768, 12, 12),
        "L": (1024, 24, 16),
        "XL": (1152, 28, 16),
    }
    return {
        f"{prefix}-{size}/{patch}": DiTConfig(
            width=width, depth=depth, heads=heads, patch=patch, time_scale=time_scale, time_shift=time_shift
        )
        for size, (width, depth, heads) in sizes.items()
        for patch in (2, 4, 8)
    }


DIT_SIZES = _paper_sizes("DiT", 1000.0, -1.0)
SIT_SIZES = _paper_sizes("SiT", -1.0, 1.0)
