"""Wrong calls of the Python API: one line that names the argument, as of the command line; nothing is ignored."""

import inspect
import json
import re

import numpy as np
import pytest
import torch
from conftest import CPU

import ditkit
from ditkit.cli import main
from ditkit.errors import InputError
from ditkit.pipeline import load
from ditkit.recipe import Recipe, TrainConfig
from ditkit.recipes import recipe
from ditkit.sampling.config import SamplingRequest
from ditkit.snapshots import SNAPSHOTS


@pytest.fixture(scope="module")
def pipe():
    return load("digits", CPU)


def refused(call, words):
    """One line of InputError that says all of it."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in [words] if isinstance(words, str) else words:
        assert word in message


CUBE = torch.zeros(2, 2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([1.5], ["seeds", "1.5"]),
        ([1.0], ["seeds", "1.0"]),
        ([0, "1"], ["seeds", "'1'"]),
        ([None], "seeds"),
        ([True], "seeds"),
        ([-1], ["seeds", "-1"]),
        ([2**64], "seeds"),
        ([10**5000], ["seeds", "16610 bits"]),
        (3, ["seeds", "list"]),
        ("12", "seeds"),
        (None, "seeds"),
        ({1}, "seeds"),
        ([], "no seeds"),
        (range(0), "no seeds"),
        (torch.tensor([0.5]), ["seeds", "0.5"]),
        (torch.tensor([True]), "seeds"),
        (torch.tensor(3), ["seeds", "one dimension"]),
        (CUBE, ["seeds", "(2, 2)"]),
        (np.array([1.0]), "seeds"),
    ],
)
def test_seeds(pipe, seeds, message):
    refused(lambda: pipe.generate({"label": [1]}, seeds=seeds), message)


@pytest.mark.parametrize(
    ("cond", "message"),
    [
        ({"lable": [1]}, ["cond", "lable", "did you mean label?"]),
        ({"label": [1], "prompt": ["a"]}, ["cond", "prompt"]),
        ([1], ["cond", "dict"]),
        ("label", "cond"),
        ({"label": 1}, ["label", "list"]),
        ({"label": "1"}, ["label", "list"]),
        ({"label": [1.5]}, ["label", "1.5"]),
        ({"label": [None]}, "label"),
        ({"label": ["seven"]}, "seven"),
        ({"label": [[1]]}, "label"),
        ({"label": torch.tensor([1.0])}, ["label", "1.0"]),
        ({"label": CUBE}, ["label", "(2, 2)"]),
        ({"label": [10]}, ["label", "0 to 9"]),
        ({"label": [2**53 + 1]}, ["label", "0 to 9"]),
        ({"label": [2**63]}, ["label", "0 to 9"]),
        ({"label": [10**30]}, ["label", "100 bits"]),
        ({"label": [10**5000]}, ["label", "16610 bits"]),
        ({"label": ["9" * 5000]}, "no class is called"),
        ({"label": [1], "text": ["a red heart"]}, "text"),
    ],
)
def test_conditions(pipe, cond, message):
    refused(lambda: pipe.generate(cond, seeds=[0]), message)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"guidence": 3.0}, ["guidence", "did you mean guidance?"]),
        ({"zzz": 1}, ["zzz", "sampler"]),
        ({"precision": "fp8"}, ["precision", "fp8", "bf16"]),
        ({"guidance": float("inf")}, ["guidance", "finite"]),
        ({"guidance": float("nan")}, ["guidance", "finite"]),
        ({"guidance": -1}, ["guidance", "-1"]),
        ({"guidance": "much"}, "guidance"),
        ({"guidance": [1.0, 2.0]}, "guidance"),
        ({"batch": 0}, "batch"),
        ({"batch": 1.5}, "batch"),
        ({"batch": None}, "batch"),
        ({"size": (-8, 8)}, ["size", "-8"]),
        ({"size": (0, 8)}, "size"),
        ({"size": 8}, "size"),
        ({"size": (8, 8, 8)}, "size"),
        ({"frames": -1}, "frames"),
        ({"frames": 4}, "frames"),
        ({"steps": 10**6}, ["steps", "10000"]),
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"sampler": "leapfrog"}, ["sampler", "leapfrog"]),
        ({"sampler": 3}, "sampler"),
        ({"interval": (0.8, 0.2)}, "interval"),
        ({"interval": 0.5}, "interval"),
        ({"threshold": "soft"}, "threshold"),
        ({"levels": 0}, "levels"),
        ({"lower": 3}, ["lower", "snapshot"]),
        ({"lower_noise": 2.0}, "lower_noise"),
        ({"weak": 3}, "weak"),
        ({"weak": "nowhere-to-be-found"}, "nowhere-to-be-found"),
        ({"negative": ["face"]}, "negative"),
        ({"start": [[0]]}, "start"),
        ({"numbers": 7}, "numbers"),
        ({"evaluated": 3}, "evaluated"),
    ],
)
def test_how_to_sample(pipe, how, message):
    """Before anything is sampled, whoever asks."""
    refused(lambda: pipe.generate({"label": [1]}, seeds=[0], **how), message)
    refused(lambda: pipe.stream({"label": [1]}, seeds=[0], **how), message)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ditkit.load("digits", "gpu"), ["device", "gpu", "cpu"]),
        (lambda: ditkit.load("digits", 0), "device"),
        (lambda: ditkit.load("digits", None), "device"),
        (lambda: ditkit.load(None), "path"),
        (lambda: ditkit.load("digits", CPU, kind="UViT"), ["kind", "UViT", "SiT"]),
        (lambda: ditkit.load("digits", CPU, heads=0), "heads"),
        (lambda: ditkit.load("digits", CPU, heads=1.5), "heads"),
        (lambda: ditkit.backbone("DiT-S/3"), "DiT-S/3"),
        (lambda: ditkit.backbone("DiT-S/2", clases=10), ["clases", "did you mean classes?"]),
        (lambda: ditkit.backbone("DiT-S/2", widht=64), ["widht", "did you mean width?"]),
        (lambda: ditkit.backbone("DiT-S/2", classes=-1), "classes"),
        (lambda: ditkit.backbone("DiT-S/2", classes=1.5), "classes"),
        (lambda: ditkit.backbone("DiT-S/2", channels=0), "channels"),
        (lambda: ditkit.backbone("DiT-S/2", mlp_ratio=float("inf")), ["mlp_ratio", "finite"]),
        (lambda: ditkit.transport("linear", predct="noise"), ["predct", "did you mean predict?"]),
        (lambda: ditkit.transport("linear", predict="nose"), ["predict", "nose"]),
        (lambda: ditkit.transport("straight"), "straight"),
        (lambda: ditkit.cost("DiT-S/2", size=2.5), ["size", "2.5"]),
        (lambda: ditkit.cost("DiT-S/2", sise=256), ["sise", "did you mean size?"]),
        (lambda: ditkit.cost("DiT-S/2", frames=1.5), "frames"),
        (lambda: ditkit.train("fashion-sit", "run", device=CPU), "recipe"),
    ],
)
def test_what_begins_with_ditkit(call, message):
    refused(call, message)


def test_unknown_devices_and_recipes_of_a_training(small, tmp_path):
    refused(lambda: ditkit.train(small, tmp_path / "run", device="gpu"), ["device", "gpu"])
    refused(lambda: ditkit.train(small, 3, device=CPU), "out")
    assert not list(tmp_path.iterdir())


WHOLE = (
    range(2),
    (0, 1),
    torch.tensor([0, 1]),
    torch.tensor([0, 1], dtype=torch.uint8),
    np.array([0, 1]),
    list(np.array([0, 1])),
    list(torch.tensor([0, 1])),
)


@pytest.mark.parametrize("whole", WHOLE, ids=lambda value: re.sub(r"\W+", "-", repr(value)))
def test_whole_numbers_of_any_kind_are_seeds_and_labels(pipe, whole):
    how = {"sampler": "euler", "steps": 1, "guidance": 1}
    expected = pipe.generate({"label": [0, 1]}, seeds=[0, 1], **how)
    assert torch.equal(pipe.generate({"label": whole}, seeds=whole, **how), expected)


def test_what_is_right_is_taken(pipe):
    """Lists for pairs, numpy's numbers, paths of models, None for what is the recipe's."""
    label = {"label": [1]}
    how = {
        "sampler": "euler",
        "steps": np.int64(2),
        "interval": [0.2, 0.8],
        "guidance": np.float64(2),
        "size": None,
    }
    assert pipe.generate(label, seeds=[0], **how).shape == (1, 1, 8, 8)
    plain = {name: field.default for name, field in SamplingRequest.model_fields.items()}
    every = plain | {"steps": 1, "sampler": "euler"}
    assert pipe.generate(label, seeds=[0], **every).shape == (1, 1, 8, 8)


def test_every_argument_of_sampling_is_checked(pipe):
    """`generate` has no other than those of a request, of which single fields can be overridden."""
    named = inspect.signature(ditkit.Pipeline.generate).parameters
    assert set(named) == {"self", "cond", "seeds", "request", "progress", "values"}
    label, request = {"label": [1]}, ditkit.SamplingRequest(sampler="euler", steps=2)
    made = pipe.generate(label, seeds=[0], request=request)
    assert torch.equal(made, pipe.generate(label, seeds=[0], sampler="euler", steps=2))
    assert torch.equal(
        pipe.generate(label, seeds=[0], request=request, steps=3),
        pipe.generate(label, seeds=[0], sampler="euler", steps=3),
    )
    refused(lambda: pipe.generate(label, seeds=[0], request={"steps": 2}), "SamplingRequest")
    refused(lambda: pipe.generate(label, seeds=[0], request=request, stepps=2), "did you mean steps")


@pytest.mark.parametrize("number", [2**53 + 1, 2**63, 10**30, pytest.param(10**5000, id="16610 bits")])
def test_whole_numbers_larger_than_json_means(number, pipe):
    """The same in sections made in Python, whatever their bounds."""
    refused(lambda: TrainConfig.checked({"batch": number}, "train"), ["train: batch", str(2**53)])
    refused(lambda: recipe("digits").replace(train={"seed": number}), ["train.seed", str(2**53)])
    refused(lambda: pipe.generate({"label": [1]}, seeds=[0], steps=number), "steps")


@pytest.mark.parametrize("number", [2**53 + 1, 2**64, 10**30])
def test_whole_numbers_larger_than_json_means_in_files_and_flags(number, tmp_path, capsys):
    values = json.loads((SNAPSHOTS / "digits" / "recipe.json").read_text())
    values["train"]["batch"] = number
    (tmp_path / "recipe.json").write_text(json.dumps(values))
    refused(lambda: Recipe.read(tmp_path / "recipe.json"), ["recipe.json", "train.batch", str(2**53)])
    assert main(["train", "digits", "--train.batch", str(number), "--out", str(tmp_path / "run")]) == 2
    assert f"--train.batch: Input should be at most {2**53}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


BOUNDED = ("backbone.width", "backbone.depth", "backbone.heads", "backbone.patch", "data.size", "data.channels",
           "data.classes", "train.workers", "sample.steps")  # fmt: skip


@pytest.mark.parametrize("field", BOUNDED)
@pytest.mark.parametrize("number", [10**8, 2**52])
def test_sizes_that_are_mistakes_are_refused_before_they_take_memory(field, number, monkeypatch):
    """By their bounds, or when the network is made without memory. Batches are not among them: one that is larger than the
    training is as large as the training."""
    monkeypatch.setattr("torch.nn.Module.to", None)
    section, name = field.split(".")
    refused(lambda: recipe("digits").replace(**{section: {name: number}}), name)


@pytest.mark.parametrize(
    "sizes", [{"width": 999_996, "heads": 3, "depth": 1}, {"width": 100_000, "heads": 4, "depth": 100}]
)
def test_networks_larger_than_the_memory_are_never_made(sizes, monkeypatch):
    monkeypatch.setattr("torch.random.fork_rng", None)  # what begins to make one
    refused(lambda: recipe("digits").replace(backbone=sizes).build_backbone(), ["GB", "`backbone.width`"])


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--codec.widths", "100000000"], "--codec.widths: Input should be less than or equal to 1000000"),
        (["--codec.layers", "1000"], "--codec.layers: Input should be less than or equal to 100"),
        (["--codec.channels", str(10**8)], "--codec.channels: Input should be less than or equal to 1000000"),
        (["--codec.widths", "500000"], "choose a smaller --codec.widths"),
    ],
)
def test_autoencoders_larger_than_the_memory_are_never_made(flags, expected, tmp_path, capsys):
    pytest.importorskip("diffusers")
    assert main(["train-codec", "digits", *flags, "--device", "cpu", "--out", str(tmp_path / "codec")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("ditkit: ")
    assert expected in line
    assert not (tmp_path / "codec").exists()
