"""What a run does between steps: the log, checkpoints, measuring, answering signals.

A hook is called after every step with the state and the images seen before the step and after it.
"""

from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from ditkit.plots import loss_curve
from ditkit.processes import ALONE, Processes
from ditkit.recipe import Training
from ditkit.signals import Requests
from ditkit.training.log import Log, read_log
from ditkit.training.schedule import due
from ditkit.training.state import TrainState

Hook = Callable[[TrainState, int, int], None]

CHECKPOINTS, LOG = "checkpoints", "log.jsonl"


def run_hooks(
    state: TrainState,
    out: Path,
    config: Training,
    requests: Requests,
    bar: tqdm,
    *,
    name: str | None = None,
    measure: Callable[[int, int], None] | None = None,
    tracking: Hook | None = None,
    processes: Processes = ALONE,
) -> list[Hook]:
    """Those of a run in the folder `out`, which goes on from `state`, in their order: a line of the log, a checkpoint, what
    `measure` does, what is sent to trackers, and the answer to a signal.

    `measure` is called with the images seen before and after every step; a signal to stop interrupts it. `name` is what
    pictures and messages call the run, by default the folder's name. Of several processes the first writes; a signal to
    one of them is a signal to all.
    """
    log = None
    if processes.first:
        log = Log(out / LOG, state.images, state.seconds, state.notes.get("log"))
    saving = Checkpoints(state, out, config, requests, log, name or out.name)
    lines = Judge(out, config) if log is None else Lines(out, config, log, bar)
    between = [] if measure is None else [_interruptible(measure, requests)]
    following = [] if tracking is None else [tracking]

    def agree(state: TrainState, before: int, seen: int) -> None:
        if processes.several:
            requests.agree(processes.most)
        else:
            requests.look_at_the_clock()

    return [agree, lines, saving, *between, *following, agree, saving.answer]


class Judge:
    """Judges steps that were left out when a line of the log is due, and says how many there were of a run that ends."""

    def __init__(self, out: Path, config: Training):
        self._out, self._config = out, config

    def __call__(self, state: TrainState, before: int, seen: int) -> None:
        """NotFinite where most of the last steps were left out."""
        if due(self._config.log_images, before, seen, self._config.images):
            state.skipped.judge()
        if seen >= self._config.images:  # before the last checkpoint: a run that is lost is not finished
            state.skipped.end(self._out)


class Lines(Judge):
    """Collects what the steps report and writes a line of the log when one is due; then, and only then, steps that
    were left out are judged."""

    def __init__(self, out: Path, config: Training, log: Log, bar: tqdm):
        super().__init__(out, config)
        self._log, self._bar = log, bar

    def __call__(self, state: TrainState, before: int, seen: int) -> None:
        """NotFinite where most of the last steps were left out."""
        self._log.add(state.terms, state.taken)
        self._bar.update(seen - before)
        super().__call__(state, before, seen)
        if due(self._config.log_images, before, seen, self._config.images):
            rate = state.optimizer.param_groups[0]["lr"]
            row = self._log.write(seen, lr=rate, skipped=state.skipped.count)
            self._bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)


class Checkpoints:
    """Saves the state when that is due or a signal requests it, and draws the loss so far."""

    def __init__(
        self, state: TrainState, out: Path, config: Training, requests: Requests, log: Log | None, name: str
    ):
        self._out, self._config, self._requests, self._log, self._name = out, config, requests, log, name
        self._saved = state.images  # in the checkpoint that the run goes on from

    def __call__(self, state: TrainState, before: int, seen: int) -> None:
        """NotFinite where most of the last steps were left out, InputError where the disk is full."""
        if self._requests.any or due(self._config.checkpoint_images, before, seen, self._config.images):
            self._save(state)
        if seen >= self._config.images:
            state.finish_saving()

    def answer(self, state: TrainState, before: int, seen: int) -> None:
        """Answers requests since the last step. Stopped where a signal asked to stop."""
        if self._requests.any:
            self._save(state)
            state.finish_saving()
            path = checkpoint_path(self._out, seen)
            self._requests.answer(
                f"{self._out}: {seen:,} of {self._config.images:,} images are saved in {path}"
            )

    def _save(self, state: TrainState) -> None:
        if self._saved == state.images:
            return
        state.skipped.judge()
        if self._log is not None:
            state.seconds, state.notes["log"] = self._log.seconds, self._log.begun
        state.save(self._out / CHECKPOINTS, self._config.keep)
        self._saved = state.images
        if self._log is not None:
            loss_curve(read_log(self._out / LOG), self._out / "loss.png", self._name)


def checkpoint_path(out: Path, images: int) -> Path:
    """Where the run in `out` keeps its state after so many images."""
    return out / CHECKPOINTS / f"{images:012d}"


def _interruptible(measure: Callable[[int, int], None], requests: Requests) -> Hook:
    def hook(state: TrainState, before: int, seen: int) -> None:
        if requests.stop is None and not requests.over:
            with requests.interruptible():
                measure(before, seen)

    return hook
