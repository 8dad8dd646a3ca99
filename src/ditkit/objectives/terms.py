"""What a term of the loss is, and how a step sums terms.

class Mine(Term):
    "One line for `ditkit list terms`."

    def __init__(self, net, *, weight: float = 0.5, block: int = 4):
        super().__init__(net, weight, blocks=(block,))

    def forward(self, seen):
        return seen.captured[4].square().mean((1, 2))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from ditkit.backbones.base import Backbone
from ditkit.chosen import chosen, name_of
from ditkit.device import sent
from ditkit.errors import InputError
from ditkit.first_values import build
from ditkit.layout import Cond, Layout
from ditkit.nn.around import Around, Run, Tokens
from ditkit.objectives import TERMS
from ditkit.randomness import Stream
from ditkit.transports import At, Transport

if TYPE_CHECKING:
    from ditkit.recipe import Recipe


@dataclass(frozen=True)
class Seen:
    """What a term sees of a training step on B images."""

    transport: Transport
    x0: Tensor
    """(B, *S), as eps and x_t."""
    eps: Tensor
    t: Tensor
    """(B,), or (B, K) for a state of K parts."""
    cond: Cond
    layout: Layout
    draws: Mapping[str, Tensor]
    """By the names of streams."""
    places: Tensor
    """int64 (B,): where the images are in the batch of all processes."""
    average: Callable[..., Tensor] | None
    """The moving average of the network, run without a gradient."""
    captured: dict[int, Tensor] = field(default_factory=dict)
    """What the blocks that the term names gave, (B, L, D) or of clips (B, F, L, D)."""
    weights: Tensor | None = None
    """(B, K), of the losses of each image's parts; None: all alike."""
    output: Tensor | None = None
    """What the network gave at t."""

    @property
    def prediction(self) -> Tensor:
        """What the network predicts at t, (B, *S): its output without a learned variance."""
        out = self.output
        assert out is not None  # training has it
        return self.transport.evaluate(lambda *_: out, self.x0, self.t, self.cond)[0]

    def cond_at(self, t: Tensor) -> Cond:
        """The conditions of a network that is evaluated at times t, (B,) or (B, K): with the numbers that it reads there."""
        read = self.transport.learning.reads(t, At())
        return self.cond | {name: sent(value, self.x0.device) for name, value in read.items()}

    def noisy(self, t: Tensor) -> Tensor:
        """The state at other times, with the same noise."""
        return self.transport.noisy(self.x0, self.eps, t, self.layout)


class Term(nn.Module):
    """Seen -> a number for each image, (B,), which is added to the loss with its weight.

    Its parameters are trained, averaged and saved with the network's.
    """

    streams: ClassVar[tuple[Stream, ...]] = ()
    """What it draws for each image."""
    group: ClassVar[int] = 1
    """So many images, one after the other, that it compares stay together (`ditkit.objectives.groups`); a setting of that name is
    taken instead."""
    alike: ClassVar[bool] = True
    """Whether the network's blocks have to work on the same tokens."""

    def __init__(self, net: Backbone, weight: float, blocks: Sequence[int] = ()):
        """`blocks` are captured. InputError unless the network has them, and all its blocks work on the same tokens."""
        super().__init__()
        self.weight, self.blocks = weight, tuple(blocks)
        if wrong := [k for k in self.blocks if not 0 <= k < len(net.blocks)]:
            raise InputError(
                f"train.terms: there is no block {wrong[0]}; this network has 0 to {len(net.blocks) - 1}"
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().__call__(*args, **kwargs)

    @classmethod
    def cannot(cls, recipe: Recipe) -> str:
        """Why it is no term for this recipe, and what to give instead; "" where it is."""
        return ""


def two_blocks(
    net: Backbone, early: tuple[str, int], late: tuple[str, int], shares: tuple[float, float]
) -> tuple[int, int]:
    """The numbers of an early and a late block, each as (name, number); -1 stands for a share of the depth. InputError
    unless the one is before the other."""
    depth = len(net.blocks)
    first, second = (
        int(depth * share) if number == -1 else number
        for (_, number), share in zip((early, late), shares, strict=True)
    )
    if first >= second:
        raise InputError(f"train.terms: {early[0]} {first} is not before {late[0]} {second}; give others")
    return first, second


def build_terms(choices: Sequence[str], net: Backbone, seed: int) -> dict[str, Term]:
    """The terms of a training by name, with first weights drawn from the seed. InputError as of `Term`."""
    found = {}
    for choice in choices:
        name = name_of(choice)
        found[name] = build(partial(chosen(TERMS, choice), net), seed, "train.terms", f"terms.{name}.")
    return found


def capturing(blocks: Sequence[int], captured: dict[int, Tensor]) -> Around:
    """Keep what these blocks give."""

    def around(k: int, run: Run, h: Tensor, at: Tokens) -> Tensor:
        h = run(h, at)
        if k in blocks:
            captured[k] = h[..., : at.own, :] if 0 < at.own < h.shape[-2] else h
        return h

    return around


def with_terms(losses: dict[str, Tensor], terms: Mapping[str, Term], seen: Seen) -> dict[str, Tensor]:
    """The losses (B,) by name, with each term's, and "loss" their weighted sum."""
    for name, term in terms.items():
        value = term(seen)
        losses = losses | {name: value, "loss": losses["loss"] + term.weight * value}
    return losses
