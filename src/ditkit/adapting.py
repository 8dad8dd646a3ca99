"""What of a network is trained: parameters frozen by name, and low-rank additions to its layers (`train.freeze`,
`train.unfreeze`, `train.lora`).

`adapt` is called once, before anything is made of the parameters: the optimiser, averages, shards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from ditkit.backbones import Backbone
from ditkit.errors import InputError
from ditkit.first_values import Recorder, fill
from ditkit.nn.low_rank import LowRank, is_addition

if TYPE_CHECKING:
    from ditkit.recipe import TrainConfig

SHOWN = 4  # names in a message


def adapt(net: Backbone, config: TrainConfig) -> Backbone:
    """Freeze what is not trained and add what is, in place; the network.

    InputError where a name matches nothing, or nothing would be trained.
    """
    own = [name for name, _ in net.named_parameters()]
    if config.lora:
        _add(net, config)
    _check_patterns("train.freeze", config.freeze, own)
    _check_patterns("train.unfreeze", config.unfreeze, own)
    frozen = ("*",) if config.lora else config.freeze
    for name, parameter in net.named_parameters():
        if _matches(name, frozen) and not _matches(name, config.unfreeze) and not is_addition(name):
            parameter.requires_grad_(False)
    if config.freeze_inner:
        net.get_submodule("inner").requires_grad_(False)
    if not any(parameter.requires_grad for parameter in net.parameters()):
        raise InputError(
            f"train.freeze {' '.join(config.freeze)} freezes every parameter; leave some out of it, or name them in "
            "train.unfreeze"
        )
    return net


def frozen_names(net: nn.Module) -> list[str]:
    """The parameters that are not trained."""
    return [name for name, parameter in net.named_parameters() if not parameter.requires_grad]


def _add(net: Backbone, config: TrainConfig) -> None:
    """Replace the linear layers in blocks' parts of those names. InputError where there are none, or none is so wide."""
    layers = list(_linears(net))
    wanted = [linear for linear in layers if linear.parts & {*config.lora_on}]
    there = {part for linear in layers for part in linear.parts}
    if missing := [part for part in config.lora_on if part not in there]:
        raise InputError(
            f"train.lora_on {missing[0]}: no linear layer of this network's blocks is in a part of that name; there are "
            f"{', '.join(sorted(there)) or 'none'}"
        )
    narrowest = min(min(linear.layer.weight.shape) for linear in wanted)
    if config.lora > narrowest:
        raise InputError(
            f"train.lora {config.lora} is more than the narrowest of these layers, {narrowest}; give a smaller rank"
        )
    with Recorder() as recorder:
        for linear in wanted:
            net.set_submodule(linear.name, LowRank(linear.layer, config.lora, config.lora_scale))
    for name, parameter in net.named_parameters():
        if is_addition(name) and not parameter.is_meta:
            fill(parameter, recorder.writes(parameter), config.seed, name)


class _Linear(NamedTuple):
    name: str
    parts: set[str]
    """The names that lead to it from its block on, without numbers."""
    layer: nn.Linear


def _linears(net: Backbone) -> Iterator[_Linear]:
    """The linear layers of the blocks."""
    repeated = {id(module) for module in net.repeated}
    blocks = [f"{name}." for name, module in net.named_modules() if id(module) in repeated]
    for name, module in net.named_modules():
        block = next((block for block in blocks if name.startswith(block)), None)
        if block is not None and isinstance(module, nn.Linear):
            path = name.removeprefix(block).split(".")
            yield _Linear(name, {part for part in path if not part.isdecimal()}, module)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_patterns(field: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    """InputError where a pattern matches no parameter."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(
                f"{field} {pattern} is the name of no parameter; there are {', '.join(_examples(names))}, ..., and * stands "
                "for any text"
            )


def _examples(names: Sequence[str]) -> list[str]:
    """Some names, of different parts of the network."""
    firsts = {name.partition(".")[0]: name for name in reversed(names)}
    return list(firsts.values())[::-1][:SHOWN]
