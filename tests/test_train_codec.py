"""Training an autoencoder: it learns, it resumes, and what it leaves is a codec that measures up to its report."""

import json
import os
import sys

import pytest
import torch
from conftest import CPU, SMALL
from PIL import Image
from safetensors.torch import load_file

from ditkit.cli import main
from ditkit.cli.train_codec import parse_train_codec
from ditkit.codecs import VaeConfig
from ditkit.data import DATA, Batch, Folder, load_all
from ditkit.data.latents.source import channel_means
from ditkit.errors import InputError
from ditkit.recipe import Recipe
from ditkit.recipes import recipe
from ditkit.training import codec as training
from ditkit.training import train
from ditkit.training.codec import (
    CodecRecipe,
    CodecTraining,
    build,
    losses,
    normalise,
    posterior_draws,
    train_codec,
)
from ditkit.training.log import read_log

diffusers = pytest.importorskip("diffusers")

BUDGET = {"images": 3200, "batch": 32, "warmup_images": 320, "lr": 2e-3, "precision": "fp32"}
TINY = CodecRecipe(
    data=DATA["digits"],
    codec={"widths": (8, 16), "channels": 3},
    train=BUDGET | {"log_images": 320, "checkpoint_images": 1600},
)


def quiet(chosen, out, **options):
    return train_codec(chosen, out, device=CPU, progress=False, count=60, **options)


def changed(**fields):
    return TINY.model_copy(update={"train": TINY.train.model_copy(update=fields)})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("codec") / "digits"
    return out, quiet(TINY, out)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (DATA["moving-digits"], "moving-digits is of clips"),
        (Folder(aspect="native"), "folder is of images of several sizes"),
    ],
)
def test_it_learns_from_images_of_one_size(data, found, tmp_path):
    with pytest.raises(InputError, match=f"train-codec: data {found}; take images of one size"):
        train_codec(TINY.model_copy(update={"data": data}), tmp_path / "codec", device=CPU)
    assert not [*tmp_path.iterdir()]


def test_it_learns_and_leaves_a_codec(trained):
    out, report = trained
    rows = read_log(out / "log.jsonl")
    assert [row["images"] for row in rows] == list(range(320, 3201, 320))
    assert rows[-1]["pixels"] < 0.5 * rows[0]["pixels"]
    assert (report["images"], report["split"], report["images_seen"]) == (60, "test", 3200)
    assert json.loads((out / "reconstruction.json").read_text()) == report
    images, _ = load_all(DATA["digits"], "test", 60)
    spread = images.double().var().item()
    assert report["psnr"] > 10 * torch.log10(torch.tensor(255**2 / spread)) + 3  # better than the mean by far
    codec = VaeConfig(id=str(out)).build(1)  # no other setting is needed
    assert codec.layout(8, 8).shape == (3, 4, 4)
    again = codec.decode(codec.encode(images))
    errors = (again.double() - images.double()).square().mean(dim=(1, 2, 3))
    assert report["psnr"] == pytest.approx((10 * torch.log10(255**2 / errors)).mean().item(), abs=1e-6)
    assert Image.open(out / "reconstructions.png").width > 300
    assert (out / "loss.png").stat().st_size > 10_000


def test_its_latents_have_mean_0_and_spread_1_in_every_channel(trained):
    out, _ = trained
    images, _ = load_all(DATA["digits"], "train")
    codec = VaeConfig(id=str(out)).build(1)
    noise = torch.randn(len(images), 3, 4, 4, generator=torch.Generator().manual_seed(0))
    states = codec.encode(images, noise)
    assert states.mean(dim=(0, 2, 3)).abs().max() < 0.03
    assert (states.std(dim=(0, 2, 3)) - 1).abs().max() < 0.03
    assert (codec.config.scale, codec.config.shift) == (1, 0)


def test_normalising_changes_the_latents_only():
    """Moments are mapped as the formula says, and every image comes back as before."""
    model = build(TINY)
    x = torch.rand(5, 1, 8, 8) * 2 - 1
    with torch.no_grad():
        before = model.encode(x).latent_dist
        drawn = model.decode(before.sample(torch.Generator().manual_seed(0))).sample
        mean, square = channel_means(before.parameters)
        std = (square - mean**2).sqrt()[None, :, None, None].float()
        normalise(model, before.parameters)
        after = model.encode(x).latent_dist
        again = model.decode(after.sample(torch.Generator().manual_seed(0))).sample
    torch.testing.assert_close(after.mean, (before.mean - mean[None, :, None, None].float()) / std)
    torch.testing.assert_close(after.std, before.std / std)
    torch.testing.assert_close(again, drawn, rtol=0, atol=1e-4)


