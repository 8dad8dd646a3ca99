"""Transport: a path, what the network predicts, when it is trained, and in which space its errors are measured.

It composes these parts into the training loss and the denoiser. It knows no network's insides: a network is any
callable (x_t, t, cond) -> output. Guidance and solvers live in `ditkit.sampling`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from ditkit.chosen import Chosen, chosen
from ditkit.config import OneOf, Section, renamed
from ditkit.device import sent, widest
from ditkit.layout import Cond, Layout
from ditkit.lazy import torch
from ditkit.randomness import Stream
from ditkit.transports import hybrid, parts
from ditkit.transports.denoiser import At, Denoiser, Network, expanded
from ditkit.transports.losses import LOSSES
from ditkit.transports.paths import DDPM_STEPS, PATHS, Coeffs
from ditkit.transports.predictions import PREDICTIONS, Prediction
from ditkit.transports.regression import METHODS, Examples, Method
from ditkit.transports.times import TIME_LAWS, on_knots, shifted_for_size
from ditkit.transports.weights import WEIGHTS

if TYPE_CHECKING:
    from torch import Tensor

AroundAt = Callable[["Tensor", At], Any]
"""From the times (B,) or (B, K) of an evaluation, and where in the trajectory it is, to an `ditkit.nn.around.Around`."""

LAST_OF_AN_SDE = 0.04
"""The lowest time at which SiT evaluates a network in an SDE, before its last step."""

TIME = Stream("time", "train", "uniform", ())
NOISE = Stream("noise", "train", "normal", after=2)
KNOWN = Stream("known", "given", "uniform", (3,))
"""Which parts of a state are known, and with how much noise."""


class Transport(Section):
    """How data becomes noise and what the network learns of it."""

    path: Annotated[str, OneOf(PATHS)] = "linear"
    """x_t = alpha(t) x0 + sigma(t) eps: straight lines, trigonometric, continuous or discrete diffusion, the latter with
    linear betas or the cosine schedule."""
    predict: Annotated[str, OneOf(PREDICTIONS)] = "velocity"
    """What the network's output means."""
    loss: Annotated[str, OneOf(LOSSES)] = "output"
    """In which space errors are measured, whatever is predicted: the output's own, the velocity, the noise or the data that
    it means, or the noise weighted as the likelihood's bound."""
    weight: Annotated[str, Chosen(WEIGHTS)] = "none"
    """What errors count by time, such as min_snr:gamma=5 (`ditkit list weights`); losses in all spaces are then the same."""
    method: Annotated[str, Chosen(METHODS)] = "regression"
    """How it learns: by the errors at one time (regression)."""
    variance: Literal["fixed", "learned"] = "fixed"
    """learned: twice the output channels and DiT's hybrid loss with the variational bound (ddpm and cosine only)."""
    time_law: Annotated[str, Chosen(TIME_LAWS)] = "uniform"
    """How training times are distributed (`ditkit list time-laws`), such as logit_normal:mean=0.8,spread=0.8."""
    level_shift: Annotated[float, Field(ge=0)] = 1.0
    """The signal-to-noise ratio of each level of a pyramid is divided by its size, relative to the lowest's, to this power."""
    level_weights: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """Weights of the losses of a pyramid's levels, the highest first; all 1 by default."""
    cascade: Annotated[float, Field(ge=0, le=1)] | None = None
    """Only the highest level of a pyramid is learned; the lower ones are known, with noise of a time up to this (0:
    clean), as for the second model of a cascade (Ho et al., 2022)."""
    known_frames: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The share of clips that are trained with some frames known and clean, the first ones or those at both ends, so that
    a model can go on from an image or a clip."""
    size_shift: Annotated[float, Field(ge=0)] = 0.0
    """Larger states are trained and sampled at noisier times: sigma / alpha grows with the root of the number of
    positions (frames, height and width of the state multiplied) over this number (Esser et al., 2024, eq. 23); 0: no shift."""

    @model_validator(mode="after")
    def _size_shift_needs_straight_lines(self) -> Transport:
        if self.size_shift and PATHS[self.path].norm != 1:
            straight = " or ".join(name for name, path in PATHS.items() if path.norm == 1)
            raise ValueError(
                f"transport.size_shift {self.size_shift} is for transport.path {straight}, not {self.path}; give 0"
            )
        return self

    @model_validator(mode="after")
    def _learned_variance_needs_knots(self) -> Transport:
        if self.variance == "learned" and self.knots is None:
            stepped = " or ".join(name for name, path in PATHS.items() if path.knots)
            raise ValueError(
                f"transport.variance learned needs the steps of transport.path {stepped}, not {self.path}; "
                "use variance fixed, or such a path"
            )
        return self

    @model_validator(mode="after")
    def _one_weight_by_time(self) -> Transport:
        if self.weighting is not None and LOSSES[self.loss].factor is not None:
            raise ValueError(
                f"transport.weight {self.weight} and transport.loss {self.loss} both weight errors by time; give weight none, or "
                "loss output"
            )
        return self

    @model_validator(mode="after")
    def _method_can_train_it(self) -> Transport:
        self.learning.check(self)
        return self

    @classmethod
    def upgraded(cls, values: dict[str, Any]) -> dict[str, Any]:
        return renamed("transport", values)

    @property
    def knots(self) -> int | None:
        """How many times there are for this path, evenly spaced; None: all."""
        return PATHS[self.path].knots

    def coeffs(self, t: Tensor, layout: Layout | None = None) -> Coeffs:
        """alpha, sigma and their derivatives at t, of t's shape and dtype; for a pyramid one for each of its K levels,
        (B, K), at t (B,) for all or (B, K) for each."""
        return parts.level_coeffs(PATHS[self.path], t, layout, self.level_shift)

    def own_coeffs(self, t: Tensor, layout: Layout | None = None) -> Coeffs:
        """The same as the network's output means them: each level's velocity is of its own speed (`parts.at_own_speed`)."""
        c = self.coeffs(t, layout)
        return self._at_own_speed(c, t, layout) if PREDICTIONS[self.predict].timed else c

    def _at_own_speed(self, c: Coeffs, t: Tensor, layout: Layout | None) -> Coeffs:
        return parts.at_own_speed(PATHS[self.path], c, t, layout)

    def meant(self, t: Tensor, layout: Layout, x: Tensor) -> tuple[Coeffs, Coeffs]:
        """The coefficients at t as the output means them and as the loss does, which differ in speed at most; they
        broadcast with the state x. A weight is of the time that all levels share."""
        of_output = PREDICTIONS[self.predict].timed
        of_loss = LOSSES[self.loss].timed and self.weighting is None
        shared = self.coeffs(t, layout)
        own = self._at_own_speed(shared, t, layout) if of_output or of_loss else shared
        found = expanded(own, layout, x)
        if of_output == of_loss or own is shared:
            return found, found
        other = expanded(shared, layout, x)
        return (found, other) if of_output else (other, found)

    def interval(self, use: Literal["train", "ode", "sde"]) -> tuple[float, float]:
        """The (lowest, highest) t at which the network is trained or evaluated.

        Where alpha or sigma vanishes some predictions and losses divide by zero; each declares where, and the path how far
        from there is safe. The last step of an SDE is longer.
        """
        training = use == "train"
        unsafe_at = PREDICTIONS[self.predict].unsafe_at + (LOSSES[self.loss].unsafe_at if training else ())
        low, high = PATHS[self.path].interval(unsafe_at, training)
        return (LAST_OF_AN_SDE if use == "sde" else low), high

    def times(self, u: Tensor, layout: Layout | None = None) -> Tensor:
        """Training times from uniform u in (0, 1): by the time law, on the knots where the path has them."""
        t = chosen(TIME_LAWS, self.time_law)(u)
        if self.knots:
            return on_knots(t, self.knots)
        low, high = self.interval("train")
        return self.for_size(low + (high - low) * t, layout)

    def nearest(self, t: Tensor) -> Tensor:
        """The times at which it is trained that are nearest to these."""
        if self.knots:
            return (t * self.knots).round().clamp(1, self.knots) / self.knots
        return t.clamp(*self.interval("train"))

    def for_size(self, t: Tensor, layout: Layout | None) -> Tensor:
        """The times t moved as `size_shift` says for such a state."""
        if not self.size_shift or layout is None:
            return t
        return shifted_for_size(t, layout.shape, self.size_shift)

    @property
    def weighting(self) -> Callable[[Coeffs], Tensor] | None:
        """The weight, with its settings; None where there is none."""
        return None if self.weight == "none" else chosen(WEIGHTS, self.weight)

    @property
    def learning(self) -> Method:
        """The method, with its settings."""
        return chosen(METHODS, self.method)()

    @property
    def streams(self) -> tuple[Stream, ...]:
        """What training draws for each image: `times` are of 1 - "time", x_t of "noise", `known_parts` of "known"; and what
        the method draws."""
        known = (KNOWN,) if self.has_known_parts else ()
        return (TIME, NOISE, *known, *self.learning.streams)

    @property
    def has_known_parts(self) -> bool:
        """Whether parts of some states are known in training."""
        return self.cascade is not None or self.known_frames > 0

    def known_parts(self, t: Tensor, draws: Tensor, layout: Layout) -> tuple[Tensor, Tensor | None]:
        """Where some parts of states are known in training, times (B,) to those of each part (B, K), and weights (B, K) of
        their losses, 0 for what is known; otherwise t and None. `draws` are uniform in [0, 1), (B, 3)."""
        if self.cascade is not None:
            return parts.known_levels(t, draws, layout.parts, self.cascade)
        return parts.known_frames(t, draws, layout, self.known_frames)

    def losses(
        self,
        net: Network,
        x0: Tensor,
        cond: Cond,
        *,
        t: Tensor,
        eps: Tensor,
        layout: Layout | None = None,
        weights: Tensor | None = None,
        drawn: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Per-image losses, each (B,): "loss" to minimise, and the terms it is made of.

        Args:
            x0, eps: data and noise, (B, *S). t: times, (B,), or (B, K) for a state of K parts.
            weights: (B, K), of each image's parts, besides `level_weights`.
            drawn: what the method's streams are, by their names, (B, ...); none where a model is validated.

        Measured as `method` does.
        """
        layout = layout or Layout(tuple(x0.shape[1:]))
        return self.learning.losses(self, net, Examples(x0, eps, t, cond, layout, weights, drawn or {}))

    def noisy(self, x0: Tensor, eps: Tensor, t: Tensor, layout: Layout) -> Tensor:
        """x_t, (B, *S), at times t (B,) or (B, K)."""
        c = expanded(self.coeffs(t, layout), layout, x0)
        return c.alpha * x0 + c.sigma * eps

    def evaluate(
        self, net: Network, x_t: Tensor, t: Tensor, cond: Cond, **further: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The network's output at x_t (B, *S): its prediction and, where it is learned, the variance; not narrower than
        the state. `further` are more arguments for the network."""
        out = net(x_t, _as_input(t, x_t), cond, **further).to(x_t.dtype)
        if self.variance == "fixed":
            return out, None
        prediction, var = out.chunk(2, dim=1)
        return prediction, var

    def denoiser(
        self, net: Network, layout: Layout | None = None, around: AroundAt | None = None
    ) -> Denoiser:
        """The network as (x_t, t, cond) -> Prediction, decoded in float32 or wider; with what is put around its blocks at
        each evaluation, such as a cache."""

        def predict(x_t: Tensor, t: Tensor, cond: Cond, at: At) -> Prediction:
            whole = layout or Layout(tuple(x_t.shape[1:]))
            further = {} if around is None else {"around": around(t, at)}
            if read := self.learning.reads(t, at):
                cond = cond | {name: sent(value, x_t.device) for name, value in read.items()}
            out, var = self.evaluate(net, x_t, t, cond, **further)
            shared = self.coeffs(t, layout)
            own = self._at_own_speed(shared, t, layout) if PREDICTIONS[self.predict].timed else shared
            c = expanded(own, whole, x_t)
            x0, eps = PREDICTIONS[self.predict].decode(out, x_t, c)
            return Prediction(c if own is shared else expanded(shared, whole, x_t), x_t, x0, eps, var)

        return Denoiser(predict, lambda t: self.coeffs(t, layout), layout, self.predict)

    def log_variance_floor(self) -> float:
        """What stands in for the log variance of the last step to clean data (`hybrid.log_variance_floor`)."""
        return hybrid.log_variance_floor(self.coeffs, self.knots or DDPM_STEPS)


def _as_input(t: Tensor, x: Tensor) -> Tensor:
    """Times on the network's device; float64 where the device has it, so that t · 1000 stays exact."""
    dtype = widest(x.device) if t.dtype == torch.float64 else t.dtype
    return sent(t, x.device, dtype)
