"""Compiling a network's blocks: how, and whether it pays.

Compiling begins with a first call of ten seconds to a minute on a CPU, once for each kind of block; a step then takes 0.6
to 0.9 of the time. Whether that pays is judged by multiply-adds, not by the clock: a compiled step rounds differently
from one that is not, and the same command has to choose the same every time.
"""

import logging

import torch

from ditkit.backbones.base import Backbone
from ditkit.device import Compile, check_compiler, no_compiler

log = logging.getLogger(__name__)

ENOUGH = {"cpu": 3e13, "cuda": 1e16}
"""Multiply-adds for each kind of block from which compiling saves at least twice what it costs. On a CPU as measured
(docs/log.md): minutes of one core. On a GPU an estimate, some minutes of a small one."""


def compile_blocks(net: Backbone) -> None:
    """Compile the blocks, once for all that are alike; weights keep their names.

    A block is compiled for any size at the second that it meets. Where blocks differ in width and resolution, as in
    a U, each kind is compiled for its own sizes, and again for a batch of another size.
    """
    kinds = _kinds(net)
    # By default the compiler gives up after 8 forms of one function. Each kind of block is one; so is attention over
    # space or over time, of one frame or more, in training or not.
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 16 * kinds)
    for block in net.repeated:
        block.compile(dynamic=False if kinds > 1 else None)


def compiles(
    choice: Compile,
    net: Backbone,
    device: torch.device,
    images: float,
    tokens: float,
    flag: str,
    before: bool | None = None,
) -> bool:
    """Whether to compile, as chosen; for auto the decision is logged in one line, with its reason.

    Args:
        images: that the network has still to work on.
        tokens: of each, all evaluations together; a training step is three.
        flag: the name of the setting, for the error.
        before: what was done in this run so far, which auto goes on with.

    Raises:
        InputError: it is to be on and cannot be.
    """
    if choice == "on":
        check_compiler(device, f"{flag} off")
    if choice != "auto":
        return choice == "on"
    if before is not None:
        chosen, why = before, "as this run began"
    elif device.type not in ENOUGH:
        chosen, why = False, f"nobody has measured yet whether it pays on {device.type}"
    else:
        enough = ENOUGH[device.type] * _kinds(net) / (tokens * _parameters(net))
        chosen, why = (
            images >= enough,
            f"{_rounded(images)} images are left, it pays from {_rounded(enough)} images",
        )
    if chosen and (problem := no_compiler(device)) is not None:
        chosen, why = False, problem
    log.info(f"{flag} auto: {'on' if chosen else 'off'}, {why}")
    if chosen:  # a block that the compiler fails on runs as it is: auto stops nothing
        torch._dynamo.config.suppress_errors = True
    return chosen


def _rounded(count: float) -> str:
    """To two digits."""
    return f"{float(f'{count:.2g}'):,.0f}"


def _kinds(net: Backbone) -> int:
    """How many kinds of blocks there are, by their matrices: a few numbers more make no other kind."""
    return len({tuple(p.shape for p in block.parameters() if p.ndim > 1) for block in net.blocks})


def _parameters(net: Backbone) -> int:
    """Counts the parameters of the parts that repeat: about the multiply-adds per token, more where a network has fewer tokens
    inside."""
    return sum(p.numel() for block in net.repeated for p in block.parameters())
