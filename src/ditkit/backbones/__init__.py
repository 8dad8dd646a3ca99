"""Whole networks by name: those of one resolution (plain.py), and with levels of others around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from ditkit.backbones.sections.base import BackboneSection
from ditkit.backbones.sections.dit import DiTConfig
from ditkit.backbones.sections.matryoshka import MDM_SIZES, MatryoshkaConfig, OuterLevel, matryoshka
from ditkit.backbones.sections.mdm import MDMConfig
from ditkit.backbones.sections.plain import PLAIN
from ditkit.backbones.sections.udit import UDiTConfig
from ditkit.backbones.sections.unet import UNetConfig
from ditkit.checks import whole_number
from ditkit.config import KindOf
from ditkit.errors import InputError, no_such
from ditkit.layout import Cond, packing
from ditkit.lazy import exported

if TYPE_CHECKING:
    from ditkit.backbones.base import Backbone
    from ditkit.backbones.compiling import compile_blocks, compiles
    from ditkit.backbones.dit import DiT
    from ditkit.backbones.lower_precision import sampled, with_bf16_weights
    from ditkit.backbones.mdm import MDM
    from ditkit.backbones.nested import Matryoshka
    from ditkit.backbones.udit import UDiT
    from ditkit.backbones.unet import UNet
else:
    __getattr__ = exported(__name__)

BACKBONES: dict[str, BackboneSection] = {
    **PLAIN,
    **MDM_SIZES,
    "Matryoshka": MatryoshkaConfig(),
}
"""By name. One of one's own is one more, a section whose `build` gives the network (`ditkit.register`)."""

BackboneConfig = Annotated[BackboneSection, KindOf(BACKBONES)]


def backbone(
    name: str,
    *,
    classes: int = 0,
    channels: int = 4,
    learned_variance: bool = False,
    text_dim: int = 0,
    **overrides,
) -> Backbone:
    """A freshly initialised network by its paper name, for instance "DiT-S/2".

    Args:
        name: a key of `BACKBONES`.
        classes: number of labels; 0 for an unconditional network.
        channels: channels of the state (4 behind Stable Diffusion's autoencoder, 3 or 1 for pixels); of several
            resolutions, those of each, which are packed (`ditkit.layout`).
        learned_variance: twice as many output channels, the second half for the variance (DiT).
        text_dim: channels of the text encoder for a network that takes a text (DiT's `text`, `text_pooled`; MDM).
        overrides: any field of the network's configuration, such as width=192 or depth=4.

    Raises:
        InputError: unknown name, field or value out of range.
    """
    config = configured(name, known=("classes", "channels", "learned_variance", "text_dim"), **overrides)
    for what, value, least in (("classes", classes, 0), ("channels", channels, 1), ("text_dim", text_dim, 0)):
        whole_number(value, what, least)
    packed = channels * sum(packing(config.ratios, config.frame_ratios))
    return build(config, packed, classes, 2 * packed if learned_variance else packed, text_dim)


def configured(name: str, known: Sequence[str] = (), **overrides) -> BackboneSection:
    """The configuration of that name with other fields; `known` are further names that a wrong one may be near to.
    InputError as of `backbone`."""
    config = check_name(name)
    for field in overrides:
        if field not in type(config).model_fields:
            raise no_such(name, field, [*type(config).model_fields, *known])
    return type(config).checked(config.model_dump() | overrides, name)


def check_name(name: str) -> BackboneSection:
    """The configuration of that name; InputError listing the names when there is none."""
    if name not in BACKBONES:
        raise InputError(f"unknown backbone {name!r}; choose one of: {', '.join(BACKBONES)}")
    return BACKBONES[name]


def build(
    config: BackboneConfig,
    channels: int,
    classes: int,
    out_channels: int,
    text_dim: int = 0,
    scalars: Sequence[str] = (),
) -> Backbone:
    """The network of a configuration, freshly initialised, which also reads `scalars` from cond. InputError for a text where
    it takes none."""
    shape = {"channels": channels, "classes": classes, "out_channels": out_channels}
    if text_dim:
        if not config.takes_text:
            raise InputError(f"a text encoder, but {config.cannot('text')}, or leave the text encoder out")
        shape["text_dim"] = text_dim
    net = config.build(**shape)
    if scalars:
        net.read_scalars(scalars)
    return net


__all__ = [
    "BACKBONES",
    "MDM",
    "Backbone",
    "BackboneConfig",
    "BackboneSection",
    "Cond",
    "DiT",
    "DiTConfig",
    "MDMConfig",
    "Matryoshka",
    "MatryoshkaConfig",
    "OuterLevel",
    "UDiT",
    "UDiTConfig",
    "UNet",
    "UNetConfig",
    "backbone",
    "build",
    "check_name",
    "compile_blocks",
    "compiles",
    "configured",
    "matryoshka",
    "sampled",
    "with_bf16_weights",
]
