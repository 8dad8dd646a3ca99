"""The loop by itself, on a network, a stream and a step of one's own: a line that is fitted to points."""

import copy
import itertools
import json
import logging
import math
import os
import signal
from contextlib import contextmanager
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ditkit.checkpoint import checkpoints
from ditkit.errors import NotFinite
from ditkit.progress import progress_bar
from ditkit.recipe import Training
from ditkit.signals import SAVES, Requests, Stopped
from ditkit.training.ema import Ema
from ditkit.training.fit import fit
from ditkit.training.hooks import CHECKPOINTS, run_hooks
from ditkit.training.log import read_log
from ditkit.training.state import TrainState

BATCH = 8
CONFIG = Training(images=20 * BATCH, batch=BATCH, lr=0.05, log_images=4 * BATCH, checkpoint_images=10 * BATCH)


class Points(NamedTuple):
    x: Tensor  # (B, 3)
    index: Tensor  # type: ignore[assignment]

    @property
    def total(self):
        return len(self.index)


def points(start, stop=math.inf):
    """Batches from image `start` on; without `stop` they never end."""
    for n in itertools.takewhile(lambda n: n < stop, itertools.count(start, BATCH)):
        draws = torch.Generator().manual_seed(n)
        yield Points(torch.randn(BATCH, 3, generator=draws), torch.arange(n, n + BATCH))


