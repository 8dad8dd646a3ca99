"""A command that torchrun has started in several processes: the first one prints, and what one process can do alone the
first one does."""

import logging
import os
import sys
from collections.abc import Sequence

from ditkit.environment import place
from ditkit.errors import InputError

log = logging.getLogger(__name__)

SHARED = ("train", "sample", "eval", "compare", "encode", "study")
"""Verbs whose work the processes share."""


def one_of_several(arguments: Sequence[str]) -> bool:
    """Whether this process has something to do. One that is not the first prints nothing but an error of its own."""
    here = place()
    if here.several:  # or each has torch's notes; it is imported later
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if here.first:
        return True
    if not arguments or arguments[0] not in SHARED:
        log.info(f"process {here.rank} of {here.world} (RANK is set): the first one does this alone")
        return False
    logging.getLogger().setLevel(logging.ERROR)
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # until the end
    return True


def is_reported_elsewhere(error: BaseException) -> bool:
    """Whether another process prints what went wrong."""
    if "ditkit.processes" in sys.modules:
        from ditkit.processes import is_silent

        return is_silent(error)
    try:
        return not place().first  # the command line is that of all, and so are its mistakes
    except InputError:
        return False
