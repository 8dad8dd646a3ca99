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

from faults.classes import CLASSES
from faults.verbs import make_once


def main() -> int:
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("classes", nargs="*", help=f"of: {', '.join(CLASSES)}; all when none is named")
    parser.add_argument("--share", type=float, default=1.0, help="of the cases of each class, at least one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the record to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    tallies, begin = [], time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ditkit-faults-") as folder:
        os.environ["DITKIT_CACHE"] = f"{folder}/cache"
        made = Path(folder) / "made"
        made.mkdir()
        make_once(made)
        print(
            f"{'class':28s}{'tried':>7s}{'survived':>10s}{'refused':>9s}{'lost':>6s}{'tracebacks':>12s}{'hangs':>7s}{'executed':>10s}"
        )
        for name in options.classes or CLASSES:
            for tally in CLASSES[name](made, options.share, options.seed):
                tallies.append(tally)
                print(
                    f"{tally.name:28s}{tally.tried:7d}{tally.survived:10d}{tally.refused:9d}{tally.lost:6d}"
                    f"{tally.tracebacks:12d}{tally.hangs:7d}{tally.executed:10d}",
                    flush=True,
                )
                for note in tally.notes[:20]:
                    print(f"    {note}", file=sys.stderr)
    print(
        f"{sum(tally.tried for tally in tallies):,} cases in {time.monotonic() - begin:.0f} s, seed {options.seed}"
    )
    if options.out:
        rows = [vars(tally) for tally in tallies]
        options.out.write_text(
            json.dumps({"seed": options.seed, "classes": rows}, indent=1), encoding="utf-8"
        )
    return 0 if all(tally.clean for tally in tallies) else 1


if __name__ == "__main__":
    sys.exit(main())
