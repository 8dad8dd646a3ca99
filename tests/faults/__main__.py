"""`python -m faults`: the whole campaign, or the classes named; a table, and a record with every seed."""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")  # before torch is imported

import torch

from faults.classes import CLASSES, FEW, chosen
from faults.tally import Tally
from faults.verbs import make_images

COLUMNS = ("tried", "survived", "refused", "lost", "tracebacks", "hangs", "executed")


def main() -> int:
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("classes", nargs="*", help=f"or how their names begin: {', '.join(CLASSES)}")
    parser.add_argument("--share", type=float, default=1.0, help="of the cases of each class, at least one")
    parser.add_argument(
        "--few", action="store_true", help="a few cases of a few classes, in less than a minute"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out",
        type=Path,
        help="write the record to this JSON file, class by class; run again with it, it goes on",
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = list(FEW) if options.few else chosen(options.classes)
    share = 0.01 if options.few else options.share
    tallies, begin = recorded(options.out, options.seed, share), time.monotonic()
    print(f"{'class':28s}" + "".join(f"{column:>11s}" for column in COLUMNS))
    with tempfile.TemporaryDirectory(prefix="ditkit-faults-") as folder:
        os.environ["DITKIT_CACHE"] = f"{folder}/cache"
        made = Path(folder) / "made"
        make_images(made)
        for tally in tallies:
            _print(tally)
        for name in names:
            if name in {tally.name for tally in tallies}:
                continue
            count, cases = CLASSES[name]
            tallies.append(cases(made, max(1, round(count * share)), options.seed))
            _print(tallies[-1])
            if options.out:
                rows = [vars(tally) for tally in tallies]
                text = json.dumps({"seed": options.seed, "share": share, "classes": rows}, indent=1)
                options.out.write_text(text, encoding="utf-8")
    print(
        f"{sum(tally.tried for tally in tallies):,} cases in {time.monotonic() - begin:.0f} s, seed {options.seed}"
    )
    return 0 if all(tally.clean for tally in tallies) else 1


def recorded(file: Path | None, seed: int, share: float) -> list[Tally]:
    """The classes that a record holds of a campaign with that seed and share; a record of another is written over."""
    if file is None or not file.exists():
        return []
    found = json.loads(file.read_text(encoding="utf-8"))
    if (found["seed"], found.get("share")) != (seed, share):
        return []
    return [Tally(**row) for row in found["classes"]]


def _print(tally: Tally) -> None:
    print(f"{tally.name:28s}" + "".join(f"{getattr(tally, column):11d}" for column in COLUMNS), flush=True)
    for note in tally.notes[:20]:
        print(f"    {note}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
