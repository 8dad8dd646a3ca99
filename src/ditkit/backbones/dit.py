"""DiT: a plain transformer over image patches (Peebles & Xie, "Scalable Diffusion Models with
Transformers", ICCV 2023). SiT (Ma et al., 2024) is the same network reading another clock.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ditkit.backbones.base import BackboneSection, Plain, Port, Said
from ditkit.errors import InputError
from ditkit.nn.blocks import CONDITIONINGS
from ditkit.nn.embeddings import LabelEmbedding, TimeEmbedding, sincos_positions
from ditkit.nn.patches import PatchEmbed, unpatchify
from ditkit.nn.text import TextAttention, TextEmbedding, Words


class DiTConfig(BackboneSection):
    """A DiT of any size; the paper's sizes have names (`ditkit list backbones`)."""

    kind: Literal["DiT"] = "DiT"
    width: Annotated[int, Field(ge=4, multiple_of=4)] = 384
    """Channels of a token; divisible by 4 (positions) and by the heads."""
    depth: Annotated[int, Field(ge=1)] = 12
    """Number of blocks."""
    heads: Annotated[int, Field(ge=1)] = 6
    """Attention heads per block."""
    patch: Annotated[int, Field(ge=1)] = 2
    """Side of a patch in pixels of the state (latent pixels behind an autoencoder)."""
    mlp_ratio: Annotated[float, Field(gt=0)] = 4.0
    """Width of the hidden layer of each MLP, relative to the token."""
    conditioning: Literal["adaln_zero", "adaln", "cross_attention", "in_context"] = "adaln_zero"
    """How blocks learn of time and label (`ditkit list conditionings`)."""
    label: bool = True
    """Blocks are told the class, where the data has classes."""
    text: Literal["none", "cross_attention", "in_context"] = "none"
    """How tokens learn of a text's: attending to them after each block, or among them in one sequence."""
    text_pooled: bool = False
    """The text as a whole is told as time and label are."""
    time_scale: float = 1000.0
    """The network reads time_scale · t + time_shift: 1000 · t - 1 is DiT's index, 1 - t is SiT's clock."""
    time_shift: float = -1.0
    """See time_scale."""
    time_period: Annotated[float, Field(gt=1)] = 10_000.0
    """The time's frequencies are time_period^(-i/128); the released DiT's and SiT's."""

    @property
    def hears(self) -> bool:
        return True

    def build(
        self, *, channels: int, classes: int, out_channels: int | None = None, text_dim: int = 0
    ) -> "DiT":
        """The network, freshly initialised. `classes` 0: unlabelled; out_channels: as `channels`; text_dim: channels
        of the text encoder, 0 without. InputError when there is a text and no way of telling it, or no text."""
        return DiT(self, channels, classes if self.label else 0, out_channels or channels, text_dim)


class DiT(Plain):
    """(x (B, C, H, W), t (B,) or per token (B, L), cond) -> (B, C', H, W); H, W multiples of the patch.

    A time per token needs one of the adaptive conditionings. A network that attends to text has the same names
    for everything else, so it can start from one that does not, and starts as the same function of its input.
    """

    def __init__(self, config: DiTConfig, channels: int, classes: int, out_channels: int, text_dim: int = 0):
        width, patch, listens = config.width, config.patch, config.text != "none"
        super().__init__()
        if bool(text_dim) != (listens or config.text_pooled):
            raise InputError(
                "a text encoder, but the network is told no text: give --backbone.text cross_attention or in_context, "
                "or --backbone.text-pooled"
                if text_dim
                else f"--backbone.text {config.text}, text-pooled {config.text_pooled}: there is no text encoder; "
                "give one, or leave both out"
            )
        self.classes = classes
        self.port = Port(entry=width, exit=width, told=width, patch=patch)
        self.patches = PatchEmbed(channels, patch, width)
        self.time = TimeEmbedding(width, config.time_scale, config.time_shift, config.time_period)
        self.label = LabelEmbedding(classes, width) if classes else None
        self.conditioning = CONDITIONINGS[config.conditioning]
        self.blocks = nn.ModuleList(
            self.conditioning.block(width, config.heads, config.mlp_ratio) for _ in range(config.depth)
        )
        self.final = self.conditioning.head(width, patch * patch * out_channels)
        if text_dim:
            self.text = TextEmbedding(text_dim, width, tokens=listens, pooled=config.text_pooled)
        self.in_context = config.text == "in_context"
        self.listeners = nn.ModuleList(
            TextAttention(width, config.heads)
            for _ in range(config.depth if config.text == "cross_attention" else 0)
        )

    @property
    def repeated(self) -> list[nn.Module]:
        return [*self.blocks, *self.listeners]

    def condition(self, t: Tensor, said: Said) -> Tensor:
        if t.ndim == 2 and self.in_context:
            raise InputError(
                "a time per token leaves a text's tokens without one; give one time per image or --backbone.text "
                "cross_attention"
            )
        return super().condition(t, said)

    def told(self, time: Tensor, *others: Tensor) -> Tensor:
        return self.conditioning.told(time, *others)

    def embed(self, x: Tensor) -> Tensor:
        """Tokens (B, L, D) with their positions."""
        positions = sincos_positions(*self.patches.grid(*x.shape[2:]), self.patches.proj.out_channels)
        return self.patches(x) + positions.to(x.device)

    def body(self, h: Tensor, c: Tensor, words: Words | None = None) -> Tensor:
        h, mask = self.conditioning.enter(h, c), None
        own = h.shape[1]
        if self.in_context and words is not None:
            h = torch.cat([h, words.tokens.to(h.dtype)], dim=1)
            if words.mask is not None:
                mask = torch.cat([words.mask.new_ones(len(h), own), words.mask], dim=1)
        for k, block in enumerate(self.blocks):
            h = block(h, c, mask)
            if self.listeners and words is not None:
                h = self.listeners[k](h, *words)
        return self.conditioning.leave(h[:, :own], c)

    def head(self, h: Tensor, c: Tensor, size: torch.Size) -> Tensor:
        return unpatchify(self.final(h, c), self.patches.grid(*size), self.patches.patch)

    def from_map(self, m: Tensor) -> Tensor:
        return m.flatten(2).mT

    def to_map(self, h: Tensor, size: torch.Size) -> Tensor:
        return h.mT.unflatten(2, self.patches.grid(*size))

    def check_size(self, height: int, width: int) -> None:
        self.patches.grid(height, width)


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
