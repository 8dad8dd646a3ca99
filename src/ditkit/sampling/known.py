"""Sampling some parts of a state where others are known: the high level of a pyramid above the low ones (a cascade of two
models: Ho et al., "Cascaded Diffusion Models", 2022), later frames after the first.

The network reads each part's own time, which it must have been trained with (`Transport.cascade`, `known_frames`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from ditkit.device import sent
from ditkit.errors import InputError
from ditkit.layout import Cond, Layout
from ditkit.lazy import torch
from ditkit.transports import At, Denoiser, Prediction

if TYPE_CHECKING:
    from torch import Tensor


class Known(NamedTuple):
    """The parts of states that are not sampled."""

    parts: Sequence[bool]
    state: Callable[[slice], Tensor]
    """Of those of the states, (B, *S); numbers of other parts are not read."""
    time: float = 0.0
    """The time of the noise that is added to them; 0: none."""

    def into(self, state: Tensor, known: Tensor, layout: Layout) -> Tensor:
        """The states (B, *S) with what is known in its place."""
        return torch.where(sent(known_mask(self.parts, layout), known.device), known, state)


def known_mask(parts: Sequence[bool], layout: Layout) -> Tensor:
    """Where the parts are marked: bool, broadcasting with states."""
    return layout.expand(torch.tensor([parts]).double()) > 0.5


def with_known(
    denoise: Denoiser, known: Tensor, parts: Sequence[bool], noise: Tensor, time: float = 0.0
) -> Denoiser:
    """A denoiser whose network always sees, in the parts marked in `parts`, the numbers that `known` (B, *S) has there,
    with `noise` of that `time` (0: none), whatever the sampler makes of them. Other numbers of `known` are not
    read. InputError for a state whose parts are not as many.
    """
    if denoise.layout is None or denoise.layout.parts != len(parts):
        raise InputError(f"{len(parts)} parts known or not, the state has another number")
    marks, mask = torch.tensor([parts]), sent(known_mask(parts, denoise.layout), known.device)
    c = denoise.coeffs(torch.full((1, len(parts)), time, dtype=torch.float64), known)
    noisy = c.alpha * known + c.sigma * noise

    def predict(x_t: Tensor, t: Tensor, cond: Cond, at: At) -> Prediction:
        repeat = len(x_t) // len(known)  # guidance evaluates twice the rows
        clean, shown = (torch.cat([values] * repeat) for values in (known, noisy))
        x = torch.where(mask, shown, x_t)
        times = torch.where(marks.to(t.device), time, t[:, None])
        p = denoise(x, times, cond, at)
        # As if they were known exactly: what a sampler makes of these parts has no consequence. But it must be finite,
        # so the coefficients are those of the sampler's own time, at which no path divides by zero.
        return p._replace(
            coeffs=denoise.coeffs(t, x_t),
            x_t=x,
            x0=torch.where(mask, clean, p.x0),
            eps=torch.where(mask, torch.zeros_like(x), p.eps),
        )

    return replace(denoise, predict=predict)
