"""How samples are drawn unless a command says otherwise."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from ditkit.config import Section


def _ascending(interval: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= interval[0] <= interval[1] <= 1:
        raise ValueError(f"must be two times with 0 <= low <= high <= 1, not {interval}")
    return interval


Interval = Annotated[tuple[float, float], AfterValidator(_ascending)]


class SamplingConfig(Section):
    """Sampler, steps and guidance; kept in the recipe so that a snapshot knows how it is best used."""

    sampler: Literal["euler", "heun", "ddim", "ancestral", "euler_maruyama"] = "heun"
    """`ditkit list samplers` says which is for what."""
    steps: Annotated[int, Field(ge=1)] = 25
    """Steps of the grid; heun asks the network twice in each."""
    guidance: Annotated[float, Field(ge=0)] = 1.0
    """Classifier-free guidance scale; 1 is off."""
    interval: Interval = (0.0, 1.0)
    """Times t between which guidance is on (0 data, 1 noise)."""
