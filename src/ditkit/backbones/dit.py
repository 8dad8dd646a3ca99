"""DiT: a plain transformer over image patches (Peebles & Xie, "Scalable Diffusion Models with
Transformers", ICCV 2023). SiT (Ma et al., 2024) is the same network reading another clock.

The network knows no diffusion: it maps (x, t, cond) to a tensor, and drops no conditions. What its
output means is the transport's affair.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ditkit.config import Section
from ditkit.errors import InputError
from ditkit.nn.blocks import CONDITIONINGS, AdaLNHead
from ditkit.nn.embeddings import LabelEmbedding, TimeEmbedding, sincos_positions
from ditkit.nn.patches import PatchEmbed, unpatchify

Cond = dict[str, Tensor]


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
    conditioning: Literal["adaln_zero"] = "adaln_zero"
    """How blocks learn of time and label."""
    time_scale: float = 1000.0
    """The network reads time_scale · t + time_shift: 1000 · t - 1 is DiT's index, 1 - t is SiT's clock."""
    time_shift: float = -1.0
    """See time_scale."""

    def build(self, *, channels: int, classes: int, out_channels: int | None = None) -> "DiT":
        """The network, freshly initialised. `classes` 0: unconditional; out_channels: as `channels`."""
        return DiT(self, channels, classes, out_channels or channels)


class DiT(nn.Module):
    """(x (B, C, H, W), t (B,) or per token (B, L), cond) -> (B, C', H, W); H, W multiples of the patch."""

    def __init__(self, config: DiTConfig, channels: int, classes: int, out_channels: int):
        super().__init__()
        width, patch = config.width, config.patch
        self.channels, self.classes, self.patch = channels, classes, patch
        self.patches = PatchEmbed(channels, patch, width)
        self.time = TimeEmbedding(width, config.time_scale, config.time_shift)
        self.label = LabelEmbedding(classes, width) if classes else None
        block = CONDITIONINGS[config.conditioning]
        self.blocks = nn.ModuleList(block(width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.final = AdaLNHead(width, patch * patch * out_channels)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        tokens, c = self.embed(x, t, cond)
        return self.head(self.body(tokens, c), c, self.patches.grid(*x.shape[-2:]))

    def embed(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, D) with their positions, and the condition (B, D) or (B, L, D)."""
        positions = sincos_positions(*self.patches.grid(*x.shape[-2:]), self.patches.proj.out_channels)
        tokens = self.patches(x) + positions.to(x.device)
        c = self.time(t)
        if self.label is not None:
            if cond is None or "label" not in cond:
                raise InputError(
                    f"this network has {self.classes} classes: give cond a 'label' of shape (B,)"
                )
            label = self.label(cond["label"])
            c = c + (label if c.ndim == 2 else label[:, None])
        return tokens, c

    def body(self, tokens: Tensor, c: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens, c)
        return tokens

    def head(self, tokens: Tensor, c: Tensor, grid: tuple[int, int]) -> Tensor:
        return unpatchify(self.final(tokens, c), grid, self.patch)

    def null(self, cond: Cond) -> Cond:
        """The same keys, every entry "unknown"."""
        return {key: torch.full_like(value, self.classes) for key, value in cond.items()}


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
