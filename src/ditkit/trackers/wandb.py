"""Weights & Biases. Its own variables decide where runs go: WANDB_API_KEY, WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY."""

import io
import os
import uuid
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path

from ditkit.errors import InputError
from ditkit.trackers.base import PROJECT, TrackedRun

QUIET = {"silent": True, "console": "off", "x_disable_meta": True}
"""Nothing of the terminal, the command line or the machine's variables is recorded."""
NO_CODE = {"disable_git": True, "disable_code": True, "disable_job_creation": True}


def check() -> None:
    """InputError where runs would go to a server and there is no key: wandb would ask for one and wait."""
    import wandb

    if os.environ.get("WANDB_MODE", "online") in ("offline", "disabled", "dryrun"):
        return
    try:
        with redirect_stderr(io.StringIO()):  # who is logged in
            known = wandb.login(prompt=False, verify=False)
    except Exception:  # what it raises differs from version to version
        known = False
    if not known:
        raise InputError(
            "`train.track` wandb: no key; type `wandb login` once, or set WANDB_API_KEY, or WANDB_MODE=offline"
        )


class WeightsAndBiases:
    """A run of a fixed id, so that a later sitting goes on with it. What is not uploaded yet is in OUT/track/wandb."""

    def __init__(self, run: TrackedRun):
        import wandb

        self.id = run.id or uuid.uuid4().hex[:12]
        self._picture = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self.id,
            name=run.name,
            dir=str(run.folder),
            resume="allow",
            settings=wandb.Settings(**QUIET, **NO_CODE),
        )
        self._run.config.update(dict(run.settings), allow_val_change=True)

    def scalars(self, values: Mapping[str, float], images: int) -> None:
        self._run.log(dict(values), step=images)

    def picture(self, name: str, file: Path, images: int) -> None:
        self._run.log({name: self._picture(str(file))}, step=images)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))
