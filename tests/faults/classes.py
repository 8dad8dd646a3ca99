"""The classes of faults, and how many cases each has."""

from collections.abc import Callable, Iterator
from pathlib import Path

from faults import bits, disks, kills
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


def _disks(made: Path, share: float, seed: int) -> Iterator[Tally]:
    for name in VERBS:
        yield disks.fail(name, made, _of(100 if name == "train" else 20, share), seed)
    for name in VERBS:
        yield disks.fill(name, made, _of(10, share), seed)


def _bits(made: Path, share: float, seed: int) -> Iterator[Tally]:
    for name in bits.READERS:
        yield bits.damage(name, made, _of(120, share), seed)


CLASSES: dict[str, Class] = {"kills": _kills, "signals": _signals, "disks": _disks, "bits": _bits}
