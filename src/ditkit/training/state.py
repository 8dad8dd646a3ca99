"""The state of a training: what is trained, how far it is, and what of it a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ditkit.checkpoint import (
    Saved,
    begin_checkpoint,
    failing,
    finish_checkpoint,
    newest,
    optimizer_tensors,
    save_checkpoint,
    unfinished,
)
from ditkit.processes import ALONE, Processes
from ditkit.records import CHECKSUM
from ditkit.training.averages import Averages
from ditkit.training.ema import Ema
from ditkit.training.skipped import Skipped

if TYPE_CHECKING:
    from ditkit.sharded import ShardWriter

COUNTED = frozenset({"images", "seconds", "skipped", "lost", "sha256", "parts", CHECKSUM})
"""Of state.json; the rest are notes."""


class TrainState:
    """A network in training, with everything that resuming it needs."""

    def __init__(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        average: Ema | None = None,
        auxiliary: Mapping[str, nn.Module] | None = None,
        auxiliary_average: Ema | None = None,
        averages: Averages | None = None,
        processes: Processes = ALONE,
        sharded: bool = False,
    ):
        """`auxiliary` are modules, by name, that are trained beside the network, such as the weights of a term of the loss:
        they are averaged and saved with it; the average is made unless there is one. `optimizer` has to be of their
        parameters too. `averages` are further ones of the network. Of several processes the first writes, or where the
        parameters are `sharded` each its own."""
        self.net, self.optimizer, self.average = net, optimizer, average
        self.auxiliary = nn.ModuleDict(auxiliary)
        if average and auxiliary:
            auxiliary_average = auxiliary_average or average.of(self.auxiliary)
        self.auxiliary_average = auxiliary_average
        self.averages = averages or Averages(net, ())
        self.processes = processes
        self._shards: ShardWriter | None = None
        if sharded:
            from ditkit.sharded import ShardWriter  # imports torch.distributed.checkpoint

            self._shards = ShardWriter(processes)
        # The folder, and the images, of the shards that are being written.
        self._saving: tuple[Path, int] | None = None
        self.images = 0
        """Images seen."""
        self.seconds = 0.0
        """Of training, over all sittings, when the last checkpoint was written."""
        self.skipped = Skipped()
        self.notes: dict[str, Any] = {}
        """What else a checkpoint says, as JSON."""
        self.terms: dict[str, Tensor] = {}
        """The terms of the last step's loss and its gradient's norm, (), on the device."""
        self.taken = torch.tensor(True)
        """Whether the last step was taken, bool (), on the device."""

    def advance(self, batch: int, terms: Mapping[str, Tensor], norm: Tensor) -> None:
        """Count a step on `batch` images, with these terms and this norm of the gradient, and move the averages.
        Reads nothing from the device."""
        self.images += batch
        self.terms = {name: value.detach() for name, value in terms.items()} | {"grad_norm": norm}
        self.taken = norm.isfinite()
        self.skipped.add(self.taken, self.images - batch)
        for average in (self.average, self.auxiliary_average, self.averages):
            if average is not None:
                average.update(batch, self.images, self.taken)

    def save(self, folder: Path, keep: int) -> None:
        """Write a checkpoint into `folder`, keeping the newest `keep`. All processes call it. Shards are written while the
        training goes on. InputError as of `save_checkpoint`, of shards also for the checkpoint before."""
        parts = self._parts | {"optimizer": optimizer_tensors(self.optimizer, self._parameters)}
        facts = {
            "seconds": self.seconds,
            "skipped": self.skipped.count,
            "lost": self.skipped.facts,
            **self.notes,
        }
        if self._shards is None:
            if self.processes.first:
                save_checkpoint(folder, self.images, parts, facts, keep)
            return
        self.finish_saving()
        self._saving = folder, self.images
        with failing(*self._saving):
            with self.processes.in_turn():
                if self.processes.first:
                    begin_checkpoint(*self._saving)
            finish = partial(finish_checkpoint, *self._saving, facts | {"parts": [*parts]}, keep)
            self._shards.begin(unfinished(*self._saving), parts, finish)

    def finish_saving(self) -> None:
        """Until the last checkpoint is written. InputError as of `save_checkpoint`."""
        if self._shards is not None and self._saving is not None:
            with failing(*self._saving):
                self._shards.finish()

    def load(self, folder: Path) -> bool:
        """Go on from the newest intact checkpoint in `folder`, of whatever processes; whether there is one. InputError as of
        `newest`."""
        found = newest(folder, (*self._parts, "optimizer")) if self.processes.first else None
        found = self.processes.from_first(found)
        if found is None:
            return False
        path, facts = found
        saved = Saved(path, facts)
        for name, tensors in self._parts.items():
            saved.fill(name, tensors)
        if frozen := self._frozen():  # shards of it are not the average's
            saved.fill("ema", frozen)
        saved.fill_optimizer(self.optimizer, self._parameters)
        self.images, self.seconds = facts["images"], facts["seconds"]
        self.skipped = Skipped(facts.get("skipped", 0), **facts.get("lost", {}))
        self.notes = {name: value for name, value in facts.items() if name not in COUNTED}
        return True

    @property
    def rate(self) -> float:
        """By this the learning rate is multiplied; less than 1 after the run went back."""
        return self.notes.get("rate", 1.0)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that is trained."""
        return [*self._parameters.values()]

    @property
    def _parts(self) -> dict[str, dict[str, Tensor]]:
        """What is in the files of a checkpoint, but the optimiser's: of the network not what is frozen, which the average's
        file has."""
        frozen = self._frozen()
        own = {name: value for name, value in self.net.state_dict().items() if name not in frozen}
        parts = {"model": own}
        if self.average is not None:
            parts["ema"] = self.average.net.state_dict()
        if self.auxiliary:
            parts["auxiliary"] = self.auxiliary.state_dict()
        if self.auxiliary_average is not None:
            parts["auxiliary_ema"] = self.auxiliary_average.net.state_dict()
        return parts | self.averages.parts

    def _frozen(self) -> dict[str, Tensor]:
        """The network's parameters that are not trained, and so the same in its average, where there is one."""
        if self.average is None:
            return {}
        return {name: value for name, value in self.net.named_parameters() if not value.requires_grad}

    @property
    def _parameters(self) -> dict[str, nn.Parameter]:
        """All that is trained, by name; no module of the network has a name with a slash."""
        others = {f"auxiliary/{name}": value for name, value in self.auxiliary.named_parameters()}
        own = {name: value for name, value in self.net.named_parameters() if value.requires_grad}
        return own | others
