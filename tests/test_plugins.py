"""Parts of one's own, from a module that is named on the command line."""

import sys

import pytest
import torch

import ditkit
from ditkit.backbones import DiTConfig
from ditkit.cli import main
from ditkit.data import DATA
from ditkit.errors import InputError
from ditkit.extending import REGISTRIES, choices, register
from ditkit.recipe import Recipe
from ditkit.recipes import digits
from ditkit.sampling import Solver
from ditkit.transports import LOSSES, Loss, Path, Transport

MINE = '''
import torch
import ditkit
from ditkit.backbones import UNetConfig
from ditkit.data import Digits
from ditkit.recipe import Recipe, TrainConfig
from ditkit.recipes import digits
from ditkit.sampling import Solver
from ditkit.sampling.config import SamplingConfig
from ditkit.transports import Coeffs, Loss, Path, Transport


def squared(t):
    """alpha = 1 - t², sigma = t."""
    one = torch.ones_like(t)
    return Coeffs(1 - t**2, t, -2 * t, one)


def midpoint(step, x, memory=None, *, tolerance=0.5):
    """A step through its middle."""
    half = x + step.size(x) * tolerance * step.ask(x).velocity
    return x + step.size(x) * step.ask(half, (step.t + step.s) / 2, stage=1).velocity, None


def thirds(transport, high, low, steps):
    """Denser towards the data."""
    return low + (high - low) * torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 3


def mine():
    """A small network of one's own path."""
    return digits().replace(
        name="mine",
        data=Tenths(),
        backbone=Small(),
        transport={"path": "squared", "loss": "halved"},
        train={"images": 64, "batch": 32, "validate_images": 0, "preview_images": 0},
        sample={"sampler": "midpoint", "steps": 2, "grid": "thirds"},
    )


class Small(UNetConfig):
    """A U-Net of one level."""

    kind: str = "Small"
    width: int = 8
    multipliers: tuple[int, ...] = (1,)


class Tenths(Digits):
    """Every tenth digit."""

    kind: str = "tenths"

    def open(self, split="train"):
        source = super().open(split)
        source.images, source.labels = source.images[::10], source.labels[::10]
        return source


ditkit.register("path", "squared", Path(squared))
ditkit.register("loss", "halved", Loss("of half the velocity", "velocity", lambda c: 0.5 * torch.ones_like(c.alpha)))
ditkit.register("sampler", "midpoint", Solver(midpoint, "ode"))
ditkit.register("spacing", "thirds", thirds)
ditkit.register("time-law", "early", lambda u: u**2)
ditkit.register("backbone", "Small", Small())
ditkit.register("data", "tenths", Tenths())
ditkit.register("recipe", "mine", mine)
'''


@pytest.fixture
def registries():
    """Every registry as it was, afterwards."""
    before = {what: dict(choices(what)) for what in REGISTRIES}

    def forget():
        for what, known in before.items():
            choices(what).clear()
            choices(what).update(known)
        sys.modules.pop("mine", None)

    yield forget
    forget()


