"""The section of a U-DiT; the network is `ditkit.backbones.udit`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ditkit.backbones.sections.base import WIDEST, BackboneSection, Count
from ditkit.config import OneOf
from ditkit.lazy import loaded
from ditkit.nn.registries import ATTENTIONS, Downsampler

if TYPE_CHECKING:
    from ditkit.backbones.udit import UDiT

HALVINGS = 2  # of the grid, on the way to the third stage


class UDiTConfig(BackboneSection):
    """A U-DiT of any size; the paper's sizes have names (`ditkit list backbones`)."""

    kind: Literal["U-DiT"] = "U-DiT"
    width: Annotated[int, Field(ge=4, le=WIDEST, multiple_of=4)] = 48
    """Channels at full resolution, twice as many after each halving; divisible by the heads."""
    depth: tuple[Count, Count, Count, Count, Count] = (2, 3, 4, 3, 2)
    """Blocks of each stage as the paper counts them: one is attention, MLP, attention, MLP."""
    heads: Count = 2
    """Attention heads, as many in every stage."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 2.0
    """Width of the hidden layer of each MLP, relative to the token."""
    attention: Annotated[str, OneOf(ATTENTIONS)] = "token"
    """What is downsampled: all tokens, keys and values, or nothing (the paper's DiT-UNet)."""
    downsampler: Downsampler = "depthwise_shortcut"
    """What precedes downsampling: a depthwise convolution beside a shortcut, alone, or nothing."""
    cosine: bool = True
    """Cosine attention: queries and keys of length 1, a learned scale."""
    rotary: bool = True
    """Rotary positions; without them only convolutions distinguish positions."""
    ffn: Literal["reparameterised", "depthwise", "basic"] = "reparameterised"
    """The MLP: with a depthwise convolution that is trained as several and fused, as one, or without."""
    time_scale: float = 1000.0
    """The network reads time_scale · t + time_shift, as DiT does."""
    time_shift: float = -1.0
    """See `time_scale`."""

    @property
    def patch_sizes(self) -> tuple[int, ...]:
        factor = 2 ** (HALVINGS + loaded(ATTENTIONS[self.attention]).halves)
        return factor, factor

    def build(
        self, *, channels: int, classes: int, out_channels: int | None = None, text_dim: int = 0
    ) -> UDiT:
        """The network, freshly initialised. `classes` 0: unconditional; out_channels: as `channels`; text_dim: 0, it reads no
        text."""
        from ditkit.backbones.udit import UDiT

        return UDiT(self, channels, classes, out_channels or channels)


UDIT_SIZES = {
    f"U-DiT-{size}": UDiTConfig(width=width, depth=(2, 5, 8, 5, 2), heads=heads)
    for size, (width, heads) in {"S": (96, 4), "B": (192, 8), "L": (384, 16)}.items()
}