def test_the_frechet_distance_is_to_the_same_images(trained):
    """Zero for a codec that loses nothing; what the report says is above that."""
    _, report = trained

    class Perfect:
        def encode(self, images):
            return images

        decode = encode

    ruler = training._ruler(None, DATA["digits"], CPU)
    picture = trained[0] / "perfect.png"
    perfect = training.measure(Perfect(), DATA["digits"], ruler, 60, picture)
    assert perfect["frechet"] == pytest.approx(0, abs=1e-3)
    assert perfect["psnr"] == pytest.approx(10 * torch.log10(torch.tensor(255**2 / 1e-3)).item())
    assert report["frechet"] > 0.1
    assert report["features_hash"] == perfect["features_hash"]


def test_diffusers_reads_it(trained):
    out, _ = trained
    model = diffusers.AutoencoderKL.from_pretrained(out, low_cpu_mem_usage=False)
    assert (model.config.in_channels, model.config.latent_channels) == (1, 3)
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in map(str, out.rglob("*")))


def test_stop_and_resume_is_bit_for_bit_the_same(trained, tmp_path, monkeypatch):
    whole, _ = trained
    steps = 0

    def killed(*arguments):
        nonlocal steps
        steps += 1
        if steps == 60:  # 1,888 images seen, the checkpoint is at 1,600
            raise KeyboardInterrupt
        return losses(*arguments)

    monkeypatch.setattr(training, "losses", killed)
    with pytest.raises(KeyboardInterrupt):
        quiet(TINY, tmp_path / "parts")
    assert not (tmp_path / "parts" / "config.json").exists()
    monkeypatch.undo()
    quiet(TINY, tmp_path / "parts")
    name = "diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(whole / name), load_file(tmp_path / "parts" / name)
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    logs = [[row["loss"] for row in read_log(folder / "log.jsonl")] for folder in (whole, tmp_path / "parts")]
    assert logs[0] == logs[1]
    with pytest.raises(InputError, match=r"train\.kl 1e-06, not 0\.1.*`out`"):
        quiet(changed(kl=0.1), tmp_path / "parts")


def test_the_loss_is_what_the_formula_says():
    """Against diffusers' own posterior, and in closed form for a posterior that is the prior."""
    model = build(TINY)
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    draws = posterior_draws(TINY)
    batch = Batch(images, None, torch.arange(4), draws=draws(range(4), (8, 8)))
    x = images.float() / 127.5 - 1
    for loss, distance in (("l1", torch.abs), ("mse", torch.square)):
        config = CodecTraining(loss=loss, kl=0.3)
        with torch.no_grad():
            terms = losses(model, batch, config, CPU)
            posterior = model.encode(x).latent_dist
            assert terms["kl"] == pytest.approx(posterior.kl().sum().item() / x.numel(), rel=1e-5)
            assert terms["loss"] == pytest.approx((terms["pixels"] + 0.3 * terms["kl"]).item())
            assert torch.equal(terms["pixels"], losses(model, batch, config, CPU)["pixels"])  # the same draws
            for parameter in model.quant_conv.parameters():
                parameter.zero_()  # mean 0, logvar 0, whatever the image
            model.post_quant_conv.weight.zero_()
            flat = losses(model, batch, config, CPU)
            drawn = model.decode(torch.zeros(4, 3, 4, 4)).sample
        assert flat["kl"] == 0
        assert flat["pixels"] == pytest.approx(distance(drawn - x).mean().item(), rel=1e-4)
        model = build(TINY)


def test_colour_images_of_ones_own_to_a_latent_run(tmp_path, capsys):
    """A folder without a held-out part, from the command line: train-codec, encode, train, sample."""
    generator = torch.Generator().manual_seed(0)
    for k in range(12):
        folder = tmp_path / "data" / f"class{k % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (20, 24, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{k}.png")
    codec, latents, run = (str(tmp_path / name) for name in ("codec", "latents", "run"))
    data = [str(tmp_path / "data"), "--data.size", "16"]
    budget = ["--train.images", "24", "--train.batch", "12", "--train.precision", "fp32"]
    tiny = ["--codec.widths", "8", "8", "8", "--codec.channels", "2"]
    assert main(["train-codec", *data, "--out", codec, *tiny, *budget]) == 0
    out = capsys.readouterr()
    assert "12 images of the train part, reconstructed: PSNR" in out.out
    assert "Fréchet" not in out.out  # no classifier, none named
    base = ["digits", "--data", *data, "--data.channels", "3", "--codec", "vae", "--codec.id", codec]
    assert main(["encode", *base, "--out", latents]) == 0
    assert "12 of 12 images encoded" in capsys.readouterr().out
    network = [f"--backbone.{name}={value}" for name, value in SMALL["backbone"].items()]
    assert main(["train", *base, *budget, *network, "--train.latents", latents, "--out", run]) == 0
    stored = Recipe.read(tmp_path / "run" / "recipe.json")
    assert (stored.codec.channels, stored.codec.downsampling) == (2, 4)
    assert stored.codec.scale == 1
    assert main(["convert", run, "--out", str(tmp_path / "travels" / "model")]) == 0
    (tmp_path / "codec").rename(tmp_path / "gone")
    elsewhere = ["--steps", "1", "--seed", "3", "--out", str(tmp_path / "samples")]
    assert (
        main(["sample", str(tmp_path / "travels" / "model"), "--n", "2", *elsewhere]) == 0
    )  # takes its own along
    assert main(["sample", run, "--n", "2", *elsewhere[:-1], str(tmp_path / "others")]) == 2
    assert f"--codec.id {codec}: cannot load this autoencoder" in capsys.readouterr().err


