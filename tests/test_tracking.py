"""Trackers: what they get of a run, once; that they end no training; that no secret gets anywhere."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from conftest import CPU
from PIL import Image

from ditkit.cli import main
from ditkit.errors import InputError
from ditkit.recipe import Recipe, Training
from ditkit.records import append_line
from ditkit.trackers import TRACKERS, Backend, TrackedRun, check_trackers, without_secrets
from ditkit.training import train
from ditkit.training.tracking import Tracking

PASSWORD, KEY = "hunter2hunter2", "0123456789abcdef0123456789abcdef01234567"


class Kept:
    """A tracker that keeps what it gets, in `lines`."""

    lines: ClassVar[list[tuple]] = []

    def __init__(self, run: TrackedRun):
        self.id = run.id or "first"
        self.lines.append(("open", run.name, run.id))
        self.parameters = run.parameters

    def scalars(self, values, images):
        self.lines.append((images, *sorted(values)))

    def picture(self, name, file, images):
        assert file.is_file()
        self.lines.append((images, name))

    def close(self, failed):
        self.lines.append(("close", failed))


@pytest.fixture
def kept(monkeypatch) -> list[tuple]:
    """What the tracker `kept` got, in order."""
    monkeypatch.setattr(Kept, "lines", [])
    monkeypatch.setitem(TRACKERS, "kept", Backend("keeps", Kept))
    return Kept.lines


def tracked(out: Path, *names: str, images: int = 100) -> Tracking:
    config = Training(images=images, log_images=10, track=names)
    return Tracking(out, config, "a run", config)


def step(tracking: Tracking, seen: int) -> None:
    tracking(None, seen - 10, seen)  # it reads files, not the state


def line(out: Path, images: int, name: str = "log.jsonl", **values) -> None:
    append_line(out / name, {"images": images, **values})


# --- what they get ---------------------------------------------------------------------------------


def test_lines_validation_scores_and_previews_are_sent_by_images(kept, tmp_path):
    with tracked(tmp_path, "kept") as tracking:
        line(tmp_path, 10, loss=1.0, lr=0.1, skipped=0)
        line(tmp_path, 10, "validation.jsonl", loss=0.5, t=[0.05, 0.95], levels=[0.1, 0.9])
        step(tracking, 10)
        line(tmp_path, 20, loss=float("nan"), lr=0.1)
        line(tmp_path, 20, "scores.jsonl", frechet=3.0, accuracy=None, features="name", samples=500)
        (tmp_path / "previews").mkdir()
        Image.new("L", (4, 4)).save(tmp_path / "previews" / f"{20:012d}.png")
        step(tracking, 20)
    assert kept == [
        ("open", "a run", None),
        (10, "train/loss", "train/lr", "train/skipped"),
        (10, "validation/loss", "validation/t_0.05", "validation/t_0.95"),
        (20, "train/lr"),
        (20, "scores/frechet", "scores/samples"),
        (20, "preview"),
        ("close", False),
    ]


def test_a_run_that_goes_on_continues_and_sends_nothing_twice(kept, tmp_path):
    tracking = tracked(tmp_path, "kept")
    line(tmp_path, 10, loss=1.0)
    step(tracking, 10)
    tracking.__exit__(RuntimeError, RuntimeError(), None)
    assert kept[-1] == ("close", True)
    (tmp_path / "log.jsonl").unlink()
    kept.clear()
    with tracked(tmp_path, "kept") as tracking:
        line(tmp_path, 10, loss=1.0)  # written again, as the run goes on before it
        step(tracking, 10)
        line(tmp_path, 20, loss=1.0)
        step(tracking, 20)
    assert kept == [("open", "a run", "first"), (20, "train/loss"), ("close", False)]


def test_a_tracker_that_is_chosen_later_gets_what_it_missed(kept, tmp_path):
    for images in (10, 20):
        line(tmp_path, images, loss=1.0)
    with tracked(tmp_path, "kept"):  # of a run that has nothing left to learn
        pass
    assert kept[1:-1] == [(10, "train/loss"), (20, "train/loss")]
    kept.clear()
    with tracked(tmp_path, "kept"):
        pass
    assert kept == []


def test_a_step_at_which_nothing_is_due_reads_nothing(kept, tmp_path, monkeypatch):
    with tracked(tmp_path, "kept") as tracking:
        step(tracking, 10)
        monkeypatch.setattr(Tracking, "_send", None)
        tracking(None, 10, 19)
        monkeypatch.undo()


def test_a_line_that_is_being_written_is_sent_when_it_is_whole(kept, tmp_path):
    with tracked(tmp_path, "kept") as tracking:
        with (tmp_path / "log.jsonl").open("w") as file:
            file.write('{"images": 10, "lo')
            file.flush()
            step(tracking, 10)
            file.write('ss": 1.0}\nnonsense\n')
        step(tracking, 20)
    assert kept[1:-1] == [(10, "train/loss")]


def test_training_with_a_tracker(small, kept, tmp_path):
    """The same bits with it as without; it may change when the run goes on."""
    follow = small.replace(train={"track": ("kept",), "validate_images": 160})
    checkpoint = train(follow, tmp_path / "a", device=CPU, progress=False)
    plain = train(follow.replace(train={"track": ()}), tmp_path / "b", device=CPU, progress=False)
    assert (checkpoint / "ema.safetensors").read_bytes() == (plain / "ema.safetensors").read_bytes()
    assert kept[0] == ("open", "digits", None)
    assert [got[0] for got in kept if got[1] == "train/grad_norm"] == [64, 128, 192, 256, 320]
    assert [got[0] for got in kept if got[1] == "preview"] == [320]
    assert [got[0] for got in kept if got[1] == "validation/loss"] == [160, 320]
    assert kept[-1] == ("close", False)
    kept.clear()
    longer = follow.replace(train={"images": 384})
    train(longer, tmp_path / "b", device=CPU, progress=False)
    assert [got[0] for got in kept if got[1] == "train/grad_norm"][-1] == 384
    assert not (tmp_path / "b" / "track").is_file()


# --- what goes wrong -------------------------------------------------------------------------------


def failing(where: str) -> Callable[[TrackedRun], Kept]:
    class Broken(Kept):
        pass

    def fail(*_, **__):
        raise ConnectionError(f"no answer from https://me:{PASSWORD}@host.example/api?key={KEY}\nand more")

    setattr(Broken, where, fail)
    return Broken


@pytest.mark.parametrize("where", ["__init__", "scalars", "picture", "close"])
def test_a_tracker_that_fails_ends_no_training_and_is_reported_once(
    where, kept, tmp_path, monkeypatch, caplog
):
    monkeypatch.setitem(TRACKERS, "broken", Backend("fails", failing(where)))
    monkeypatch.setenv("SOME_API_KEY", KEY)
    (tmp_path / "previews").mkdir()
    with tracked(tmp_path, "broken", "kept") as tracking:
        for images in (10, 20, 30):
            line(tmp_path, images, loss=1.0)
            Image.new("L", (4, 4)).save(tmp_path / "previews" / f"{images:012d}.png")
            step(tracking, images)
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    text = warning.getMessage()
    assert (
        "broken failed (no answer from https://host.example/api?key=***); training goes on without it" in text
    )
    assert [got for got in kept if got == (30, "train/loss")]  # the other one


def test_what_it_missed_is_sent_when_the_run_goes_on(kept, tmp_path, monkeypatch):
    monkeypatch.setitem(TRACKERS, "kept", Backend("fails", failing("scalars")))
    with tracked(tmp_path, "kept") as tracking:
        line(tmp_path, 10, loss=1.0)
        step(tracking, 10)
    kept.clear()
    monkeypatch.setitem(TRACKERS, "kept", Backend("keeps", Kept))
    with tracked(tmp_path, "kept") as tracking:
        line(tmp_path, 20, loss=1.0)
        step(tracking, 20)
    assert kept == [("open", "a run", "first"), (10, "train/loss"), (20, "train/loss"), ("close", False)]


def test_a_damaged_record_of_what_was_sent_is_a_warning(kept, tmp_path, caplog):
    (tmp_path / "track").mkdir()
    (tmp_path / "track" / "kept.json").write_text("{")
    with tracked(tmp_path, "kept") as tracking:
        line(tmp_path, 10, loss=1.0)
        step(tracking, 10)
    assert "kept.json: cannot be read" in caplog.text


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_a_missing_package_is_one_line_before_anything_starts(name, capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, name, None)
    monkeypatch.chdir(tmp_path)
    for verb in ("train digits", "train-codec digits"):
        assert main([*verb.split(), "--train.track", name, "--out", "run"]) == 2
        assert (
            f"--train.track {name} needs a package: pip install 'ditkit[{name}]'" in capsys.readouterr().err
        )
        assert not list(tmp_path.iterdir())


def test_a_folder_of_a_packages_name_is_none(tmp_path, monkeypatch):
    (tmp_path / "trackio_of_none").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(TRACKERS, "none", Backend("not there", Kept, ("trackio_of_none",)))
    with pytest.raises(InputError, match="needs a package"):
        check_trackers(["none"])


def test_unknown_trackers_are_refused_with_the_nearest(capsys):
    assert main(["train", "digits", "--train.track", "wandbe"]) == 2
    assert "unknown 'wandbe'; did you mean wandb?" in capsys.readouterr().err
    with pytest.raises(ValueError, match="unknown 'wandbe'"):
        Training(track=("wandbe",))
    assert Training(track=("wandb", "wandb")).track == ("wandb",)


# --- secrets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"http://me:{PASSWORD}@host/x", "http://host/x"),
        ("sqlite:////a/b.db", "sqlite:////a/b.db"),
        ("postgresql://me@host/db and https://other/a@b", "postgresql://host/db and https://other/a@b"),
        (f"key {KEY}!", "key ***!"),
        ("p@ss/word alone", "*** alone"),
        ("short abc", "short abc"),
    ],
)
def test_secrets_are_not_shown(text, shown, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:p%40ss%2Fword@host:5000")
    monkeypatch.setenv("OTHER_TOKEN", "abc")
    assert without_secrets(text) == shown


def pretend(folder: Path, name: str, source: str, monkeypatch) -> None:
    """A package of that name, which is found before any other."""
    (folder / "packages" / name).mkdir(parents=True)
    (folder / "packages" / name / "__init__.py").write_text(source)
    modules = __import__("sys").modules
    for known in [known for known in modules if known == name or known.startswith(f"{name}.")]:
        monkeypatch.delitem(modules, known)
    monkeypatch.syspath_prepend(folder / "packages")
    monkeypatch.setattr("sys.modules", dict(modules))


WANDB = """
import os, sys
class Settings(dict): pass
class Image:
    def __init__(self, path): self.path = path
