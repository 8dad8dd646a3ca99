"""The sections of a network with levels around it; the network is `ditkit.backbones.nested`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ditkit.backbones.sections.base import Ability, BackboneSection, Count
from ditkit.backbones.sections.dit import DiTConfig
from ditkit.backbones.sections.mdm import MDM_64, Width
from ditkit.backbones.sections.plain import PLAIN
from ditkit.config import KindOf, Section

if TYPE_CHECKING:
    from ditkit.backbones.nested import Matryoshka


class OuterLevel(Section):
    """The U-Net of one level around another network."""

    widths: Annotated[tuple[Width, ...], Field(min_length=1)] = (32, 64)
    """Channels at the level's own resolution, at half of it, and so on; the last is that of the level inside."""
    depth: tuple[Count, ...] = (1, 1)
    """Residual blocks of each resolution on the way down; one more on the way up."""
    patch: Count = 1
    """Side of the squares of pixels that become channels first: cheaper by its square, the released levels have 1."""
    frames: Count = 1
    """How many times as many frames of a clip as the level inside."""
    scale: Count | None = None
    """Image size in pixels up to which the level is conditioned on the original's; without it, it is not."""
    normalised: bool = False
    """Whether each noisy image is divided by its standard deviation."""

    @model_validator(mode="after")
    def _one_entry_per_resolution(self) -> OuterLevel:
        if len(self.widths) != len(self.depth):
            raise ValueError(
                f"widths and depth have {len(self.widths)} and {len(self.depth)} entries; give one of each per "
                "resolution"
            )
        if self.ratio == 1:
            raise ValueError(
                "one width and patch 1: a level as large as the one inside; give more widths, each halves the image, "
                "or a patch"
            )
        return self

    @property
    def ratio(self) -> int:
        """How many times its image's sides are those of the level inside."""
        return self.patch * 2 ** (len(self.widths) - 1)


def _by_name(inner: Any) -> Any:
    if not isinstance(inner, str):
        return inner
    if inner not in PLAIN:
        raise ValueError(f"unknown backbone {inner!r} inside; choose one of: {', '.join(PLAIN)}")
    return PLAIN[inner].model_dump()


class MatryoshkaConfig(BackboneSection):
    """A network for low resolution and levels of higher ones around it."""

    kind: Literal["Matryoshka"] = "Matryoshka"
    inner: Annotated[BackboneSection, KindOf(PLAIN), BeforeValidator(_by_name)] = DiTConfig()
    """The network of the lowest resolution, in Python also by name."""
    levels: Annotated[tuple[OuterLevel, ...], Field(min_length=1)] = (OuterLevel(),)
    """Those around it, the highest resolution first."""

    @property
    def ratios(self) -> tuple[int, ...]:
        return _cumulated(level.ratio for level in self.levels)

    @property
    def frame_ratios(self) -> tuple[int, ...]:
        return _cumulated(level.frames for level in self.levels)

    def cannot(self, ability: Ability) -> str:
        kind = f"backbone.kind {self.kind}"
        different = f"{kind} has blocks that work on different tokens; take a DiT"
        reasons: dict[Ability, str] = {
            "levels": "",
            "times of parts": f"{kind} has times of its levels; take a network of one resolution",
            "packed rows": f"{kind} takes no packed rows; take a network of one resolution",
            "routing": different,
            "terms": different,
            "learned variance": f"{kind} predicts no variance; take a network of one resolution",
            "sparse blocks": f"{kind} has no sparse blocks; take a DiT with `backbone.sparse` 0.75",
        }
        if ability == "images" and self.frame_ratios[0] > 1:
            return (
                f"backbone.levels have {self.frame_ratios[0]} times as many frames as the network inside; give levels "
                "with frames 1"
            )
        inside = self.inner.cannot(ability).replace("backbone.", "backbone.inner.")
        return reasons.get(ability, inside)

    @model_validator(mode="after")
    def _of_single_frames(self) -> MatryoshkaConfig:
        tubelet = self.inner.patch_sizes[:-2]
        if tubelet not in ((), (1,)):
            raise ValueError(
                f"levels go around tubelets of one frame, not {tubelet[0]}: give `backbone.inner.tubelet` 1"
            )
        if self.inner.streams:
            raise ValueError(
                "levels go around networks that leave no tokens out: leave `backbone.inner.sparse` out"
            )
        if self.frame_ratios[0] > 1 and not tubelet:
            raise ValueError(
                "levels of more frames go around a network of clips: give `backbone.inner.tubelet` 1"
            )
        return self

    @property
    def patch_sizes(self) -> tuple[int, ...]:
        *tubelet, height, width = self.inner.patch_sizes
        length = [self.frame_ratios[0] * frames for frames in tubelet]
        return *length, self.ratios[0] * height, self.ratios[0] * width

    def tokens(self, size: Sequence[int]) -> int:
        return math.prod(size) * self.ratios[0] ** 2 // self.levels[0].patch ** 2

    def lowest(self, count: int) -> BackboneSection:
        """That of the lowest `count` levels alone, the inner network among them."""
        around = self.levels[len(self.levels) + 1 - count :]
        return self.model_copy(update={"levels": around}) if around else self.inner

    def build(
        self, *, channels: int, classes: int, out_channels: int | None = None, text_dim: int = 0
    ) -> Matryoshka:
        """The network, freshly initialised, on packed pyramids of that many channels. InputError for a learned
        variance (`out_channels`), which it does not predict."""
        from ditkit.backbones.nested import Matryoshka

        return Matryoshka(self, channels, classes, out_channels or channels, text_dim)


def matryoshka(inner: str | BackboneSection, levels: int | Sequence[OuterLevel] = 1) -> MatryoshkaConfig:
    """The configuration of `inner`, a backbone's name or configuration, with levels around it, highest resolution
    first; a number: so many, each of twice the size of the one inside, 32 and 64 channels wide.

    InputError for a name that is not known or no level.
    """
    around = tuple([OuterLevel()] * levels if isinstance(levels, int) else levels)
    return MatryoshkaConfig.checked({"inner": inner, "levels": around}, "matryoshka")


def _cumulated(factors: Iterable[int]) -> tuple[int, ...]:
    """Of levels, highest first, how many times each is the lowest, from how many times it is the next."""
    up = accumulate(reversed(list(factors)), lambda a, b: a * b, initial=1)
    return tuple(reversed(list(up)))


_OUTER_256 = OuterLevel(widths=(64, 128, 256), depth=(2, 2, 1), scale=256)

MDM_SIZES = {
    "MDM-256": MatryoshkaConfig(inner=MDM_64, levels=(_OUTER_256,)),
    "MDM-1024": MatryoshkaConfig(
        inner=MDM_64,
        levels=(
            OuterLevel(widths=(32, 32, 64), depth=(2, 2, 1), scale=1024),
            _OUTER_256.model_copy(update={"normalised": True}),
        ),
    ),
}
