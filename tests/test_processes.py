"""Several processes at one training give what one gives: weights, log, checkpoints; stops; what is refused."""

import importlib.util
import json
import os
import signal
import time

import pytest
import several
import torch
from conftest import CPU
from several import ended, start, trained
from test_draws import clips

from ditkit.backbones import DiTConfig, MatryoshkaConfig, OuterLevel
from ditkit.checkpoint import checked_state, read_part
from ditkit.recipes import recipe
from ditkit.training import train
from ditkit.training.log import read_log

LEVELS = MatryoshkaConfig(
    inner=DiTConfig(width=24, depth=1, heads=2, patch=1), levels=(OuterLevel(widths=(32,), depth=(1,), patch=2),)
)
SMALL = {"width": 24, "depth": 2, "heads": 2}
STEPS = {
    "images": 200, "batch": 10, "schedule": "constant", "warmup_images": 0, "lr": 1e-3, "log_images": 50,
    "checkpoint_images": 100, "preview_images": 0, "validate_images": 0, "compile": "off", "precision": "fp32", "clip": 0.5,
}  # fmt: skip


def recipes():
    """Twenty steps each."""
    digits = recipe("digits").replace(backbone=SMALL, train=STEPS)
    found = {
        "plain": digits,
        "accumulated": digits.replace(train={"micro_batch": 2}),
        "term": digits.replace(train={"terms": ("sra",)}),
        "levels": recipe("digits").replace(
            backbone=LEVELS, train=STEPS | {"level_share": (0.3,), "micro_batch": 3}
        ),
        "clips": clips(**STEPS | {"images": 40, "tokens": 160, "log_images": 10}),
        "packed": clips(**STEPS | {"images": 40, "tokens": 160, "log_images": 10}).replace(
            transport={"known_frames": 0.0}, train={"packed": True}
        ),
    }
    return found


def written(folder):
    """The recipes as files."""
    folder.mkdir(exist_ok=True)
    for name, chosen in recipes().items():
        chosen.write(folder / f"{name}.json")
    return folder


def tensors(path):
    """All that a checkpoint has, whole, by name."""
    state = checked_state(path, ())
    parts = state.get("parts") or sorted(name.removesuffix(".safetensors") for name in state["sha256"])
    return {f"{part}/{name}": value for part in parts for name, value in read_part(path, state, part).items()}


def last(out):
    return sorted((out / "checkpoints").glob("[0-9]*"))[-1]


def assert_equal(found, expected, difference, what):
    assert found.keys() == expected.keys(), what
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= difference, f"{what} {name}"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process gives, in float64 and in float32: checkpoints' tensors and logs."""
    folder = written(tmp_path_factory.mktemp("alone"))
    for kind, names in (("64", recipes()), ("32", ["plain"])):
        jobs = [{"recipe": str(folder / f"{name}.json"), "out": str(folder / kind / name)} for name in names]
        trained(1, jobs, FLOAT64="1" if kind == "64" else "")
    return folder


ALL = tuple(recipes())


@pytest.mark.parametrize(
    ("count", "kinds"),
    [
        (2, {"ddp": ALL, "fsdp": ALL}),
        (4, {"ddp": ("levels", "packed"), "fsdp": ("accumulated", "term"), "hsdp": ALL}),
    ],
)
def test_they_give_what_one_gives(count, kinds, alone, tmp_path):
    """In float64 all weights after the last step, in float32 the losses; 4 processes share batches of 10 as 3, 3, 2 and 2."""
    for bits, words in (("64", "1"), ("32", "")):
        names = {kind: some if bits == "64" else ("plain",) for kind, some in kinds.items()}
        jobs = [
            {
                "recipe": str(alone / f"{name}.json"),
                "out": str(tmp_path / bits / kind / name),
                "train": {"parallel": kind, "shard_size": 2},
            }
            for kind, some in names.items()
            for name in some
        ]
        trained(count, jobs, FLOAT64=words)
        for kind, some in names.items():
            for name in some:
                one, theirs, what = alone / bits / name, tmp_path / bits / kind / name, f"{kind} {name}"
                if bits == "64":
                    assert_equal(tensors(last(theirs)), tensors(last(one)), 1e-8, what)
                assert_near(read_log(theirs / "log.jsonl"), read_log(one / "log.jsonl"), what)


def assert_near(found, expected, what):
    """Lines of logs."""
    assert [row["images"] for row in found] == [row["images"] for row in expected], what
    for row, wanted in zip(found, expected, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-5), what
