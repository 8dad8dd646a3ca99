"""Trackers: where a run is followed from elsewhere, beside the files that it writes anyway.

Each of TRACKERS opens a tracked run and returns a `Tracker`, to which numbers and pictures are sent. What goes there, and what
happens when that fails, is decided in `ditkit.training.tracking`. Each is an extra: `pip install 'ditkit[wandb]'`.
"""

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import NamedTuple

from ditkit.errors import InputError, no_such
from ditkit.trackers import mlflow, tensorboard, trackio, wandb
from ditkit.trackers.base import TrackedRun, Tracker
from ditkit.trackers.secrets import without_secrets

__all__ = ["TRACKERS", "Backend", "TrackedRun", "Tracker", "check_trackers", "without_secrets"]


class Backend(NamedTuple):
    """How runs are tracked by one of the packages."""

    about: str
    open: Callable[[TrackedRun], Tracker]
    packages: tuple[str, ...] = ()
    """What has to be importable; the first is also the extra's name."""
    check: Callable[[], None] | None = None
    """InputError where it cannot work on this machine as it is set up."""


TRACKERS: dict[str, Backend] = {
    "tensorboard": Backend(
        "event files in OUT/track/tensorboard, shown by `tensorboard --logdir`",
        tensorboard.TensorBoard,
        ("tensorboard",),
    ),
    "wandb": Backend(
        "Weights & Biases, set up by its own variables: WANDB_API_KEY, WANDB_MODE=offline, WANDB_PROJECT",
        wandb.WeightsAndBiases,
        ("wandb",),
        wandb.check,
    ),
    "trackio": Backend(
        "Hugging Face's trackio: on this machine, or TRACKIO_SPACE_ID; shown by `trackio show`",
        trackio.Trackio,
        ("trackio",),
    ),
    "mlflow": Backend(
        "MLflow, set up by its own variables: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME",
        mlflow.MLflow,
        ("mlflow",),
    ),
}
"""By name. One of one's own is one more."""


def check_trackers(names: Iterable[str], flag: str = "`train.track`") -> None:
    """InputError, before the long work, where a tracker's package is missing or it is not set up."""
    for name in names:
        if name not in TRACKERS:
            raise no_such(flag, name, TRACKERS)
        backend = TRACKERS[name]
        if not all(map(_is_there, backend.packages)):
            raise InputError(f"{flag} {name} needs a package: pip install 'ditkit[{backend.packages[0]}]'")
        if backend.check is not None:
            backend.check()


def _is_there(package: str) -> bool:
    """A folder of that name, such as the one that wandb makes where it runs, is no package."""
    try:
        return import_module(package).__file__ is not None
    except ImportError:
        return False
