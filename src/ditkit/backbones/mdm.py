"""Matryoshka Diffusion: U-Nets for several resolutions of one image, one inside another (Gu et al., "Matryoshka
Diffusion Models", ICLR 2024, and its released code).

The innermost level is a U-Net with attention and a text. Each further level is a thin U-Net for an image 2^n
times as large: at its lowest resolution its map is added to the first map of the level inside, whose last map is
added to its own before the way up. Both additions start at zero, so a trained network around which a level is
put predicts what it did. All levels are denoised together, at one time.

The parts are in nn/mdm.py. What the predictions mean and how much noise each level has is the transport's affair.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from ditkit.config import Section
from ditkit.errors import InputError
from ditkit.nn.embeddings import LabelEmbedding
from ditkit.nn.mdm import GROUPS, Level, Sentence, Told

SCALE = "scale"  # the one micro-condition of the released networks

Width = Annotated[int, Field(ge=GROUPS, multiple_of=GROUPS)]
Count = Annotated[int, Field(ge=1)]
Layers = Annotated[int, Field(ge=0)]


class MDMLevel(Section):
    """The U-Net of one level."""

    widths: Annotated[tuple[Width, ...], Field(min_length=1)] = (64, 128)
    """Channels at the level's own resolution, at half of it, and so on; the last resolution is also that of the
    level inside."""
    depth: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 1)
    """Residual blocks of each resolution on the way down; one more on the way up."""
    attention: tuple[Layers, ...] = ()
    """Attention layers after each of these blocks, for each resolution; () for none anywhere."""
    scale: Annotated[int, Field(ge=1)] | None = None
    """Image size in pixels up to which the level is told the original's; without it, it is not told."""
    normalised: bool = False
    """Whether each noisy image is divided by its standard deviation; never at the innermost level."""

    @model_validator(mode="after")
    def _one_entry_per_resolution(self) -> "MDMLevel":
        counts = (len(self.widths), len(self.depth), len(self.attention) or len(self.widths))
        if len(set(counts)) > 1:
            raise ValueError(
                f"widths, depth and attention have {counts[0]}, {counts[1]} and {counts[2]} entries; give one of "
                "each per resolution"
            )
        return self

    @property
    def halvings(self) -> int:
        """How often the level halves its image."""
        return len(self.widths) - 1


class MDMConfig(Section):
    """Matryoshka Diffusion's U-Net of one level, or several nested ones."""

    kind: Literal["MDM"] = "MDM"
    levels: Annotated[tuple[MDMLevel, ...], Field(min_length=1)] = (
        MDMLevel(widths=(64, 128), depth=(1, 1), attention=(0, 1)),
    )
    """Highest resolution first, innermost last."""
    heads: Count = 8
    """Attention heads, as many in every layer."""
    told: Annotated[int, Field(ge=8, multiple_of=8)] = 256
    """Channels of what time, text and scale become; the released networks have four times their first width."""
    text_width: Count = 256
    """Channels of the words, whatever the text encoder's are."""
    masked: bool = False
    """Whether attention leaves out padding. The released networks attend to it, so that padding changes them."""

    @model_validator(mode="after")
    def _innermost_as_it_is(self) -> "MDMConfig":
        if self.levels[-1].normalised:
            raise ValueError("the innermost level is never normalised; leave out its `normalised`")
        return self

    @property
    def ratios(self) -> tuple[int, ...]:
        """How many times each level's image is as large as the innermost's, such as (16, 4, 1)."""
        ratios = [1]
        for level in reversed(self.levels[:-1]):
            ratios.insert(0, ratios[0] * 2**level.halvings)
        return tuple(ratios)

    def build(
        self, *, channels: int, classes: int = 0, out_channels: int | None = None, text_dim: int = 0
    ) -> "MDM":
        """The network, freshly initialised.

        `channels` of every level's image; `classes` 0: no label; `text_dim` channels of the encoder's tokens, 0
        without a text; out_channels: as `channels`.
        """
        return MDM(self, channels, classes, out_channels or channels, text_dim)


