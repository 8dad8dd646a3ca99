"""The section of Matryoshka Diffusion's U-Net; the network is `ditkit.backbones.mdm`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from ditkit.backbones.sections.base import MOST, WIDEST, Ability, BackboneSection, Count
from ditkit.nn.sizes import MDM_GROUPS

if TYPE_CHECKING:
    from ditkit.backbones.mdm import MDM

Width = Annotated[int, Field(ge=MDM_GROUPS, le=WIDEST, multiple_of=MDM_GROUPS)]
Layers = Annotated[int, Field(ge=0, le=MOST)]


class MDMConfig(BackboneSection):
    """Matryoshka Diffusion's U-Net for one resolution; the released sizes have names (`ditkit list backbones`)."""

    kind: Literal["MDM"] = "MDM"
    widths: Annotated[tuple[Width, ...], Field(min_length=1)] = (64, 128)
    """Channels at full resolution, at half of it, and so on."""
    depth: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 1)
    """Residual blocks of each resolution on the way down; one more on the way up."""
    attention: tuple[Layers, ...] = (0, 1)
    """Attention layers after each of these blocks, for each resolution."""
    scale: Count | None = None
    """Image size in pixels up to which the network is conditioned on the original's; without it, it is not."""
    heads: Count = 8
    """Attention heads, as many in every layer."""
    condition_width: Annotated[int, Field(ge=8, le=WIDEST, multiple_of=8)] = 256
    """Channels of what time, label, text and scale become; the released networks have four times their first width."""
    text_width: Count = 256
    """Channels of the words, whatever the text encoder's are."""
    masked: bool = False
    """Whether attention leaves out padding. The released networks attend to it, so that padding changes them."""

    @model_validator(mode="after")
    def _one_entry_per_resolution(self) -> MDMConfig:
        counts = (len(self.widths), len(self.depth), len(self.attention))
        if len(set(counts)) > 1:
            raise ValueError(
                f"widths, depth and attention have {counts[0]}, {counts[1]} and {counts[2]} entries; give one of "
                "each per resolution"
            )
        return self

    def cannot(self, ability: Ability) -> str:
        return "" if ability == "text" else super().cannot(ability)

    @property
    def patch_sizes(self) -> tuple[int, ...]:
        factor = 2 ** (len(self.widths) - 1)
        return factor, factor

    def build(
        self, *, channels: int, classes: int, out_channels: int | None = None, text_dim: int = 0
    ) -> MDM:
        """The network, freshly initialised. `classes` 0: no label; out_channels: as `channels`; text_dim: channels of
        the text encoder, 0 without."""
        from ditkit.backbones.mdm import MDM

        return MDM(self, channels, classes, out_channels or channels, text_dim)


MDM_64 = MDMConfig(
    widths=(256, 512, 768),
    depth=(2, 2, 2),
    attention=(0, 1, 5),
    scale=64,
    condition_width=1024,
    text_width=2048,
)
