"""What is added to a training besides the transport's loss: terms of the loss, and tokens left out.

A term is made for a network, and is a module that gives a number for each image; `train.terms` names some. A routing is made
for a forward pass, and is something around the network's blocks; `train.routing` names one. Each is a line in its registry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ditkit.chosen import name_of, split
from ditkit.lazy import Named, loaded
from ditkit.randomness import Stream

if TYPE_CHECKING:
    from ditkit.objectives.terms import Seen, Term
    from ditkit.recipe import Recipe


def none(draws: Any, blocks: int) -> None:
    """Every block works on all tokens."""


ROUTINGS: dict[str, Any] = {
    "none": none,
    "tread": Named("ditkit.objectives.tread:tread"),
}
"""(draws (B, L) uniform in [0, 1), number of blocks, *, settings) -> what is put around the blocks (`ditkit.nn.around`)."""

TERMS: dict[str, Any] = {
    "contrastive": Named("ditkit.objectives.contrastive:Contrastive"),
    "dispersive": Named("ditkit.objectives.dispersive:Dispersive"),
    "layer_sync": Named("ditkit.objectives.layer_sync:LayerSync"),
    "repa": Named("ditkit.objectives.repa:RepresentationAlignment"),
    "sra": Named("ditkit.objectives.sra:SelfAlignment"),
}
"""(network, *, settings) -> a `Term`."""

ROUTE = Stream("route", "route", "uniform", "tokens")


def streams_of(recipe: Recipe) -> tuple[Stream, ...]:
    """What a recipe's routing and terms draw for each image."""
    routed = (ROUTE,) if name_of(recipe.train.routing) != "none" else ()
    of_terms = [loaded(TERMS[name_of(choice)]).streams for choice in recipe.train.terms]
    return (*routed, *(stream for streams in of_terms for stream in streams))


def group_of(choices: Sequence[str]) -> int:
    """How many images, one after the other, have to be in one pass for these terms to compare them."""
    found = [split(TERMS, choice) for choice in choices]
    return math.lcm(*(settings.get("group", loaded(TERMS[name]).group) for name, settings in found))


__all__ = ["ROUTE", "ROUTINGS", "TERMS", "Seen", "Term", "group_of", "streams_of"]
