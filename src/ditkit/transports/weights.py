"""What the errors at each time count in the loss (`transport.weight`).

An error of the pair (x0, eps) is k · (sigma, -alpha) with a number k (`ditkit.transports.predictions`). A weight says what k²
counts, so it means the same whatever is predicted: a weight w of the data's squared error is sigma² w, one of the noise's is
alpha² w, and no weight divides by zero at the ends of a path.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from ditkit.lazy import torch
from ditkit.transports.paths import Coeffs

if TYPE_CHECKING:
    from torch import Tensor


def none(c: Coeffs) -> Tensor:
    """Errors count as the space of the loss has them."""
    raise NotImplementedError("without a weight errors are those of the loss")


def min_snr(c: Coeffs, *, gamma: Annotated[float, Field(gt=0)] = 5.0) -> Tensor:
    """The data's error by its signal-to-noise ratio, at most gamma (Hang et al., 2023).

    With SNR = alpha² / sigma² the data's squared error counts min(SNR, gamma), the noise's min(SNR, gamma) / SNR and that of v
    min(SNR, gamma) / (SNR + 1).
    """
    return torch.minimum(c.alpha**2, gamma * c.sigma**2)


def sigmoid(c: Coeffs, *, bias: float = 2.0) -> Tensor:
    """The likelihood's bound, less near the data: sigmoid(bias - log SNR) of it (Kingma & Gao, 2023).

    The noise's squared error counts sigmoid(bias - l) · (-dl/dt) / 2 with l = log SNR. A lower bias trains noisier times, as larger
    images need (Hoogeboom et al., 2024).
    """
    determinant = c.alpha * c.d_sigma - c.d_alpha * c.sigma  # -dl/dt = 2 determinant / (alpha sigma)
    return determinant * c.alpha * c.sigma / (c.sigma**2 + math.exp(-bias) * c.alpha**2)


WEIGHTS: dict[str, Any] = {"none": none, "min_snr": min_snr, "sigmoid": sigmoid}
"""(coefficients, *, settings) -> what k² counts."""
