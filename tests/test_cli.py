"""The command line: every verb once right, every kind of wrong input once, every name reachable."""

import json
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import CPU
from PIL import Image

from ditkit.backbones import BACKBONES
from ditkit.cli import VERBS, main
from ditkit.cli.listing import TITLES
from ditkit.cli.train import parse_train
from ditkit.codecs import CODECS
from ditkit.data import DATA
from ditkit.errors import InputError
from ditkit.nn.registries import CONDITIONINGS
from ditkit.pipeline import load
from ditkit.recipe import Recipe
from ditkit.recipes import RECIPES
from ditkit.sampling import SAMPLERS
from ditkit.sampling.config import SolverChoices
from ditkit.snapshots import SNAPSHOTS
from ditkit.transports import LOSSES, METHODS, PATHS, PREDICTIONS, TIME_LAWS


def ditkit(capsys, *arguments):
    """Status, stdout and stderr of one command."""
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def refused(capsys, *arguments):
    """The one line of an error; fails unless status is 2 and there is exactly one."""
    status, _, err = ditkit(capsys, *arguments)
    assert status == 2
    lines = [line for line in err.splitlines() if line.startswith("ditkit: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


# --- names -----------------------------------------------------------------------------------------

CHOICES = (
    [("--backbone", name) for name in BACKBONES]
    + [("--codec", name) for name in CODECS]
    + [("--data", name) for name in DATA]
    + [("--transport.path", name) for name in PATHS]
    + [("--transport.predict", name) for name in PREDICTIONS]
    + [("--transport.loss", name) for name in LOSSES]
    + [("--transport.time-law", name) for name in TIME_LAWS]
    + [("--backbone.conditioning", name) for name in CONDITIONINGS]
    + [("--sample.sampler", name) for name in SAMPLERS]
)


# What a choice needs beside it to fit any recipe.
IMAGES = ["--data", "digits", "--data.size", "64", "--text", "none"]
DIT = ["--backbone", "DiT", "--text", "none"]
COMPANY = {
    "--transport.path": [
        "--transport.variance",
        "fixed",
        "--transport.size-shift",
        "0",
        "--sample.sampler",
        "ab2",
    ],
    "--backbone.conditioning": [*DIT, *IMAGES],
    "--backbone": [*IMAGES, "--transport.variance", "fixed"],
    "--data": [*DIT, "--backbone.tubelet", "1"],
}


@pytest.mark.parametrize("name", RECIPES)
def test_every_registry_name_can_be_chosen_over_every_recipe(name):
    """One after another over one recipe; and the result builds on the meta device."""
    for flag, value in CHOICES:
        extra = COMPANY.get(flag, [])
        chosen = parse_train([name, flag, value, *extra]).recipe
        dumped = chosen.model_dump(mode="json")
        section, _, field = flag.removeprefix("--").replace("-", "_").partition(".")
        if field:
            assert dumped[section][field] == value
        else:
            expected = {"backbone": BACKBONES, "codec": CODECS, "data": DATA}[section][value]
            assert getattr(chosen, section) == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("digits --data moving-digits", "data moving-digits is of clips, but backbone.tubelet 0 is a network of images; give"),
        ("digits --backbone U-DiT --train.routing tread", "train.routing tread, but backbone.kind U-DiT has blocks"),
        ("digits --train.routing tread:first=9", "train.routing tread: first 9"),
        ("digits --text minilm", "text minilm, but backbone.text none takes no text; give --backbone.text cross_attention"),
        ("emoji-t2i --text none", "text is not given, but backbone.text cross_attention needs a text encoder"),
        ("emoji-t2i --backbone U-DiT", "text minilm, but backbone.kind U-DiT takes no text; take a DiT or an MDM, or leave the"),
        ("emoji-t2i --data digits", "text minilm, but data digits has no captions; take data that has some"),
        (
            "moving-digits --transport.known-frames 0.5 --backbone.attention joint --backbone.conditioning in_context",
            "transport.known_frames 0.5, but backbone.conditioning in_context has one time per clip; give",
        ),
        ("digits --backbone.tubelet 2", "data digits has single images, but backbone.tubelet 2 takes as many frames"),
        (
            "moving-digits --data.single-frames 1 --train.tokens 9999 --backbone.tubelet 2",
            "data moving-digits has single images, but backbone.tubelet 2 takes as many frames at once",
        ),
        ("moving-digits --codec vae --train.latents x", "train.latents: a cache is of images, data moving-digits is of clips"),
        ("digits --sample.threshold clip --codec vae --sample.sampler ab2 --sample.threshold clip", "bounds pixels"),
        ("fashion-sit --sample.sampler ddim --sample.respacing 50", "sample.respacing 50: transport.path linear has no knots"),
        ("fashion-dit --sample.sampler ddim --sample.steps 2000", "sample.steps, transport.path ddpm: --sample.steps 2000"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused_when_all_flags_are_read(argv, message):
    with pytest.raises(InputError) as caught:
        parse_train(argv.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flags_that_fit_together_only():
    chosen = parse_train("digits --data moving-digits --backbone.tubelet 1".split()).recipe
    assert (chosen.data.kind, chosen.backbone.tubelet) == ("moving-digits", 1)
    assert (
        parse_train("emoji-t2i --text none --backbone U-DiT --backbone.width 48".split()).recipe.text is None
    )


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_builds_over_a_recipe(backbone):
    chosen = parse_train(["fashion-sit", "--backbone", backbone, "--data.size", "128"]).recipe
    with torch.device("meta"):
        net = chosen.build_backbone()
    x = torch.empty(1, *chosen.build_codec().layout(128, 128).shape, device="meta")
    assert (
        net(
            x, torch.empty(1, device="meta"), {"label": torch.zeros(1, dtype=torch.long, device="meta")}
        ).shape
        == x.shape
    )


def test_the_example_of_the_readme():
    chosen = parse_train(
        ["fashion-sit", "--backbone", "DiT-S/4", "--transport.path", "gvp", "--transport.predict", "score"]
    ).recipe
    assert (chosen.backbone.width, chosen.backbone.patch) == (384, 4)
    assert (chosen.transport.path, chosen.transport.predict) == ("gvp", "score")
    assert chosen.train == RECIPES["fashion-sit"]().train


def test_every_flag_of_train_sets_its_field():
    """Walk the recipe's fields; give each another value as a flag; exactly that field changes."""
    base = parse_train(["digits"]).recipe
    other = {
        "train.precision": "bf16", "train.schedule": "constant", "train.betas": "0.8 0.9", "train.compile": "off",
        "train.micro_batch": "16", "train.clip": "0.5", "sample.sampler": "ddim", "sample.interval": "0.1 0.9",
        "data.flip": None, "data.channels": "3", "transport.path": "gvp", "transport.predict": "v",
        "transport.time_law": "uniform", "transport.weight": "sigmoid:bias=1", "transport.loss": "velocity", "transport.variance": "learned",
        "train.label_dropout": "0.2", "backbone.width": "48",
        "backbone.conditioning": "adaln", "backbone.text": "in_context", "backbone.text_pooled": None,
        "train.score_features": "efficientnet-112", "sample.grid": "karras", "sample.diffusion": "sbdm",
        "sample.last_step": "tweedie", "sample.last_step_size": "0.1", "sample.tolerance": "0.01",
        "sample.threshold": "clip", "sample.level_guidance": "2 1", "codec.level_scale": "1 2",
        "transport.level_weights": "1 2", "transport.cascade": "0.1", "train.level_share": "0.5",
        "train.stages": "16", "train.freeze_inner": None, "data.aspect": "native", "data.without": "8x8",
        "backbone.tubelet": "1", "backbone.attention": "factorised", "backbone.positions": "rotary",
        "backbone.grid": "2 2", "backbone.extrapolation": "ntk", "backbone.size_embedding": None,
        "transport.known_frames": "0.5", "transport.size_shift": "64", "train.packed": None, "train.tokens": "64",
        "data.names": "a b", "data.content": "0f", "data.changed": "accept",
        "train.averages": "half_life:images=500", "train.on_divergence": "rewind", "train.parallel": "ddp", "train.optimizer": "adafactor", "train.freeze": "label.*", "train.unfreeze": "label.*", "train.lora_on": "mlp",
        "train.track": "tensorboard mlflow", "train.routing": "tread", "train.terms": "sra",
        "sample.cache": "taylor_seer", "sample.precision": "bf16", "transport.method": [*METHODS][-1],
        "backbone.sparse": "0.75", "sample.guidance_path": "dense", "backbone.mlp": "swiglu", "backbone.norm": "rms",
        "backbone.stem": "convolutional", "backbone.qk_norm": None, "backbone.value_residual": None,
    }  # fmt: skip
    fixed = {
        "data.kind",
        "data.classes",
        "codec.kind",
        "backbone.kind",
    } | ({"transport.method"} if len(METHODS) == 1 else set())
    company = {
        "transport.variance": ["--transport.path", "ddpm"],
        "data.aspect": ["--train.tokens", "64"],
        "data.without": ["--train.tokens", "64", "--data.aspect", "native"],
        "backbone.attention": ["--backbone.tubelet", "1"],
        "backbone.extrapolation": ["--backbone.grid", "2", "2"],
        "backbone.sparse": ["--backbone.depth", "5"],
        "sample.guidance_path": ["--backbone.depth", "5", "--backbone.sparse", "0.75"],
        "train.packed": ["--train.tokens", "64"],
        "backbone.text": ["--text", "minilm", "--data", "emoji"],
        "backbone.text_pooled": ["--text", "minilm", "--data", "emoji"],
        "transport.known_frames": ["--data", "moving-digits", "--backbone.tubelet", "1"],
        "train.latents": ["--codec", "vae"],
        "train.unfreeze": ["--train.lora", "4"],
        "train.snapshot_images": ["--train.averages", "power:width=0.05", "power:width=0.1"],
        "train.lora_alpha": ["--train.lora", "4"],
        "sample.respacing": ["--transport.path", "ddpm"],
    }
    several = {
        "codec.level_scale", "transport.level_weights", "transport.cascade", "train.level_share", "train.stages",
        "train.freeze_inner", "sample.level_guidance",
    }  # fmt: skip
    walked = 0
    for section in ("data", "codec", "backbone", "transport", "train", "sample"):
        for field, value in getattr(base, section):
            name = f"{section}.{field}"
            if name in fixed:
                continue
            flag = f"--{section}.{'no-' if value is True else ''}{field}".replace("_", "-")
            text = None if value is True else other[name] if name in other else str((value or 0) + 1)
            arguments = [flag] if text is None else [flag, *text.split()]
            arguments += company.get(name, []) + ["--backbone", "Matryoshka"] * (name in several)
            if field in SolverChoices.model_fields:  # a choice of some samplers only
                taker = next(sampler for sampler, solver in SAMPLERS.items() if field in solver.choices)
                arguments += ["--sample.sampler", taker]
            changed = getattr(getattr(parse_train(["digits", *arguments]).recipe, section), field)
            assert changed != value, name
            walked += 1
    assert walked > 35


def test_a_folder_keeps_the_size_of_the_recipe(tmp_path):
    small = parse_train(["fashion-sit", "--data", str(tmp_path), "--data.channels", "3"]).recipe.data
    assert (small.kind, small.path, small.size, small.channels) == ("folder", tmp_path, 28, 3)
    large = parse_train(["imagenet512-dit-xl2", "--data", str(tmp_path)]).recipe.data
    assert (large.size, large.flip, large.classes, large.check) == (512, True, None, False)


def test_list_names_every_registry(capsys):
    status, out, _ = ditkit(capsys, "list")
    assert status == 0
    for title, names in TITLES.items():
        assert all(name in out for name in [title, *names()])
    assert max(map(len, out.splitlines())) <= 100
    status, out, _ = ditkit(capsys, "list", "samplers")
    assert "heun" in out
    assert "DiT-S/2" not in out


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb, capsys):
    try:
        status = main([verb, "--help"])
    except SystemExit as end:  # how help ends
        status = end.code or 0
    out = capsys.readouterr().out
    assert status == 0
    assert f"ditkit {verb}" in out
    assert len(out.splitlines()) > 4


def test_every_recipe_lists_its_flags(capsys):
    with pytest.raises(SystemExit):
        main(["train", "imagenet256-dit-xl2", "--help"])
    out = capsys.readouterr().out
    for flag in (
        "--backbone.width",
        "--transport.path",
        "--train.ema-half-life-images",
        "--sample.guidance",
        "--init",
    ):
        assert flag in out


# --- verbs -----------------------------------------------------------------------------------------

SMALL = [
    "--backbone.width",
    "24",
    "--backbone.depth",
    "1",
    "--backbone.heads",
    "2",
    "--train.images",
    "64",
    "--train.batch",
    "32",
    "--train.precision",
    "fp32",
    "--sample.steps",
    "2",
]


def test_train_resume_and_sample(tmp_path, capsys):
    out = tmp_path / "run"
    status, text, _ = ditkit(capsys, "train", "digits", *SMALL, "--out", out, "--device", "cpu")
    assert status == 0
    assert f"ditkit sample {out}" in text
    status, *_ = ditkit(capsys, "train", "digits", *SMALL, "--train.images", "96", "--out", out)
    assert status == 0
    assert Recipe.read(out / "recipe.json").train.images == 96
    message = refused(capsys, "train", "digits", *SMALL, "--train.seed", "1", "--out", out)
    assert "train.seed 0, not 1" in message


def test_own_images_in_a_folder(tmp_path, capsys, caplog):
    """Two classes of colour images of several sizes, one of them broken: trains and samples."""
    for k in range(12):
        folder = tmp_path / "data" / ("cats" if k % 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + k, 24), (k * 20, 100, 50)).save(folder / f"{k}.png")
    (tmp_path / "data" / "cats" / "broken.png").write_bytes(b"")
    status, *_ = ditkit(
        capsys,
        "train",
        "digits",
        "--data",
        tmp_path / "data",
        "--data.size",
        "8",
        *SMALL,
        "--out",
        tmp_path / "run",
    )
    assert status == 0
    assert "1 of 13 images" in caplog.text
    assert "broken.png" in caplog.text
    assert Recipe.read(tmp_path / "run" / "recipe.json").data.classes == 2
    status, *_ = ditkit(capsys, "sample", tmp_path / "run", "--n", "4", "--out", tmp_path / "s")
    assert status == 0


def test_the_imagenet_recipes_run_on_a_folder(tmp_path, capsys):
    """Latent diffusion end to end, with a tiny autoencoder and network: train, resume, sample."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    autoencoder = diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
    )
    autoencoder.save_pretrained(tmp_path / "vae")
    for k in range(6):
        folder = tmp_path / "data" / f"n0144{k % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 50), (k * 40, 90, 200)).save(folder / f"{k}.JPEG")
    small = (
        f"--data {tmp_path / 'data'} --data.size 32 --codec.id {tmp_path / 'vae'} --backbone.width 24 "
        "--backbone.depth 1 --backbone.heads 2 --train.batch 2 --train.workers 0 --sample.steps 2"
    ).split()
    for name in ("imagenet256-dit-xl2", "imagenet256-sit-xl2"):
        out = tmp_path / name
        for images in ("2", "4"):
            status, *_ = ditkit(capsys, "train", name, *small, "--train.images", images, "--out", out)
            assert status == 0
        stored = Recipe.read(out / "recipe.json")
        assert (stored.data.classes, stored.data.flip) == (3, True)
        status, *_ = ditkit(capsys, "sample", out, "--n", "3", "--png", "--out", out / "samples")
        assert status == 0
        assert Image.open(tmp_path / name / "samples" / "images" / "000002-class2.png").size == (32, 32)


def test_sample_writes_grid_pngs_and_npz(run, tmp_path, capsys):
    status, out, _ = ditkit(
        capsys, "sample", run, "--labels", "3", "7", "--n", "6", "--steps", "2", "--sampler", "euler", "--guidance",
        "2", "--interval", "0.2", "0.8", "--seed", "5", "--batch", "4", "--precision", "fp32", "--device", "cpu",
        "--png", "--npz", "--out", tmp_path,
    )  # fmt: skip
    assert status == 0
    assert "euler, 2 evaluations, guidance 2" in out
    with np.load(tmp_path / "samples.npz") as file:
        assert file["arr_0"].shape == (6, 8, 8, 1)
        assert file["arr_0"].dtype == np.uint8
        assert file["labels"].tolist() == [3, 7, 3, 7, 3, 7]
        first = file["arr_0"][0, :, :, 0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "images" / "000000-class3.png")), first)
    assert len(list((tmp_path / "images").iterdir())) == 6
    assert Image.open(tmp_path / "grid.png").size[0] > 100
    direct = load(run, CPU).generate(
        {"label": [3]}, seeds=[5], steps=2, sampler="euler", guidance=2, interval=(0.2, 0.8)
    )
    assert np.abs(direct[0, 0].numpy().astype(int) - first).max() <= 1


def test_eval_of_a_run_a_folder_and_an_npz_agree(run, tmp_path, capsys):
    """The same images through the three doors get the same scores."""
    status, out, _ = ditkit(capsys, "eval", run, "--n", "100", "--steps", "2", "--out", tmp_path / "a")
    assert status == 0
    assert "held-out real images" in out
    ditkit(capsys, "sample", run, "--n", "100", "--steps", "2", "--png", "--npz", "--out", tmp_path / "s")
    ditkit(capsys, "eval", tmp_path / "s" / "samples.npz", "--reference", "digits", "--out", tmp_path / "b")
    for file in list((tmp_path / "s" / "images").iterdir()):
        folder = tmp_path / "f" / file.stem[-1]
        folder.mkdir(parents=True, exist_ok=True)
        file.rename(folder / file.name)
    ditkit(capsys, "eval", tmp_path / "f", "--reference", "digits", "--out", tmp_path / "c")
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in "abc"]
    scores = [report["scores"][0] for report in reports]
    for other in scores[1:]:
        assert other["frechet"] == pytest.approx(scores[0]["frechet"], rel=1e-3)
        assert other["labels"]["accuracy"] == scores[0]["labels"]["accuracy"]
    assert reports[1]["images_hash"] == reports[2]["images_hash"]
    protocol = reports[0]["protocol"]
    assert (protocol["sampler"], protocol["nfe"], protocol["guidance"], protocol["first_seed"]) == (
        "heun",
        4,
        1.5,
        0,
    )
    assert len(scores[0]["features_hash"]) == len(scores[0]["reference_hash"]) == 64
    held_out = reports[0]["held_out"]
    assert held_out["images"] == 100
    assert 0 <= scores[0]["authenticity"] <= 1
    for name in "abc":  # five rows of ten samples, the nearest training image right below each
        assert Image.open(tmp_path / name / "nearest.png").size == (10 * 76 - 12, 5 * (2 * 65 + 12) - 12)
    assert held_out["scores"][0]["frechet"] < scores[0]["frechet"]
    assert "100 samples (seeds 0 to 99, labels balanced), heun, 4 NFE, guidance 1.5" in reports[0]["card"]


def test_eval_with_a_classifier_file_is_the_same_ruler(run, tmp_path, capsys):
    from importlib.resources import files

    own = files("ditkit") / "assets" / "classifiers" / "digits.safetensors"
    for out, extra in (("a", []), ("b", ["--features", f"classifier={own}"])):
        status, *_ = ditkit(capsys, "eval", run, "--n", "80", "--steps", "1", *extra, "--out", tmp_path / out)
        assert status == 0
    reports = [json.loads((tmp_path / out / "report.json").read_text()) for out in "ab"]
    assert reports[0]["scores"] == reports[1]["scores"]


def test_convert_writes_a_snapshot_that_samples_alike(run, tmp_path, capsys):
    for dtype, tolerance in (("fp32", 0), ("bf16", 40)):
        out = tmp_path / dtype
        status, text, _ = ditkit(capsys, "convert", run, "--out", out, "--dtype", dtype)
        assert status == 0
        assert f"ditkit sample {out}" in text
        a, b = (load(path, CPU).generate({"label": [1, 2]}, seeds=[0, 1]).int() for path in (run, out))
        assert (a - b).abs().max() <= tolerance


def test_classifier_of_a_folder(tmp_path, capsys):
    for k in range(30):
        folder = tmp_path / "data" / str(k % 2)
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 255 * (k % 2)).save(folder / f"{k}.png")
    file = tmp_path / "own.safetensors"
    status, out, _ = ditkit(
        capsys, "classifier", tmp_path / "data", "--data.size", "8", "--data.channels", "1", "--epochs", "4",
        "--seed", "1", "--out", file,
    )  # fmt: skip
    assert status == 0
    assert "held-out accuracy" in out
    assert file.exists()


def test_demo_in_small(tmp_path, capsys):
    status, out, _ = ditkit(
        capsys, "demo", "--images", "640", "--samples", "100", "--out", tmp_path, "--device", "cpu"
    )
    assert status == 0
    for name in ("samples.png", "loss.png", "report.json"):
        assert str(tmp_path / name) in out
        assert (tmp_path / name).stat().st_size > 500
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["images"] == 100
    assert report["scores"][0]["labels"]["asked"] == [10] * 10


# --- snapshots that come with the package ----------------------------------------------------------

BUNDLED = sorted(folder.name for folder in SNAPSHOTS.glob("*"))


def test_there_are_bundled_snapshots():
    assert "digits" in BUNDLED


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_snapshots_are_small_and_good(name):
    assert (SNAPSHOTS / name / "model.safetensors").stat().st_size <= 1_500_000
    pipeline = load(name, CPU)
    labels = torch.arange(100) % 10
    images = pipeline.generate({"label": labels}, seeds=range(100), batch=100)
    from ditkit.evaluation import bundled_classifier

    logits = bundled_classifier(pipeline.recipe.data.kind)(images).logits
    assert (logits.argmax(1) == labels).float().mean() >= 0.85


# --- wrong input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], ["unknown verb 'frobnicate'", "train"]),
        (["train"], ["name a recipe", "digits"]),
        (["train", "digts"], ["unknown recipe 'digts'", "fashion-sit"]),
        (["train", "digits", "--train.imges", "5"], ["--train.imges", "--train.images"]),
        (["train", "digits", "--lr", "5"], ["--lr"]),
        (["train", "digits", "--train.images", "many"], ["--train.images", "many"]),
        (["train", "digits", "--train.images", "0"], ["--train.images", "greater than or equal to 1"]),
        (["train", "digits", "--train.label-dropout", "1.5"], ["--train.label-dropout", "less than or equal to 1"]),
        (["train", "digits", "--train.images"], ["--train.images"]),
        (["train", "digits", "--transport.path", "bendy"], ["--transport.path: unknown 'bendy'; there are linear, gvp"]),
        (["train", "digits", "--transport.path", "gvq"], ["--transport.path: unknown 'gvq'; did you mean gvp?"]),
        (["train", "digits", "--transport.weighting", "none"], ["--transport.weighting (now --transport.loss)"]),
        (["train", "digits", "--transport.variance", "learned"], ["transport.path ddpm"]),
        (["train", "digits", "--backbone", "DiT-Q/2"], ["--backbone", "DiT-Q/2", "DiT-XL/2"]),
        (["train", "digits", "--codec", "jpeg"], ["--codec", "identity", "vae"]),
        (["train", "digits", "--data", "/nowhere"], ["--data", "/nowhere", "fashion-mnist"]),
        (["train", "digits", "--backbone.patch", "3"], ["8x8", "patches of 3", "--backbone.patch"]),
        (["train", "digits", "--backbone.heads", "7"], ["96", "7 heads", "use one of"]),
        (["train", "digits", "--backbone.width", "50"], ["width", "multiple of 4"]),
        (["train", "digits", "--init", "/nowhere"], ["/nowhere", "no run or snapshot"]),
        (["train", "digits", "--device", "tpu"], ["--device", "tpu", "cpu"]),
        (["train", "digits", "--train.micro-batch", "500"], ["micro_batch 500", "batch 64"]),
        (["sample"], ["run", "--help"]),
        (["sample", "/nowhere"], ["/nowhere", "recipe.json", "digits"]),
        (["sample", "digits", "--sampler", "leapfrog"], ["--sampler", "leapfrog", "heun"]),
        (["sample", "digits", "--steps", "0"], ["steps", "greater than or equal to 1"]),
        (["sample", "digits", "--labels", "10"], ["label 10", "0 to 9"]),
        (["sample", "digits", "--labels", "three"], ["--labels", "three"]),
        (["sample", "digits", "--interval", "0.9", "0.1"], ["0 <= low <= high <= 1", "0.9"]),
        (["train", "digits", "--sample.interval", "0", "3"], ["0 <= low <= high <= 1"]),
        (["sample", "digits", "--guidance", "-1"], ["guidance", "greater than or equal to 0"]),
        (["eval", "/nowhere"], ["/nowhere"]),
        (["eval", "nothing.npz"], ["--reference", "compared with", "fashion-mnist"]),
        (["eval", "nothing.npz", "--reference", "digits"], ["nothing.npz", "no such file"]),
        (["eval", "digits", "--reference", "/nowhere"], ["--reference", "/nowhere"]),
        (["eval", "digits", "--reference", "/nowhere.npz"], ["--reference", "/nowhere.npz"]),
        (["eval", "digits", "--features", "classifier=/nowhere.safetensors"], ["/nowhere.safetensors"]),
        (["eval", "digits", "--features", "vgg"], ["--features", "vgg", "inception"]),
        (["eval", "digits", "--features", "inception=/nowhere.pth"], ["/nowhere.pth"]),
        (["eval", "digits", "--reference", "fashion-mnist"], ["--reference", "8", "28"]),
        (["eval", "digits", "--n", "1"], ["--n", "greater than or equal to 2"]),
        (["compare"], ["runs", "--help"]),
        (["compare", "digits", "fashion"], ["digits: 8x8", "fashion: 28x28"]),
        (["compare", "digits", "--guidance", "1;2"], ["--guidance", "1;2"]),
        (["compare", "digits", "--solvers", "heun:two"], ["--solvers heun:two", "ab2:10"]),
        (["compare", "digits", "--solvers", "leapfrog:5"], ["leapfrog", "heun"]),
        (["compare", "digits", "--solvers", "ab2:5", "--steps", "3"], ["--solvers", "leave --sampler and --steps out"]),
        (["reference", "digits", "--out", "ref.bin"], ["--out", "ref.bin", ".npz"]),
        (["reference", "nothing", "--out", "ref.npz"], ["unknown data 'nothing'", "digits"]),
        (["study", "nothing"], ["nothing", "scaling"]),
        (["study", "scaling", "--cells", "XXL-2"], ["--cells", "XXL-2", "XS-7"]),
        (["info", "digts"], ["unknown name 'digts'"]),
        (["list", "everything"], ["everything", "recipes"]),
        (["classifier", "nothing"], ["unknown data 'nothing'", "digits"]),
        (["train", "digits", "--sample.sampler", "leapfrog"], ["--sample.sampler: unknown 'leapfrog'", "heun"]),
        (["train", "digits", "--sample.eta", "0.5"], ["--sample.eta 0.5", "take --sample.sampler"]),
    ],
)  # fmt: skip
def test_wrong_input(arguments, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused(capsys, *arguments)
    for word in words:
        assert word in message, message
    assert not list(tmp_path.iterdir()), "something was half-written"


def test_wrong_data_folders(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(capsys, "train", "digits", "--data", "empty")
    (tmp_path / "bad" / "a").mkdir(parents=True)
    for k in range(3):
        (tmp_path / "bad" / "a" / f"{k}.jpg").write_bytes(b"not an image")
    message = refused(capsys, "train", "digits", "--data", "bad")
    assert "none of the 3 images" in message
    assert not (tmp_path / "runs").exists()
    message = refused(capsys, "train", "digits", "--data", "folder")
    assert "--data.path" in message


def test_cuda_where_there_is_none(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert "--device cuda" in refused(capsys, "sample", "digits", "--device", "cuda")


def test_an_output_that_cannot_be_written(tmp_path, capsys, run):
    (tmp_path / "file").write_text("")
    assert "--out" in refused(
        capsys, "sample", run, "--n", "1", "--steps", "1", "--out", tmp_path / "file" / "x"
    )
    assert "--out" in refused(capsys, "train", "digits", *SMALL, "--out", tmp_path / "file" / "x")


def test_a_damaged_snapshot(run, tmp_path, capsys):
    folder = load(run, CPU).save(tmp_path / "snapshot")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "damaged" in refused(capsys, "sample", folder)
    (folder / "recipe.json").write_text('{"name": "x"}')
    assert "recipe.json" in refused(capsys, "sample", folder)


def test_defects_show_their_traceback(monkeypatch):
    def broken(argv):
        raise RuntimeError("a defect")

    monkeypatch.setattr("ditkit.cli.listing.run", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        main(["list"])


def test_import_is_quick_and_lazy():
    """`import ditkit` loads neither torch nor anything else heavy."""
    code = (
        "import sys, ditkit; ditkit.backbone, ditkit.transport, ditkit.Recipe; assert 'torch' not in sys.modules; "
        "ditkit.backbone('DiT-S/2', depth=1); assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_training_does_not_wait_for_what_few_commands_use():
    """Captions' probes and the adaptive solver bring scikit-learn, pandas and SciPy: seconds of every start."""
    code = (
        "import sys, ditkit.cli.demo, ditkit.cli.train, ditkit.training; "
        "print(*{'sklearn', 'pandas', 'scipy', 'torchdiffeq'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_the_hubs_client_is_silent_about_its_retries():
    """They come twice each; what becomes of them is the one line of an error."""
    code = (
        "from ditkit.cli import main; main(['list', 'samplers']); from huggingface_hub.utils import logging; "
        "print(logging.get_verbosity())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == str(logging.ERROR)


def test_a_working_folder_that_is_gone_is_one_line(tmp_path):
    """torch's mathematics library would abort."""
    code = f"mkdir gone; cd gone; rmdir ../gone; {sys.executable} -m ditkit list recipes"
    done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith(
        "ditkit: the folder that this command was started in is gone; change to another: cd DIR\n"
    )


def test_a_reader_that_leaves_is_no_error():
    command = f"{sys.executable} -m ditkit train imagenet256-dit-xl2 --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: ")
    assert "ditkit train imagenet256-dit-xl2" in done.stdout
    assert done.stderr == ""


def test_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "ditkit", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("ditkit 0.")


def test_compile_without_a_compiler(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.chdir(tmp_path)
    for arguments in (
        ["train", "digits", "--train.compile", "--device", "cpu"],
        ["bench", "--small"],
        ["sample", "digits", "--compile", "--device", "cpu"],
    ):
        assert "install g++" in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_compiled_sampling_is_the_same(run, tmp_path, capsys):
    for name, extra in (("eager", []), ("compiled", ["--compile"])):
        status, *_ = ditkit(capsys, "sample", run, "--n", "10", "--npz", *extra, "--out", tmp_path / name)
        assert status == 0
    images = [np.load(tmp_path / name / "samples.npz")["arr_0"].astype(int) for name in ("eager", "compiled")]
    assert np.abs(images[0] - images[1]).max() <= 1


def test_wrong_values_are_named_by_their_flag(capsys):
    status, _, err = ditkit(capsys, "sample", "digits", "--sampler", "sde_heun", "--diffusion-norm", "-1")
    assert status == 2
    assert err.strip() == (
        "ditkit: --diffusion-norm: Input should be greater than 0 (see ditkit sample --help)"
    )
