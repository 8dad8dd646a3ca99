"""Time grids: descending times from noise to data, (S + 1,) in float64 on the CPU."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from ditkit.errors import InputError
from ditkit.lazy import torch
from ditkit.transports import DDPM_STEPS, Transport

if TYPE_CHECKING:
    from torch import Tensor

LAST_STEP_SIZE = 0.04  # of an SDE: SiT's
CLEANEST = 1e-3  # the last time at which a spaced grid evaluates before it jumps to 0


def time_grid(
    transport: Transport,
    use: Literal["ode", "sde", "jump"],
    steps: int,
    *,
    grid: str | None = None,
    respacing: str | None = None,
    last_step: str = "mean",
    last_step_size: float = LAST_STEP_SIZE,
) -> Tensor:
    """The grid of `steps` steps, or of the knots of `respacing`, spaced by the name of `grid` (`SPACINGS`).

    ode: uniform over the transport's safe interval. sde: uniform down to `last_step_size`, then one long
    step to 0 (SiT); as an ode's with `last_step` none. jump: ends at 0, where only coefficients are needed;
    the evenly respaced knots of a path that has some, uniform elsewhere.

    Raises InputError: no steps; respacing of a path without knots, or with a named grid.
    """
    if steps < 1:
        raise InputError(f"`steps` must be at least 1, not {steps}")
    if respacing and not transport.knots:
        raise InputError(f"`respacing` {respacing}: path {transport.path} has no knots; give `steps` instead")
    if respacing and grid:
        raise InputError(f"`respacing` {respacing} and `grid` {grid}: both say which times; give one")
    if use == "jump" and transport.knots and not grid:
        sections = respacing or str(steps)
        # The published rule gives a single step the cleanest knot; sampling starts from noise.
        indices = respaced(sections, transport.knots) if sections != "1" else [transport.knots - 1]
        knots = (torch.tensor(indices[::-1], dtype=torch.float64) + 1) / transport.knots
        return torch.cat([knots, torch.zeros(1, dtype=torch.float64)])
    low, high = transport.interval("ode")
    spacing = SPACINGS[grid or "uniform"]
    to_zero = use == "jump" or (use == "sde" and last_step != "none")
    if to_zero and steps > 1 and (use == "sde" or spacing is not _uniform):
        low = last_step_size if use == "sde" else max(low, CLEANEST)
        if low >= high:
            raise InputError(f"`last_step_size` {low} must be less than {high}, where the grid begins")
        return torch.cat([spacing(transport, high, low, steps - 1), torch.zeros(1, dtype=torch.float64)])
    return spacing(transport, high, 0.0 if to_zero else low, steps)


def _uniform(transport: Transport, high: float, low: float, steps: int) -> Tensor:
    """Even in t."""
    return torch.linspace(high, low, steps + 1, dtype=torch.float64)


def _shifted(transport: Transport, high: float, low: float, steps: int) -> Tensor:
    """More steps near noise (Esser et al., 2024, equation 23): t -> 3 t / (1 + 2 t)."""
    even = _uniform(transport, 1, 0, steps)
    first, last = torch.tensor([low, high], dtype=torch.float64)
    return torch.lerp(first, last, 3 * even / (1 + 2 * even))


def _log_snr(transport: Transport, high: float, low: float, steps: int) -> Tensor:
    """Even in log(alpha / sigma)."""
    first, last = (ratio.log() for ratio in _ratios(transport, high, low))
    return _at_ratios(
        transport, high, low, torch.lerp(first, last, 1 - _uniform(transport, 1, 0, steps)).exp()
    )


def _karras(transport: Transport, high: float, low: float, steps: int) -> Tensor:
    """Even in (sigma / alpha)^(1/7) (Karras et al., 2022, equation 5)."""
    first, last = (ratio ** (1 / 7) for ratio in _ratios(transport, high, low))
    return _at_ratios(
        transport, high, low, torch.lerp(first, last, 1 - _uniform(transport, 1, 0, steps)) ** 7
    )


SPACINGS: dict[str, Callable[[Transport, float, float, int], Tensor]] = {
    "uniform": _uniform,
    "log_snr": _log_snr,
    "karras": _karras,
    "shifted": _shifted,
}


def _ratios(transport: Transport, high: float, low: float) -> tuple[Tensor, Tensor]:
    """sigma / alpha at both ends, inside EDM's range, where pure noise and clean data have one too."""
    c = transport.coeffs(torch.tensor([high, low], dtype=torch.float64))
    first, last = (c.sigma / c.alpha).clamp(0.002, 80.0)
    return first, last


def _at_ratios(transport: Transport, high: float, low: float, ratios: Tensor) -> Tensor:
    """The times at which sigma / alpha has these values, by bisection; the ends are high and low themselves."""
    below, above = torch.zeros_like(ratios), torch.ones_like(ratios)
    for _ in range(60):
        middle = (below + above) / 2
        c = transport.coeffs(middle)
        less = c.sigma < ratios * c.alpha
        below, above = torch.where(less, middle, below), torch.where(less, above, middle)
    times = (below + above) / 2
    times[0], times[-1] = high, low
    return times


def respaced(sections: str, total: int = DDPM_STEPS) -> list[int]:
    """Which of the `total` indices a shorter process visits, ascending.

    "250" or "100,50": that many from each of as many equal sections of the process, evenly, both ends
    included. "ddim50": every k-th from 0, for the whole k that gives 50 (only some counts exist).
    The rule of improved diffusion (Nichol & Dhariwal, 2021), which DiT samples with. "mdm50": 50 evenly between
    the clean image and what is noisier than all, both left out (the released Matryoshka Diffusion).
    """
    if not re.fullmatch(r"(ddim|mdm)\d+|\d+(,\d+)*", sections):
        raise InputError(
            f"cannot read {sections!r} as steps; give for instance '250', '100,50', 'ddim50' or 'mdm50'"
        )
    if sections.startswith("mdm"):
        count = int(sections.removeprefix("mdm"))
        if not 1 <= count <= total:
            raise InputError(f"`respacing` {sections}: give 1 to {total} steps")
        return [round(k * (total + 1) / (count + 1)) - 1 for k in range(1, count + 1)]
    if sections.startswith("ddim"):
        wanted = int(sections.removeprefix("ddim"))
        every = next((k for k in range(1, total + 1) if -(-total // k) == wanted), None)
        if every is None:
            raise InputError(f"no whole stride visits {wanted} of {total} steps; use {str(wanted)!r} instead")
        return list(range(0, total, every))
    counts = [int(count) for count in sections.split(",")]
    size, longer = divmod(total, len(counts))
    indices, start = [], 0
    for section, count in enumerate(counts):
        length = size + (section < longer)
        if not 1 <= count <= length:
            raise InputError(f"`steps` {count}: a section of {length} steps has 1 to {length}")
        stride = (length - 1) / (count - 1) if count > 1 else 0.0
        position = 0.0  # accumulated, then rounded half to even: reproduces the published indices
        for _ in range(count):
            indices.append(start + round(position))
            position += stride
        start += length
    return indices