class MDM(nn.Module):
    """The nested network. `nest` holds its levels, the innermost first, so that names stay what they are when
    another level is put around: `load_state_dict(inner.state_dict(), strict=False)`."""

    def __init__(self, config: MDMConfig, channels: int, classes: int, out_channels: int, text_dim: int):
        super().__init__()
        self.config, self.classes = config, classes
        self.text = Sentence(text_dim, config.text_width, config.told) if text_dim else None
        self.label = LabelEmbedding(classes, config.told) if classes else None
        inside = [None, *(level.widths[0] for level in reversed(config.levels))]
        self.nest = nn.ModuleList(
            Level(
                channels,
                out_channels,
                widths=level.widths,
                depth=level.depth,
                layers=level.attention or (0,) * len(level.widths),
                heads=config.heads,
                told=config.told,
                words=config.text_width if text_dim else 0,
                scale=level.scale,
                normalised=level.normalised,
                inner=inner,
            )
            for level, inner in zip(reversed(config.levels), inside, strict=False)
        )

    def forward_levels(
        self,
        levels: Sequence[Tensor],
        t: Tensor,
        text: Tensor | None = None,
        mask: Tensor | None = None,
        micro: Mapping[str, Tensor] | None = None,
        *,
        label: Tensor | None = None,
        rows: Sequence[int] | None = None,
    ) -> list[Tensor]:
        """The prediction for every level, highest resolution first.

        Args:
            levels: noisy images (B, C, H, W), highest resolution first.
            t: (B,), the time as the network sees it: the released ones an index 0 .. 999, for all levels.
            text: tokens (B, L, text_dim) of a frozen encoder, zero where there is none.
            mask: bool (B, L), where there is a token, at least one in a row if `masked`; none: everywhere.
            micro: "scale" (B,), the original images' size in pixels; none: as large as each level's.
            label: (B,), for a network with classes; `classes` for an unknown one.
            rows: for every level but the innermost, on how many of the first images it runs, of which it gives
                predictions; the images beyond are what they are without it (mixed-resolution training). None: all.

        Raises InputError: levels that are missing or of sizes that do not belong together; a text, label, scale
            or rows that the network cannot take.
        """
        counts = self._checked(levels, rows)
        told = self._told(t, text, mask, label)
        scale = _scale(micro)
        nest = cast(list[Level], list(reversed(self.nest)))

        # Inwards: what each level passes on is added to the first map of the next.
        way = []
        inward = None
        for level, x, n in zip(nest, levels, counts, strict=True):
            h = level.embed(x[:n])
            if inward is not None:
                h = h + _filled_up(inward, n)
            clock = level.clock(t[:n], None if scale is None else scale[:n])
            here = Told(clock + told.vector[:n], *(None if part is None else part[:n] for part in told[1:]))
            h, kept = level.descend(h, here)
            way.append((level, h, kept, here))
            inward = None if level is nest[-1] else level.inward(h)

        # Outwards again, from the middle of the innermost.
        outs: list[Tensor] = []
        feature = None
        for level, h, kept, here in reversed(way):
            h = level.turn(h, here) if feature is None else h + level.outward(feature[: len(h)])
            feature = level.ascend(h, kept, here)
            outs.insert(0, level.head(feature))
        return outs

    def _told(self, t: Tensor, text: Tensor | None, mask: Tensor | None, label: Tensor | None) -> Told:
        """What all levels are told; each adds its own of time and scale."""
        for part, value, what in ((self.text, text, "text"), (self.label, label, "label")):
            if part is None and value is not None:
                raise InputError(f"this network is told no {what}; leave it out, or build it with one")
            if part is not None and value is None:
                raise InputError(f"this network is told a {what}: give one for each image")
        vector = torch.zeros(len(t), self.config.told, device=t.device)
        words = None
        if self.text is not None and text is not None:
            if mask is None:
                mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
            words, sentence = self.text(text, mask)
            vector = vector + sentence
        if self.label is not None:
            vector = vector + self.label(label)
        return Told(vector, words, mask if self.config.masked else None)

    def check_size(self, height: int, width: int) -> None:
        """InputError when the highest level's images cannot be of that size."""
        factor = self.config.ratios[0] * 2 ** self.config.levels[-1].halvings
        if height % factor or width % factor:
            raise InputError(
                f"images of {height}x{width} for a network that halves them {factor.bit_length() - 1} times in all; "
                f"height and width must be multiples of {factor}"
            )

    def _checked(self, levels: Sequence[Tensor], rows: Sequence[int] | None) -> list[int]:
        """On how many images each level runs. InputError: levels or rows that do not belong together."""
        ratios = self.config.ratios
        if len(levels) != len(ratios):
            raise InputError(
                f"{len(levels)} levels of images for a network of {len(ratios)}; give one of each"
            )
        height, width = levels[0].shape[2:]
        self.check_size(height, width)
        batch = len(levels[-1])
        for level, ratio in zip(levels, ratios, strict=True):
            shrunk = ratios[0] // ratio
            expected = (batch, levels[0].shape[1], height // shrunk, width // shrunk)
            if tuple(level.shape) != expected:
                raise InputError(
                    f"a level of shape {tuple(level.shape)} where {expected} belongs: levels are "
                    f"{':'.join(map(str, ratios))} in size, with as many images and channels"
                )
        counts = [*([batch] * (len(ratios) - 1) if rows is None else rows), batch]
        if len(counts) != len(ratios) or any(a > b for a, b in pairwise([1, *counts])):
            raise InputError(
                f"rows {tuple(rows or ())} of {batch} images for {len(ratios)} levels: give a number for each level but "
                "the innermost, from 1, none larger than the next"
            )
        return counts


def _filled_up(x: Tensor, n: int) -> Tensor:
    """Zeros for the images beyond those of `x`: (M, C, H, W) -> (n, C, H, W)."""
    return F.pad(x, (0, 0) * 3 + (0, n - len(x)))


def _scale(micro: Mapping[str, Tensor] | None) -> Tensor | None:
    unknown = set(micro or {}) - {SCALE}
    if unknown:
        raise InputError(
            f"micro-conditions {sorted(unknown)}; {SCALE!r} is known, the image's size in pixels"
        )
    return (micro or {}).get(SCALE)


_INNERMOST = MDMLevel(widths=(256, 512, 768), depth=(2, 2, 2), attention=(0, 1, 5), scale=64)
_RELEASED = MDMConfig(levels=(_INNERMOST,), told=1024, text_width=2048)
_OUTER = MDMLevel(widths=(64, 128, 256), depth=(2, 2, 1), scale=256)

MDM_SIZES = {
    "MDM-64": _RELEASED,
    "MDM-256": _RELEASED.model_copy(update={"levels": (_OUTER, _INNERMOST)}),
    "MDM-1024": _RELEASED.model_copy(
        update={
            "levels": (
                MDMLevel(widths=(32, 32, 64), depth=(2, 2, 1), scale=1024),
                _OUTER.model_copy(update={"normalised": True}),
                _INNERMOST,
            )
        }
    ),
}
