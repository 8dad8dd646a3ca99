"""Numbers that are not finite: in weights, states and settings they are an error, not a black image."""

import math

import pytest
import torch
from conftest import CPU

import ditkit
from ditkit.cli import main
from ditkit.cli.train import parse_train
from ditkit.config import Section
from ditkit.errors import InputError, NotFinite
from ditkit.pipeline import load
from ditkit.recipe import Recipe
from ditkit.recipes import RECIPES, recipe
from ditkit.scoring.likelihood import likelihoods
from ditkit.training import train


@pytest.fixture(scope="module", params=[math.nan, math.inf], ids=str)
def lost(request, tmp_path_factory):
    """A snapshot one number of which is none."""
    pipe = load("digits", CPU)
    with torch.no_grad():
        next(iter(pipe.backbone.parameters())).view(-1)[0] = request.param
    return pipe.save(tmp_path_factory.mktemp("lost") / "model")


@pytest.mark.parametrize(
    "command",
    [
        "sample {} --n 1",
        "eval {} --n 10",
        "likelihood {} --n 2",
        "compare {} --n 10",
        "convert {} --out there",
    ],
)
def test_weights_that_are_not_finite_are_refused_by_name(lost, command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(command.format(lost).split()) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert str(lost) in line
    assert "not all finite" in line
    assert not list(tmp_path.rglob("*.p*"))


def test_they_are_refused_in_python_and_to_start_from(lost, small, tmp_path):
    with pytest.raises(NotFinite, match="not all finite"):
        ditkit.load(lost)
    with pytest.raises(InputError, match="not all finite"):
        train(small, tmp_path / "run", device=CPU, init=lost, progress=False)


def test_states_that_are_not_finite_name_model_and_seed():
    pipe = load("digits", CPU)
    for bad in (math.nan, math.inf, 1e30):
        forward = pipe.backbone.forward
        pipe.backbone.forward = lambda x, t, cond, bad=bad, forward=forward: (
            forward(x, t, cond) + torch.tensor([0.0, bad]).view(-1, 1, 1, 1)
        )
        with pytest.raises(NotFinite, match=r"digits: .*seed 7.*`steps`"):
            pipe.generate({"label": [1, 2]}, seeds=[5, 7], guidance=1.0, steps=2)
        with pytest.raises(NotFinite, match=r"digits: the bits per dimension of image 1 of test"):
            likelihoods(pipe, 2, method="bound", steps=2)
        pipe.backbone.forward = forward


@pytest.mark.parametrize("guidance", [1e30, math.inf, math.nan])
def test_guidance_beyond_all_bounds(guidance):
    with pytest.raises(InputError, match="guidance"):
        load("digits", CPU).generate({"label": [1]}, seeds=[0], guidance=guidance)


def test_a_preview_that_is_not_finite_does_not_end_a_run(small, tmp_path, monkeypatch, caplog):
    def lost(*_):
        raise NotFinite("what was sampled is not finite")

    monkeypatch.setattr("ditkit.training.monitor.save_preview", lost)
    assert train(
        small.replace(train={"images": 64, "preview_images": 32}),
        tmp_path / "run",
        device=CPU,
        progress=False,
    )
    assert "not finite; training goes on" in caplog.text


def floats(section: Section, above: str = ""):
    """Every number of a recipe that can have a fraction, by its flag."""
    for name, value in section:
        if isinstance(value, Section):
            yield from floats(value, f"{above}{name}.")
        elif isinstance(value, float):
            yield f"{above}{name}"


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_no_setting_is_infinite(value):
    """Whatever the field: refused by the base of all sections, by flag as in Python."""
    found = list(floats(recipe("digits")))
    assert {"train.lr", "train.weight_decay", "sample.guidance", "transport.level_shift"} <= {*found}
    for flag in found:
        with pytest.raises(InputError, match=f"--{flag}: .*finite".replace("_", "-")):
            parse_train(["digits", f"--{flag}={value}"])
    for name in RECIPES:
        with pytest.raises(InputError, match=r"train\.lr: .*finite"):
            recipe(name).replace(train={"lr": float(value)})


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        ("sample digits --interval nan 1", "--interval"),
        ("sample digits --guidance inf", "--guidance"),
        ("sample digits --level-guidance 2 nan", "--level-guidance"),
        ("sample digits --fps inf", "--fps"),
        ("compare digits --guidance 1,inf", "--guidance"),
        ("train digits --train.betas 0.9 nan", "--train.betas"),
    ],
)
def test_commands_name_the_flag(command, flag, capsys):
    assert main(command.split()) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{flag}" in line
    assert "finite" in line


def test_a_recipe_on_disk_that_has_one_is_refused(tmp_path):
    recipe("digits").write(tmp_path / "recipe.json")
    text = (tmp_path / "recipe.json").read_text().replace('"weight_decay": 0.0', '"weight_decay": NaN')
    (tmp_path / "recipe.json").write_text(text)
    with pytest.raises(InputError, match=r"train\.weight_decay: .*finite"):
        Recipe.read(tmp_path / "recipe.json")
