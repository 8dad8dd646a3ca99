"""Signals and streams: a training that is asked to stop saves first; output that nobody takes ends nothing."""

import errno
import io
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import CPU
from PIL import Image

from ditkit.checkpoint import checkpoints, load_newest
from ditkit.cli import main
from ditkit.cli.refusals import refusal
from ditkit.cli.streams import one_line, printable, tolerant
from ditkit.data import Folder, batches, loader, workers_named
from ditkit.errors import InputError
from ditkit.recipes import recipe
from ditkit.signals import SAVES, STOPS, OutOfTime, Requests, Stopped, handled, leave_to_parent, status
from ditkit.training import loop, train
from ditkit.training.log import read_log

SMALL = recipe("digits").replace(
    backbone={"width": 32, "depth": 1, "heads": 2},
    train={
        "images": 640,
        "batch": 32,
        "log_images": 160,
        "checkpoint_images": 320,
        "preview_images": 0,
        "validate_images": 320,
        "compile": "off",
    },
)


@pytest.fixture(autouse=True)
def as_from_a_shell():
    """Signals as a program has them that a shell started; a test run in the background may ignore some."""
    own = {signal.SIGINT: signal.default_int_handler} | dict.fromkeys(
        {*STOPS, SAVES} - {signal.SIGINT, None}, signal.SIG_DFL
    )
    before = {number: signal.signal(number, handler) for number, handler in own.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def at_step(monkeypatch, step, *numbers):
    """Signals to this process when the step of that number begins."""
    rate, steps = loop.learning_rate, []

    def signalled(config, seen):
        steps.append(seen)
        if len(steps) == step:
            for number in numbers:
                os.kill(os.getpid(), number)
        return rate(config, seen)

    monkeypatch.setattr(loop, "learning_rate", signalled)


def weights(run):
    return load_newest(run / "checkpoints", ("model", "ema", "optimizer"))[1]


@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_a_stopped_training_saves_and_goes_on_as_if_it_had_not_stopped(tmp_path, monkeypatch, number):
    train(SMALL, tmp_path / "whole", device=CPU, progress=False)
    with monkeypatch.context() as patch:
        at_step(patch, 7, number)
        with pytest.raises(Stopped) as stopped:
            train(SMALL, tmp_path / "parts", device=CPU, progress=False)
    assert stopped.value.number == number
    assert "224 of 640 images are saved" in str(stopped.value)
    assert [path.name for path in checkpoints(tmp_path / "parts" / "checkpoints")] == ["000000000224"]

    train(SMALL, tmp_path / "parts", device=CPU, progress=False)
    for part, tensors in weights(tmp_path / "whole").items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, weights(tmp_path / "parts")[part][name]), (part, name)
    timed = {"minutes", "images_per_second"}
    for name in ("log.jsonl", "validation.jsonl"):
        whole, parts = (
            [
                {key: value for key, value in row.items() if key not in timed}
                for row in read_log(tmp_path / run / name)
            ]
            for run in ("whole", "parts")
        )
        assert whole == parts


@pytest.mark.skipif(SAVES is None, reason="needs SIGUSR1")
def test_a_signal_to_save_does_not_stop(tmp_path, monkeypatch):
    at_step(monkeypatch, 3, SAVES)
    kept = SMALL.replace(train={"keep": 9})
    train(kept, tmp_path / "run", device=CPU, progress=False)
    names = [int(path.name) for path in checkpoints(tmp_path / "run" / "checkpoints")]
    assert names == [96, 320, 640]


def test_the_second_signal_stops_at_once(tmp_path, monkeypatch):
    at_step(monkeypatch, 3, signal.SIGINT, signal.SIGINT)
    with pytest.raises(Stopped):
        train(SMALL, tmp_path / "run", device=CPU, progress=False)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_measurement_that_was_stopped_is_made_when_the_run_goes_on(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(loop.Monitor, "validate", lambda self, seen: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped):
            train(SMALL, tmp_path, device=CPU, progress=False)
    train(SMALL, tmp_path, device=CPU, progress=False)
    assert [row["images"] for row in read_log(tmp_path / "validation.jsonl")] == [320, 640]


def test_a_signal_that_was_ignored_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with Requests().noted() as requests:
            os.kill(os.getpid(), signal.SIGTERM)
            assert requests.stop is None
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in STOPS]
    with handled(dict.fromkeys(STOPS, lambda number, frame: None)):
        assert [signal.getsignal(number) for number in STOPS] != before
    assert [signal.getsignal(number) for number in STOPS] == before


@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
def test_a_verb_ends_with_the_signals_status(monkeypatch, capsys, number):
    def run(argv):
        os.kill(os.getpid(), number)

    monkeypatch.setattr("ditkit.cli.listing.run", run)
    assert main(["list"]) == status(number) == 128 + number
    assert number.name in capsys.readouterr().err


def test_an_interrupt_that_a_library_turns_into_its_own_error(monkeypatch, capsys):
    def run(argv):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("a C extension failed") from None

    monkeypatch.setattr("ditkit.cli.listing.run", run)
    assert main(["list"]) == 130
    assert "C extension" not in capsys.readouterr().err


def leave_signals_late(ending, number):
    time.sleep(number)  # the second worker still starts when the first has read a batch
    leave_to_parent(ending)


