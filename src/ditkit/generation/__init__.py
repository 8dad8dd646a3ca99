"""From a request to images: `plan.py` resolves it against a model and carries it out; beside it what it decides."""

from ditkit.generation.plan import Plan, make_plan
from ditkit.generation.sizes import state_layout

__all__ = ["Plan", "make_plan", "state_layout"]
