"""Several processes at one training: one of them killed, or all, at random moments and while shards are written; and
torchrun's own restart. The weights in the end must be those of a training that nobody disturbed, bit for bit."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import several

from ditkit.checkpoint import checked_state, read_part
from ditkit.files import tensors_hash
from ditkit.training.log import read_log
from faults.commands import Ended
from faults.tally import Tally

COUNT, LIMIT = 2, 240  # processes, and seconds that they may take
TRAIN = [
    "train", "digits", "--backbone.width", "24", "--backbone.depth", "2", "--backbone.heads", "2", "--train.batch", "10",
    "--train.images", "200", "--train.checkpoint-images", "10", "--train.log-images", "50", "--train.preview-images", "0",
    "--train.validate-images", "0", "--train.compile", "off", "--train.precision", "fp32", "--device", "cpu",
]  # fmt: skip


def killed(kind: str, made: Path, count: int, seed: int) -> Tally:
    """`count` trainings that are killed once, and begun again."""
    tally, draw = Tally(f"processes: {kind}"), random.Random(f"{seed} {kind}")
    out = made / f"processes-{kind}"
    expected = _finished(kind, _fresh(out))
    seconds = 60 * read_log(out / "run" / "log.jsonl")[-1]["minutes"]
    for number in range(count):
        _fresh(out)
        ranks = draw.choice(([0], [1], [0, 1]))
        writing = number % 2 == 1  # kill while a checkpoint is written, the k-th
        moment = draw.randint(1, 19) if writing else draw.random() * seconds
        what = (
            f"ranks {ranks}, {'in checkpoint' if writing else 'after'} {moment:.3g}{'' if writing else ' s'}"
        )
        with tally.case(f"seed {seed}, case {number}, {what}") as case:
            group = several.start(COUNT, "-m", "ditkit", *_command(kind, out))
            _wait(group, out, int(moment) if writing else 0)
            time.sleep(0 if writing else moment)
            for rank in ranks:
                group[rank].kill()
            for rank, ended in enumerate(_ended(group)):
                if rank not in ranks:
                    case.saw(ended)
            found = _finished(kind, out)
            case.judge("" if found == expected else f"{found} instead of {expected}")
    return tally


def restarted(made: Path, count: int, seed: int) -> Tally:
    """`count` trainings of torchrun, one of whose processes is killed; torchrun begins again by itself."""
    tally, draw = Tally("processes: torchrun"), random.Random(f"{seed} torchrun")
    out = made / "processes-torchrun"
    expected = _finished("ddp", _fresh(out))
    for number in range(count):
        _fresh(out)
        moment = draw.randint(1, 19)
        with tally.case(f"seed {seed}, case {number}, in checkpoint {moment}") as case:
            words = [
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc_per_node",
                str(COUNT),
                "--max-restarts",
                "3",
            ]
            whole = subprocess.Popen(
                [sys.executable, *words, "-m", "ditkit", *_command("ddp", out)],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            _wait([whole], out, moment)
            if workers := _children(whole.pid):
                os.kill(draw.choice(workers), signal.SIGKILL)
            (ended,) = _ended([whole])
            found = _weights(out) if ended.status == 0 else f"status {ended.status}: {ended.err[-300:]}"
            case.judge("" if found == expected else f"{found} instead of {expected}")
    return tally


def _command(kind: str, out: Path) -> list[str]:
    return [*TRAIN, "--train.parallel", kind, "--out", str(out / "run")]


def _fresh(out: Path) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    return out


def _wait(group: list[subprocess.Popen], out: Path, count: int) -> None:
    """Until the checkpoint of that number is being written, 0: until the training has begun, or a process has ended."""
    until = time.monotonic() + LIMIT
    folder = out / "run" / "checkpoints"
    while time.monotonic() < until and all(process.poll() is None for process in group):
        begun = (folder.parent / "recipe.json").exists() and not count
        if begun or any(int(path.name[:12]) >= 10 * count > 0 for path in folder.glob("[0-9]*")):
            return
        time.sleep(0.002)


def _children(number: int) -> list[int]:
    """The trainings that a process has started."""
    try:
        found = Path(f"/proc/{number}/task/{number}/children").read_text(encoding="utf-8").split()
        return [int(child) for child in found if b"ditkit" in Path(f"/proc/{child}/cmdline").read_bytes()]
    except OSError:
        return []


def _ended(group: list[subprocess.Popen]) -> list[Ended]:
    found, until = [], time.monotonic() + LIMIT
    for process in group:
        begin, status = time.monotonic(), None
        try:
            out, err = process.communicate(timeout=max(1.0, until - begin))
            status = process.returncode
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
        found.append(Ended(status, out, err, time.monotonic() - begin))
    return found


def _finished(kind: str, out: Path) -> str:
    """The weights of a training that is begun, or goes on, and ends; what went wrong in words."""
    for status, _, err in several.ended(several.start(COUNT, "-m", "ditkit", *_command(kind, out))):
        if status != 0:
            return f"status {status}: {err[-300:]}"
    return _weights(out)


def _weights(out: Path) -> str:
    path = sorted((out / "run" / "checkpoints").glob("[0-9]*"))[-1]
    state = checked_state(path, ("model", "ema", "optimizer"))
    hashes = (tensors_hash(read_part(path, state, part)) for part in ("model", "ema", "optimizer"))
    return f"{path.name} {' '.join(some[:12] for some in hashes)}"
