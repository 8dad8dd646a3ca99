"""What a run does between steps: the log, checkpoints, measuring, answering signals.

A hook is called after every step with the state and the images seen before the step and after it.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from ditkit.errors import NotFinite
from ditkit.plots import loss_curve
from ditkit.processes import ALONE, Processes
from ditkit.recipe import Training
from ditkit.signals import Requests
from ditkit.training.diverging import Diverged
from ditkit.training.log import Log, read_log
from ditkit.training.schedule import due
from ditkit.training.skipped import IN_A_ROW
from ditkit.training.state import TrainState

log = logging.getLogger(__name__)

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
    storing: Hook | None = None,
    measure: Callable[[int, int], None] | None = None,
    tracking: Hook | None = None,
    processes: Processes = ALONE,
    explain: Callable[[], str] | None = None,
    ends: bool = False,
) -> list[Hook]:
    """Those of a run in the folder `out`, which goes on from `state`, in their order: a line of the log, what
    `storing` does, a checkpoint, what `measure` does, what is sent to trackers, and the answer to a signal.

    `measure` is called with the images seen before and after every step; a signal to stop interrupts it. `name` is what
    pictures and messages call the run, by default the folder's name. Of several processes the first writes; a signal to
    one of them is a signal to all. `explain` and `ends` as of `Judge`.
    """
    own = None
    if processes.first:
        own = Log(out / LOG, state.images, state.seconds, state.notes.get("log"))
    saving = Checkpoints(state, out, config, requests, own, name or out.name)
    judge = (out, config, explain, ends)
    lines = Judge(*judge) if own is None else Lines(*judge, own, bar)
    stored = [] if storing is None else [storing]  # before a checkpoint, from which it is not done again
    between = [] if measure is None else [_interruptible(measure, requests)]
    following = [] if tracking is None else [tracking]

    def agree(state: TrainState, before: int, seen: int) -> None:
        if processes.several:
            requests.agree(processes.most)
        else:
            requests.look_at_the_clock()

    return [agree, lines, *stored, saving, *between, *following, agree, saving.answer]


def check_steps(state: TrainState, why: str = "") -> None:
    """Diverged where most of the last steps were left out, `why` in words."""
    try:
        state.skipped.judge()
    except NotFinite as error:
        raise Diverged(f"{error}{why}", state.skipped.well_until(state.images)) from None


class Judge:
    """Judges how the training goes when a line of the log is due, and says how many steps were left out of a run that
    ends."""

    def __init__(self, out: Path, config: Training, explain: Callable[[], str] | None, ends: bool):
        """`explain` puts into words what was not finite in the last step; `ends`: a loss that has risen ends the run."""
        self._out, self._config, self._explain, self._ends = out, config, explain, ends

    def __call__(self, state: TrainState, before: int, seen: int) -> None:
        """Diverged where most of the last steps were left out, or where the loss has risen and that ends the run."""
        if due(self._config.log_images, before, seen, self._config.images):
            self._judge_skipped(state, seen)
            self._judge_loss(state.processes, self._write(state, seen))
        if seen >= self._config.images:  # before the last checkpoint: a run that is lost is not finished
            state.skipped.end(self._out)

    def _write(self, state: TrainState, seen: int) -> tuple[dict, dict] | None:
        """Write a line; the one whose loss has just been seen to have risen, and the one with the lowest before it."""
        return None

    def _judge_skipped(self, state: TrainState, seen: int) -> None:
        in_a_row = state.skipped.in_a_row
        why = f"; {self._explain()}" if in_a_row and self._explain else ""
        check_steps(state, why)
        if in_a_row >= IN_A_ROW:
            log.warning(
                f"{self._out}: after {seen:,} images the last {in_a_row} steps were skipped, because the gradient was not "
                f"finite{why}"
            )

    def _judge_loss(self, processes: Processes, risen: tuple[dict, dict] | None) -> None:
        """What the first process has seen in the log."""
        if risen is not None:
            row, lowest = risen
            text = (
                f"{self._out}: after {row['images']:,} images the loss is {row['loss']:.3g}; it was {lowest['loss']:.3g} after "
                f"{lowest['images']:,}"
            )
            if not self._ends:
                log.warning(
                    f"{text}. Runs in which that was seen did not recover: stop it, and train anew with a lower `train.lr` or "
                    "`train.precision` fp32, or give `train.on_divergence` rewind"
                )
        if self._ends and (images := processes.most(-1 if risen is None else risen[1]["images"])[0]) >= 0:
            raise Diverged(text if risen else "the loss has risen", images)


class Lines(Judge):
    """Collects what the steps report and writes a line of the log when one is due; then, and only then, they are judged."""

    def __init__(
        self, out: Path, config: Training, explain: Callable[[], str] | None, ends: bool, log: Log, bar: tqdm
    ):
        super().__init__(out, config, explain, ends)
        self._log, self._bar, self._reported = log, bar, False

    def __call__(self, state: TrainState, before: int, seen: int) -> None:
        self._log.add(state.terms, state.taken)
        self._bar.update(seen - before)
        super().__call__(state, before, seen)

    def _write(self, state: TrainState, seen: int) -> tuple[dict, dict] | None:
        rate = state.optimizer.param_groups[0]["lr"]
        row = self._log.write(seen, lr=rate, skipped=state.skipped.count)
        self._bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
        risen, self._reported = None if self._reported else self._log.risen, self._log.risen is not None
        return risen


class Checkpoints:
    """Saves the state when that is due or a signal requests it, and draws the loss so far."""

    def __init__(
        self, state: TrainState, out: Path, config: Training, requests: Requests, log: Log | None, name: str
    ):
        self._out, self._config, self._requests, self._log, self._name = out, config, requests, log, name
        self._saved = state.images  # in the checkpoint that the run goes on from

    def __call__(self, state: TrainState, before: int, seen: int) -> None:
        """NotFinite where most of the last steps were left out, InputError where the disk is full."""
        last = seen >= self._config.images
        is_due = due(self._config.checkpoint_images, before, seen, self._config.images)
        if is_due:
            check_steps(state)
        # While steps are left out nothing is learned, and a good checkpoint would make room for one that is not.
        if self._requests.any or (is_due and (last or state.skipped.in_a_row < IN_A_ROW)):
            self._save(state)
        if last:
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
