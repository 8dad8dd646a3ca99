"""Which of several processes this is, by the environment that torchrun makes. Imports no torch."""

import os
from typing import NamedTuple

from ditkit.errors import InputError


class Place(NamedTuple):
    """A process among those that were started together."""

    rank: int = 0
    world: int = 1
    local: int = 0
    """The number of this one on its machine, which is the number of its GPU."""

    @property
    def several(self) -> bool:
        return self.world > 1

    @property
    def first(self) -> bool:
        """Whether this one writes and prints."""
        return self.rank == 0


def place() -> Place:
    """That of this process; one alone where no RANK is set. InputError for values that are none."""
    found = []
    for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")):
        text = os.environ.get(name, default)
        if not text.isdecimal():
            raise InputError(
                f"{name}={text} in the environment is no number; start the processes with torchrun"
            )
        found.append(int(text))
    here = Place(*found)
    if not here.several or "RANK" not in os.environ:
        return Place()
    if here.rank >= here.world:
        raise InputError(
            f"RANK={here.rank} with WORLD_SIZE={here.world} in the environment; start the processes with torchrun"
        )
    return here
