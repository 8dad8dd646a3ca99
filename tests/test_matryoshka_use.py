"""Networks of several resolutions in use: levels and guidance of samples, released files, the command line."""

import itertools
import logging
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from conftest import CPU
from test_matryoshka_training import LEVEL, SMALL, THIN, THREE, nested, quiet

import ditkit
from ditkit.backbones import MatryoshkaConfig, MDMConfig, OuterLevel
from ditkit.cli import main
from ditkit.cli.train import parse_train
from ditkit.errors import InputError
from ditkit.interop import write_official
from ditkit.interop.mdm import mdm_to_official
from ditkit.pipeline import Pipeline, load
from ditkit.recipe import Recipe
from ditkit.recipes import recipe


@pytest.fixture(scope="module")
def inner(tmp_path_factory):
    """A run of the network inside, on images of 4 pixels."""
    out = tmp_path_factory.mktemp("inner")
    quiet(nested(SMALL, data={"size": 4}), out)
    return out


# --- sampling ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe():
    """Not trained, but with random weights."""
    chosen = nested(THREE, data={"classes": 10}, sample={"steps": 3})
    net = chosen.build_backbone().eval().requires_grad_(False)
    stream = torch.Generator().manual_seed(0)
    for value in net.parameters():
        value.data += 0.1 * torch.randn(value.shape, generator=stream)
    return Pipeline(chosen, net, chosen.build_codec(), CPU)


def test_only_some_levels_can_be_sampled(pipe):
    cond = {"label": [1, 2]}
    plain = pipe.generate(cond, seeds=[0, 1])
    levels = [pipe.generate(cond, seeds=[0, 1], levels=str(k)) for k in range(3)]
    assert [level.shape[2:] for level in levels] == [(8, 8), (4, 4), (2, 2)]
    assert levels[0].equal(plain)
    row = pipe.generate(cond, seeds=[0, 1], levels="all")
    assert row.shape[2:] == (8, 24)
    assert row[..., 16:].equal(plain)
    assert row[..., 8:16:2][:, :, ::2].equal(levels[1])
    assert row[..., 0:8:4][:, :, ::4].equal(levels[2])
    for wrong in ("3", "-1", "low", ""):
        with pytest.raises(InputError, match=f"`levels` {wrong}: this model has 3 levels; give 0 to 2"):
            pipe.generate(cond, seeds=[0, 1], levels=wrong)
    with pytest.raises(InputError, match="`levels` 0: this model has 1 level; leave it out"):
        load("digits", CPU).generate({"label": [1]}, seeds=[0], levels="0")


def test_guidance_of_levels(pipe):
    cond, seeds = {"label": [1, 2]}, [0, 1]
    how = {"levels": "all", "seeds": seeds}
    plain, strong = (pipe.generate(cond, guidance=scale, **how) for scale in (1.0, 4.0))
    same = pipe.generate(cond, level_guidance=(4.0,) * 3, **how)
    assert (same.int() - strong.int()).abs().max() <= 1
    off = pipe.generate(cond, level_guidance=(1.0,) * 3, **how)
    assert (off.int() - plain.int()).abs().max() <= 1
    assert not strong.equal(plain)
    for options in ({"level_guidance": (1.0, 2.0)}, {"level_guidance": (1.0, 2.0, 3.0), "weak": "digits"}):
        with pytest.raises(
            InputError, match=r"`level_guidance` has . scales for 3 levels; give one for each, wi"
        ):
            pipe.generate(cond, seeds=seeds, **options)


def test_models_of_other_levels_are_not_for_guidance_nor_pyramids_for_bits(pipe, tmp_path):
    pipe.save(tmp_path)
    with pytest.raises(InputError, match=r"levels 4:2:1, .*; a weak model needs .* levels 1, "):
        load("digits", CPU).generate({"label": [1]}, seeds=[0], weak=str(tmp_path), guidance=2.0)
    assert main(["likelihood", str(tmp_path), "--n", "2", "--out", str(tmp_path / "bits")]) == 2


def test_thresholds_bound_pixels(pipe):
    images = [
        pipe.generate({"label": [1]}, seeds=[0], threshold=name) for name in (None, "clip", "dynamic_if")
    ]
    assert not any(a.equal(b) for a, b in itertools.combinations(images, 2))
    with pytest.raises(InputError, match="threshold"):
        pipe.generate({"label": [1]}, seeds=[0], threshold="most")


# --- released files ---------------------------------------------------------------------------------