def test_an_online_latent_run_learns(trained, tmp_path):
    """Latent diffusion on the codec, end to end: the loss falls."""
    out, _ = trained
    base = recipe("digits")
    latent = Recipe.model_validate(base.model_dump() | {"codec": {"kind": "vae", "id": str(out)}}).replace(
        backbone=SMALL["backbone"],
        sample=SMALL["sample"],
        train={
            "images": 1280,
            "batch": 32,
            "log_images": 320,
            "warmup_images": 0,
            "precision": "fp32",
            "lr": 4e-3,
        },
    )
    train(latent, tmp_path / "run", device=CPU, progress=False)
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert rows[-1]["loss"] < 0.95 * rows[0]["loss"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["digits"], ["--out DIR"]),
        (["nothing", "--out", "x"], ["nothing", "fashion-mnist"]),
        (["digits", "--data.size", "9", "--out", "x"], ["--data.size 9", "divisible by 4", "--codec.widths"]),
        (["digits", "--codec.widths", "0", "--out", "x"], ["widths", "greater than or equal to 1"]),
        (["digits", "--train.kl", "-1", "--out", "x"], ["--train.kl", "greater than or equal to 0"]),
        (["digits", "--features", "vgg", "--out", "x"], ["--features", "vgg"]),
    ],
)
def test_wrong_input(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train-codec", *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ditkit: ")]
    for word in words:
        assert word in line, line
    assert not list(tmp_path.iterdir())


def test_flags():
    command = parse_train_codec(
        ["digits", "--codec.widths", "8", "16", "--train.loss", "mse", "--data.channels", "3"]
    )
    assert command.recipe.codec.widths == (8, 16)
    assert command.recipe.codec.downsampling == 2
    assert (command.recipe.train.loss, command.recipe.data.channels) == ("mse", 3)


def test_without_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert main(["train-codec", "digits", "--out", str(tmp_path / "codec")]) == 2
    assert "pip install 'ditkit[latent]'" in capsys.readouterr().err
    assert main(["encode", "digits", "--codec", "vae", "--out", str(tmp_path / "latents")]) == 2
    assert "pip install 'ditkit[latent]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_hopeless_training_says_so(tmp_path, monkeypatch):
    """Gradients that are never finite end in one line, not in an autoencoder of nothing."""

    def infinite(*arguments):
        terms = losses(*arguments)
        return terms | {"loss": terms["loss"] * float("inf")}

    monkeypatch.setattr(training, "losses", infinite)
    with pytest.raises(
        InputError, match=r"the gradient was not finite in \d+ of the last.*lower `train\.lr`"
    ):
        quiet(TINY, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_classifier_of_another_size_is_no_ruler(tmp_path, caplog):
    """Found before the training, not after: by default it is left out; named by a flag, it is an error."""
    wide = TINY.model_copy(update={"data": DATA["digits"].model_copy(update={"size": 16})})
    with caplog.at_level("INFO"):
        assert training._ruler(None, wide.data, CPU) is None
    assert "no Fréchet distance will be measured" in caplog.text
    with pytest.raises(InputError):
        quiet(wide, tmp_path / "run", features="classifier")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("files", [0, 1])
def test_a_kill_while_it_is_written_leaves_no_half_of_an_autoencoder(tmp_path, monkeypatch, files):
    """`files`: how many of the two have their names before the kill."""
    chosen = changed(images=64, checkpoint_images=64)
    whole = tmp_path / "whole"
    quiet(chosen, whole)
    moved = []

    def killed(source, target):
        if len(moved) == files:
            raise KeyboardInterrupt
        moved.append(target)
        replace(source, target)

    replace = os.replace
    monkeypatch.setattr(
        "ditkit.codecs.vae.os.replace",
        lambda *paths: killed(*paths) if ".autoencoder" in str(paths[0]) else replace(*paths),
    )
    out = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        quiet(chosen, out)
    assert not (out / "config.json").exists()
    with pytest.raises(InputError, match="cannot load this autoencoder"):
        _ = VaeConfig(id=str(out)).build(1).autoencoder
    monkeypatch.undo()
    quiet(chosen, out)
    names = {file.name for file in out.iterdir()}
    assert names == {file.name for file in whole.iterdir()}
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
