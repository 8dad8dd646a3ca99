"""Whole networks by name. Adding one: a file with a configuration section, and its line below."""

import torch

from ditkit.backbones.dit import DIT_SIZES, SIT_SIZES, Cond, DiT, DiTConfig
from ditkit.device import check_compiler
from ditkit.errors import InputError

BackboneConfig = DiTConfig  # a union discriminated by `kind`, once there is a second kind
Backbone = DiT  # likewise: an nn.Module with blocks, embed, body, head and null

BACKBONES: dict[str, BackboneConfig] = {"DiT": DiTConfig(), **DIT_SIZES, **SIT_SIZES}


def backbone(
    name: str, *, classes: int = 0, channels: int = 4, learned_variance: bool = False, **overrides
) -> Backbone:
    """A freshly initialised network by its paper name, for instance "DiT-S/2".

    Args:
        name: a key of `BACKBONES`.
        classes: number of labels; 0 for an unconditional network.
        channels: channels of the state (4 behind Stable Diffusion's autoencoder, 3 or 1 for pixels).
        learned_variance: twice as many output channels, the second half for the variance (DiT).
        overrides: any field of the network's configuration, such as width=192 or depth=4.

    Raises:
        InputError: unknown name, field or value out of range.
    """
    if name not in BACKBONES:
        raise InputError(f"unknown backbone {name!r}; choose one of: {', '.join(BACKBONES)}")
    config = BACKBONES[name]
    unknown = set(overrides) - set(type(config).model_fields)
    if unknown:
        raise InputError(
            f"{name} has no field {sorted(unknown)}; it has: {', '.join(type(config).model_fields)}"
        )
    config = type(config).checked(config.model_dump() | overrides, name)
    return config.build(
        channels=channels, classes=classes, out_channels=2 * channels if learned_variance else channels
    )


def compile_blocks(net: Backbone, device: torch.device) -> None:
    """Compile the blocks, all of one kind, once for all of them; weights keep their names.

    InputError where a CPU has no C++ compiler.
    """
    check_compiler(device)
    for block in net.blocks:
        block.compile()


__all__ = [
    "BACKBONES",
    "Backbone",
    "BackboneConfig",
    "Cond",
    "DiT",
    "DiTConfig",
    "backbone",
    "compile_blocks",
]
