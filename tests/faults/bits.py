"""Bits: every file of a run, a snapshot, a cache, statistics and reports is flipped, cut, emptied, removed, or, where it
is JSON, holds other types. What reads it gives the undisturbed result, or refuses; never, in silence, another."""

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from faults.commands import Watched, run
from faults.contents import contents, difference
from faults.foreign import captioned, text_flags
from faults.tally import Tally
from faults.verbs import QUICK, TINY, TRAIN, a_codec, a_run, command, fresh

SHORT = [*TINY, "--train.images", 64, "--train.preview-images", 0, "--train.validate-images", 0]


class Reader(NamedTuple):
    """Something that is read: a copy of a folder is damaged, a command reads it, its result is looked at."""

    source: Callable[[Path], Path]
    """The whole folder, made from the folder of what is made once."""
    argv: Callable[[Path, Path], list[object]]
    """The command, made from that folder and the damaged copy."""
    result: Callable[[Path], dict[str, str]]
    """What it leaves in the folder of results."""


def midway(made: Path) -> Path:
    """A training that was killed after 128 of its 320 images, two checkpoints behind it."""
    kept = made / "midway"
    if not kept.exists():
        out = fresh(made)

        def at_third(event: str, path: str) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        watched = Watched(out / "run" / "checkpoints" / "000000000192.unfinished", 1, at_third)
        run(command("train", made, out), inside=watched)
        shutil.copytree(out / "run", kept)
    return kept


def snapshot(made: Path) -> Path:
    kept = made / "snapshot"
    if not kept.exists():
        assert run(["convert", a_run(made), "--out", kept]).status == 0
    return kept


def latents(made: Path) -> Path:
    kept = made / "latents"
    if not kept.exists():
        out = fresh(made)
        assert run(command("encode", made, out)).status == 0
        shutil.copytree(out / "latents", kept)
    return kept


def statistics(made: Path) -> Path:
    kept = made / "statistics"
    if not kept.exists():
        kept.mkdir()
        ended = run(["reference", "digits", "--out", kept / "digits.npz", "--device", "cpu"])
        assert ended.status == 0, ended.err
    return kept


def text(made: Path) -> Path:
    """The embeddings of some captions, as a run keeps them."""
    kept = made / "text"
    if not kept.exists():
        rows = captioned(made / "captioned")
        lines = "\n".join(json.dumps(row) for row in rows)
        (made / "captioned" / "metadata.jsonl").write_text(lines, encoding="utf-8")
        out = fresh(made)
        ended = run(_with_texts(made, out / "text", out))
        assert ended.status == 0, ended.err
        shutil.copytree(out / "text", kept)
    return kept


def _with_texts(made: Path, texts: Path, out: Path) -> list[object]:
    flags = text_flags(made, made / "captioned")
    return ["train", "emoji-t2i", *flags, *SHORT, "--train.texts", texts, "--out", out / "run"]


def prepared(made: Path) -> Path:
    """The cache of prepared images."""
    kept = made / "prepared"
    if not kept.exists():
        out = fresh(made)
        assert run(_seen(made, out / "cache", out)).status == 0
        shutil.copytree(out / "cache", kept)
    return kept


def _seen(made: Path, cache: Path, out: Path) -> list[object]:
    data = ["--data", made / "images", "--data.size", 8, "--data.channels", 1, "--data.cache", cache]
    return ["train", "digits", *data, *SHORT, "--out", out / "run"]


def _weights(out: Path) -> dict[str, str]:
    found = contents(out / "run")
    return {name: value for name, value in found.items() if name.endswith(".safetensors")}


def _all(out: Path) -> dict[str, str]:
    return {
        name: value for name, value in contents(out / "read").items() if not name.endswith("samples.json")
    }


def _report(out: Path) -> dict[str, str]:
    report = json.loads((out / "eval" / "report.json").read_text(encoding="utf-8"))
    return {"frechet": repr([scores.get("frechet") for scores in report["scores"]])}


