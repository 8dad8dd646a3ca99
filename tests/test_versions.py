"""Files of earlier versions are read by this one. tests/fixtures/version-0.1 was written by version 0.1: a training
after 32 of 64 images, a snapshot, an autoencoder, latents and a report; and what that version made of them later."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_near
from safetensors.torch import load_file

import ditkit
from ditkit.checkpoint import load_newest
from ditkit.cli import main
from ditkit.training.log import read_log

OLD = Path(__file__).parent / "fixtures" / "version-0.1"
TINY = (
    "--backbone.width 8 --backbone.depth 1 --backbone.heads 2 --backbone.mlp-ratio 1 --train.batch "
    "16 --train.log-images 32 --train.preview-images 0 --train.no-compile --train.checkpoint-images "
    "32 --train.validate-images 32 --device cpu"
).split()
DIGITS = (
    "--train.lr 0.002 --transport.time-law uniform --sample.sampler heun --sample.steps 25 "
    "--sample.guidance 1.5"
).split()


@pytest.fixture
def old(tmp_path):
    """A copy of the files."""
    return shutil.copytree(OLD, tmp_path / "old")


def test_a_run_goes_on(old):
    """By the flags that make today's recipe what it was."""
    assert main(["train", "digits", *TINY, *DIGITS, "--train.images", "64", "--out", str(old / "run")]) == 0
    _, parts = load_newest(old / "run" / "checkpoints", ("model",))
    expected = load_file(old / "expected" / "after-64.safetensors")
    assert parts["model"].keys() == expected.keys()
    for name, tensor in expected.items():
        assert_near(parts["model"][name], tensor, 1e-3)
    assert [row["images"] for row in read_log(old / "run" / "log.jsonl")] == [32, 64]
    assert [row["images"] for row in read_log(old / "run" / "validation.jsonl")] == [32, 64]


def test_a_snapshot_samples_as_it_did(old):
    images = ditkit.load(old / "snapshot", "cpu").generate(
        {"label": range(4)}, seeds=range(4), progress=False
    )
    expected = torch.from_numpy(np.load(old / "expected" / "samples.npz")["arr_0"])
    assert (images.permute(0, 2, 3, 1).int() - expected.int()).abs().max() <= 1


def test_latents_are_trained_on(old, monkeypatch):
    monkeypatch.chdir(old)
    data = ["--data", "images", "--data.size", "8", "--data.channels", "1"]
    codec = ["--codec", "vae", "--codec.id", "codec", "--backbone.patch", "1"]
    flags = [*TINY, *data, *codec, "--train.images", "32", "--train.latents", "latents", "--out", "new"]
    assert main(["train", "digits", *flags]) == 0
    encoded = ["encode", "digits", *data, *codec, "--out", "latents", "--device", "cpu"]
    assert main(encoded) == 0, "the same command finds that nothing is to do"


def test_a_report_goes_into_the_card(old):
    shutil.copytree(old / "report", old / "run" / "eval")
    assert main(["convert", str(old / "run"), "--out", str(old / "card"), "--replace"]) == 0
    report = json.loads((old / "report" / "report.json").read_text(encoding="utf-8"))
    assert f"{report['scores'][0]['frechet']:.4g}"[:4] in (old / "card" / "README.md").read_text(
        encoding="utf-8"
    )