INSIDE = MDMConfig(
    widths=(32, 64), depth=(1, 1), attention=(0, 1), scale=64, condition_width=128, text_width=24
)
OUTSIDE = [OuterLevel(widths=(32, 32), depth=(1, 1), scale=scale) for scale in (128, 256)]


def released(levels):
    """A network as released, of 64 pixels and so many levels, its configuration and its official weights."""
    config = INSIDE
    if levels == 2:
        config = MatryoshkaConfig(inner=INSIDE, levels=OUTSIDE[:1])
    if levels == 3:
        middle = OUTSIDE[0].model_copy(update={"normalised": True})
        config = MatryoshkaConfig(inner=INSIDE, levels=(OUTSIDE[1], middle))
    torch.manual_seed(0)
    net = config.build(channels=3 * sum(ratio**2 for ratio in config.ratios), classes=0, text_dim=16)
    for value in net.parameters():
        value.data += 0.02 * torch.randn(value.shape)
    return config, net, mdm_to_official(net.state_dict(), config)


def write_with_code(file, content, witness):
    """A file whose arguments run code when they are unpickled, by a module that readers do not have."""
    module = ModuleType("language_models")
    exec(
        "class Factory:\n    def __reduce__(self):\n        return (open, (self.file, 'w'))\n",
        module.__dict__,
    )
    module.Factory.__module__ = module.__name__
    trap = module.Factory()
    trap.file = str(witness)
    sys.modules[module.__name__] = module
    try:
        torch.save({**content, "args": {"language_model": trap}, "batch_num": 7}, file)
    finally:
        del sys.modules[module.__name__]


@pytest.mark.parametrize(("levels", "shift"), [(1, 1.0), (2, 1.0), (3, 2.0)])
def test_a_released_file_is_a_model(levels, shift, tmp_path):
    config, net, state = released(levels)
    witness, file = tmp_path / "ran", tmp_path / "vis_model_small.pth"
    write_with_code(file, {"state_dict": state}, witness)
    torch.load(file, weights_only=False)
    assert witness.exists()  # the trap works
    witness.unlink()
    pipe = ditkit.load(file, CPU)
    assert not witness.exists()
    chosen = pipe.recipe
    assert chosen.backbone == config
    transport = chosen.transport
    assert (transport.path, transport.predict, transport.loss) == ("cosine", "v", "noise")
    assert (transport.level_shift, transport.level_weights) == (shift, ())
    assert (chosen.data.size, chosen.data.channels, chosen.data.classes) == (64 * 2 ** (levels - 1), 3, 0)
    assert (chosen.text.id, chosen.text.dim, chosen.text.null) == ("google/flan-t5-xl", 16, "empty")
    sample = chosen.sample
    assert (sample.sampler, sample.respacing, sample.threshold) == ("ddim", "mdm50", "dynamic_if")
    assert (sample.guidance, sample.choices["eta"]) == (7.5, 0)
    for name, value in net.state_dict().items():
        assert pipe.backbone.state_dict()[name].equal(value), name
    with pytest.raises(InputError, match="leave out `kind`"):
        ditkit.load(file, CPU, kind="DiT")


def test_released_files_there_and_back_by_the_command_line(tmp_path, capsys):
    config, _, state = released(2)
    file = tmp_path / "vis_model_small.pth"
    torch.save({"state_dict": state}, file)
    assert main(["convert", str(file), "--out", str(tmp_path / "ours")]) == 0
    assert Recipe.read(tmp_path / "ours" / "recipe.json").backbone == config
    assert (
        main(["convert", str(tmp_path / "ours"), "--to", "official", "--out", str(tmp_path / "theirs")]) == 0
    )
    (back,) = (tmp_path / "theirs").iterdir()
    found = torch.load(back, weights_only=True)["state_dict"]
    assert found.keys() == state.keys()
    assert all(found[name].equal(value) for name, value in state.items())
    assert ditkit.load(back, CPU).recipe.backbone == config


def test_networks_that_have_no_released_form(tmp_path):
    plain = MatryoshkaConfig(inner=INSIDE, levels=OUTSIDE[:1])
    patched = MatryoshkaConfig(inner=INSIDE, levels=(THIN,))
    spoken = MatryoshkaConfig(inner=SMALL.model_copy(update={"text": "cross_attention"}), levels=(LEVEL,))
    for config, classes, text_dim, message in (
        (plain, 10, 16, "take a text and no class"),
        (plain, 0, 0, "take a text and no class"),
        (patched, 0, 16, "have levels of patch 1"),
        (spoken, 0, 16, "a DiT with levels around it has no released names; an MDM has"),
    ):
        net = config.build(channels=5, classes=classes, text_dim=text_dim)
        chosen = recipe("emoji-matryoshka").with_backbone(config) if config is spoken else nested(config)
        with pytest.raises(InputError, match=message):
            write_official(tmp_path / "out", chosen, net)
    assert not (tmp_path / "out").exists()


