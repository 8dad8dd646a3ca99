"""Matryoshka Diffusion's U-Net with attention to a text (Gu et al., "Matryoshka Diffusion Models", ICLR 2024, and its
released code).

The parts are in nn/mdm.py; its networks of several resolutions are this one with levels around it
(backbones/nested.py).
"""

from collections.abc import Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from ditkit.backbones.base import BodyShape, Conditions, Plain
from ditkit.backbones.sections.mdm import MDMConfig
from ditkit.layout import Cond
from ditkit.nn.around import Around, Tokens, alone
from ditkit.nn.embeddings import LabelEmbedding
from ditkit.nn.mdm import Level, Resolution, Sentence, Step
from ditkit.nn.sizes import check_halvings

SCALE = (
    "scale"  # the one micro-condition of the released networks: how large the original image was, in pixels
)


class MDM(Plain):
    """(x (B, C, H, W), t (B,), cond) -> (B, C', H, W); H, W multiples of 2^(resolutions - 1).

    cond may have "scale" (B,), the original images' size in pixels; they were large enough where it has not.
    """

    def __init__(self, config: MDMConfig, channels: int, classes: int, out_channels: int, text_dim: int):
        super().__init__()
        width, last, condition_width = config.widths[0], config.widths[-1], config.condition_width
        self.classes, self.masked, self.halvings = classes, config.masked, len(config.widths) - 1
        self.body_shape = BodyShape(
            input_channels=width, output_channels=width, condition_width=condition_width
        )
        self.text = Sentence(text_dim, config.text_width, condition_width) if text_dim else None
        self.label = LabelEmbedding(classes, condition_width) if classes else None
        step = partial(
            Step,
            condition_width=condition_width,
            heads=config.heads,
            words=config.text_width if text_dim else 0,
        )
        resolutions = [*map(Resolution, config.widths, config.depth, config.attention)]
        self.level = Level(
            channels, out_channels, resolutions, step, condition_width=condition_width, scale=config.scale
        )
        self.middle = nn.ModuleList(step(last, last, layers) for layers in (1, 0))

    @property
    def blocks(self) -> nn.ModuleList:  # type: ignore[override]
        return nn.ModuleList([*self.level.steps, *self.middle])

    def conditions(self, cond: Cond, size: Sequence[int]) -> Conditions:
        conditions = super().conditions(cond, size)
        if conditions.words is not None and not self.masked:
            conditions = conditions._replace(words=conditions.words._replace(mask=None))
        return conditions._replace(scale=cond.get(SCALE))

    def condition(self, t: Tensor, conditions: Conditions) -> Tensor:
        return self.combined(self.level.clock(t, conditions.scale), *conditions.vectors)

    def embed(self, x: Tensor) -> Tensor:
        self.check_size(*x.shape[2:])
        return self.level.embed(x)

    def body(self, h: Tensor, c: Tensor, conditions: Conditions, around: Around = alone) -> Tensor:
        at, first = Tokens(c, words=conditions.words), len(self.level.steps)
        h, kept = self.level.descend(h, at, around)
        for k, step in enumerate(cast(list[Step], [*self.middle]), first):
            h = around(k, step.run, h, at)
        return self.level.ascend(h, kept, at, around)

    def head(self, h: Tensor, c: Tensor, size: torch.Size) -> Tensor:
        return self.level.head(h)

    def null(self, cond: Cond) -> Cond:
        return super().null(cond) | ({SCALE: cond[SCALE]} if SCALE in cond else {})

    def check_size(self, *size: int) -> None:
        check_halvings(size, self.halvings, "give fewer `backbone.widths`")
