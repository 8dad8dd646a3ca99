"""Several resolutions of one image, denoised together: thin convolutional levels around any network (Gu et al.,
"Matryoshka Diffusion Models", ICLR 2024).

Each outer level is a U-Net without a middle for an image some times as large as the one inside. At its lowest
resolution its map is added to the first map of the level inside, whose last map is added to its own before the way
up. Both additions start at zero, so a trained network around which levels are put predicts what it did.

Of clips a level works on each frame by itself, and where it has more frames than the level inside, those that follow each
other go in as channels of one. What happens over time, the network inside knows.

The state is a pyramid, packed in channels (`ditkit.layout`). All levels are denoised at one time, or each at its
own; what the predictions mean and how much noise each level has is the transport's affair.
"""

import copy
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditkit.backbones.base import Backbone, Plain
from ditkit.backbones.sections.matryoshka import MatryoshkaConfig, OuterLevel
from ditkit.errors import InputError
from ditkit.layout import Cond, channels_of, pack, packing, unpack
from ditkit.nn.around import Around, Tokens, alone, numbered_from
from ditkit.nn.convolutions import zero_conv
from ditkit.nn.mdm import Level, Resolution, Step


class Outer(Level):
    """A level with the way to what is inside and back; both start at zero.

    Args:
        input_channels, output_channels: channels of the inner network's first and last map.
        patch_inside: pixels of the inner network's image along a side of those maps.
    """

    def __init__(
        self,
        config: OuterLevel,
        channels: int,
        condition_width: int,
        input_channels: int,
        output_channels: int,
        patch_inside: int,
    ):
        super().__init__(
            channels,
            channels,
            [*map(Resolution, config.widths, config.depth)],
            partial(Step, condition_width=condition_width),
            condition_width=condition_width,
            scale=config.scale,
            normalised=config.normalised,
            patch=config.patch,
        )
        here = config.widths[-1] * config.frames
        self.patch_inside, self.frames = patch_inside, config.frames
        self.inward: nn.Module
        if patch_inside == 1:
            self.inward = zero_conv(here, input_channels)
        else:  # as patches are embedded
            self.inward = nn.Conv2d(here, input_channels, patch_inside, stride=patch_inside)
            nn.init.zeros_(self.inward.weight)
            nn.init.zeros_(self.inward.bias)  # type: ignore[arg-type]
        self.outward = zero_conv(output_channels, here * patch_inside**2)

    def passed(self, h: Tensor) -> Tensor:
        """What is added to the inner network's first map, of this level's lowest: (B F, D, H, W), as many frames as
        there are inside."""
        return self.inward(h.unflatten(0, (-1, self.frames)).flatten(1, 2))

    def inside(self, feature: Tensor) -> Tensor:
        """The inner network's last map, (B F, D, H, W), at this level's lowest resolution and of its frames."""
        shuffled = F.pixel_shuffle(self.outward(feature), self.patch_inside)
        return shuffled.unflatten(1, (self.frames, -1)).flatten(0, 1)


