"""The classes of faults, and how many cases each has."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from faults import bits, bombs, disks, environment, foreign, groups, inputs, kills, malice
from faults.tally import Tally
from faults.verbs import VERBS

Cases = Callable[[Path, int, int], Tally]
"""Called with the folder of what is made once, the number of cases, and the seed."""


INPUTS: dict[str, tuple[int, Cases]] = {
    "inputs: images": (1000, inputs.images),
    "inputs: videos": (200, inputs.videos),
    "inputs: arrays": (200, inputs.arrays),
    "inputs: official files": (200, inputs.official),
    "inputs: snapshots": (200, inputs.snapshots),
    "inputs: shards": (200, inputs.tars),
    "inputs: recipes": (500, inputs.recipes),
    "inputs: commands": (500, inputs.commands),
    "inputs: diffusers": (120, foreign.diffusers),
    "inputs: captions": (90, foreign.captions),
    "inputs: text encoders": (120, foreign.encoders),
    "inputs: feature networks": (100, foreign.features),
    "malice: code in files": (280, malice.pickles),
    "malice: archives": (50, malice.archives),
    "malice: declared sizes": (300, malice.sizes),
    "malice: compressed bombs": (48, bombs.bombs),
    "processes: ddp": (12, partial(groups.killed, "ddp")),
    "processes: fsdp": (12, partial(groups.killed, "fsdp")),
    "processes: torchrun": (6, groups.restarted),
    "environment: processes": (40, environment.settings),
    "environment: narrow": (90, environment.narrow),
    "environment: memory": (60, environment.memory),
    "environment: open files": (60, environment.open_files),
    "environment: clock": (40, environment.clock),
    "environment: workers": (30, environment.workers),
    "environment: two writers": (35, environment.writers),
    "environment: names": (100, environment.names),
}


def _classes() -> dict[str, tuple[int, Cases]]:
    found: dict[str, tuple[int, Cases]] = {}
    for name in VERBS:
        found[f"kills: {name}"] = (200 if name == "train" else 20, partial(kills.kill, name))
    for name in ("train", "train-codec"):
        found[f"signals: {name}"] = (20, partial(kills.stop, name))
    for name in VERBS:
        found[f"disks: {name}"] = (100 if name == "train" else 20, partial(disks.fail, name))
    for name in VERBS:
        found[f"full disk: {name}"] = (10, partial(disks.fill, name))
    for name in bits.READERS:
        found[f"bits: {name}"] = (120, partial(bits.damage, name))
    return found | INPUTS


CLASSES = _classes()
"""Number of cases and what runs them, by name."""
FEW = (
    "kills: train",
    "kills: sample",
    "signals: train",
    "disks: train",
    "full disk: train",
    "bits: run",
    "bits: snapshot",
    "inputs: images",
    "inputs: official files",
    "inputs: recipes",
    "inputs: commands",
    "malice: code in files",
    "malice: declared sizes",
    "environment: names",
    "environment: two writers",
)
"""The classes of the short campaign."""


def chosen(names: list[str]) -> list[str]:
    """The classes whose names begin so; all without any."""
    return [name for name in CLASSES if not names or any(name.startswith(begin) for begin in names)]
