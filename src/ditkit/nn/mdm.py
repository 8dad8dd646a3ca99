"""Parts of Matryoshka Diffusion's U-Nets (Gu et al., "Matryoshka Diffusion Models", ICLR 2024, and its released
code): what each level is condition_width, residual blocks with attention, and one level's way down and up.

Maps are (B, C, H, W). The convolutions are those of every U-Net here (`nn/convolutions.py`); norms have 32
groups. Whole networks are in backbones/mdm.py, how levels are nested in backbones/nested.py.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditkit.kernels.attention import attend
from ditkit.kernels.maps import channels_last
from ditkit.layout import Cond
from ditkit.nn.around import Around, Tokens, alone
from ditkit.nn.attention import check_heads
from ditkit.nn.convolutions import Downsample, ResidualBlock, Upsample, zero_conv
from ditkit.nn.embeddings import sinusoid
from ditkit.nn.linear import dense, zero_dense
from ditkit.nn.sizes import MDM_GROUPS
from ditkit.nn.text import MASK, TOKENS, TextReader, Words


class Sentence(TextReader):
    """A text's tokens (B, L, dim) and mask (B, L) -> a vector (B, condition_width), and words to attend to
    (B, L, width).

    The vector is made of the mean of the projected tokens where the mask is true. "Unknown" is not learned: the
    released networks read the encoded empty text (`text.null` empty), for which there stands a zero here.
    """

    def __init__(self, dim: int, width: int, condition_width: int):
        super().__init__(dim)
        self.tokens = nn.Linear(dim, width)
        self.vector = nn.Linear(width, condition_width, bias=False)

    def forward(self, cond: Cond) -> tuple[Tensor, Words]:
        mask = self.checked(cond, MASK)
        tokens = self.tokens(self.checked(cond, TOKENS))
        present = mask[..., None].to(tokens)
        mean = (present * tokens).sum(1) / present.sum(1).clamp(min=1)  # a row without tokens gives zeros
        return self.vector(mean), Words(tokens, mask)

    def null(self, cond: Cond) -> Cond:
        mask = self.checked(cond, MASK)
        first = torch.arange(mask.shape[1], device=mask.device) == 0
        return {TOKENS: torch.zeros_like(self.checked(cond, TOKENS)), MASK: first.expand_as(mask)}


class NumberEmbedding(nn.Sequential):
    """A number, such as the time, as a vector: (B,) -> (B, width). Sines stand before cosines, not as in DiT.

    `last` makes the second linear layer.
    """

    def __init__(self, width: int, last=nn.Linear):
        frequencies = width // 8 * 2  # as many sines as cosines
        super().__init__(nn.Linear(frequencies, width), nn.SiLU(), last(width, width))
        self.frequencies = frequencies

    def forward(self, number: Tensor) -> Tensor:
        return super().forward(sinusoid(number, self.frequencies).roll(self.frequencies // 2, -1))


class ImageScale(nn.Module):
    """Micro-conditioning: how large the image was, in pixels, up to the `size` of the level: (B,) -> (B, width).

    Where it is not known it was large enough. Adds nothing at the start.
    """

    def __init__(self, size: int, width: int):
        super().__init__()
        self.size = size
        self.embedding = NumberEmbedding(width, zero_dense)

    def forward(self, scale: Tensor | None, time: Tensor) -> Tensor:
        """`time` (B,) says for how many images, and where."""
        if scale is None:
            scale = torch.full_like(time, self.size, dtype=torch.float32)
        return self.embedding(scale.clamp(max=self.size))


class TextualAttention(nn.Module):
    """Pixels attend to each other and, with the same queries, to the words; then a feed-forward network.

    (B, C, H, W) and words (B, M, D) -> (B, C, H, W). The two softmaxes are separate and their results are added.
    Starts as the identity. Without `words` it takes no text.
    """

    def __init__(self, width: int, heads: int, words: int):
        super().__init__()
        check_heads(width, heads)
        self.heads = heads
        self.norm1 = nn.GroupNorm(MDM_GROUPS, width)
        self.qkv = dense(width, 3 * width)
        self.words = nn.Sequential(nn.LayerNorm(words), dense(words, 2 * width)) if words else None
        self.proj = zero_dense(width, width)
        self.norm2 = nn.GroupNorm(MDM_GROUPS, width)
        self.mlp = nn.Sequential(dense(width, 4 * width), nn.GELU(), zero_dense(4 * width, width))

    def forward(self, x: Tensor, words: Words | None) -> Tensor:
        pixels = _tokens(self.norm1(x))
        q, k, v = self.qkv(pixels).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, L, d)
        found = attend(q, k, v)
        if self.words is not None and words is not None:
            k, v = (
                self.words(words.tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
            )  # (B, H, M, d)
            found = found + attend(q, k, v, mask=words.mask)
        x = x + _map(self.proj(found.transpose(1, 2).flatten(2)), x)
        return x + _map(self.mlp(_tokens(self.norm2(x))), x)


class Step(nn.Module):
    """A residual block, then `layers` of attention: (B, C, H, W) -> (B, C', H, W)."""

    def __init__(
        self, fan_in: int, fan_out: int, layers: int, *, condition_width: int, heads: int = 1, words: int = 0
    ):
        """`condition_width`: channels of the vector that conditions it; `words`: of the words, 0 without a text."""
        super().__init__()
        self.block = ResidualBlock(fan_in, fan_out, condition_width)
        self.block.norm1 = nn.GroupNorm(MDM_GROUPS, fan_in)
        self.block.norm2 = nn.GroupNorm(MDM_GROUPS, fan_out)
        self.attention = nn.ModuleList(TextualAttention(fan_out, heads, words) for _ in range(layers))

    def forward(self, x: Tensor, c: Tensor, words: Words | None = None) -> Tensor:
        x = self.block(x, c)
        for layer in self.attention:
            x = layer(x, words)
        return x

    def run(self, x: Tensor, at: Tokens) -> Tensor:
        """`forward`, of what `at` holds."""
        return self(x, at.c, at.words)


class Resolution(NamedTuple):
    """What a U-Net has at one of its resolutions."""

    width: int
    depth: int
    """Residual blocks on the way down; one more on the way up."""
    layers: int = 0
    """Attention layers after each block."""


class Level(nn.Module):
    """The U-Net of one level, in parts, for something lies between its way down and its way up: a middle, or
    another level.

    Args:
        resolutions: from the level's own on.
        step: makes a block of fan-in, fan-out and a number of attention layers.
        condition_width: channels of the vector that conditions the blocks.
        scale: image size of the level in pixels, for micro-conditioning.
        normalised: the state is divided by the standard deviation of each image.
        patch: side of the squares of pixels that become channels first, and pixels again in the end.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        resolutions: Sequence[Resolution],
        step: Callable[[int, int, int], Step],
        *,
        condition_width: int,
        scale: int | None = None,
        normalised: bool = False,
        patch: int = 1,
    ):
        super().__init__()
        self.normalised, self.patch = normalised, patch
        self.time = NumberEmbedding(condition_width)
        self.scale = None if scale is None else ImageScale(scale, condition_width)
        here = resolutions[0].width
        self.stem = nn.Conv2d(channels * patch**2, here, 3, padding=1)

        skips = [here]  # `here`: channels now; of every map that is kept for the way up
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.downsamples, self.upsamples = nn.ModuleList(), nn.ModuleList()
        for i, (width, count, layers) in enumerate(resolutions):
            if i:
                self.downsamples.append(Downsample(here))
                skips.append(here)
            fans = [here] + [width] * (count - 1)
            self.down.append(nn.ModuleList(step(fan_in, width, layers) for fan_in in fans))
            here = width
            skips += [width] * count
        for i, (width, count, layers) in enumerate(reversed(resolutions)):
            if i:
                self.upsamples.append(Upsample(here))
            fans = [here + skips.pop()] + [width + skips.pop() for _ in range(count)]
            self.up.append(nn.ModuleList(step(fan_in, width, layers) for fan_in in fans))
            here = width
        self.norm = nn.GroupNorm(MDM_GROUPS, here)
        self.final = zero_conv(here, out_channels * patch**2)

    @property
    def steps(self) -> list[nn.Module]:
        return [step for way in (self.down, self.up) for steps in way for step in steps]  # type: ignore[attr-defined]

    def clock(self, t: Tensor, scale: Tensor | None) -> Tensor:
        """The time (B,), 0 data and 1 noise, and the image's scale: (B, condition_width). The released networks read the index
        0 .. 999 of t = (index + 1)/1000."""
        vector = self.time(1000 * t - 1)
        return vector if self.scale is None else vector + self.scale(scale, t)

    def embed(self, x: Tensor) -> Tensor:
        """The noisy images as a first map, channels last: the layout that convolutions are quickest in."""
        if self.normalised:
            x = x / x.std(dim=(1, 2, 3), keepdim=True)
        return self.stem(channels_last(F.pixel_unshuffle(x, self.patch)))

    def descend(self, x: Tensor, at: Tokens, around: Around = alone) -> tuple[Tensor, list[Tensor]]:
        """The map at the lowest resolution, and those kept for the way up. `around` the steps, numbered as `steps`."""
        kept, numbers = [x], itertools.count()
        for i, steps in enumerate(self.down):
            if i:
                x = self.downsamples[i - 1](x)
                kept.append(x)
            for step in steps:  # type: ignore[attr-defined]  # a list of lists
                x = around(next(numbers), step.run, x, at)
                kept.append(x)
        return x, kept

    def ascend(self, x: Tensor, kept: list[Tensor], at: Tokens, around: Around = alone) -> Tensor:
        """Back up to the level's own resolution; what was `kept` is taken from the list, the last first."""
        numbers = itertools.count(sum(map(len, self.down)))  # type: ignore[arg-type]
        for i, steps in enumerate(self.up):
            if i:
                x = self.upsamples[i - 1](x)
            for step in steps:  # type: ignore[attr-defined]  # a list of lists
                x = around(next(numbers), step.run, torch.cat([x, kept.pop()], dim=1), at)
        return x

    def head(self, x: Tensor) -> Tensor:
        """The prediction."""
        return F.pixel_shuffle(self.final(F.silu(self.norm(x))), self.patch)


def _tokens(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H · W, C)."""
    return x.flatten(2).mT


def _map(tokens: Tensor, like: Tensor) -> Tensor:
    """(B, H · W, C) -> (B, C, H, W)."""
    return tokens.mT.unflatten(2, like.shape[2:])
