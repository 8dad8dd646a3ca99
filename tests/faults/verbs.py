"""The commands that are disturbed: each small, deterministic, and resumed by giving it again."""

import importlib
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_digits

import ditkit.cli
from ditkit.recipes import recipe
from ditkit.studies import scaling
from ditkit.studies.cells import Cell, Point
from faults.commands import run
from faults.contents import contents

QUICK = ["--sampler", "ab2", "--steps", 2]

LAZY = (
    "diffusers.models.autoencoders.autoencoder_kl ditkit.codecs.vae "
    "ditkit.evaluation.networks.classifier ditkit.pipeline ditkit.scoring ditkit.training "
    "ditkit.training.codec matplotlib.backends.backend_agg matplotlib.pyplot torch._dynamo"
).split()

TINY = (
    "--backbone.width 16 --backbone.depth 1 --backbone.heads 2 --train.batch 32 --train.log-images "
    "64 --train.preview-images 160 --train.compile off --device cpu"
).split()
TRAIN = [
    *TINY,
    *["--train.images", "320", "--train.checkpoint-images", "64", "--train.validate-images", "160"],
]


def _train(made: Path, out: Path) -> list[object]:
    return ["train", "digits", *TRAIN, "--out", out / "run"]


def _train_images(made: Path, out: Path) -> list[object]:
    return [
        *("train", "digits", *TINY, *"--train.images 64 --train.checkpoint-images 64".split()),
        *(
            "--data",
            made / "images",
            *"--data.size 8 --data.channels 1".split(),
            "--data.cache",
            out / "cache",
        ),
        *("--out", out / "run"),
    ]


def _encode(made: Path, out: Path) -> list[object]:
    return ["encode", "digits", *_latent(made), "--shard", 256, "--out", out / "latents", "--device", "cpu"]


def _latent(made: Path) -> list[object]:
    return ["--codec", "vae", "--codec.id", a_codec(made), "--backbone.patch", 1]


def _train_codec(made: Path, out: Path) -> list[object]:
    return ["train-codec", "digits", *CODEC, "--out", out / "codec"]


CODEC = (
    "--codec.widths 8 8 --train.images 256 --train.batch 32 --train.checkpoint-images 64 "
    "--train.log-images 64 --n 64 --device cpu"
).split()


def _sample(made: Path, out: Path) -> list[object]:
    return [*"sample digits --n 24 --batch 4 --png --device cpu".split(), *QUICK, "--out", out / "samples"]


def _eval(made: Path, out: Path) -> list[object]:
    return [*"eval digits --n 64 --batch 32 --replace --device cpu".split(), *QUICK, "--out", out / "eval"]


def _compare(made: Path, out: Path) -> list[object]:
    return ["compare", "digits", "digits-dit", "--n", 50, *QUICK, "--out", out / "compare", "--device", "cpu"]


def _convert(made: Path, out: Path) -> list[object]:
    return ["convert", a_run(made), "--out", out / "snapshot", "--replace"]


def _study(made: Path, out: Path) -> list[object]:
    return [
        *"study scaling --device cpu --compile off".split(),
        *("--out", out / "study", "--runs", out / "runs"),
    ]


def _cells() -> dict[str, Cell]:
    """A study of two small trainings in place of the ten large ones."""
    train = {"images": 64, "batch": 32, "preview_images": 0, "validate_images": 0, "checkpoint_images": 32}
    small = recipe("digits").replace(backbone={"width": 16, "depth": 1, "heads": 2}, train=train)
    points = tuple(Point(images=images, sampler="ab2", steps=2, n=20) for images in (32, 64))
    return {"a": Cell(small, points), "b": Cell(small.replace(train={"seed": 1}), points[1:])}


VERBS: dict[str, Callable[[Path, Path], list[object]]] = {
    "train": _train,
    "train on images": _train_images,
    "encode": _encode,
    "train-codec": _train_codec,
    "sample": _sample,
    "eval": _eval,
    "compare": _compare,
    "convert": _convert,
    "study": _study,
}


def import_all() -> None:
    """What the verbs import when they run: children that are forked later have it. Curves are not drawn, which would take
    most of the time and is matplotlib's; their files are written."""
    Figure.savefig = _write_blank
    scaling.cells = _cells
    scaling.report = lambda results, out: "\n".join(sorted(results))
    for name in (*LAZY, *(f"ditkit.cli.{module}" for module, _ in ditkit.cli.VERBS.values())):
        importlib.import_module(name)


def _write_blank(figure: Figure, file: Any, **_: Any) -> None:
    Image.new("L", (4, 4)).save(file, "PNG")


def make_images(folder: Path) -> None:
    """A folder of small images in classes."""
    import_all()
    digits = load_digits()
    for number in range(120):
        file = folder / "images" / str(digits.target[number]) / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[number] * 15.9).astype(np.uint8)).save(file)


@cache
def a_run(made: Path) -> Path:
    """A finished training."""
    return _made(made / "a-run", ["train", "digits", *TRAIN])


@cache
def a_codec(made: Path) -> Path:
    """A trained autoencoder."""
    return _made(made / "a-codec", ["train-codec", "digits", *CODEC])


def _made(folder: Path, argv: list[object]) -> Path:
    ended = run([*argv, "--out", folder])
    assert ended.status == 0, ended.err
    return folder


def command(name: str, made: Path, out: Path) -> list[object]:
    return VERBS[name](made, out)


def results(name: str, out: Path) -> dict[str, str]:
    return contents(out)


@cache
def undisturbed(name: str, made: Path) -> dict[str, str]:
    """What the verb leaves when nothing happens. It always gets the folder made/out, whose path some results name."""
    out = fresh(made)
    ended = run(command(name, made, out))
    assert ended.status == 0, ended.err
    return results(name, out)


def fresh(made: Path) -> Path:
    """The folder of results, empty."""
    out = made / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return out
