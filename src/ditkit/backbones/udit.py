"""U-DiT: a U-shaped transformer whose attention works on downsampled tokens (Tian et al., "U-DiTs:
Downsample Tokens in U-Shaped Diffusion Transformers", NeurIPS 2024, and its released code).

Five stages on grids of H × W, half, a quarter, half and H × W tokens (a token is a pixel of the state), widths
D, 2D, 4D, 2D, 2D; a skip connection joins the two of a size. The parts are in nn/downsampled.py (attention)
and nn/depthwise_mlp.py (MLP). The paper's ladder, from a plain transformer in a U-shape on, are options.
"""

import copy
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ditkit.backbones.base import WIDEST, Backbone, BackboneSection, Count, Plain, Port, Said
from ditkit.errors import InputError
from ditkit.nn.around import Around, Tokens, alone
from ditkit.nn.blocks import Mlp, Modulation, modulated_norm
from ditkit.nn.convolutions import Shuffle, Unshuffle, embedding_conv, on_planes, xavier_conv, zero_conv
from ditkit.nn.depthwise_mlp import DepthwiseMlp, ReparameterisedMlp
from ditkit.nn.downsampled import ATTENTIONS, Downsampler, GridBlock
from ditkit.nn.embeddings import LabelEmbedding, SideBySide, TimeEmbedding
from ditkit.nn.linear import dense
from ditkit.nn.patches import image_size
from ditkit.nn.rotary import check_rotary

MULTIPLIERS = (1, 2, 4, 2, 2)  # widths of the stages; the last is wider than the first
HALVINGS = 2  # of the grid, on the way to the third stage


class UDiTConfig(BackboneSection):
    """A U-DiT of any size; the paper's sizes have names (`ditkit list backbones`)."""

    kind: Literal["U-DiT"] = "U-DiT"
    width: Annotated[int, Field(ge=4, le=WIDEST, multiple_of=4)] = 48
    """Channels at full resolution, twice as many after each halving; divisible by the heads."""
    depth: tuple[Count, Count, Count, Count, Count] = (2, 3, 4, 3, 2)
    """Blocks of each stage as the paper counts them: one is attention, MLP, attention, MLP."""
    heads: Count = 2
    """Attention heads, as many in every stage."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 2.0
    """Width of the hidden layer of each MLP, relative to the token."""
    attention: Literal["token", "key_value", "full"] = "token"
    """What is downsampled: all tokens, keys and values, or nothing (the paper's DiT-UNet)."""
    downsampler: Downsampler = "depthwise_shortcut"
    """What precedes downsampling: a depthwise convolution beside a shortcut, alone, or nothing."""
    cosine: bool = True
    """Cosine attention: queries and keys of length 1, a learned scale."""
    rotary: bool = True
    """Rotary positions; without them only convolutions tell tokens apart."""
    ffn: Literal["reparameterised", "depthwise", "basic"] = "reparameterised"
    """The MLP: with a depthwise convolution that is trained as several and fused, as one, or without."""
    time_scale: float = 1000.0
    """The network reads time_scale · t + time_shift, as DiT does."""
    time_shift: float = -1.0
    """See time_scale."""

    @property
    def patch_sizes(self) -> tuple[int, ...]:
        factor = 2 ** (HALVINGS + ATTENTIONS[self.attention].halves)
        return factor, factor

    def build(self, *, channels: int, classes: int, out_channels: int | None = None) -> "UDiT":
        """The network, freshly initialised. `classes` 0: unconditional; out_channels: as `channels`."""
        return UDiT(self, channels, classes, out_channels or channels)


class UDiT(Plain):
    """(x (B, C, H, W), t (B,), cond) -> (B, C', H, W); H, W multiples of 8 (4 with full attention).

    Time and label are embedded three times, for each width; all are told as one vector (B, 7 D). What the
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
        self.attention = ATTENTIONS[config.attention]
        self.told_widths = widths[:3]
        self.port = Port(entry=d, exit=2 * d, told=sum(self.told_widths))
        self.head_dims = [width // config.heads for width in widths]
        self.time = SideBySide(
            TimeEmbedding(width, config.time_scale, config.time_shift) for width in self.told_widths
        )
        self.label = SideBySide(LabelEmbedding(classes, w) for w in self.told_widths) if classes else None
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

    def told(self, time: Tensor, *others: Tensor) -> Tensor:
        if time.ndim != 2:
            raise InputError("a U-DiT has one time per image; a time per token needs a DiT")
        return super().told(time, *others)

    def embed(self, x: Tensor) -> Tensor:
        """A grid of tokens (B, H, W, D)."""
        self.check_size(*x.shape[2:])
        return self.stem(x.contiguous()).permute(0, 2, 3, 1).contiguous()

    def body(self, h: Tensor, c: Tensor, said: Said, around: Around = alone) -> Tensor:
        """(B, H, W, D) -> (B, H, W, 2D). What comes from below stands before what was kept."""
        c1, c2, c3 = self._parted(c)
        first = self._stage(0, h, c1, around)
        second = self._stage(1, self.down[0](first), c2, around)
        h = self._stage(2, self.down[1](second), c3, around)
        h = self._stage(3, self.join[0](torch.cat([self.up[0](h), second], dim=-1)), c2, around)
        return self._stage(4, self.join[1](torch.cat([self.up[1](h), first], dim=-1)), c2, around)

    def _parted(self, c: Tensor) -> tuple[Tensor, ...]:
        """What the stages of each width are told, to broadcast with tokens: three of (B, 1, 1, D')."""
        return c[:, None, None].split(self.told_widths, dim=-1)

    def _stage(self, stage: int, h: Tensor, c: Tensor, around: Around) -> Tensor:
        start = 2 * sum(self.depth[:stage])
        positions = None
        if self.rotary:
            _, height, width, _ = h.shape
            queries, keys = self.attention.positions(height, width, self.head_dims[stage])
            positions = queries.to(h.device), keys.to(h.device)
        h = h.float()  # under autocast too, as in a DiT: what blocks add is summed in float32
        for k, block in enumerate(self.blocks[start : start + 2 * self.depth[stage]], start):
            h = around(k, lambda h, at, block=block: block(h, at.c, positions), h, Tokens(c))
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
        height, width = image_size(size)
        halvings = HALVINGS + self.attention.halves
        factor = 2**halvings
        if height % factor or width % factor:
            raise InputError(
                f"a state of {height}x{width} cannot be halved {halvings} times; change "
                f"--data.size to a multiple of {factor} (times the codec's downsampling)"
            )

    def fused(self) -> Backbone:
        """A copy whose MLPs are fused: of the form `ffn` depthwise."""
        if not any(isinstance(module, ReparameterisedMlp) for module in self.modules()):
            return self
        net = copy.deepcopy(self)
        for block in net.blocks:
            if isinstance(block.mlp, ReparameterisedMlp):
                block.mlp = block.mlp.fused()
        return net


def _mlp(config: UDiTConfig, width: int) -> nn.Module:
    if config.ffn == "basic":
        return Mlp(width, config.mlp_ratio)
    kind = ReparameterisedMlp if config.ffn == "reparameterised" else DepthwiseMlp
    return kind(width, int(width * config.mlp_ratio))


UDIT_SIZES = {
    f"U-DiT-{size}": UDiTConfig(width=width, depth=(2, 5, 8, 5, 2), heads=heads)
    for size, (width, heads) in {"S": (96, 4), "B": (192, 8), "L": (384, 16)}.items()
}
