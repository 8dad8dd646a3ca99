"""`python -m faults.cost`: what a checkpoint's hashes and its way down to the disk cost, taken in turn with checkpoints that
have neither."""

import os
import tempfile
import time
from pathlib import Path
from statistics import median
from unittest import mock

import torch

from ditkit import checkpoint

SIZES = (
    1_000_000,
    10_000_000,
    100_000_000,
)  # parameters; a checkpoint holds them, their average and two moments
ROUNDS = 5


def main() -> None:
    print(f"{'parameters':>12s}{'file sizes':>12s}{'plain':>10s}{'hashed':>10s}{'synced':>10s}{'both':>10s}")
    with tempfile.TemporaryDirectory(prefix="ditkit-faults-") as folder:
        for size in SIZES:
            seconds = {name: [] for name in ("plain", "hashed", "synced", "both")}
            for _ in range(ROUNDS):
                for name, taken in seconds.items():
                    taken.append(
                        _save(
                            Path(folder),
                            size,
                            hashed=name in ("hashed", "both"),
                            synced=name in ("synced", "both"),
                        )
                    )
            cells = "".join(f"{median(taken):8.2f} s" for taken in seconds.values())
            print(f"{size:12,d}{size * 16 / 1e6:9.0f} MB{cells}")


def _save(folder: Path, size: int, *, hashed: bool, synced: bool) -> float:
    weights = {"weight": torch.zeros(size)}
    parts = {
        "model": weights,
        "ema": weights,
        "optimizer": {"a": weights["weight"], "b": weights["weight"].clone()},
    }
    with (
        mock.patch.object(checkpoint, "file_hash", checkpoint.file_hash if hashed else lambda _: ""),
        mock.patch.object(os, "fsync", os.fsync if synced else id),
    ):
        begin = time.perf_counter()
        checkpoint.save_checkpoint(folder, 1, parts, {}, 1)
        return time.perf_counter() - begin


if __name__ == "__main__":
    main()