READERS = {
    "run": Reader(midway, lambda made, copy: ["train", "digits", *TRAIN, "--out", copy], _weights),
    "snapshot": Reader(
        snapshot,
        lambda made, copy: [
            "sample",
            copy,
            "--n",
            4,
            *QUICK,
            "--npz",
            "--out",
            copy.parent / "read",
            "--device",
            "cpu",
        ],
        _all,
    ),
    "latents": Reader(
        latents,
        lambda made, copy: [
            *(
                "train",
                "digits",
                *TRAIN,
                "--codec",
                "vae",
                "--codec.id",
                a_codec(made),
                "--backbone.patch",
                1,
            ),
            *(
                "--train.latents",
                copy,
                "--train.images",
                96,
                "--train.validate-images",
                0,
                "--train.preview-images",
                0,
            ),
            *("--out", copy.parent / "run"),
        ],
        _weights,
    ),
    "statistics": Reader(
        statistics,
        lambda made, copy: [
            *("eval", "digits", "--n", 32, *QUICK, "--reference", copy / "digits.npz"),
            *("--out", copy.parent / "eval", "--device", "cpu"),
        ],
        _report,
    ),
    "text": Reader(text, lambda made, copy: _with_texts(made, copy, copy.parent), _weights),
    "prepared images": Reader(prepared, lambda made, copy: _seen(made, copy, copy.parent), _weights),
}


def damage(name: str, made: Path, count: int, seed: int) -> Tally:
    """`count` damaged copies of what a reader reads."""
    tally = Tally(f"bits: {name}")
    draw = random.Random(f"{seed} {name} bits")
    reader = READERS[name]
    source = reader.source(made)
    whole, expected = _read(reader, made, source, None, draw)
    assert whole.status == 0, whole.err
    files = sorted(
        file for file in source.rglob("*") if file.is_file() and file.suffix not in (".png", ".lock")
    )
    cases = [(file, way) for way in WAYS for file in files if way in JSON_WAYS or not way.startswith("json")]
    draw.shuffle(cases)
    for number in range(count):
        file, way = cases[number % len(cases)]
        what = f"seed {seed}, case {number}, {file.relative_to(source)} {way}"
        with tally.case(what) as case:
            ended, found = _read(reader, made, source, (file, way), draw)
            case.saw(ended)
            wrong = (
                difference(found, expected)
                if ended.status == 0
                else f"status {ended.status}: {ended.err[-300:]}"
            )
            case.judge(wrong, refused=ended.refused)
    return tally


def _read(reader: Reader, made: Path, source: Path, hurt: tuple[Path, str] | None, draw: random.Random):
    out = fresh(made)
    copy = out / "run" if reader.result is _weights and source.name == "midway" else out / "copy"
    shutil.copytree(source, copy)
    if hurt is not None:
        file, way = hurt
        _hurt(copy / file.relative_to(source), way, draw)
    ended = run(reader.argv(made, copy))
    return ended, reader.result(out) if ended.status == 0 else {}


JSON_WAYS = ("json list", "json null", "json number", "json deep", "json of another value")
WAYS = ("a bit flipped", "cut", "emptied", "removed", "zeros at the end", *JSON_WAYS)


def _hurt(file: Path, way: str, draw: random.Random) -> None:
    data = file.read_bytes()
    if way == "a bit flipped" and data:
        at = draw.randrange(len(data))
        file.write_bytes(data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :])
    elif way == "cut":
        file.write_bytes(data[: draw.randrange(len(data) + 1)])
    elif way == "emptied":
        file.write_bytes(b"")
    elif way == "removed":
        file.unlink()
    elif way == "zeros at the end":
        file.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    elif file.suffix == ".json":
        file.write_text(_other_json(data, way, draw), encoding="utf-8")
    else:
        file.write_bytes(data[::-1])


def _other_json(data: bytes, way: str, draw: random.Random) -> str:
    if way != "json of another value":
        return {
            "json list": "[]",
            "json null": "null",
            "json number": "7",
            "json deep": "[" * 50_000 + "]" * 50_000,
        }[way]
    values = json.loads(data)
    places = list(_places(values))
    where, key = draw.choice(places)
    where[key] = draw.choice([None, [], {}, "x", -1, 10**9, 1.5, True])
    return json.dumps(values)


def _places(values) -> Iterator[tuple]:
    for key in values if isinstance(values, dict) else range(len(values)):
        yield values, key
        if isinstance(values[key], dict | list):
            yield from _places(values[key])
