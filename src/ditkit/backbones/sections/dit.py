"""The section of a DiT; the network is `ditkit.backbones.dit`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from ditkit.backbones.sections.base import MOST, WIDEST, Ability, BackboneSection, Count
from ditkit.config import OneOf
from ditkit.lazy import loaded
from ditkit.nn.parts import MlpKind, Norm, Parts
from ditkit.nn.positions import Extrapolation
from ditkit.nn.registries import ADAPTIVE, CONDITIONINGS
from ditkit.nn.sizes import patch_sizes
from ditkit.randomness import Stream

if TYPE_CHECKING:
    from ditkit.backbones.dit import DiT
    from ditkit.nn.attention import Over

DENSE = 2
"""Blocks at each end that work on all tokens, where those between them are sparse (`nn/sparse.py`)."""
SPARSE = (
    Stream("sparse_path", "sparse", "uniform", ()),
    Stream("sparse_tokens", "sparse", "uniform", "tokens", after=1),
)


class DiTConfig(BackboneSection):
    """A DiT of any size; the paper's sizes have names (`ditkit list backbones`)."""

    kind: Literal["DiT"] = "DiT"
    width: Annotated[int, Field(ge=4, le=WIDEST, multiple_of=4)] = 384
    """Channels of a token; divisible by 4 (positions) and by the heads."""
    depth: Count = 12
    """Number of blocks."""
    heads: Count = 6
    """Attention heads per block."""
    patch: Count = 2
    """Side of a patch in pixels of the state (latent pixels behind an autoencoder)."""
    tubelet: Annotated[int, Field(ge=0)] = 0
    """Frames of a patch in space and time; 0: a network of images."""
    attention: Literal["joint", "factorised"] = "joint"
    """How the tokens of a clip attend: all to all (joint), or blocks in turn within each frame and along time at each
    place (factorised)."""
    positions: Literal["sincos", "rotary"] = "sincos"
    """Positions are added to tokens (sincos), or turn queries and keys (rotary)."""
    grid: tuple[Count, ...] = ()
    """Tokens along each axis, (rows, columns) or (frames, rows, columns), that positions are trained for."""
    extrapolation: Extrapolation = "raw"
    """Positions beyond `grid`: further out, squeezed into it, or with slower frequencies."""
    size_embedding: bool = False
    """Blocks are conditioned on how many tokens there are along each axis."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    """Width of the hidden layer of each MLP, relative to the token."""
    mlp: MlpKind = "gelu"
    """The MLP's hidden layer: GELU; gated by SiLU, 2/3 as wide (swiglu); or GELU with 3 × 3 convolutions of each channel on the
    grid of tokens (depthwise)."""
    norm: Norm = "layer"
    """The norm before attention, MLP and the last layer: of mean and variance (layer), or of the mean square (rms)."""
    qk_norm: bool = False
    """Queries and keys are normed in each head, with a learned scale per channel."""
    value_residual: bool = False
    """Later blocks mix the first block's values into their own, in learned shares."""
    registers: Annotated[int, Field(ge=0, le=MOST)] = 0
    """Learned tokens without a place that pass through the blocks with the others and are dropped after them."""
    stem: Literal["linear", "convolutional"] = "linear"
    """What patches are made of: pixels (linear), or pixels and two 3 × 3 convolutions of them (convolutional)."""
    sparse: Annotated[float, Field(ge=0, le=0.75, multiple_of=0.25)] | None = None
    """The share of the tokens that training leaves out of all blocks but two at each end; 0: none, to end a training with. By
    default there is no such path."""
    conditioning: Annotated[str, OneOf(CONDITIONINGS)] = "adaln_zero"
    """How blocks are conditioned on time and label (`ditkit list conditionings`)."""
    label: bool = True
    """Blocks are conditioned on the class, where the data has classes."""
    text: Literal["none", "cross_attention", "in_context"] = "none"
    """How the network reads a text's tokens: by cross-attention after each block, or in one sequence with its own."""
    text_pooled: bool = False
    """Blocks are conditioned on the text as a whole, as on time and label."""
    time_scale: float = 1000.0
    """The network reads time_scale · t + time_shift: 1000 · t - 1 is DiT's index, 1 - t is SiT's clock."""
    time_shift: float = -1.0
    """See `time_scale`."""
    time_period: Annotated[float, Field(gt=1)] = 10_000.0
    """The time's frequencies are time_period^(-i/128); the released DiT's and SiT's."""

    @model_validator(mode="after")
    def _has_sparse_blocks(self) -> DiTConfig:
        if self.sparse is None:
            return self
        if self.depth <= 2 * DENSE:
            raise ValueError(
                f"sparse {self.sparse} is of the blocks between {DENSE} at each end: depth {self.depth} has none; give "
                f"`backbone.depth` {2 * DENSE + 1} or more, or leave `backbone.sparse` out"
            )
        if self.mlp == "depthwise":
            raise ValueError(
                f"mlp depthwise needs all tokens of a grid, sparse {self.sparse} leaves some out; give `backbone.mlp` gelu or "
                "swiglu, or leave `backbone.sparse` out"
            )
        return self

    @model_validator(mode="after")
    def _of_one_kind(self) -> DiTConfig:
        if self.attention == "factorised" and not self.tubelet:
            raise ValueError(
                "attention factorised is of clips: give `backbone.tubelet` 1 or more, or attention joint"
            )
        if self.attention == "factorised" and self.depth % 2:
            raise ValueError(
                f"attention factorised takes turns over space and time: depth {self.depth} is odd; use "
                f"{self.depth + 1}"
            )
        axes = len(self.patch_sizes)
        if self.grid and len(self.grid) != axes:
            raise ValueError(
                f"grid {self.grid} has {len(self.grid)} axes, a network with tubelet {self.tubelet} has {axes}: give "
                + ("(frames, rows, columns)" if axes == 3 else "(rows, columns)")
            )
        if self.extrapolation != "raw" and not self.grid:
            raise ValueError(
                f"extrapolation {self.extrapolation} from what size? give the trained `backbone.grid`, or raw"
            )
        turned = 2 if self.attention == "factorised" else axes
        if self.positions == "rotary" and self.width % self.heads == 0:  # or else heads say so
            channels = self.width // self.heads
            if channels % 2 or channels < 2 * turned:
                raise ValueError(
                    f"rotary positions on {turned} axes need heads of an even number of channels, {2 * turned} or more, "
                    f"not {channels}; use fewer heads or `backbone.positions` sincos"
                )
        return self

    def cannot(self, ability: Ability) -> str:
        texts = self.text != "none" or self.text_pooled
        if ability == "clips" and not self.tubelet:
            return "backbone.tubelet 0 is a network of images; give `backbone.tubelet` 1 or more"
        if ability == "images" and self.tubelet > 1:
            return f"backbone.tubelet {self.tubelet} takes as many frames at once; give `backbone.tubelet` 1"
        if ability == "text" and not texts:
            return (
                "backbone.text none takes no text; give `backbone.text` cross_attention or in_context, or "
                "`backbone.text_pooled`"
            )
        if ability == "no text" and texts:
            setting = "text-pooled" if self.text == "none" else f"text {self.text}"
            return f"backbone.{setting} needs a text encoder; give `text` NAME"
        if ability == "levels":
            return "backbone.kind DiT works on one resolution; take a Matryoshka around it"
        if ability == "packed rows":
            return self._not_packed
        if ability == "sparse blocks" and self.sparse is None:
            return "backbone.sparse none has no sparse blocks; give `backbone.sparse` 0.75"
        if ability in ("routing", "terms") and self.sparse is not None:
            return f"backbone.sparse {self.sparse} has blocks that work on other tokens; leave `backbone.sparse` out"
        if ability == "routing" and self.mlp == "depthwise":
            return "backbone.mlp depthwise needs all tokens of a grid; give `backbone.mlp` gelu or swiglu"
        return self._one_time if ability == "times of parts" else ""

    @property
    def _not_packed(self) -> str:
        """Why rows cannot hold the tokens of several images."""
        if self.sparse is not None:
            return f"backbone.sparse {self.sparse} takes no packed rows; leave `backbone.sparse` out"
        if self.attention != "joint":
            return (
                f"backbone.attention {self.attention} takes no packed rows; give `backbone.attention` joint"
            )
        if self._in_sequence:
            return (
                f"backbone.conditioning {self.conditioning} takes no packed rows; give `backbone.conditioning` "
                "adaln_zero or adaln"
            )
        if self.mlp == "depthwise":
            return "backbone.mlp depthwise takes no packed rows; give `backbone.mlp` gelu or swiglu"
        return ""

    @property
    def _in_sequence(self) -> bool:
        """Whether blocks get time and label as a sequence."""
        return self.conditioning not in ADAPTIVE and loaded(CONDITIONINGS[self.conditioning]).sequence

    @property
    def _one_time(self) -> str:
        """Why frames cannot have times of their own."""
        if self.text == "in_context":
            return "backbone.text in_context has one time per clip; give `backbone.text` cross_attention"
        if self._in_sequence:
            return (
                f"backbone.conditioning {self.conditioning} has one time per clip; give `backbone.conditioning` "
                "adaln_zero or adaln"
            )
        if self.registers:
            return f"backbone.registers {self.registers} has one time per clip; give `backbone.registers` 0"
        return ""

    def parts(self, block: int) -> Parts:
        """How the block of that number is made."""
        values: Literal["first", "mixed"] = "first" if block in self.whole_blocks else "mixed"
        return Parts(self.norm, self.qk_norm, self.mlp, values if self.value_residual else "own")

    @property
    def whole_blocks(self) -> range:
        return range(len(self.over) if self.value_residual else 0)

    @property
    def streams(self) -> tuple[Stream, ...]:
        return () if self.sparse is None else SPARSE[: 2 if self.sparse else 1]

    @property
    def dense_share(self) -> float:
        return 1.0 if self.sparse is None else 2 * DENSE / self.depth

    @property
    def ingredients(self) -> dict[str, str | float]:
        """What its blocks are made of otherwise than those of the released networks, by field."""
        fields = ("mlp", "norm", "qk_norm", "value_residual", "registers", "stem", "sparse")
        return {
            name: value
            for name in fields
            if (value := getattr(self, name)) != type(self).model_fields[name].default
        }

    @property
    def over(self) -> tuple[Over, ...]:
        """What the attention of the blocks is over, in turn."""
        return ("space", "time") if self.attention == "factorised" else ("joint",)

    @property
    def patch_sizes(self) -> tuple[int, ...]:
        return patch_sizes(self.patch, self.tubelet)

    def tokens(self, size: Sequence[int]) -> int:
        shape = (1, *size) if len(size) < len(self.patch_sizes) else size
        return math.prod(n // p for n, p in zip(shape, self.patch_sizes, strict=True))

    def build(
        self, *, channels: int, classes: int, out_channels: int | None = None, text_dim: int = 0
    ) -> DiT:
        """The network, freshly initialised. `classes` 0: unlabelled; out_channels: as `channels`; text_dim: channels
        of the text encoder, 0 without. InputError when there is a text and no way to read it, or no text."""
        from ditkit.backbones.dit import DiT

        return DiT(self, channels, classes if self.label else 0, out_channels or channels, text_dim)


def _paper_sizes(prefix: str, time_scale: float, time_shift: float) -> dict[str, DiTConfig]:
    sizes: dict[str, Sequence[int]] = {
        "S": (384, 12, 6),
        "B": (768, 12, 12),
        "L": (1024, 24, 16),
        "XL": (1152, 28, 16),
    }
    return {
        f"{prefix}-{size}/{patch}": DiTConfig(
            width=width, depth=depth, heads=heads, patch=patch, time_scale=time_scale, time_shift=time_shift
        )
        for size, (width, depth, heads) in sizes.items()
        for patch in (2, 4, 8)
    }


DIT_SIZES = _paper_sizes("DiT", 1000.0, -1.0)
SIT_SIZES = _paper_sizes("SiT", -1.0, 1.0)
