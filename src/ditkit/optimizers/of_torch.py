"""Those that torch has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import nn

if TYPE_CHECKING:
    from ditkit.recipe import Training


def adamw(parameters: Sequence[nn.Parameter], config: Training) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter, 2019) in one fused call; 8 bytes beside each float32 weight."""
    return torch.optim.AdamW(
        parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )


def adafactor(
    parameters: Sequence[nn.Parameter],
    config: Training,
    *,
    decay: Annotated[float, Field(le=0)] = -0.8,
    clip: Annotated[float, Field(gt=0)] = 1.0,
) -> torch.optim.Optimizer:
    """Adafactor (Shazeer & Stern, 2018): of a matrix's squared gradients only the means of rows and columns, no momentum.

    A step is relative to the size of the weights, so that rates are larger than AdamW's, such as 1e-3. `betas` is not used.
    """
    return torch.optim.Adafactor(
        parameters, lr=config.lr, beta2_decay=decay, d=clip, weight_decay=config.weight_decay
    )
