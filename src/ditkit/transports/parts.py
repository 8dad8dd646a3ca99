"""States of several parts: noise and speed of a pyramid's levels, and parts that are known while others are learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ditkit.device import sent
from ditkit.errors import InputError
from ditkit.layout import Frames, Layout, Pyramid
from ditkit.lazy import torch
from ditkit.transports.paths import Coeffs, Path, shifted

if TYPE_CHECKING:
    from torch import Tensor


def level_coeffs(path: Path, t: Tensor, layout: Layout | None, shift: float) -> Coeffs:
    """The path's coefficients at t, of its shape; of a pyramid (B, K), one for each level, at t (B,) or (B, K).

    A level r times as large as the lowest has r^shift times less signal-to-noise ratio: averaging takes that much noise off.
    """
    if not isinstance(layout, Pyramid):
        return path(t)
    factor = t.new_tensor(layout.ratios) ** (shift / 2)
    return shifted(path(_per_level(t)), factor, path.norm)


def at_own_speed(path: Path, c: Coeffs, t: Tensor, layout: Layout | None) -> Coeffs:
    """The coefficients `c` of levels at t with derivatives as fast as the path's without a shift.

    A shifted path is the path at times that pass unevenly, 4 times as fast at first and a quarter as fast in the
    end for a factor of 4: so would the velocity's scale, and 16 times so its loss. On straight paths it is eps - x0 at
    every level.
    """
    if not isinstance(layout, Pyramid):
        return c
    plain = path(_per_level(t))
    rate = torch.hypot(plain.d_alpha, plain.d_sigma) / torch.hypot(c.d_alpha, c.d_sigma)
    return c._replace(d_alpha=c.d_alpha * rate, d_sigma=c.d_sigma * rate)


def _per_level(t: Tensor) -> Tensor:
    return t if t.ndim == 2 else t[..., None]


def known_levels(t: Tensor, draws: Tensor, count: int, most: float) -> tuple[Tensor, Tensor]:
    """Times (B, count) of levels of which the highest is learned at t (B,) and the others are known with noise of a time
    up to `most`; and the weights (B, count) of their losses. `draws` are uniform in [0, 1), (B, 3)."""
    times = torch.cat([t[:, None], most * draws[:, :1].expand(-1, count - 1)], dim=1)
    return times, torch.eye(count)[:1].expand(len(t), -1)


def known_frames(t: Tensor, draws: Tensor, layout: Layout, share: float) -> tuple[Tensor, Tensor | None]:
    """Times (B, F) of the frames of clips, a `share` of which have frames that are known, at time 0: the first 1 to F - 1,
    or, as often, as many at both ends as leave one between; and the weights (B, F) of their losses. Of other states t and
    None. `draws` are uniform in [0, 1), (B, 3)."""
    count = layout.parts
    if not share or not isinstance(layout, Frames) or count < 2:
        return t, None
    ends = (draws[:, 1] < 0.5) & (count > 2)
    most = torch.where(ends, (count - 1) // 2, count - 1)
    number = (1 + (draws[:, 2] * most).long()) * (draws[:, 0] < share)
    frame = torch.arange(count)
    known = (frame < number[:, None]) | (ends[:, None] & (frame >= count - number[:, None]))
    learned = (~known).to(t.dtype)
    # Each clip counts as much, however many of its frames are learned.
    return t[:, None] * learned, learned * (count / learned.sum(1, keepdim=True))


def measured_at(t: Tensor, weights: Tensor | None) -> Tensor:
    """Times at which errors are measured: in the middle of the path for parts that count nothing, which can be clean.
    At the ends of a path errors can be infinite, and 0 times infinity is not 0."""
    if weights is None or t.ndim < 2:
        return t
    return torch.where(weights.to(t.device) == 0, 0.5, t)


def over_parts(
    losses: Tensor, weights: Tensor | None, share: float, level_weights: Sequence[float]
) -> Tensor:
    """Losses of parts (B, K) to those of states (B,): their sum, with weights of each image's parts (B, K) and of all
    images' levels (K numbers). InputError where there are not as many levels."""
    if weights is not None:
        losses = losses * sent(weights, losses.device, losses.dtype)
    losses = losses * share
    if not level_weights:
        return losses.sum(1)
    if len(level_weights) == 1:  # of one level, whose parts may be frames or images
        return losses.sum(1) * level_weights[0]
    if len(level_weights) != losses.shape[1]:
        raise InputError(
            f"`transport.level_weights` has {len(level_weights)} numbers for {losses.shape[1]} levels; give one "
            "for each"
        )
    return losses @ sent(torch.tensor(level_weights), losses.device, losses.dtype)
