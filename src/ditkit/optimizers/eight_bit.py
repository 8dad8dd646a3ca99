"""AdamW whose two moments are kept in 8 bits, by torchao (`pip install 'ditkit[optim8]'`)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ditkit.device import check_compiler
from ditkit.errors import InputError

if TYPE_CHECKING:
    from ditkit.recipe import Training


def adamw_8bit(parameters: Sequence[nn.Parameter], config: Training) -> torch.optim.Optimizer:
    """AdamW with moments in 8 bits, a scale for each 256 (Dettmers et al., 2022); 2 bytes beside each weight of large tensors.

    By torchao, which compiles a step for each shape of tensor at the first one. InputError without it, or without a compiler.
    """
    try:
        made = _class()
    except ImportError:
        raise InputError("train.optimizer adamw_8bit needs a package: pip install 'ditkit[optim8]'") from None
    check_compiler(parameters[0].device, "train.optimizer adamw")
    return made(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)


def _class() -> Callable[..., torch.optim.Optimizer]:
    for name in (
        "torchao",
        "torch.utils._pytree",
    ):  # kernels for other machines that it does not find, and the like
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="OptimState8bit does not implement _stable_hash")
    from torchao.optim import AdamW8bit
    from torchao.optim.subclass_8bit import OptimState8bit

    class Eight(AdamW8bit):
        """Rates that are set as numbers, and moments that are saved as plain tensors (`ditkit.checkpoint.Composite`)."""

        def step(self, closure: Any = None) -> Any:
            rates = [float(group["lr"]) for group in self.param_groups]
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = torch.tensor(rate)  # torchao compiles a number into the step
            result = super().step(closure)
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate
            return result

        def split(self, value: Any) -> dict[str, Tensor]:
            if not isinstance(value, OptimState8bit):
                return {}
            return {"codes": value.codes, "scale": value.scale, "qmap": value.qmap}

        def join(self, parts: dict[str, Tensor]) -> Tensor:
            signed = bool(parts["qmap"][0] < 0)
            return OptimState8bit(parts["codes"], parts["scale"], parts["qmap"], signed)

    return Eight
