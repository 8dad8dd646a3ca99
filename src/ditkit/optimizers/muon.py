"""Muon (Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024) for matrices of blocks, AdamW for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import nn

from ditkit.errors import InputError

if TYPE_CHECKING:
    from ditkit.recipe import Training


class MuonAndAdamW(torch.optim.Optimizer):
    """Both as one: one list of groups, which have one rate, and one state."""

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        others: Sequence[nn.Parameter],
        config: Training,
        momentum: float,
    ):
        decay = config.weight_decay
        self._parts: list[torch.optim.Optimizer] = []
        if matrices:
            self._parts.append(
                torch.optim.Muon(
                    matrices,
                    lr=config.lr,
                    weight_decay=decay,
                    momentum=momentum,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if others:
            self._parts.append(
                torch.optim.AdamW(others, lr=config.lr, betas=config.betas, weight_decay=decay, fused=True)
            )
        super().__init__([group for part in self._parts for group in part.param_groups], {"lr": config.lr})
        for part in self._parts:
            part.state = self.state

    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        for part in self._parts:
            part.step()
        return loss


def muon(
    parameters: Sequence[nn.Parameter],
    config: Training,
    *,
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.95,
) -> torch.optim.Optimizer:
    """Muon for the matrices of the blocks, AdamW for all else, at one rate; 4 bytes beside each weight of those matrices.

    The momentum of a matrix is made orthogonal by five Newton-Schulz iterations in bf16 and scaled to the size of AdamW's steps, so
    that AdamW's rates fit (Liu et al., 2025). Patches, conditions, vectors and the last layer are AdamW's.
    """
    matrices = getattr(parameters, "matrices", None)
    if matrices is None:
        raise InputError("train.optimizer muon is for the blocks of a diffusion transformer; give adamw")
    known = {id(matrix) for matrix in matrices}
    return MuonAndAdamW(matrices, [p for p in parameters if id(p) not in known], config, momentum)
