"""The training loop: diffusion models, autoencoders and classifiers are all trained by `fit`.

It is counted in images. What a step is of is the caller's: `step` takes a batch and leaves its gradient. What happens
between steps (lines of the log, checkpoints, measuring) are hooks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from torch import Tensor

from ditkit.recipe import Training
from ditkit.training.hooks import Hook
from ditkit.training.schedule import learning_rate
from ditkit.training.state import TrainState
from ditkit.training.step import update


class Counted(Protocol):
    """A batch, of any kind, that says how many images it has."""

    @property
    def total(self) -> int:
        """Those of all processes."""


Batch = TypeVar("Batch", bound=Counted)


def fit(
    state: TrainState,
    stream: Iterable[Batch],
    step: Callable[[Batch], Mapping[str, Tensor]],
    config: Training,
    *,
    hooks: Sequence[Hook] = (),
    rate: Callable[[Training, int], float] | None = learning_rate,
) -> None:
    """Train until the stream ends or `config.images` have been seen.

    `stream` gives the batches from image `state.images` on. `step` adds the gradient of a batch's mean loss to the
    parameters and returns scalars for the log, "loss" among them. `rate` is the learning rate after so many images,
    None where a hook or nobody changes it. `hooks` are called after every step, in order, with the state and the
    images seen before the step and after it.

    A step whose gradient is not finite is left out and counted; who judges that is a hook (`run_hooks` has one). With
    a fused optimiser nothing here waits for the device.
    """
    for batch in stream:
        if state.images >= config.images:
            break
        if rate is not None:
            for group in state.optimizer.param_groups:
                group["lr"] = rate(config, state.images)
        terms = step(batch)
        norm = update(state.optimizer, config.clip)
        before = state.images
        state.advance(batch.total, terms, norm)
        for hook in hooks:
            hook(state, before, state.images)
