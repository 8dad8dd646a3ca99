"""Matryoshka Diffusion's U-Net with attention to a text (Gu et al., "Matryoshka Diffusion Models", ICLR 2024, and its
released code).

The parts are in nn/mdm.py; its networks of several resolutions are this one with levels around it
(backbones/matryoshka.py).
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from ditkit.backbones.base import MOST, WIDEST, BackboneSection, Cond, Count, Plain, Port, Said
from ditkit.errors import InputError
from ditkit.nn.around import Around, Tokens, alone
from ditkit.nn.embeddings import LabelEmbedding
from ditkit.nn.mdm import GROUPS, Level, Sentence, Step
from ditkit.nn.patches import image_size

SCALE = (
    "scale"  # the one micro-condition of the released networks: how large the original image was, in pixels
)

Width = Annotated[int, Field(ge=GROUPS, le=WIDEST, multiple_of=GROUPS)]
Layers = Annotated[int, Field(ge=0, le=MOST)]


class MDMConfig(BackboneSection):
    """Matryoshka Diffusion's U-Net for one resolution; the released sizes have names (`ditkit list backbones`)."""

    kind: Literal["MDM"] = "MDM"
    widths: Annotated[tuple[Width, ...], Field(min_length=1)] = (64, 128)
    """Channels at full resolution, at half of it, and so on."""
    depth: Annotated[tuple[Count, ...], Field(min_length=1)] = (1, 1)
    """Residual blocks of each resolution on the way down; one more on the way up."""
    attention: tuple[Layers, ...] = (0, 1)
    """Attention layers after each of these blocks, for each resolution."""
    scale: Count | None = None
    """Image size in pixels up to which the network is told the original's; without it, it is not told."""
    heads: Count = 8
    """Attention heads, as many in every layer."""
    told: Annotated[int, Field(ge=8, le=WIDEST, multiple_of=8)] = 256
    """Channels of what time, label, text and scale become; the released networks have four times their first width."""
    text_width: Count = 256
    """Channels of the words, whatever the text encoder's are."""
    masked: bool = False
    """Whether attention leaves out padding. The released networks attend to it, so that padding changes them."""

    @model_validator(mode="after")
    def _one_entry_per_resolution(self) -> "MDMConfig":
        counts = (len(self.widths), len(self.depth), len(self.attention))
        if len(set(counts)) > 1:
            raise ValueError(
                f"widths, depth and attention have {counts[0]}, {counts[1]} and {counts[2]} entries; give one of "
                "each per resolution"
            )
        return self

    @property
    def hears(self) -> bool:
        return True

    @property
    def patch_sizes(self) -> tuple[int, ...]:
        factor = 2 ** (len(self.widths) - 1)
        return factor, factor

    def build(
        self, *, channels: int, classes: int, out_channels: int | None = None, text_dim: int = 0
    ) -> "MDM":
        """The network, freshly initialised. `classes` 0: no label; out_channels: as `channels`; text_dim: channels of
        the text encoder, 0 without."""
        return MDM(self, channels, classes, out_channels or channels, text_dim)


class MDM(Plain):
    """(x (B, C, H, W), t (B,), cond) -> (B, C', H, W); H, W multiples of 2^(resolutions - 1).

    cond may have "scale" (B,), the original images' size in pixels; they were large enough where it has not.
    """

    def __init__(self, config: MDMConfig, channels: int, classes: int, out_channels: int, text_dim: int):
        super().__init__()
        width, last, told = config.widths[0], config.widths[-1], config.told
        self.classes, self.masked, self.halvings = classes, config.masked, len(config.widths) - 1
        self.port = Port(entry=width, exit=width, told=told)
        self.text = Sentence(text_dim, config.text_width, told) if text_dim else None
        self.label = LabelEmbedding(classes, told) if classes else None
        words = config.text_width if text_dim else 0
        self.level = Level(
            channels,
            out_channels,
            widths=config.widths,
            depth=config.depth,
            layers=config.attention,
            told=told,
            heads=config.heads,
            words=words,
            scale=config.scale,
        )
        self.middle = nn.ModuleList(Step(last, last, told, layers, config.heads, words) for layers in (1, 0))

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        return nn.ModuleList([*self.level.steps, *self.middle])

    def said(self, cond: Cond, size: Sequence[int]) -> Said:
        said = super().said(cond, size)
        if said.words is not None and not self.masked:
            said = said._replace(words=said.words._replace(mask=None))
        return said._replace(scale=cond.get(SCALE))

    def condition(self, t: Tensor, said: Said) -> Tensor:
        return self.told(self.level.clock(t, said.scale), *said.vectors)

    def embed(self, x: Tensor) -> Tensor:
        self.check_size(*x.shape[2:])
        return self.level.embed(x)

    def body(self, h: Tensor, c: Tensor, said: Said, around: Around = alone) -> Tensor:
        at, first = Tokens(c, words=said.words), len(self.level.steps)
        h, kept = self.level.descend(h, at, around)
        for k, step in enumerate(self.middle, first):
            h = around(k, step.run, h, at)
        return self.level.ascend(h, kept, at, around)

    def head(self, h: Tensor, c: Tensor, size: torch.Size) -> Tensor:
        return self.level.head(h)

    def null(self, cond: Cond) -> Cond:
        return super().null(cond) | ({SCALE: cond[SCALE]} if SCALE in cond else {})

    def check_size(self, *size: int) -> None:
        height, width = image_size(size)
        factor = 2**self.halvings
        if height % factor or width % factor:
            raise InputError(
                f"a state of {height}x{width} cannot be halved {self.halvings} times; its sides must be multiples of "
                f"{factor}: change --data.size or give fewer --backbone.widths"
            )


MDM_64 = MDMConfig(
    widths=(256, 512, 768), depth=(2, 2, 2), attention=(0, 1, 5), scale=64, told=1024, text_width=2048
)