# --- the command line -------------------------------------------------------------------------------


def parsed(*flags):
    return parse_train(["digits", *flags]).recipe


def test_levels_and_what_is_inside_by_flags(inner):
    chosen = parsed("--backbone", "Matryoshka", "--backbone.inner", "U-DiT-S", "--backbone.levels", "3")
    assert chosen.backbone == ditkit.backbones.matryoshka("U-DiT-S", 3)
    assert parsed("--backbone=Matryoshka", f"--backbone.inner={inner}").backbone.inner == SMALL
    few = parsed("--backbone", "Matryoshka", "--backbone.inner", "DiT-S/4", "--backbone.inner.width", "64")
    assert (few.backbone.inner.width, few.backbone.inner.patch) == (64, 4)
    patched = parsed("--backbone", "Matryoshka", "--backbone.levels", "2", "--backbone.levels.1.patch", "2")
    assert patched.backbone.ratios == (8, 4, 1)
    released = ditkit.backbones.BACKBONES["MDM-1024"]
    one = parsed("--backbone", "MDM-1024", "--backbone.levels", "1").backbone
    assert (one.inner, one.levels) == (released.inner, released.levels[1:])
    more = parsed("--backbone", "MDM-1024", "--backbone.levels", "3").backbone
    assert more.levels == (released.levels[0], *released.levels)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--backbone", "DiT-S/2", "--backbone.levels", "2"], "--backbone.levels is for --backbone Matryoshka or another"),
        (["--backbone.inner", "DiT-S/2"], "--backbone.inner is for --backbone Matryoshka"),
        (["--backbone", "Matryoshka", "--backbone.inner", "DiT-Q"], "unknown backbone 'DiT-Q' inside; choose one of: DiT,"),
        (["--backbone", "Matryoshka", "--backbone.inner", "MDM-256"], "unknown backbone 'MDM-256' inside"),
        (["--backbone", "Matryoshka", "--backbone.inner"], "unknown backbone '' inside"),
        *[(["--backbone", "Matryoshka", "--backbone.levels", n], f"--backbone.levels '{n}': give the number of levels") for n in ("0", "-1", "two", "1.5", "²", "")],
        (["--backbone", "Matryoshka", "--backbone.levels", "2", "--transport.level-weights", "1", "2"], "level_weights has 2 numbers, this backbone needs 3"),
        (["--backbone", "Matryoshka", "--train.stages", "9", "9"], "2 stages before the last for 2 levels"),
    ],
)  # fmt: skip
def test_flags_that_do_not_fit(flags, message):
    with pytest.raises(InputError) as caught:
        parsed(*flags)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_of_several_levels_inside_is_refused(tmp_path):
    nested().write(tmp_path / "recipe.json")
    with pytest.raises(InputError, match="Matryoshka") as caught:
        parsed("--backbone", "Matryoshka", "--backbone.inner", str(tmp_path))
    assert "\n" not in str(caught.value)


def test_trained_and_sampled_by_commands(inner, tmp_path, capsys, caplog):
    few = [
        "--train.images",
        "32",
        "--train.batch",
        "32",
        "--train.validate-images",
        "0",
        "--sample.steps",
        "2",
    ]
    around = ["--backbone", "Matryoshka", "--backbone.inner", str(inner), "--train.precision", "fp32"]
    out = str(tmp_path / "run")
    with caplog.at_level(logging.INFO):
        assert main(["train", "digits", *around, *few, "--init-inner", str(inner), "--out", out]) == 0
    assert "tensors taken, those of the lowest level" in caplog.text
    how = ["--n", "10", "--level-guidance", "1", "2", "--threshold", "clip", "--npz"]
    assert main(["sample", out, "--levels", "all", *how, "--out", str(tmp_path / "samples")]) == 0
    assert np.load(tmp_path / "samples" / "samples.npz")["arr_0"].shape == (10, 8, 16, 1)
    assert main(["sample", out, "--levels", "2", "--out", str(tmp_path / "more")]) == 2
    assert "--levels 2: this model has 2 levels; give 0 to 1" in capsys.readouterr().err
    wrong = ["train", "digits", *around, *few, "--transport.path", "gvp", "--init-inner", str(inner)]
    assert main([*wrong, "--out", str(tmp_path / "other")]) == 2
    assert "has path linear, the recipe has gvp inside" in capsys.readouterr().err
