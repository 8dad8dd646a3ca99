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
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = list(FEW) if options.few else chosen(options.classes)
    share = 0.01 if options.few else options.share
    tallies, begin = [], time.monotonic()
    print(f"{'class':28s}" + "".join(f"{column:>11s}" for column in COLUMNS))
    with tempfile.TemporaryDirectory(prefix="ditkit-faults-") as folder:
        os.environ["DITKIT_CACHE"] = f"{folder}/cache"
        made = Path(folder) / "made"
        make_images(made)
        for name in names:
            count, cases = CLASSES[name]
            tallies.append(cases(made, max(1, round(count * share)), options.seed))
            _print(tallies[-1])
    print(
        f"{sum(tally.tried for tally in tallies):,} cases in {time.monotonic() - begin:.0f} s, seed {options.seed}"
    )
    if options.out:
        rows = [vars(tally) for tally in tallies]
        options.out.write_text(
            json.dumps({"seed": options.seed, "classes": rows}, indent=1), encoding="utf-8"
        )
    return 0 if all(tally.clean for tally in tallies) else 1


def _print(tally: Tally) -> None:
    print(f"{tally.name:28s}" + "".join(f"{getattr(tally, column):11d}" for column in COLUMNS), flush=True)
    for note in tally.notes[:20]:
        print(f"    {note}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
