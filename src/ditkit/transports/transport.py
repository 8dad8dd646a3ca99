"""Transport: an interpolant, what the network predicts, and when it is trained.

It owns the loss and turns a network into a denoiser. It knows no network's insides: a network is any
callable (x_t, t, cond) -> output. Guidance and solvers live in `ditkit.sampling`.
"""

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ditkit.config import Section
from ditkit.device import widest
from ditkit.errors import InputError
from ditkit.layout import Frames, Layout, Pyramid
from ditkit.transports.denoiser import Cond, Denoiser, Network, expanded
from ditkit.transports.interpolants import DDPM_STEPS, DISCRETE, PATHS, Coeffs, shifted
from ditkit.transports.predictions import PREDICTIONS, Prediction
from ditkit.transports.variational import (
    discretised_nll,
    gaussian_kl,
    learned_log_variance,
    posterior,
)

# Time laws: quantile functions, from u uniform in (0, 1) to [0, 1].
TIME_LAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "uniform": lambda u: u,
    "logit_normal": lambda u: torch.special.ndtri(u).sigmoid(),  # Esser et al., 2024, m = 0, s = 1
}


class Transport(Section):
    """How data becomes noise and what the network learns of it."""

    path: Literal["linear", "gvp", "vp", "ddpm", "cosine"] = "linear"
    """x_t = alpha(t) x0 + sigma(t) eps: straight lines, trigonometric, continuous or discrete diffusion, the latter with
    linear betas or the cosine schedule."""
    predict: Literal["velocity", "noise", "data", "score", "v"] = "velocity"
    """What the network's output means."""
    variance: Literal["fixed", "learned"] = "fixed"
    """learned: twice the output channels and DiT's hybrid loss with the variational bound (ddpm only)."""
    time_law: Literal["uniform", "logit_normal"] = "uniform"
    """How training times are distributed."""
    weighting: Literal["none", "velocity", "likelihood", "noise"] = "none"
    """Of the loss in t: none; of a score or noise as the velocity's loss has it, or as the likelihood's bound; of any
    prediction as the loss of the noise that it means."""
    level_shift: Annotated[float, Field(ge=0)] = 1.0
    """Of a pyramid: each level's signal-to-noise ratio is divided by its size, relative to the lowest's, to this power."""
    level_weights: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """Of a pyramid: weights of the levels' losses, the highest first; all 1 when not given."""
    cascade: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of a pyramid: only the highest level is learned, given the lower ones with noise of a time up to this (0: clean),
    as the second model of a cascade (Ho et al., 2022)."""
    given_frames: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Of clips: the share trained with some frames given clean, the first ones or those at both ends, so that a model
    can go on from an image or a clip."""
    size_shift: Annotated[float, Field(ge=0)] = 0.0
    """Larger states are trained and sampled at noisier times: sigma / alpha grows with the root of the number of
    positions (frames, height and width of the state multiplied) over this number (Esser et al., 2024, eq. 23); 0: no shift."""

    @model_validator(mode="after")
    def _weighting_needs_its_predictions(self) -> "Transport":
        if self.weighting in ("none", "noise"):
            fits = self.weighting == "none" or self.variance == "fixed"
        else:
            fits = self.predict in ("score", "noise") and self.variance == "fixed"
        if not fits:
            kinds = "any" if self.weighting == "noise" else "score or noise"
            raise ValueError(
                f"transport.weighting {self.weighting} is for transport.predict {kinds} with fixed variance, not "
                f"{self.predict} with {self.variance}; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _clean_parts_have_no_score(self) -> "Transport":
        if self.weighting in ("velocity", "likelihood") and (self.cascade is not None or self.given_frames):
            raise ValueError(
                f"transport.weighting {self.weighting} divides by sigma, which is 0 where transport.cascade or given_frames "
                "give parts clean; leave one out"
            )
        return self

    @model_validator(mode="after")
    def _size_shift_needs_straight_lines(self) -> "Transport":
        if self.size_shift and self.path != "linear":
            raise ValueError(
                f"transport.size_shift {self.size_shift} is for transport.path linear, not {self.path}; give 0"
            )
        return self

    @model_validator(mode="after")
    def _learned_variance_needs_knots(self) -> "Transport":
        if self.variance == "learned" and self.path != "ddpm":
            raise ValueError(
                f"transport.variance learned needs the steps of transport.path ddpm, not {self.path}; "
                "use variance fixed, or path ddpm"
            )
        return self

    def coeffs(self, t: Tensor, layout: Layout | None = None) -> Coeffs:
        """alpha, sigma and their derivatives at t, of t's shape and dtype; for a pyramid one for each of its K levels,
        (B, K), at t (B,) for all or (B, K) for each."""
        if not isinstance(layout, Pyramid):
            return PATHS[self.path](t)
        c = PATHS[self.path](t if t.ndim == 2 else t[..., None])
        factor = t.new_tensor(layout.ratios) ** (self.level_shift / 2)
        return shifted(c, factor, 1 if self.path == "linear" else 2)

    def own_coeffs(self, t: Tensor, layout: Layout | None = None) -> Coeffs:
        """The same with derivatives as fast as the path's without a shift, in which a network's velocity is meant.

        A shifted path is the path at times that pass unevenly, 4 times as fast at first and a quarter as fast in the
        end for a factor of 4: so would the velocity's scale, and 16 times so its loss. On straight paths it is eps - x0 at
        every level.
        """
        c = self.coeffs(t, layout)
        if self._one_clock(layout):
            return c
        plain = PATHS[self.path](t if t.ndim == 2 else t[..., None])
        rate = torch.hypot(plain.d_alpha, plain.d_sigma) / torch.hypot(c.d_alpha, c.d_sigma)
        return c._replace(d_alpha=c.d_alpha * rate, d_sigma=c.d_sigma * rate)

    def _one_clock(self, layout: Layout | None) -> bool:
        """Whether no level's velocity is meant by a clock of its own."""
        return not isinstance(layout, Pyramid) or "velocity" not in (self.predict, self.weighting)

    def interval(self, use: Literal["train", "ode", "sde"]) -> tuple[float, float]:
        """The (lowest, highest) t at which the network is trained or asked.

        Safe ends depend on the path, the prediction and the use: where alpha or sigma vanishes some
        decoders divide by zero. SiT's defaults (its `train_eps`, `sample_eps` and last step of 0.04).
        """
        if self.path in DISCRETE:
            low, high = 1 / DDPM_STEPS, 1.0
        elif self.path == "vp":
            low, high = (1e-5 if use == "train" else 1e-3), 1.0
        else:
            low = 0.0 if self.predict in ("velocity", "v") else 1e-3
            high = 1 - 1e-3 if self.predict in ("noise", "score") else 1.0
        return (0.04 if use == "sde" else low), high

    def times(self, u: Tensor, layout: Layout | None = None) -> Tensor:
        """Training times from uniform u in (0, 1): by the time law, on the knots where the path has them."""
        t = TIME_LAWS[self.time_law](u)
        if self.path in DISCRETE:
            return ((t * DDPM_STEPS).floor() + 1).clamp(max=DDPM_STEPS) / DDPM_STEPS
        low, high = self.interval("train")
        return self.for_size(low + (high - low) * t, layout)

    def for_size(self, t: Tensor, layout: Layout | None) -> Tensor:
        """The times t moved as `size_shift` says for such a state: t -> s t / (1 + (s - 1) t)."""
        if not self.size_shift or layout is None:
            return t
        s = math.sqrt(math.prod(layout.shape[1:]) / self.size_shift)
        return s * t / (1 + (s - 1) * t)

    @property
    def gives(self) -> bool:
        """Whether parts of some states are given in training."""
        return self.cascade is not None or self.given_frames > 0

    def given(self, t: Tensor, v: Tensor, layout: Layout) -> tuple[Tensor, Tensor | None]:
        """Where some parts of states are given in training, times (B,) to those of each part (B, K), and which are
        learned: weights (B, K). v is uniform in [0, 1), (B, 3).

        Of a cascade the levels below the highest, with noise; of clips frames without: the first 1 to F - 1, or, as often,
        as many at both ends as leave one between.
        """
        count = layout.parts
        if self.cascade is not None:
            times = torch.cat([t[:, None], self.cascade * v[:, :1].expand(-1, count - 1)], dim=1)
            return times, torch.eye(count)[:1].expand(len(t), -1)
        if not self.given_frames or not isinstance(layout, Frames) or count < 2:
            return t, None
        ends = (v[:, 1] < 0.5) & (count > 2)
        most = torch.where(ends, (count - 1) // 2, count - 1)
        kept = (1 + (v[:, 2] * most).long()) * (v[:, 0] < self.given_frames)
        frame = torch.arange(count)
        mask = (frame < kept[:, None]) | (ends[:, None] & (frame >= count - kept[:, None]))
        learned = (~mask).to(t.dtype)
        # Each clip counts as much, however many of its frames are learned.
        return t[:, None] * learned, learned * (count / learned.sum(1, keepdim=True))

    def loss(
        self,
        net: Network,
        x0: Tensor,
        cond: Cond,
        *,
        t: Tensor,
        eps: Tensor,
        layout: Layout | None = None,
        weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Per-image losses, each (B,): "loss" to minimise, and the terms it is made of.

        Args:
            x0, eps: data and noise, (B, *S). t: times, (B,), or (B, K) for a state of K parts.
            weights: (B, K), of each image's parts, besides `level_weights`.

        The raw output is compared with its target, the mean squared error per part, then summed (of a clip's frames the
        mean). A
        score s is compared as sigma · s with -eps, as in SiT; `weighting` multiplies these two by
        (V/sigma)², which makes it the velocity's loss, or by V/sigma² (`Coeffs.score_factor` is V). Or the
        noise that the output means is compared with eps (Matryoshka Diffusion, of a v).
        """
        layout = layout or Layout(tuple(x0.shape[1:]))
        c = expanded(self.own_coeffs(t, layout), layout, x0)
        x_t = c.alpha * x0 + c.sigma * eps
        out, var = self._split(net(x_t, _as_input(t, x0), cond), x0)
        if self.weighting == "noise":
            residual = PREDICTIONS[self.predict].decode(out, x_t, c)[1] - eps
        elif self.predict == "score":
            residual = c.sigma * out + eps
        else:
            residual = out - PREDICTIONS[self.predict].view(x0, eps, c)
        if self.weighting in ("velocity", "likelihood"):
            residual = (
                residual * c.score_factor ** {"velocity": 1.0, "likelihood": 0.5}[self.weighting] / c.sigma
            )
        mse = self._over_parts(layout.mean(residual**2), weights, layout.share)
        if var is None:
            return {"loss": mse, "mse": mse}
        bound = self._variational_bound(out.detach(), var, x0, x_t, t, layout)
        vb = self._over_parts(bound, weights, layout.share)
        return {"loss": mse + vb, "mse": mse, "vb": vb}

    def _over_parts(self, losses: Tensor, weights: Tensor | None, share: float) -> Tensor:
        """(B, K) to (B,): the sum with `level_weights`."""
        if weights is not None:
            losses = losses * weights.to(losses)
        losses = losses * share
        if not self.level_weights:
            return losses.sum(1)
        if len(self.level_weights) != losses.shape[1]:
            raise InputError(
                f"--transport.level-weights has {len(self.level_weights)} numbers for {losses.shape[1]} levels; give one "
                "for each"
            )
        return losses @ losses.new_tensor(self.level_weights)

    def denoiser(self, net: Network, layout: Layout | None = None) -> Denoiser:
        """The network as (x_t, t, cond) -> Prediction, decoded in float32 or wider."""

        def predict(x_t: Tensor, t: Tensor, cond: Cond) -> Prediction:
            parts = layout or Layout(tuple(x_t.shape[1:]))
            own = expanded(self.own_coeffs(t, layout), parts, x_t)
            out, var = self._split(net(x_t, _as_input(t, x_t), cond), x_t)
            x0, eps = PREDICTIONS[self.predict].decode(out, x_t, own)
            shared = own if self._one_clock(layout) else expanded(self.coeffs(t, layout), parts, x_t)
            return Prediction(shared, x_t, x0, eps, var)

        return Denoiser(predict, lambda t: self.coeffs(t, layout), layout, self.predict)

    def _split(self, out: Tensor, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """The prediction and, where it is learned, the variance; not narrower than the state."""
        out = out.to(like.dtype)
        if self.variance == "fixed":
            return out, None
        prediction, var = out.chunk(2, dim=1)
        return prediction, var

    def _variational_bound(
        self, out: Tensor, var: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, layout: Layout
    ) -> Tensor:
        """The bound's term at t in bits per dimension (B, K); gradients reach the variance only."""
        a, b = self.coeffs(t, layout), self.coeffs(t - 1 / DDPM_STEPS, layout)
        step = expanded(posterior(a, b), layout, x0)
        x0_hat, _ = PREDICTIONS[self.predict].decode(out, x_t, expanded(a, layout, x0))
        mean_hat, log_var_hat = (
            step.mean(x0_hat, x_t),
            learned_log_variance(var, step, self.log_variance_floor()),
        )
        kl = gaussian_kl(step.mean(x0, x_t), step.log_small.clamp(min=-50), mean_hat, log_var_hat)
        nll = discretised_nll(x0, mean_hat, log_var_hat)
        first = (layout.expand(t) < 1.5 / DDPM_STEPS).to(x0.device)
        return layout.mean(torch.where(first, nll, kl)) / math.log(2)

    def log_variance_floor(self) -> float:
        """What stands in for the log variance of the very last step, whose posterior has none: that of
        the step before it (DiT's process does so)."""
        knots = torch.tensor([2, 1], dtype=torch.float64) / DDPM_STEPS
        a, b = (Coeffs(*(value[i] for value in self.coeffs(knots))) for i in (0, 1))
        return posterior(a, b).log_small.item()


def _as_input(t: Tensor, x: Tensor) -> Tensor:
    """Times on the network's device; float64 where the device has it, so that t · 1000 stays exact."""
    dtype = widest(x.device) if t.dtype == torch.float64 else t.dtype
    return t.to(x.device, dtype)
