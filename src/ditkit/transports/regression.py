"""How a network learns: by its errors at one time. What else can be learned is another `Method`, in METHODS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from ditkit.layout import Cond
from ditkit.lazy import Named
from ditkit.randomness import Stream
from ditkit.transports import hybrid, parts
from ditkit.transports.losses import LOSSES, error
from ditkit.transports.predictions import PREDICTIONS

if TYPE_CHECKING:
    from torch import Tensor

    from ditkit.layout import Layout
    from ditkit.transports.denoiser import At, Network
    from ditkit.transports.transport import Transport


@dataclass(frozen=True)
class Examples:
    """What a network learns from: data with noise and times."""

    x0: Tensor
    """(B, *S), as eps."""
    eps: Tensor
    t: Tensor
    """(B,), or (B, K) for states of K parts."""
    cond: Cond
    layout: Layout
    weights: Tensor | None = None
    """(B, K), of each image's parts, besides the transport's `level_weights`."""
    drawn: Mapping[str, Tensor] = field(default_factory=dict)
    """What the method's streams are, by their names, (B, ...); empty where a model is validated."""


class Method(Protocol):
    """What a transport does in training, and what its network reads besides the state and the time."""

    @property
    def scalars(self) -> tuple[str, ...]:
        """Numbers, one for each image, that the network reads from cond by these names."""

    @property
    def streams(self) -> tuple[Stream, ...]:
        """What training draws besides the time and the noise."""

    @property
    def levels(self) -> bool:
        """Whether it trains states of several levels."""

    @property
    def packed(self) -> bool:
        """Whether it trains several states of different sizes as one."""

    @property
    def forward_mode(self) -> bool:
        """Whether it differentiates the network in forward mode, in which blocks cannot be computed again."""

    def check(self, transport: Transport) -> None:
        """ValueError for a transport that it cannot train."""

    def losses(self, transport: Transport, net: Network, examples: Examples) -> dict[str, Tensor]:
        """As `Transport.losses`."""

    def reads(self, t: Tensor, at: At) -> Cond:
        """The `scalars` (B,) where a solver evaluates at times t (B,)."""


class Regression:
    """By the mean squared error at one time, in the space of the transport's loss."""

    scalars: tuple[str, ...] = ()
    streams: tuple[Stream, ...] = ()
    levels: bool = True
    packed: bool = True
    forward_mode: bool = False

    def check(self, transport: Transport) -> None:
        """Every transport."""

    def losses(self, transport: Transport, net: Network, examples: Examples) -> dict[str, Tensor]:
        """The mean squared error of each part, then summed (of a clip's frames the mean); with a learned variance the bound
        besides."""
        x0, eps, t, layout, weights = (
            examples.x0,
            examples.eps,
            examples.t,
            examples.layout,
            examples.weights,
        )
        own, measured = transport.meant(t, layout, x0)
        x_t = own.alpha * x0 + own.sigma * eps
        out, var = transport.evaluate(net, x_t, t, examples.cond)
        if (finite := parts.measured_at(t, weights)) is not t:
            t, (own, measured) = finite, transport.meant(finite, layout, x0)
        found = error(
            transport.predict, LOSSES[transport.loss], out, x0, eps, own, measured, transport.weighting
        )
        mse = parts.over_parts(layout.mean(found**2), weights, layout.share, transport.level_weights)
        if var is None:
            return {"loss": mse, "mse": mse}
        assert transport.knots is not None  # a validator has seen to it
        x0_hat, _ = PREDICTIONS[transport.predict].decode(out.detach(), x_t, own)
        bound = hybrid.bound(
            lambda t: transport.coeffs(t, layout),
            transport.knots,
            x0_hat,
            var,
            x0=x0,
            x_t=x_t,
            t=t,
            layout=layout,
        )
        vb = parts.over_parts(bound, weights, layout.share, transport.level_weights)
        return {"loss": mse + vb, "mse": mse, "vb": vb}

    def reads(self, t: Tensor, at: At) -> Cond:
        return {}


METHODS: dict[str, Any] = {
    "regression": Regression,
    "mean_flow": Named("ditkit.transports.mean_flow:MeanFlow"),
}
