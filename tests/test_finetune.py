"""The recipe for one GPU, in miniature: a released file, a folder of a few images of other classes, its own settings."""

import pytest
import torch
from conftest import CPU
from PIL import Image
from safetensors.torch import load_file

from ditkit.backbones import DiTConfig
from ditkit.codecs import IdentityConfig
from ditkit.costs import recipe_cost
from ditkit.data import Batch, Digits, Folder
from ditkit.interop import write_official
from ditkit.pipeline import load
from ditkit.recipes import recipe
from ditkit.training.draws import with_draws
from ditkit.training.loop import train
from ditkit.training.step import backward

WHOLE = recipe("finetune-dit-xl2")
QUIET = {"preview_images": 0, "validate_images": 0, "compile": "off", "warmup_images": 0}


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """An official file of a DiT of digits, of the released width of DiT-S."""
    folder = tmp_path_factory.mktemp("released")
    chosen = WHOLE.replace(
        data=Digits(),
        codec=IdentityConfig(),
        backbone=DiTConfig(width=384, depth=2, heads=6, patch=4),
        train={
            **QUIET,
            "images": 640,
            "batch": 32,
            "micro_batch": None,
            "checkpoint_blocks": 0,
            "precision": "fp32",
        }
        | {"lora": 0, "unfreeze": (), "lr": 1e-3, "ema_half_life_images": 64, "checkpoint_images": 640},
    )
    train(chosen, folder / "run", device=CPU, progress=False)
    pipe = load(folder / "run", CPU)
    return write_official(folder / "official", pipe.recipe.replace(name="DiT-digits"), pipe.backbone)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of a few real digits of two classes."""
    folder = tmp_path_factory.mktemp("own")
    source = Digits().training()
    labels = torch.as_tensor(source.labels)
    for name, label in (("three", 3), ("seven", 7)):
        (folder / name).mkdir()
        places = (labels == label).nonzero().flatten()[:12].tolist()
        for k, image in zip(places, source.read(places), strict=True):
            Image.fromarray(image[0].numpy()).save(folder / name / f"{k}.png")
    return folder


def error(pipe, chosen, images, labels):
    """The mean squared error of the noise in the images of the folder, whose classes have these labels there."""
    source = chosen.data.training()
    found = torch.tensor(labels)[torch.as_tensor(source.labels)].repeat(8)
    pixels = source.read(range(len(source))).repeat(8, 1, 1, 1)
    quiet = chosen.replace(train={"label_dropout": 0.0, "micro_batch": None, "precision": "fp32"})
    batch = with_draws(quiet, pipe.codec, Batch(pixels, found, torch.arange(len(found))))
    means = backward(quiet, pipe.backbone.requires_grad_(True), pipe.codec, batch, CPU)
    return means["mse"].item()


def test_it_fine_tunes_a_released_file_and_samples(released, images, tmp_path):
    chosen = WHOLE.replace(
        data=Folder(path=images, size=8, channels=1, classes=2, held_out=0.0, cache="off"),
        codec=IdentityConfig(),
        backbone=DiTConfig(width=384, depth=2, heads=6, patch=4),
        train={**QUIET, "images": 480, "batch": 16, "micro_batch": 8, "lr": 5e-3, "log_images": 96}
        | {"ema_half_life_images": 32, "checkpoint_images": 480},
        sample={"steps": 5},
    )
    kept = {"lora", "lora_on", "unfreeze", "checkpoint_blocks", "precision", "clip", "optimizer"}
    assert all(getattr(chosen.train, name) == getattr(WHOLE.train, name) for name in kept)
    train(chosen, tmp_path / "run", device=CPU, init=released, progress=False)

    (newest,) = (tmp_path / "run" / "checkpoints").iterdir()
    trained = load_file(newest / "model.safetensors")
    layers = ("attention.qkv", "attention.proj", "mlp.0", "mlp.2")
    added = {f"blocks.{k}.{layer}.lora_{side}" for k in (0, 1) for layer in layers for side in ("down", "up")}
    assert trained.keys() == added | {"label.weight"}

    before, pipe = load(released, CPU), load(tmp_path / "run", CPU)
    assert error(pipe, chosen, images, (0, 1)) < 0.93 * error(before, chosen, images, (3, 7))
    moved = {f"blocks.{k}.{layer}.weight" for k in (0, 1) for layer in layers} | {"label.weight"}
    for name, value in pipe.backbone.state_dict().items():
        same = torch.equal(value, before.backbone.state_dict()[name])
        assert same == (name not in moved), name
    found = pipe.generate({"label": [0, 1]}, seeds=[0, 1])
    assert found.shape == (2, 1, 8, 8)
    official = write_official(tmp_path / "official", pipe.recipe.replace(name="DiT-mine"), pipe.backbone)
    state = load(official, CPU).backbone.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in pipe.backbone.state_dict().items())


def test_it_fits_by_count():
    """On a card of 24 GB, with room for the autoencoder."""
    found = recipe_cost(WHOLE.replace(data={"classes": 10}), adapted=True)
    memory = found.memory(WHOLE.train.batch, "bf16", WHOLE.train.micro_batch, training=WHOLE.train)
    assert found.params == 16 * 516_096 + 11 * 1152
    assert memory.peak < 6e9