class Descent(NamedTuple):
    """A level on the way inwards, with what it needs on the way back."""

    outer: Outer
    h: Tensor
    kept: list[Tensor]
    own: Tokens
    around: Around
    weight: int
    """0 of a level that is run for its gradient's sake only."""

    def outwards(self, feature: Tensor) -> Tensor:
        """Its last map, of the map of the level inside."""
        inside = self.outer.inside(feature[: len(self.h) // self.outer.frames])
        return self.outer.ascend(self.h + inside, self.kept, self.own, self.around)


class Matryoshka(Backbone):
    """(x (B, C', h, w), t (B,) or per level (B, K), cond) -> the same shape: a packed pyramid, h × w the lowest level; of
    clips (B, C', f, h, w).

    `outer` holds its levels, the innermost first, so that names stay what they are when another is put around.
    """

    def __init__(
        self, config: MatryoshkaConfig, channels: int, classes: int, out_channels: int, text_dim: int
    ):
        super().__init__()
        if out_channels != channels:
            raise InputError(
                "`transport.variance` learned: a Matryoshka network predicts no variance; use fixed"
            )
        self.ratios, self.frame_ratios = config.ratios, config.frame_ratios
        image = channels_of(channels, packing(self.ratios, self.frame_ratios))[-1]
        inner = config.inner.build(
            channels=image, classes=classes, text_dim=text_dim if config.takes_text else 0
        )
        self.inner = cast(Plain, inner)
        self.classes = self.inner.classes
        input_channels, output_channels, condition_width, patch = self.inner.body_shape
        self.outer = nn.ModuleList()
        for level in reversed(config.levels):
            self.outer.append(Outer(level, image, condition_width, input_channels, output_channels, patch))
            input_channels, output_channels, patch = level.widths[0], level.widths[0], level.patch

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        return nn.ModuleList([*self._steps, *self.inner.blocks])

    @property
    def repeated(self) -> list[nn.Module]:
        return [*self._steps, *self.inner.repeated]

    @property
    def _steps(self) -> list[nn.Module]:
        return [step for level in self.levels for step in level.steps]

    @property
    def levels(self) -> list[Outer]:
        """Those around the inner network, the innermost first."""
        return cast(list[Outer], list(self.outer))

    @property
    def text_dim(self) -> int:
        return self.inner.text_dim

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Cond | None = None,
        *,
        around: Around | None = None,
        rows: Sequence[int] | None = None,
        always: bool = False,
    ) -> Tensor:
        """`rows`: for every outer level, highest first, on how many of the first images it runs. The images beyond
        are what they are without it and have zeros there (mixed-resolution training). None: all. `always`: a level of no
        image is run on one, and what it gives is multiplied by 0: every parameter has a gradient.

        InputError for rows that are not a number for each, from 0 to those of the level inside.
        """
        self.check_size(*x.shape[2:])
        levels = unpack(x, self.ratios, self.frame_ratios)
        images = self._counts(len(x), rows)
        unused = 0 if always else images.count(0)
        times = (t if t.ndim == 2 else t[:, None].expand(-1, len(levels))).unbind(1)
        lowest = levels[-1]
        conditions = self.inner.conditions(cond or {}, lowest.shape[2:])
        vector = sum(
            conditions.vectors,
            start=torch.zeros(len(x), self.inner.body_shape.condition_width, device=x.device),
        )
        inner_frames = lowest.shape[2] if lowest.ndim == 5 else 1

        # Inwards: what each level passes on is added to the first map of the next. Maps are of single frames.
        way: list[Descent] = []
        inward, around = None, around or alone
        *firsts, inner_first = accumulate((len(outer.steps) for outer in self.levels), initial=0)
        for outer, first, level, time, n, ratio in zip(
            reversed(self.levels), reversed(firsts), levels, times, images, self.frame_ratios, strict=False
        ):
            if n == 0 and not always:
                continue
            weight, n = min(n, 1), max(n, 1)
            frames = ratio * inner_frames
            h = outer.embed(_frames(level[:n]))
            if inward is not None:
                h = h + _filled_up(inward, n * frames)
            c = outer.clock(time[:n], None if conditions.scale is None else conditions.scale[:n]) + vector[:n]
            own = Tokens(c if frames == 1 else c.repeat_interleave(frames, 0))
            numbered = numbered_from(first, around)
            h, kept = outer.descend(h, own, numbered)
            way.append(Descent(outer, h, kept, own, numbered, weight))
            inward = _weighted(outer.passed(h), weight)

        c = self.inner.condition(times[-1], conditions)
        h = self.inner.embed(lowest)
        if inward is not None:
            inward = _filled_up(inward, len(x) * inner_frames)
            h = h + self.inner.from_map(_as_clips(inward, len(x), lowest.ndim))
        h = self.inner.body(h, c, conditions, numbered_from(inner_first, around))
        outs = [self.inner.head(h, c, lowest.shape[2:])]
        feature = _frames(self.inner.to_map(h, lowest.shape[2:]))

        for passed, ratio in zip(reversed(way), reversed(self.frame_ratios[unused:-1]), strict=True):
            feature = passed.outwards(feature)
            out = _weighted(passed.outer.head(feature), passed.weight)
            out = _filled_up(out, len(x) * ratio * inner_frames)
            outs.insert(0, _as_clips(out, len(x), lowest.ndim))
        outs = [torch.zeros_like(level) for level in levels[:unused]] + outs
        return pack(outs, self.ratios, self.frame_ratios)

    def _counts(self, batch: int, rows: Sequence[int] | None) -> list[int]:
        counts = [batch] * len(self.outer) if rows is None else list(rows)
        if len(counts) != len(self.outer) or sorted([0, *counts, batch]) != [0, *counts, batch]:
            raise InputError(
                f"rows {tuple(rows or ())} of {batch} images for {len(self.outer)} levels around another: give a number "
                "for each, highest first, none larger than the next"
            )
        return counts

    def check_size(self, *size: int) -> None:
        """Height and width are those of the lowest level."""
        self.inner.check_size(*size)

    def fused(self) -> Backbone:
        inner = self.inner.fused()
        if inner is self.inner:
            return self
        net = copy.deepcopy(self)
        net.inner = cast(Plain, inner)
        return net

    def read_scalars(self, names: Sequence[str]) -> None:
        self.inner.read_scalars(names)

    def null(self, cond: Cond) -> Cond:
        return self.inner.null(cond)


def _weighted(x: Tensor, weight: int) -> Tensor:
    return x if weight == 1 else weight * x


def _frames(x: Tensor) -> Tensor:
    """Clips (B, C, F, H, W) as images (B F, C, H, W); images as they are."""
    return x if x.ndim == 4 else x.transpose(1, 2).flatten(0, 1)


def _as_clips(x: Tensor, batch: int, ndim: int) -> Tensor:
    """Images (B F, C, H, W) as clips (B, C, F, H, W) where states have `ndim` 5; otherwise as they are."""
    return x if ndim == 4 else x.unflatten(0, (batch, -1)).transpose(1, 2)


def _filled_up(x: Tensor, n: int) -> Tensor:
    """Zeros for the images beyond those of `x`: (M, C, H, W) -> (n, C, H, W)."""
    return x if len(x) == n else F.pad(x, (0, 0) * 3 + (0, n - len(x)))
