"""TaylorSeer (Liu et al., "From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers", ICCV 2025).

What a block adds changes smoothly along a trajectory. It is computed at every `interval`-th evaluation, and in between
forecast by its Taylor series in the time, whose derivatives are backward differences of what was computed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import factorial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ditkit.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from ditkit.nn.around import Around, Run, Tokens
    from ditkit.transports import At


@dataclass
class Memory:
    """Of one role's rows, along a trajectory."""

    evaluations: int = 0
    """Evaluations so far."""
    series: dict[int, tuple[float, list[Tensor]]] = field(default_factory=dict)
    """Of each block, the time at which it was computed last, and its value and derivatives there."""

    def computes(self, interval: int, order: int) -> bool:
        """Whether the next evaluation is computed: the first `order` + 1, which derivatives need, then every interval-th."""
        return self.evaluations <= order or (self.evaluations - order) % interval == 0

    def note(self, block: int, t: float, value: Tensor, order: int) -> None:
        """A block was computed at the time t."""
        before, known = self.series.get(block, (t, []))
        derivatives = [value]
        if t == before:  # evaluated twice at one time
            derivatives += known[1:]
        else:
            for earlier in known[:order]:
                derivatives.append((derivatives[-1] - earlier) / (t - before))
        self.series[block] = t, derivatives

    def forecast(self, block: int, t: float) -> Tensor:
        """Its value at the time t."""
        at, derivatives = self.series[block]
        value = derivatives[0]
        for power, derivative in enumerate(derivatives[1:], 1):
            value = value + derivative * ((t - at) ** power / factorial(power))
        return value


def taylor_seer(
    t: Tensor,
    at: At,
    *,
    interval: Annotated[int, Field(ge=1)] = 3,
    order: Annotated[int, Field(ge=0, le=4)] = 2,
) -> Around:
    """Compute blocks at every interval-th evaluation; between, forecast what they add by a Taylor series of that order."""
    time = t.max().item()  # parts of a state that are known stay at 0
    memories = [at.store.setdefault(f"taylor_seer {role}", Memory()) for role in at.roles]
    computed = any(memory.computes(interval, order) for memory in memories)
    for memory in memories:
        memory.evaluations += 1

    def around(k: int, run: Run, h: Tensor, tokens: Tokens) -> Tensor:
        if not computed:
            found = torch.cat([memory.forecast(k, time) for memory in memories])
            return h + found if found.shape == h.shape else found
        out = run(h, tokens)
        added = out - h if out.shape == h.shape else out
        for memory, part in zip(memories, added.chunk(len(memories)), strict=True):
            memory.note(k, time, part, order)
        return out

    return around