@pytest.mark.parametrize("when", ["at work", "still starting"])
def test_workers_leave_signals_to_their_parent(tmp_path, monkeypatch, when):
    """All processes of a training get the signal, as a cluster sends it; it saves, and nothing is left behind."""
    if when == "still starting":
        monkeypatch.setattr(loader, "_leave_signals", leave_signals_late)
    for name in "ab":
        Image.new("L", (8, 8), 99).save(tmp_path / f"{name}.png")
    data = Folder(path=tmp_path, size=8, channels=1, cache="off", held_out=0)
    stream = batches(data.open(), data, seed=0, start=0, stop=640, batch=32, workers=2)
    next(stream)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for worker, number in itertools.product(workers, STOPS):
        os.kill(worker.pid, number)
    assert sum(len(batch.index) for batch in stream) == 608
    for worker in workers:
        worker.join(20)
        assert not worker.is_alive()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
        ConnectionResetError(104, "reset"),
    ],
)
def test_a_worker_that_was_killed_is_one_line(error):
    """Really killed in the fault campaign: torch raises at a moment of chance, which may lie after a test."""
    with (
        pytest.raises(
            InputError, match=r"^a process that reads images ended, [^\n]*`train.workers` 0[^\n]*$"
        ),
        workers_named(),
    ):
        raise error


def ditkit_with(streams, arguments="list samplers"):
    command = f"{sys.executable} -m ditkit {arguments} {streams}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("streams", [">&-", "<&- >&- 2>&-"])
def test_closed_streams(streams):
    done = ditkit_with(streams)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_disks_behind_the_streams():
    done = ditkit_with("> /dev/full")
    assert done.returncode == 2
    assert "no space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert ditkit_with("2> /dev/full", "nonsense").returncode == 2


def test_what_a_terminal_cannot_show_is_left_out(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", terminal)
    with tolerant():
        print("8 × 8, \udcff")
    assert terminal.buffer.getvalue() == b"8 ? 8, \\udcff\n"


def test_a_training_whose_messages_nobody_reads_goes_on(tmp_path, monkeypatch):
    """As in `ditkit train ... 2>&1 | head -1`."""
    flags = "--train.images 192 --train.batch 32 --train.log-images 32 --train.checkpoint-images 64 --train.keep 9"
    small = "--backbone.width 32 --backbone.depth 1 --backbone.heads 2 --train.preview-images 0 --device cpu"
    code = f"set -o pipefail; {sys.executable} -m ditkit train digits --out {tmp_path} {flags} {small} 2>&1 | head -1"
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert len(checkpoints(tmp_path / "checkpoints")) == 3


def test_names_of_files_are_printed_harmlessly(capsys, tmp_path):
    name = "\x1b[31mred\x07\r"
    assert main(["info", str(tmp_path / name)]) == 2
    shown = capsys.readouterr().err
    assert "\\x1b[31mred\\x07\\r" in shown
    assert not {"\x1b", "\x07", "\r"} & set(shown)
    assert printable("Größe 猫\n") == "Größe 猫\n"


def test_results_are_printed_harmlessly(capsys, tmp_path):
    with tolerant():
        print("\x1b[31mred\x07")
    assert capsys.readouterr().out == "\\x1b[31mred\\x07\n"
    out = tmp_path / "\x1b[31mred"
    assert main(["convert", "digits", "--out", str(out)]) == 0
    assert "\x1b" not in capsys.readouterr().out
    assert (out / "recipe.json").is_file()


def test_the_last_word_is_one_line_of_bounded_length(capsys):
    assert main(["info", "x" * 100_000]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert len(line) < 5000
    assert line.startswith("ditkit: ")
    assert one_line("two\nlines") == "two\\nlines"
    assert one_line("abcdef", longest=4) == "ab [...] ef"
    assert one_line("abcd", longest=4) == "abcd"


def test_too_little_memory_is_one_line():
    cpu = RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 40 bytes"
    )
    for error in (MemoryError(), cpu, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")):
        assert "not enough memory" in refusal(error)
    assert refusal(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert refusal(ValueError("out of memory")) is None
    tidying = RuntimeError("cannot join thread before it is started")
    assert refusal(tidying) is None
    tidying.__context__ = RuntimeError("can't start new thread")
    assert "not enough memory" in refusal(tidying)
    assert "not enough memory" in refusal(OSError(errno.ENOMEM, "Cannot allocate memory"))


def test_a_run_whose_time_is_over_saves_and_goes_on(tmp_path, monkeypatch, capsys):
    few = SMALL.replace(train={"images": 96, "validate_images": 0})
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(few, whole, device=CPU, progress=False)
    for images in (32, 64):  # of one step each
        with pytest.raises(
            OutOfTime, match=f"{images} of 96 images are saved.*the same command goes on"
        ) as over:
            train(few.replace(train={"max_minutes": 1e-9}), run, device=CPU, progress=False)
        assert over.value.status == 75
    train(few, run, device=CPU, progress=False)
    for part, tensors in weights(whole).items():
        assert all(torch.equal(tensor, weights(run)[part][name]) for name, tensor in tensors.items())

    def run_out(argv):
        raise OutOfTime("the time is over: all is saved")

    monkeypatch.setattr("ditkit.cli.listing.run", run_out)
    assert main(["list"]) == 75
    assert capsys.readouterr().err == "ditkit: the time is over: all is saved\n"
