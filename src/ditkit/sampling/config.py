"""How samples are drawn unless a command says otherwise."""

from typing import Annotated, Literal

from pydantic import Field

from ditkit.config import Section


class SamplingConfig(Section):
    """Sampler, steps and guidance; kept in the recipe so that a snapshot knows how it is best used."""

    sampler: Literal["euler", "heun", "ddim", "ancestral", "euler_maruyama"] = "heun"
    """`ditkit list samplers` says which is for what."""
    steps: Annotated[int, Field(ge=1)] = 25
    """Steps of the grid; heun asks the network twice in each."""
    guidance: Annotated[float, Field(ge=0)] = 1.0
    """Classifier-free guidance scale; 1 is off."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Times t between which guidance is on (0 data, 1 noise)."""
