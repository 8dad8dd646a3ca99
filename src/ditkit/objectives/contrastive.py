"""Contrastive flow matching (Stoica et al., "Contrastive Flow Matching", 2025): velocities lead away from those of other images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field
from torch import Tensor

from ditkit.backbones import Backbone
from ditkit.device import sent
from ditkit.objectives.groups import partners
from ditkit.objectives.terms import Seen, Term
from ditkit.transports import LOSSES, parts
from ditkit.transports.losses import error
from ditkit.transports.predictions import velocity

if TYPE_CHECKING:
    from ditkit.recipe import Recipe


class Contrastive(Term):
    """The predicted velocity is led away from another image's: minus their mean squared distance.

    The other image is the second of a pair, with its own noise, at the time of the first; one without a partner counts nothing.
    """

    group: ClassVar[int] = 2
    alike: ClassVar[bool] = False

    def __init__(self, net: Backbone, *, weight: Annotated[float, Field(ge=0, lt=1)] = 0.05):
        """With a weight of 1 or more nothing would bound the errors."""
        super().__init__(net, weight)

    def forward(self, seen: Seen) -> Tensor:
        transport, layout = seen.transport, seen.layout
        row, there = (sent(value, seen.x0.device) for value in partners(seen.places))
        t = parts.measured_at(seen.t, seen.weights)
        own, measured = transport.meant(t, layout, seen.x0)
        loss = LOSSES[transport.loss]
        wrong = error(transport.predict, loss, seen.prediction, seen.x0, seen.eps, own, measured)
        # The predicted velocity is wrong + v, measured as the loss measures it; v - v' is that of the images' differences.
        apart = velocity(seen.x0 - seen.x0[row], seen.eps - seen.eps[row], measured if loss.timed else own)
        distance = layout.mean((wrong + apart) ** 2)
        return -parts.over_parts(distance, seen.weights, layout.share, transport.level_weights) * there

    @classmethod
    def cannot(cls, recipe: Recipe) -> str:
        transport = recipe.transport
        if transport.learning.forward_mode:
            return f"transport.method {transport.method} predicts no velocity at the images' times; take regression, or leave it out"
        space = LOSSES[transport.loss].space or transport.predict
        if space != "velocity" or LOSSES[transport.loss].factor is not None:
            return f"transport.loss {transport.loss} is not of the velocity; give velocity, or leave it out"
        if transport.weighting is not None:
            return f"transport.weight {transport.weight} lets some errors count less than it takes away; give none, or leave it out"
        return ""
