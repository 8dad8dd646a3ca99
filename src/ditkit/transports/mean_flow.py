"""MeanFlow (Geng et al., "Mean Flows for One-step Generative Modeling", 2025): the network learns the mean velocity of a step.

u(x_t, t, span) is the mean of the velocity on the way from t to t - span. From its definition, along the path,

    u = v - span · du/dt,    du/dt = v · du/dx + du/dt + du/dspan,

where v is the velocity at t; so sampling can take any step at once, and a single one from noise to data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ditkit.device import sent
from ditkit.layout import Cond
from ditkit.lazy import torch
from ditkit.randomness import Stream
from ditkit.transports import parts
from ditkit.transports.predictions import velocity

if TYPE_CHECKING:
    from torch import Tensor

    from ditkit.layout import Layout
    from ditkit.transports.denoiser import At, Network
    from ditkit.transports.regression import Examples
    from ditkit.transports.transport import Transport

SPAN = "span"


class MeanFlow:
    """By the mean velocity of a step from any time to any earlier one: samples of one evaluation (sampler mean_velocity)."""

    scalars: tuple[str, ...] = (SPAN,)
    streams: tuple[Stream, ...] = (Stream("mean_flow", "mean_flow", "uniform", (2,)),)
    levels: bool = False
    packed: bool = False
    forward_mode: bool = True

    def __init__(
        self,
        *,
        equal: Annotated[float, Field(ge=0, le=1)] = 0.75,
        power: Annotated[float, Field(ge=0)] = 1.0,
        floor: Annotated[float, Field(gt=0)] = 1e-3,
    ):
        """A share `equal` of images is trained with steps of no length, whose mean velocity is the velocity. Errors are
        divided by (their own size + floor)^power, so that large ones do not rule."""
        self.equal, self.power, self.floor = equal, power, floor

    def check(self, transport: Transport) -> None:
        """ValueError but for the velocity of states of one time on a path without steps."""
        wanted = {
            "predict": "velocity",
            "loss": "output",
            "weight": "none",
            "variance": "fixed",
            "cascade": None,
            "known_frames": 0.0,
        }
        for name, value in wanted.items():
            if (found := getattr(transport, name)) != value:
                raise ValueError(
                    f"transport.method mean_flow learns a mean velocity: transport.{name} {found} is not for it; give {value}"
                )
        if transport.knots is not None:
            raise ValueError(
                f"transport.method mean_flow needs all times: transport.path {transport.path} has steps; give linear"
            )

    def losses(self, transport: Transport, net: Network, examples: Examples) -> dict[str, Tensor]:
        """The squared distance of u + span · du/dt, whose second part is kept fixed, from the velocity."""
        x0, eps, layout = examples.x0, examples.eps, examples.layout
        t, span = self.times(transport, examples.t, layout, examples.drawn)
        c, _ = transport.meant(t, layout, x0)
        x_t, v = c.alpha * x0 + c.sigma * eps, velocity(x0, eps, c)
        u, rate = derivative(transport, net, x_t, t, sent(span, x0.device), examples.cond, v)
        moved = u + sent(layout.expand(span), u.device, u.dtype) * rate.detach()
        mse = parts.over_parts(
            layout.mean((moved - v) ** 2), examples.weights, layout.share, transport.level_weights
        )
        return {"loss": mse / (mse.detach() + self.floor) ** self.power, "mse": mse}

    def times(
        self, transport: Transport, t: Tensor, layout: Layout, drawn: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The time (B,) at which a step begins, and its length; without draws none has a length."""
        if not drawn:
            return t, torch.zeros_like(t)
        second, same = drawn["mean_flow"].unbind(1)
        other = transport.times(1 - second, layout)
        start = torch.maximum(t, other)
        return start, torch.where(same < self.equal, 0.0, start - torch.minimum(t, other))

    def reads(self, t: Tensor, at: At) -> Cond:
        span = t - at.to if at.whole and at.to is not None else torch.zeros_like(t)
        return {SPAN: span}


def derivative(
    transport: Transport, net: Network, x_t: Tensor, t: Tensor, span: Tensor, cond: Cond, v: Tensor
) -> tuple[Tensor, Tensor]:
    """u(x_t, t, span) and its derivative where x_t moves with v and t and span as the time, (B, *S) each, by forward-mode
    differentiation."""

    def at_time(x_t: Tensor, t: Tensor, span: Tensor) -> Tensor:
        return transport.evaluate(net, x_t, t, cond | {SPAN: span})[0]

    # Fused attention has no derivative in forward mode.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        along = (v.to(x_t), torch.ones_like(t), torch.ones_like(span))
        u, rate, *_ = torch.func.jvp(at_time, (x_t, t, span), along)
    return u, rate
