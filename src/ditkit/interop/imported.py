"""What every import ends in, and what all of them check: an `Imported` with its recipe, the fit of names.

official.py   the released DiT's and SiT's names
udit.py       the released U-DiT's names
mdm.py        the released MDM's names
diffusers.py  diffusers' names
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditkit.backbones import BackboneConfig, DiTConfig, UDiTConfig
from ditkit.codecs import CodecConfig, IdentityConfig, VaeConfig
from ditkit.data import Folder
from ditkit.errors import InputError
from ditkit.recipe import Recipe
from ditkit.sampling.config import SamplingConfig
from ditkit.transports import Transport

State = Mapping[str, Tensor]
LISTED = 6  # names of a kind in a message
LATENT_FACTOR = 8


@dataclass(frozen=True)
class Imported:
    """A model that was read from disk as ours: `weights` fit the recipe's backbone."""

    recipe: Recipe
    weights: dict[str, Tensor]
    record: dict[str, Any]


def with_parameters(modules: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """(theirs, ours) of modules to those of parameters: weight and bias; the label table has no bias."""
    return [
        (f"{theirs}.{parameter}", f"{ours}.{parameter}")
        for theirs, ours in modules
        for parameter in (("weight",) if ours == "label" else ("weight", "bias"))
    ]


def empty_state(
    config: DiTConfig | UDiTConfig, channels: int, classes: int, out_channels: int
) -> dict[str, Tensor]:
    """The network's state dict without numbers: names and shapes."""
    with torch.device("meta"):
        net = config.build(channels=channels, classes=classes, out_channels=out_channels)
    return net.state_dict()


def check_fit(origin: Path, found: State, expected: State) -> None:
    """InputError that lists the names which are missing, left over, or of another shape."""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    misshapen = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    problems = [
        f"{what}: {_listed(names)}"
        for what, names in (("missing", missing), ("not expected", extra), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise InputError(f"{origin}: these weights do not fit; {'; '.join(problems)}")


def shape_of(path: Path, state: State, name: str, dimensions: int) -> tuple[int, ...]:
    """A tensor's shape; InputError unless it has that many dimensions and none is empty."""
    shape = tuple(state[name].shape) if name in state else ()
    if len(shape) != dimensions or not all(shape):
        raise InputError(f"{path}: these weights do not fit; {name} is {shape or 'missing'}")
    return shape


def mlp_ratio(hidden: int, width: int) -> float:
    """The ratio of which `int(width * ratio)` is `hidden`, also where the quotient is rounded down."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _listed(names: list[str]) -> str:
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")


def imported_recipe(
    name: str,
    backbone: BackboneConfig,
    transport: Transport,
    *,
    classes: int,
    channels: int,
    side: int,
    codec: CodecConfig | None = None,
) -> Recipe:
    """The recipe of a network on a state of `channels` and `side`: pixels where 1 or 3, else latents.

    The data is a folder that is still to be named; steps and guidance are those of the papers.
    """
    pixels = channels in (1, 3)
    sampler = "ancestral" if transport.path == "ddpm" else "euler_maruyama"
    data = {"size": side if pixels else LATENT_FACTOR * side, "channels": channels if pixels else 3}
    sampling = {"sampler": sampler, "steps": 250, "guidance": 1.5}
    return Recipe(
        name=name,
        data=Folder.checked({**data, "classes": classes}, name),
        codec=codec or (IdentityConfig() if pixels else VaeConfig(channels=channels)),
        backbone=backbone,
        transport=transport,
        sample=SamplingConfig.checked(sampling, name),
    )
