"""U-DiT: a U-shaped transformer whose attention works on downsampled tokens (Tian et al., "U-DiTs:
Downsample Tokens in U-Shaped Diffusion Transformers", NeurIPS 2024, and its released code).

Five stages on grids of H × W, half, a quarter, half and H × W tokens (a token is a pixel of the state), widths
D, 2D, 4D, 2D, 2D; a skip connection joins the two of a size. The parts are in nn/downsampled.py (attention)
and nn/depthwise_mlp.py (MLP). The paper's ladder, from a plain transformer in a U-shape on, are options.
"""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ditkit.backbones.base import Backbone, BodyShape, Conditions, Plain
from ditkit.backbones.sections.udit import HALVINGS, UDiTConfig
from ditkit.device import kept_on
from ditkit.errors import InputError
from ditkit.kernels.maps import on_planes
from ditkit.lazy import loaded
from ditkit.nn.around import Around, Tokens, alone
from ditkit.nn.blocks import Modulation, modulated_norm
from ditkit.nn.convolutions import Shuffle, Unshuffle, embedding_conv, xavier_conv, zero_conv
from ditkit.nn.depthwise_mlp import DepthwiseMlp, ReparameterisedMlp
from ditkit.nn.downsampled import GridBlock
from ditkit.nn.embeddings import LabelEmbedding, SideBySide, TimeEmbedding
from ditkit.nn.linear import dense
from ditkit.nn.mlps import Mlp
from ditkit.nn.registries import ATTENTIONS
from ditkit.nn.rotary import check_rotary
from ditkit.nn.sizes import check_halvings

MULTIPLIERS = (1, 2, 4, 2, 2)  # widths of the stages; the last is wider than the first


class UDiT(Plain):
    """(x (B, C, H, W), t (B,), cond) -> (B, C', H, W); H, W multiples of 8 (4 with full attention).

    Time and label are embedded three times, for each width; all become one vector (B, 7 D). What the
    blocks work on is a grid of tokens (B, H, W, D).

    Differs from the released code: whether a label is unknown is one choice for all three embeddings, so
    that "unknown" is trained; positions are right on grids that are not square.
    """

    def __init__(self, config: UDiTConfig, channels: int, classes: int, out_channels: int):
        super().__init__()
        d = config.width
        widths = [d * multiplier for multiplier in MULTIPLIERS]
        if config.rotary:
            check_rotary(d, config.heads)
        self.classes, self.rotary = classes, config.rotary
        self.attention = loaded(ATTENTIONS[config.attention])
        self.condition_widths = widths[:3]
        self.body_shape = BodyShape(
            input_channels=d, output_channels=2 * d, condition_width=sum(self.condition_widths)
        )
        self.head_dims = [width // config.heads for width in widths]
        self.time = SideBySide(
            TimeEmbedding(width, config.time_scale, config.time_shift) for width in self.condition_widths
        )
        self.label = (
            SideBySide(LabelEmbedding(classes, w) for w in self.condition_widths) if classes else None
        )
        self.stem = embedding_conv(channels, d, 3)
        self.blocks = nn.ModuleList(
            GridBlock(
                self.attention(width, config.heads, config.downsampler, config.cosine),
                _mlp(config, width),
                width,
            )
            for width, depth in zip(widths, config.depth, strict=True)
            for _ in range(2 * depth)
        )
        self.depth = config.depth
        self.down = nn.ModuleList([Unshuffle(d), Unshuffle(2 * d)])
        self.up = nn.ModuleList([Shuffle(4 * d), Shuffle(2 * d)])
        self.join = nn.ModuleList([dense(4 * d, 2 * d), dense(2 * d, 2 * d)])
        self.smooth = xavier_conv(2 * d, 2 * d, 3)
        self.modulation = Modulation(2 * d, 2)
        self.final = zero_conv(2 * d, out_channels)

    def combined(self, time: Tensor, *others: Tensor) -> Tensor:
        if time.ndim != 2:
            raise InputError("a U-DiT has one time per image; a time per token needs a DiT")
        return super().combined(time, *others)

    def embed(self, x: Tensor) -> Tensor:
        """A grid of tokens (B, H, W, D)."""
        self.check_size(*x.shape[2:])
        return self.stem(x.contiguous()).permute(0, 2, 3, 1).contiguous()

    def body(self, h: Tensor, c: Tensor, conditions: Conditions, around: Around = alone) -> Tensor:
        """(B, H, W, D) -> (B, H, W, 2D). What comes from below stands before what was kept."""
        c1, c2, c3 = self._parted(c)
        first = self._stage(0, h, c1, around)
        second = self._stage(1, self.down[0](first), c2, around)
        h = self._stage(2, self.down[1](second), c3, around)
        h = self._stage(3, self.join[0](torch.cat([self.up[0](h), second], dim=-1)), c2, around)
        return self._stage(4, self.join[1](torch.cat([self.up[1](h), first], dim=-1)), c2, around)

    def _parted(self, c: Tensor) -> tuple[Tensor, ...]:
        """The conditions of the stages of each width, to broadcast with tokens: three of (B, 1, 1, D')."""
        return c[:, None, None].split(self.condition_widths, dim=-1)

    def _stage(self, stage: int, h: Tensor, c: Tensor, around: Around) -> Tensor:
        start = 2 * sum(self.depth[:stage])
        positions = None
        if self.rotary:
            _, height, width, _ = h.shape
            queries, keys = self.attention.positions(height, width, self.head_dims[stage])
            positions = kept_on(h.device, queries), kept_on(h.device, keys)
        h = h.float()  # under autocast too, as in a DiT: what blocks add is summed in float32
        for k, block in enumerate(self.blocks[start : start + 2 * self.depth[stage]], start):
            h = around(k, partial(_run, block, positions), h, Tokens(c))
        return h

    def head(self, h: Tensor, c: Tensor, size: torch.Size) -> Tensor:
        shift, scale = self.modulation(self._parted(c)[1])
        h = modulated_norm(on_planes(self.smooth, h), shift, scale)
        return self.final(h.permute(0, 3, 1, 2).contiguous())

    def from_map(self, m: Tensor) -> Tensor:
        return m.permute(0, 2, 3, 1)

    def to_map(self, h: Tensor, size: torch.Size) -> Tensor:
        return h.permute(0, 3, 1, 2)

    def check_size(self, *size: int) -> None:
        check_halvings(size, HALVINGS + self.attention.halves)

    def fused(self) -> Backbone:
        """A copy whose MLPs are fused: of the form `ffn` depthwise."""
        if not any(isinstance(module, ReparameterisedMlp) for module in self.modules()):
            return self
        net = copy.deepcopy(self)
        for block in net.blocks:
            if isinstance(block.mlp, ReparameterisedMlp):
                block.mlp = block.mlp.fused()
        return net


def _run(block: nn.Module, positions: Any, h: Tensor, at: Tokens) -> Tensor:
    """A block of what `at` holds."""
    return block(h, at.c, positions)


def _mlp(config: UDiTConfig, width: int) -> nn.Module:
    if config.ffn == "basic":
        return Mlp(width, config.mlp_ratio)
    kind = ReparameterisedMlp if config.ffn == "reparameterised" else DepthwiseMlp
    return kind(width, int(width * config.mlp_ratio))
