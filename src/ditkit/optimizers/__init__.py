"""Optimisers by name: what takes a step from a gradient, and what it keeps beside each weight for that.

def mine(parameters, config, *, momentum: float = 0.9):
    "One line for `ditkit list optimizers`."
    return torch.optim.SGD(parameters, lr=config.lr, momentum=momentum)
"""

from typing import Any

from ditkit.lazy import Named

OPTIMIZERS: dict[str, Any] = {
    "adamw": Named("ditkit.optimizers.of_torch:adamw"),
    "muon": Named("ditkit.optimizers.muon:muon"),
    "adafactor": Named("ditkit.optimizers.of_torch:adafactor"),
    "adamw_8bit": Named("ditkit.optimizers.eight_bit:adamw_8bit"),
}
"""(`Parameters`, a list; `Training` with its lr, betas and weight_decay; *, settings) -> a torch.optim.Optimizer."""

__all__ = ["OPTIMIZERS"]
