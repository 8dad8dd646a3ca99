"""Time grids: descending times from noise to data, (S + 1,) in float64 on the CPU."""

import re
from typing import Literal

import torch
from torch import Tensor

from ditkit.errors import InputError
from ditkit.transports import DDPM_STEPS, Transport

LAST_STEP_SIZE = 0.04  # of an SDE: SiT's


def time_grid(
    transport: Transport,
    use: Literal["ode", "sde", "jump"],
    steps: int,
    *,
    last_step: str = "mean",
    last_step_size: float = LAST_STEP_SIZE,
) -> Tensor:
    """The default grid of `steps` steps.

    ode: uniform over the transport's safe interval. sde: uniform down to `last_step_size`, then one long
    step to 0 (SiT); as an ode's with `last_step` none. jump: ends at 0, where only coefficients are needed;
    the evenly respaced knots of the `ddpm` path, uniform elsewhere.
    """
    if steps < 1:
        raise InputError(f"--steps must be at least 1, not {steps}")
    if use == "jump" and transport.path == "ddpm":
        # The published rule gives a single step the cleanest knot; sampling starts from noise.
        indices = respaced(str(steps)) if steps > 1 else [DDPM_STEPS - 1]
        knots = (torch.tensor(indices[::-1], dtype=torch.float64) + 1) / DDPM_STEPS
        return torch.cat([knots, torch.zeros(1, dtype=torch.float64)])
    low, high = transport.interval("ode")
    if use == "sde" and last_step != "none" and steps > 1:
        if last_step_size >= high:
            raise InputError(
                f"--last-step-size {last_step_size} must be less than {high}, where the grid begins"
            )
        before = torch.linspace(high, last_step_size, steps, dtype=torch.float64)
        return torch.cat([before, torch.zeros(1, dtype=torch.float64)])
    to_zero = use == "jump" or (use == "sde" and last_step != "none")
    return torch.linspace(high, 0.0 if to_zero else low, steps + 1, dtype=torch.float64)


def respaced(sections: str, total: int = DDPM_STEPS) -> list[int]:
    """Which of the `total` indices a shorter process visits, ascending.

    "250" or "100,50": that many from each of as many equal sections of the process, evenly, both ends
    included. "ddim50": every k-th from 0, for the whole k that gives 50 (only some counts exist).
    The rule of improved diffusion (Nichol & Dhariwal, 2021), which DiT samples with.
    """
    if not re.fullmatch(r"ddim\d+|\d+(,\d+)*", sections):
        raise InputError(f"cannot read {sections!r} as steps; give for instance '250', '100,50' or 'ddim50'")
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
            raise InputError(f"--steps {count}: a section of {length} steps has 1 to {length}")
        stride = (length - 1) / (count - 1) if count > 1 else 0.0
        position = 0.0  # accumulated, then rounded half to even: reproduces the published indices
        for _ in range(count):
            indices.append(start + round(position))
            position += stride
        start += length
    return indices
