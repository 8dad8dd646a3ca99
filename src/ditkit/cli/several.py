"""A command that torchrun has started in several processes: the first one prints, and what one process can do alone the
first one does."""

import logging
import os
import sys
from collections.abc import Sequence

SHARED = ("train", "sample", "eval", "compare", "encode", "study")
"""Verbs whose work the processes share."""


def one_of_several(arguments: Sequence[str]) -> bool:
    """Whether this process has something to do. One that is not the first prints nothing but an error of its own."""
    world, rank = (os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK"))
    if world in ("", "0", "1") or not rank:
        return True
    os.environ.setdefault(
        "TORCH_CPP_LOG_LEVEL", "ERROR"
    )  # or its notes on speed come from each; torch is imported later
    if rank == "0":
        return True
    if not arguments or arguments[0] not in SHARED:
        return False
    os.environ["TQDM_DISABLE"] = "1"  # its bars
    logging.getLogger().setLevel(logging.ERROR)
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # until the end
    return True


def is_said_elsewhere(error: BaseException) -> bool:
    """Whether another process says what went wrong: the command line is that of all, and so are its mistakes."""
    if "torch" not in sys.modules:
        return os.environ.get("RANK", "0") != "0" and os.environ.get("WORLD_SIZE", "1") != "1"
    from ditkit.processes import is_silent

    return is_silent(error)