def begin(fused=True, average=True):
    """A line, with a factor of the loss that is learned beside it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        line, term = nn.Linear(3, 1), nn.Linear(1, 1)
    optimizer = torch.optim.AdamW([*line.parameters(), *term.parameters()], weight_decay=0.1, fused=fused)
    return TrainState(
        line, optimizer, average=Ema(line, 4 * BATCH, None) if average else None, auxiliary={"term": term}
    )


def step_of(state, lost=()):
    """The step; of the images in `lost` the gradient is not finite."""

    def step(batch):
        error = (
            (state.auxiliary["term"](state.net(batch.x)) - batch.x.sum(dim=1, keepdim=True)).square().mean()
        )
        (error * math.nan if int(batch.index[0]) in lost else error).backward()
        return {"loss": error}

    return step


@contextmanager
def hooks_in(state, out, config=CONFIG, **options):
    with (
        Requests().noted() as requests,
        progress_bar(config.images, "line", "point", shown=False) as bar,
    ):
        out.mkdir(exist_ok=True)
        yield run_hooks(state, out, config, requests, bar, **options)


def run(out, config=CONFIG, lost=(), state=None, stop=None):
    """A run in a folder, resumed if it has begun; its state. `stop` ends it early."""
    state = state or begin()
    state.load(out / CHECKPOINTS)
    with hooks_in(state, out, config) as hooks:
        stream = points(state.images, stop or config.images)
        fit(state, stream, step_of(state, lost), config, hooks=hooks)
    return state


def weights(state):
    """All that is trained, by name; the optimiser's by its parameter's place and name."""
    modules = (state.net, state.average.net, state.auxiliary, state.auxiliary_average.net)
    tensors = {
        (k, name): value for k, module in enumerate(modules) for name, value in module.state_dict().items()
    }
    parameters = state.optimizer.param_groups[0]["params"]
    moments = [state.optimizer.state[parameter] for parameter in parameters]
    return tensors | {(k, name): value for k, kept in enumerate(moments) for name, value in kept.items()}


def assert_same(a, b):
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def saved(out):
    return [int(path.name) for path in checkpoints(out / CHECKPOINTS)]


def test_it_learns_and_ends_where_the_images_do():
    state, losses = begin(), []
    fit(
        state,
        points(0),
        step_of(state),
        CONFIG,
        hooks=[lambda state, before, seen: losses.append(float(state.terms["loss"]))],
    )
    assert state.images == CONFIG.images
    assert len(losses) == 20
    assert losses[-1] < 0.5 * losses[0]
    before = copy.deepcopy(state)
    fit(state, points(0), step_of(state), CONFIG)  # nothing is left to do
    assert_same(before, state)


def test_it_ends_where_the_stream_does():
    state = begin()
    fit(state, points(0, 3 * BATCH), step_of(state), CONFIG)
    assert state.images == 3 * BATCH


def test_hooks_are_called_in_order_with_the_images_before_and_after():
    state, calls = begin(average=False), []
    hooks = [lambda *seen, name=name: calls.append((name, *seen)) for name in "ab"]
    fit(state, points(0, 2 * BATCH), step_of(state), CONFIG, hooks=hooks)
    assert calls == [(name, state, before, before + BATCH) for before in (0, BATCH) for name in "ab"]


def test_the_rate_is_that_of_the_images_seen():
    state, rates = begin(), []
    note = lambda state, *_: rates.append(state.optimizer.param_groups[0]["lr"])  # noqa: E731
    fit(state, points(0, 2 * BATCH), step_of(state), CONFIG, hooks=[note], rate=lambda _, seen: 1.0 + seen)
    fit(state, points(16, 3 * BATCH), step_of(state), CONFIG, hooks=[note], rate=None)
    assert rates == [1, 9, 9]


def test_stop_and_resume_is_bit_for_bit_the_same(tmp_path):
    """With a moving average and modules beside the network, in the middle of a line of the log."""
    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", stop=11 * BATCH)  # a step after a checkpoint
    resumed = run(tmp_path / "parts")
    assert_same(whole, resumed)
    assert whole.seconds > 0
    losses = [[row["loss"] for row in read_log(tmp_path / name / "log.jsonl")] for name in ("whole", "parts")]
    assert losses[0] == losses[1]


def test_a_checkpoint_keeps_all_that_is_trained(tmp_path):
    run(tmp_path)
    folder = checkpoints(tmp_path / CHECKPOINTS)[-1]
    files = {path.stem: {*load_file(path)} for path in folder.glob("*.safetensors")}
    assert files.keys() == {"model", "ema", "auxiliary", "auxiliary_ema", "optimizer"}
    assert files["model"] == files["ema"] == {"weight", "bias"}
    assert files["auxiliary"] == files["auxiliary_ema"] == {"term.weight", "term.bias"}
    assert {"weight/exp_avg", "auxiliary/term.weight/exp_avg"} < files["optimizer"]
    state = begin(average=False)
    state.notes["compiled"] = True
    state.save(tmp_path / "other", 1)
    assert not (tmp_path / "other" / "000000000000" / "ema.safetensors").exists()
    again = begin(average=False)
    assert again.load(tmp_path / "other")
    assert again.notes == {"compiled": True}
    assert not again.load(tmp_path / "none")


@pytest.mark.skipif(SAVES is None, reason="needs SIGUSR1")
def test_a_signal_to_save_is_answered_after_the_step(tmp_path, caplog):
    state, before = begin(), signal.signal(SAVES, signal.SIG_DFL)
    step = step_of(state)

    def signalled(batch):
        if batch.index[0] == 2 * BATCH:
            os.kill(os.getpid(), SAVES)
        return step(batch)

    try:
        with caplog.at_level(logging.INFO), hooks_in(state, tmp_path) as hooks:
            fit(state, points(0), signalled, CONFIG, hooks=hooks)
    finally:
        signal.signal(SAVES, before)
    assert saved(tmp_path) == [80, 160]  # two are kept
    assert "24 of 160 images are saved in" in caplog.text


def test_a_signal_to_stop_interrupts_measuring_and_saves(tmp_path):
    state, before = begin(), signal.signal(signal.SIGTERM, signal.SIG_DFL)
    reached = []

    def measure(before, seen):
        if seen == 3 * BATCH:
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append(seen)

    try:
        with pytest.raises(Stopped, match="24 of 160"), hooks_in(state, tmp_path, measure=measure) as hooks:
            fit(state, points(0), step_of(state), CONFIG, hooks=hooks)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert saved(tmp_path) == [24]
    assert not reached
    assert_same(run(tmp_path), run(tmp_path / "whole"))


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(tmp_path, fused):
    """The same weights, averages and moments as of the run that does not have this batch."""
    lost, without = begin(fused), begin(fused)
    some = CONFIG.model_copy(update={"images": 6 * BATCH, "log_images": 6 * BATCH})
    run(tmp_path / "lost", some, lost={2 * BATCH}, state=lost)
    stream = (batch for batch in points(0) if batch.index[0] != 2 * BATCH)
    fit(without, itertools.islice(stream, 5), step_of(without), some, rate=lambda *_: some.lr)
    assert_same(lost, without)
    assert lost.skipped.count == 1
    (row,) = read_log(tmp_path / "lost" / "log.jsonl")
    assert row["skipped"] == 1
    assert math.isfinite(row["loss"] + row["grad_norm"])


def test_the_log_is_the_mean_of_the_steps_that_were_taken(tmp_path):
    state, losses = begin(), []
    config = CONFIG.model_copy(update={"images": 4 * BATCH})
    note = lambda state, before, _: before and losses.append(float(state.terms["loss"]))  # noqa: E731
    with hooks_in(state, tmp_path, config) as hooks:
        fit(state, points(0), step_of(state, lost={0}), config, hooks=[note, *hooks])
    (row,) = read_log(tmp_path / "log.jsonl")
    assert row["loss"] == pytest.approx(sum(losses) / 3)


def test_a_run_most_of_whose_steps_are_lost_is_refused_where_a_line_is_due(tmp_path):
    long = 200 * BATCH
    config = CONFIG.model_copy(update={"images": long, "checkpoint_images": long, "log_images": 60 * BATCH})
    state = begin()
    with pytest.raises(NotFinite, match=r"in 57 of the last 60 steps.*`train\.lr`"):
        run(tmp_path, config, lost=range(3 * BATCH, 10**6), state=state)
    assert state.images == 60 * BATCH
    assert not saved(tmp_path)
    assert not read_log(tmp_path / "log.jsonl")


def test_it_is_refused_where_a_checkpoint_is_due(tmp_path):
    """The last good one stays, and none is written while steps are left out."""
    config = CONFIG.model_copy(update={"images": 200 * BATCH, "log_images": 200 * BATCH, "keep": 9})
    with pytest.raises(NotFinite, match="in 57 of the last 70 steps"):
        run(tmp_path, config, lost=range(13 * BATCH, 10**6))
    assert saved(tmp_path) == [10 * BATCH]


def test_a_run_that_ends_says_what_was_lost(tmp_path, caplog):
    run(tmp_path / "few", lost={0, BATCH})
    assert "2 steps were skipped because the gradient was not finite" in caplog.text
    last = checkpoints(tmp_path / "few" / CHECKPOINTS)[-1]
    assert json.loads((last / "state.json").read_text())["skipped"] == 2
    with pytest.raises(NotFinite, match="in 18 of the last 20 steps"):
        run(tmp_path / "most", lost=range(2 * BATCH, 10**6))


class NoReads(TorchDispatchMode):
    """Nothing in here waits for the device: an error where a tensor's value is asked for."""

    READS = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in self.READS, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("clip", [None, 0.1])
def test_the_host_reads_nothing_between_lines_of_the_log(tmp_path, clip):
    """Neither in the update nor in the average, the count and the log, whether a step was taken or not."""
    state = begin()
    config = CONFIG.model_copy(
        update={
            "images": 400 * BATCH,
            "log_images": 400 * BATCH,
            "checkpoint_images": 400 * BATCH,
            "clip": clip,
        }
    )
    batches = list(points(0, 12 * BATCH))
    factors = torch.tensor([math.nan if k == 7 else 1.0 for k in range(12)]).unbind()

    def step(batch):
        error = state.auxiliary["term"](state.net(batch.x)).square().mean() * factors[len(steps)]
        steps.append(batch)
        error.backward()
        return {"loss": error}

    steps = []
    with hooks_in(state, tmp_path, config) as hooks, NoReads():
        fit(state, batches, step, config, hooks=hooks)
        with pytest.raises(AssertionError, match="_local_scalar_dense"):
            state.terms["loss"].item()
    assert len(steps) == 12
    assert state.skipped.count == 1
    assert all(bool(value.isfinite().all()) for value in weights(state).values())
