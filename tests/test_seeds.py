"""Trainings that differ in their seed: runs beside each other, and a comparison that sums them up."""

import json
from statistics import fmean, stdev
from types import SimpleNamespace

import pytest
from conftest import CPU

from ditkit.cli import main
from ditkit.data import DATA
from ditkit.errors import InputError
from ditkit.recipe import Recipe
from ditkit.scoring.siblings import groups_of
from ditkit.scoring.tables import COLUMNS
from ditkit.signals import Stopped
from ditkit.text import TextConfig
from ditkit.training import train, train_seeds
from ditkit.training.siblings import sibling_runs

TINY = {"images": 64, "batch": 32, "warmup_images": 0, "preview_images": 0, "validate_images": 0}
FLAGS = (
    "--backbone.width 24 --backbone.depth 1 --backbone.heads 2 --train.images 64 --train.batch 32 "
    "--train.preview-images 0 --train.validate-images 0 --sample.sampler heun --sample.steps 1 --device cpu"
).split()


@pytest.fixture
def tiny(small) -> Recipe:
    return small.replace(backbone={"depth": 1}, sample={"steps": 1}, train=TINY)


@pytest.fixture(scope="module")
def siblings(tmp_path_factory):
    """A folder of two siblings, and another run."""
    out = tmp_path_factory.mktemp("seeds")
    assert main(["train", "digits", *FLAGS, "--seeds", "0", "1", "--out", str(out / "two")]) == 0
    assert main(["train", "digits", *FLAGS, "--train.lr", "0.1", "--out", str(out / "other")]) == 0
    return out


