"""The state of a training: what is trained, how far it is, and what of it a checkpoint holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditkit.checkpoint import load_newest, optimizer_tensors, restore_optimizer, save_checkpoint
from ditkit.records import CHECKSUM
from ditkit.training.ema import Ema
from ditkit.training.skipped import Skipped

COUNTED = frozenset({"images", "seconds", "skipped", "sha256", CHECKSUM})  # of state.json; the rest are notes


class TrainState:
    """A network in training, with everything that resuming it needs."""

    def __init__(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        average: Ema | None = None,
        auxiliary: Mapping[str, nn.Module] | None = None,
    ):
        """`auxiliary` are modules, by name, that are trained beside the network, such as the weights of a term of the loss:
        they are averaged and saved with it. `optimizer` has to be of their parameters too."""
        self.net, self.optimizer, self.average = net, optimizer, average
        self.auxiliary = nn.ModuleDict(auxiliary)
        self.auxiliary_average = average.of(self.auxiliary) if average and auxiliary else None
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
        self.skipped.add(self.taken)
        for average in (self.average, self.auxiliary_average):
            if average is not None:
                average.update(batch, self.images, self.taken)

    def save(self, folder: Path, keep: int) -> Path:
        """Write a checkpoint into `folder`, keeping the newest `keep`; its path. InputError as of `save_checkpoint`."""
        parts = {
            name: {
                key: value
                for key, value in module.state_dict().items()
                if key not in self._frozen(name, module)
            }
            for name, module in self._parts.items()
        }
        parts["optimizer"] = optimizer_tensors(self.optimizer, self._parameters)
        facts = {"seconds": self.seconds, "skipped": self.skipped.count, **self.notes}
        return save_checkpoint(folder, self.images, parts, facts, keep)

    def load(self, folder: Path) -> bool:
        """Go on from the newest intact checkpoint in `folder`; whether there is one. InputError as of `load_newest`."""
        newest = load_newest(folder, (*self._parts, "optimizer"))
        if newest is None:
            return False
        facts, tensors = newest
        for name, module in self._parts.items():
            module.load_state_dict(self._frozen(name, module) | tensors[name])
        restore_optimizer(self.optimizer, self._parameters, tensors["optimizer"])
        self.images, self.seconds = facts["images"], facts["seconds"]
        self.skipped = Skipped(facts.get("skipped", 0))
        self.notes = {name: value for name, value in facts.items() if name not in COUNTED}
        return True

    @property
    def _parts(self) -> dict[str, nn.Module]:
        """The modules by their files in a checkpoint."""
        parts = {"model": self.net}
        if self.average is not None:
            parts["ema"] = self.average.net
        if self.auxiliary:
            parts["auxiliary"] = self.auxiliary
        if self.auxiliary_average is not None:
            parts["auxiliary_ema"] = self.auxiliary_average.net
        return parts

    def _frozen(self, part: str, module: nn.Module) -> dict[str, Tensor]:
        """The parameters that a part shares with the average, whose file holds them; so a checkpoint has them once."""
        if part != "model" or self.average is None:
            return {}
        return {name: value for name, value in module.named_parameters() if not value.requires_grad}

    @property
    def _parameters(self) -> dict[str, nn.Parameter]:
        """All that is trained, by name; no module of the network has a name with a slash."""
        others = {f"auxiliary/{name}": value for name, value in self.auxiliary.named_parameters()}
        own = {name: value for name, value in self.net.named_parameters() if value.requires_grad}
        return own | others
