"""The section of a convolutional U-Net; the network is `ditkit.backbones.unet`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ditkit.backbones.sections.base import WIDEST, BackboneSection, Count
from ditkit.nn.sizes import GROUPS

if TYPE_CHECKING:
    from ditkit.backbones.unet import UNet

Multipliers = Annotated[tuple[Count, ...], Field(min_length=1)]


class UNetConfig(BackboneSection):
    """A convolutional U-Net with skip connections and no attention."""

    kind: Literal["UNet"] = "UNet"
    width: Annotated[int, Field(ge=GROUPS, le=WIDEST, multiple_of=GROUPS)] = 64
    """Channels at full resolution."""
    multipliers: Multipliers = (1, 2, 2)
    """Channels of each level, in widths; every level has half the resolution of the one before."""
    depth: Count = 2
    """Residual blocks per level on the way down; one more on the way up."""
    time_scale: float = 1000.0
    """The network reads time_scale · t + time_shift, as DiT does."""
    time_shift: float = -1.0
    """See `time_scale`."""

    @property
    def patch_sizes(self) -> tuple[int, ...]:
        factor = 2 ** (len(self.multipliers) - 1)
        return factor, factor

    def build(
        self, *, channels: int, classes: int, out_channels: int | None = None, text_dim: int = 0
    ) -> UNet:
        """The network, freshly initialised. `classes` 0: unconditional; out_channels: as `channels`; text_dim: 0, it reads no
        text."""
        from ditkit.backbones.unet import UNet

        return UNet(self, channels, classes, out_channels or channels)