def refused(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ditkit: ")]
    return line


def test_siblings_are_runs_of_one_recipe_and_the_next_command_is_shown(tiny, tmp_path, capsys):
    command = ["train", "digits", *FLAGS, "--seeds", "3", "1", "--out", str(tmp_path / "two")]
    assert main(command) == 0
    assert f"next: ditkit compare {tmp_path / 'two'}" in capsys.readouterr().out
    runs = sibling_runs(tmp_path / "two")
    assert [run.name for run in runs] == ["seed-1", "seed-3"]
    assert [Recipe.read(run / "recipe.json").train.seed for run in runs] == [1, 3]


def test_a_sibling_is_the_run_of_its_seed(tiny, tmp_path):
    (checkpoint,) = train_seeds(tiny, tmp_path / "all", [5], device=CPU, progress=False)
    alone = train(tiny.replace(train={"seed": 5}), tmp_path / "alone", device=CPU, progress=False)
    for name in ("model", "ema"):
        file = f"{name}.safetensors"
        assert (checkpoint / file).read_bytes() == (alone / file).read_bytes()


def test_what_is_finished_is_passed_over_and_more_seeds_can_be_added(tiny, tmp_path, caplog):
    caplog.set_level("INFO")
    (first,) = train_seeds(tiny, tmp_path, [0], device=CPU, progress=False)
    before = (first / "model.safetensors").stat().st_mtime_ns
    again, _ = train_seeds(tiny, tmp_path, [0, 1], device=CPU, progress=False)
    assert again == first
    assert (first / "model.safetensors").stat().st_mtime_ns == before
    assert "seed-0: finished, 64 images" in caplog.text
    longer = train_seeds(tiny.replace(train={"images": 96}), tmp_path, [0, 1], device=CPU, progress=False)
    assert [path.name for path in longer] == ["000000000096"] * 2


def test_a_signal_ends_all(tiny, tmp_path, monkeypatch):
    trained = []

    def stopped(recipe, out, **rest):
        trained.append(out.name)
        raise Stopped(15)

    monkeypatch.setattr("ditkit.training.seeds.train", stopped)
    with pytest.raises(Stopped):
        train_seeds(tiny, tmp_path, [0, 1], device=CPU)
    assert trained == ["seed-0"]


def test_captions_are_embedded_once(tiny, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "ditkit.training.seeds.train", lambda recipe, *a, **k: seen.append(recipe.train.texts)
    )
    with_text = tiny.replace(
        data=DATA["emoji"], text=TextConfig(id="minilm", dim=384), backbone={"text": "cross_attention"}
    )
    train_seeds(with_text, tmp_path, [0, 1], device=CPU)
    assert seen == [tmp_path / "text"] * 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--seeds 0 1 0", "--seeds: 0 stands twice; give every seed once"),
        ("--seeds 0 1 --train.seed 3", "--seeds and --train.seed"),
        ("--seeds 0 1 --train.seed=3", "leave --train.seed out"),
        ("--seeds -1", "--seeds"),
        ("--seeds one", "--seeds"),
        ("--seeds", "--seeds"),
    ],
)
def test_wrong_seeds_are_one_line(flags, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, "train", "digits", *flags.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seeds", [[], [0, 0], [0.5], [-1], "01", 3])
def test_wrong_seeds_from_python(tiny, tmp_path, seeds):
    with pytest.raises(InputError, match=r"^seeds"):
        train_seeds(tiny, tmp_path, seeds, device=CPU)


def test_siblings_of_another_recipe_are_refused_before_any_training(siblings, tiny, tmp_path, capsys):
    line = refused(
        capsys, "train", "digits", *FLAGS, "--train.lr", "0.1", "--seeds", "7", "--out", siblings / "two"
    )
    assert "seed-0 was made with train.lr" in line
    assert not (siblings / "two" / "seed-7").exists()
    line = refused(capsys, "train", "digits", *FLAGS, "--seeds", "0", "--out", siblings / "other")
    assert "is a run itself" in line


# --- comparing -------------------------------------------------------------------------------------


def row(model: str, frechet: float, accuracy: float | None = None):
    """A line of a comparison, as far as it is summed up."""
    labels = None if accuracy is None else SimpleNamespace(accuracy=accuracy)
    others = dict.fromkeys(COLUMNS) | {"frechet": frechet}
    scores = SimpleNamespace(labels=labels, features="x", **others)
    return SimpleNamespace(cell=SimpleNamespace(model=model), scores=scores)


def test_groups_have_means_and_deviations_of_their_trainings():
    rows = [
        row("a", 1.0, 0.5),
        row("a", 3.0),
        row("x", 7.0),
        row("b", 2.0, 0.7),
        row("b", 5.0),
        row("x", 9.0),
    ]
    first, second, *alone = groups_of(rows, {"a": "x", "b": "x"})
    assert (first.model, len(first.rows)) == ("x", 2)
    assert first.scores["frechet"].mean == 1.5
    assert first.scores["frechet"].deviation == pytest.approx(stdev([1.0, 2.0]))
    assert first.scores["accuracy"].mean == pytest.approx(0.6)
    assert second.scores["frechet"].mean == 4
    assert [group.scores["frechet"].mean for group in alone] == [
        7,
        9,
    ]  # a model called as the group is not in it
    assert alone[0].scores["frechet"].deviation is None


def compared(out, *runs) -> tuple[str, dict]:
    options = "--n 20 --steps 1 --guidance 1 --resamples 2".split()
    assert main(["compare", *map(str, runs), *options, "--out", str(out)]) == 0
    return (out / "compare.md").read_text(), json.loads((out / "compare.json").read_text())


def test_compare_sums_up_a_folder_of_siblings(siblings, tmp_path, capsys):
    text, record = compared(tmp_path, siblings / "two", siblings / "other")
    names = ["two/seed-0", "two/seed-1", "other"]
    assert [row["model"] for row in record["rows"]] == names
    group, other = record["groups"]
    assert (group["model"], group["trainings"]) == ("two", names[:2])
    distances = [row["scores"]["frechet"] for row in record["rows"]]
    found = group["scores"]["frechet"]
    assert found["mean"] == pytest.approx(fmean(distances[:2]))
    assert found["standard_deviation"] == pytest.approx(stdev(distances[:2]))
    assert other["scores"]["frechet"] == {"mean": distances[2], "standard_deviation": None}
    assert f"| two | 2 | heun, 2 | 1 | {found['mean']:.3f} ± {found['standard_deviation']:.3f} |" in text
    assert f"| other | 1 | heun, 2 | 1 | {distances[2]:.3f} |" in text
    assert "standard deviation over trainings" in text
    assert "standard error over the draw" in text
    # Runs that are named one by one are found to be siblings; nothing else is summed up.
    text, record = compared(tmp_path / "one", *(siblings / "two" / name for name in ("seed-0", "seed-1")))
    assert [group["model"] for group in record["groups"]] == ["seed-0, seed-1"]


def test_runs_that_are_no_siblings_are_not_summed_up(siblings, tmp_path):
    text, record = compared(tmp_path, siblings / "two" / "seed-0", siblings / "other")
    assert record["groups"] == []
    assert "over trainings" not in text


def test_a_folder_of_siblings_is_no_model(siblings, capsys):
    line = refused(capsys, "sample", siblings / "two")
    assert f"name one of them, such as {siblings / 'two' / 'seed-0'}" in line


def test_folders_of_unlike_siblings_are_refused(tiny, tmp_path, capsys):
    for name, change in (("seed-0", {}), ("seed-1", {"seed": 1, "lr": 0.1})):
        folder = tmp_path / name
        folder.mkdir()
        tiny.replace(train=change).write(folder / "recipe.json")
    assert "seed-0 was made with train.lr 0.006, seed-1 with 0.1" in refused(capsys, "compare", tmp_path)


def test_folders_of_siblings_that_are_not_finished_are_refused(tiny, tmp_path, capsys):
    train_seeds(tiny, tmp_path, [0, 1], device=CPU, progress=False)
    train_seeds(tiny.replace(train={"images": 96}), tmp_path, [1], device=CPU, progress=False)
    line = refused(capsys, "compare", tmp_path)
    assert "seed-0 was made with train.images 64, seed-1 with 96; train all of them to the same end" in line
