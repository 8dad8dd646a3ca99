"""How the learning rate goes after the warm-up (`train.schedule`).

def mine(done, *, power: float = 2.0):
    "One line for `ditkit list schedules`."
    return (1 - done) ** power
"""

import math
from typing import Annotated, Any, Literal

from pydantic import Field


def constant(done: float) -> float:
    """The rate stays."""
    return 1.0


def cosine(done: float) -> float:
    """The rate falls to 0 at the last image, along half a cosine."""
    return (1 + math.cos(math.pi * done)) / 2


def wsd(
    done: float,
    *,
    share: Annotated[float, Field(gt=0, le=1)] = 0.2,
    form: Literal["linear", "1-sqrt"] = "1-sqrt",
) -> float:
    """The rate stays, and falls to 0 over the last share of the images (Hu et al., 2024; its forms: Hägele et al., 2024)."""
    passed = max(0.0, 1 - (1 - done) / share)  # of the fall
    return 1 - (passed if form == "linear" else math.sqrt(passed))


SCHEDULES: dict[str, Any] = {"constant": constant, "cosine": cosine, "wsd": wsd}
"""(share of the images seen, 0 to 1, *, settings) -> the rate by `lr`."""