@pytest.fixture
def folder(tmp_path, monkeypatch, registries):
    """The current one, with a module in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    return tmp_path


def test_parts_of_ones_own_are_trained_sampled_saved_and_resumed(folder, registries, capsys):
    train = ["train", "mine", "--transport.time-law", "early", "--out", "run", "--plugin", "mine"]
    assert main([*train, "--train.images", "32"]) == 0
    out = capsys.readouterr().out
    assert "next: " in out and "sample run --plugin mine" in out  # noqa: PT018  # what is printed works
    assert main(["--plugin=mine", *train[:-2]]) == 0  # goes on
    assert Recipe.read(folder / "run" / "recipe.json").transport.path == "squared"
    assert main(["sample", "run", "--plugin", "mine", "--n", "2", "--tolerance", "0.4", "--out", "made"]) == 0
    assert "midpoint, 4 evaluations" in capsys.readouterr().out
    assert main(["convert", "--plugin", "mine", "run", "--out", "snapshot"]) == 0
    assert main(["list", "--plugin", "mine"]) == 0
    listed = capsys.readouterr().out
    for line in (
        "squared        alpha = 1 - t², sigma = t.",
        "mine",
        "Small",
        "Every tenth digit.",
        "thirds",
    ):
        assert line.split()[0] in listed
    assert len(ditkit.load("snapshot").generate({"label": [1]}, seeds=[0])) == 1

    registries()
    for path in ("run", "snapshot"):
        assert main(["sample", path]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert "recipe.json: data: unknown 'tenths'; there are digits, fashion-mnist, " in line
        assert line.endswith("--plugin MODULE")
    with pytest.raises(InputError, match=r"unknown 'tenths'.* `plugin` MODULE$"):
        ditkit.load("snapshot")
    assert main(["sample", "snapshot", "--plugin", "mine", "--n", "1"]) == 0


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "other", "--plugin other: there is no other.py here"),
        ("", "mine.py", "--plugin 'mine.py': give a module's name, my_module for my_module.py"),
        ("", "", "--plugin '': give a module's name"),
        ("import no_such_package\n", "mine", "ModuleNotFoundError: No module named 'no_such_package' ({mine}, line 1)"),
        ("\n1 / 0\n", "mine", "--plugin mine: ZeroDivisionError: division by zero ({mine}, line 2)"),
        ("def f(:\n", "mine", "--plugin mine: SyntaxError: invalid syntax ({mine}, line 1)"),
        ("import ditkit\nditkit.register('loss', 'output', None)\n", "mine",
         "--plugin mine: loss 'output' is there already; give yours another name"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_one_line(folder, text, name, message, capsys):
    (folder / "mine.py").write_text(text, encoding="utf-8")
    assert main(["list", "--plugin", name]) == 2
    error = capsys.readouterr().err
    assert message.format(mine=folder / "mine.py") in error
    assert error.count("\n") == 1


def test_only_the_command_line_names_modules(folder, capsys):
    """What a file or a variable says is never imported."""
    with pytest.raises(InputError, match="plugin"):
        Recipe.recorded(digits().model_dump() | {"plugin": "mine"}, "recipe.json")
    assert main(["train", "mine"]) == 2
    assert "unknown recipe 'mine'" in capsys.readouterr().err
    assert "mine" not in sys.modules


@pytest.mark.parametrize(
    ("what", "name", "choice", "message"),
    [
        ("paht", "mine", None, "register: unknown 'paht'; did you mean path?"),
        ("path", "linear", Path(torch.sin), "path 'linear' is there already; give yours another name"),
        ("path", "mine", torch.sin, "give a ditkit.transports.Path"),
        ("recipe", "mine", digits(), "recipe 'mine': Recipe is no such entry; give a function"),
        ("sampler", "mine", "heun", "sampler 'mine': str is no such entry; give a ditkit.sampling.Solver"),
        (
            "backbone",
            "mine",
            DATA["digits"],
            "Digits is no such entry; give a ditkit.backbones.BackboneSection",
        ),
    ],
)
def test_what_cannot_be_registered(registries, what, name, choice, message):
    with pytest.raises(InputError) as error:
        register(what, name, choice)
    assert message in str(error.value)


def test_a_kind_that_is_taken(registries):
    class Mine(DiTConfig):
        pass

    with pytest.raises(InputError, match="kind 'DiT' is there already; give yours another kind"):
        register("backbone", "mine", Mine())
    register("backbone", "mine", DiTConfig(width=64, heads=2))  # further values of a kind that there is
    assert ditkit.backbone("mine", depth=1, channels=1).blocks


def test_from_python_importing_is_enough(registries):
    register("loss", "mine", Loss("of the data", "data"))
    register("sampler", "mine", Solver(lambda step, x, memory=None: (x, None), "ode"))
    assert Transport(loss="mine").loss == "mine"
    assert (
        Recipe.model_validate(digits().model_dump() | {"sample": {"sampler": "mine"}}).sample.sampler
        == "mine"
    )
    assert "mine" in LOSSES
    with pytest.raises(InputError, match="unknown 'mien'; did you mean mine"):
        ditkit.transport(loss="mien")


def test_every_registry_is_there():
    for what, registry in REGISTRIES.items():
        assert isinstance(choices(what), dict), registry