calls = []
class Run:
    config = None
    def __init__(self, **values): self.config = self; calls.append(values)
    def update(self, values, allow_val_change): calls.append(values)
    def log(self, values, step): calls.append((step, sorted(values)))
    def finish(self, exit_code): calls.append(exit_code)
def init(**values):
    print("logged in with", os.environ["WANDB_API_KEY"], "at", os.environ["WANDB_BASE_URL"], file=sys.stderr)
    return Run(**values)
def login(prompt, verify): return "WANDB_API_KEY" in os.environ
"""


def nowhere(out: Path, *texts: str) -> None:
    """None of the secrets is in the texts or in a file below `out`."""
    found = [text.encode() for text in texts] + [
        file.read_bytes() for file in out.rglob("*") if file.is_file()
    ]
    for secret in (KEY, PASSWORD):
        assert not any(secret.encode() in content for content in found)


FLAGS = (
    "train digits --backbone.width 24 --backbone.depth 1 --backbone.heads 2 --train.images 64 --train.batch 32 "
    "--train.preview-images 64 --train.validate-images 0 --sample.sampler heun --sample.steps 1 --device cpu"
).split()


def test_wandb_in_small(tmp_path, monkeypatch, capfd):
    """What wandb is called with, that a run goes on in the same one, and that its key gets nowhere."""
    pretend(tmp_path, "wandb", WANDB, monkeypatch)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://me:{PASSWORD}@127.0.0.1:9")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    out = tmp_path / "run"
    assert main([*FLAGS, "--train.track", "wandb", "--out", str(out)]) == 0
    import wandb

    begun, recipe, *sent, end = wandb.calls
    assert (begun["resume"], begun["project"], begun["name"]) == ("allow", "ditkit", "digits")
    assert recipe["train"]["images"] == 64
    assert [step for step, _ in sent] == [64, 64]
    assert sent[1] == (64, ["preview"])
    assert end == 0
    wandb.calls.clear()
    assert main([*FLAGS, "--train.images", "96", "--train.track", "wandb", "--out", str(out)]) == 0
    assert wandb.calls[0]["id"] == begun["id"]
    nowhere(out, *capfd.readouterr())


def test_wandb_without_a_key_is_one_line(tmp_path, monkeypatch, capsys):
    pretend(tmp_path, "wandb", WANDB, monkeypatch)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert main([*FLAGS, "--train.track", "wandb", "--out", str(tmp_path / "run")]) == 2
    assert "--train.track wandb: no key; type `wandb login` once" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# --- the packages themselves -----------------------------------------------------------------------


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra `tensorboard`")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for images in (64, 96):
        flags = ["--train.images", str(images), "--train.log-images", "32", "--train.track", "tensorboard"]
        assert main([*FLAGS, *flags, "--out", str(tmp_path)]) == 0
    events = EventAccumulator(str(tmp_path / "track" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [32, 64, 96]
    assert events.Images("preview")[0].step == 64
    assert "_hparams_/session_start_info" in events.Tags()["tensors"] or "hparams" in str(
        events.summary_metadata
    )


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_the_package_itself(name, tmp_path, monkeypatch, capfd, caplog):
    """A run and the rest of it, on this machine only; no secret gets anywhere."""
    pytest.importorskip(name, reason=f"needs the extra `{name}`")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    out = tmp_path / "run"
    for images in (64, 96):
        flags = ["--train.images", str(images), "--train.log-images", "32", "--train.track", name]
        assert main([*FLAGS, *flags, "--out", str(out)]) == 0
    assert "failed" not in caplog.text
    record = json.loads((out / "track" / f"{name}.json").read_text())
    assert record["sent"] == {"train": 96, "preview": 96}
    nowhere(tmp_path, *capfd.readouterr(), caplog.text)
    if name == "mlflow":
        from mlflow import MlflowClient

        client = MlflowClient()
        history = client.get_metric_history(record["run"], "train/loss")
        assert [metric.step for metric in history] == [32, 64, 96]
        assert client.get_run(record["run"]).data.params["train.batch"] == "32"


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_the_package_itself_with_a_server_that_is_not_there(name, tmp_path, monkeypatch, capfd, caplog):
    """A warning, and no password of its address."""
    package = pytest.importorskip(name, reason=f"needs the extra `{name}`")
    if name == "wandb":
        package.teardown()  # it remembers that it was offline
    address = f"http://me:{PASSWORD}@127.0.0.1:9"
    monkeypatch.chdir(tmp_path)
    for variable in ("WANDB_BASE_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(variable, address)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "3")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert main([*FLAGS, "--train.track", name, "--out", str(tmp_path / "run")]) == 0
    assert f"{name} failed" in caplog.text
    assert Recipe.read(tmp_path / "run" / "recipe.json").train.track == (name,)
    nowhere(tmp_path, *capfd.readouterr(), caplog.text)
