"""The classes of faults, and how many cases each has."""

from collections.abc import Callable, Iterator
from pathlib import Path

from faults import kills
from faults.tally import Tally
from faults.verbs import VERBS

Class = Callable[[Path, float, int], Iterator[Tally]]
"""Called with the folder of what is made once, the share of the cases, and the seed."""


def _of(count: int, share: float) -> int:
    return max(1, round(count * share))


def _kills(made: Path, share: float, seed: int) -> Iterator[Tally]:
    for name in VERBS:
        yield kills.kill(name, made, _of(200 if name == "train" else 20, share), seed)


def _signals(made: Path, share: float, seed: int) -> Iterator[Tally]:
    for name in ("train", "train-codec"):
        yield kills.stop(name, made, _of(20, share), seed)


CLASSES: dict[str, Class] = {"kills": _kills, "signals": _signals}
