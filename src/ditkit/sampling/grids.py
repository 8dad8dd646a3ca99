"""Time grids: descending times from noise to data, (S + 1,) in float64 on the CPU."""

import re
from typing import Literal

import torch
from torch import Tensor

from ditkit.errors import InputError
from ditkit.transports import DDPM_STEPS, Transport


def time_grid(transport: Transport, use: Literal["ode", "sde", "jump"], steps: int) -> Tensor:
    """The default grid of `steps` steps.

    ode: uniform over the transport's safe interval. sde: uniform down to t = 0.04, then one long last
    step to 0 (SiT). jump: ends at 0, where only coefficients are needed; the evenly respaced knots of
    the `ddpm` path, uniform elsewhere.
    """
    if steps < 1:
        raise InputError(f"--steps must be at least 1, not {steps}")
    if use == "jump" and transport.path == "ddpm":
        # The published rule gives a single step the cleanest knot; sampling starts from noise.
        indices = respaced(str(steps)) if steps > 1 else [DDPM_STEPS - 1]
        knots = (torch.tensor(indices[::-1], dtype=torch.float64) + 1) / DDPM_STEPS
        return torch.cat([knots, torch.zeros(1, dtype=torch.float64)])
    low, high = transport.interval("sde" if use == "sde" else "ode")
    if use == "sde" and steps > 1:
        low_part = torch.linspace(high, low, steps, dtype=torch.float64)
        return torch.cat([low_part, torch.zeros(1, dtype=torch.float64)])
    return torch.linspace(high, low if use == "ode" else 0.0, steps + 1, dtype=torch.float64)


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
