"""DiT: a plain transformer over image patches (Peebles & Xie, "Scalable Diffusion Models with
Transformers", ICCV 2023). SiT (Ma et al., 2024) is the same network reading another clock.

Given a tubelet it works on clips: attention over space and time jointly, or factorised as in Latte (Ma et al.,
2024). It takes any size at run time; what its positions are there, nn/positions.py says.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ditkit.backbones.base import BodyShape, Conditions, Plain
from ditkit.backbones.sections.dit import DENSE, DiTConfig
from ditkit.device import kept_on, numbers
from ditkit.errors import InputError
from ditkit.layout import Cond
from ditkit.lazy import loaded
from ditkit.nn.around import Around, Tokens, alone
from ditkit.nn.attention import Arrangement, FirstValues
from ditkit.nn.embeddings import LabelEmbedding, SizeEmbedding, TimeEmbedding, sincos_table
from ditkit.nn.packing import extended, owners, runs, stacks
from ditkit.nn.patches import STEM, ConvolutionalStem, PatchEmbed, unpatchify
from ditkit.nn.positions import Axis, axis
from ditkit.nn.registries import CONDITIONINGS
from ditkit.nn.rotary import rotary_positions, unturned
from ditkit.nn.sparse import NOTHING, PATH_DROP, LeftOut, SparsePath
from ditkit.nn.text import TextAttention, TextEmbedding, Words


class DiT(Plain):
    """(x (B, C, H, W), t (B,) or per token (B, L), cond) -> (B, C', H, W); H, W multiples of the patch.

    With a tubelet (x (B, C, F, H, W), t (B,) or per frame (B, F), cond) -> (B, C', F, H, W), F a multiple of it; an
    image (B, C, H, W) is a clip of one frame. The frames of a tubelet have one time, that of the first.

    A time per token or frame needs one of the adaptive conditionings. A network that attends to text has the same
    names for everything else, so it can start from one that does not, and starts as the same function of its input.
    So can one of clips, with a tubelet of one frame, start from one of images.
    """

    def __init__(self, config: DiTConfig, channels: int, classes: int, out_channels: int, text_dim: int = 0):
        width, patch, listens = config.width, config.patch, config.text != "none"
        super().__init__()
        if why := config.cannot("text" if text_dim else "no text"):
            raise InputError(f"{'a text encoder, but ' * bool(text_dim)}{why}")
        self.config, self.classes = config, classes
        self.body_shape = BodyShape(
            input_channels=width, output_channels=width, condition_width=width, patch=patch
        )
        self.stem = ConvolutionalStem(channels) if config.stem == "convolutional" else None
        self.patches = PatchEmbed(channels + (STEM if self.stem else 0), patch, width, config.tubelet)
        self.time = TimeEmbedding(width, config.time_scale, config.time_shift, config.time_period)
        self.label = LabelEmbedding(classes, width) if classes else None
        self.extent = SizeEmbedding(len(config.patch_sizes), width) if config.size_embedding else None
        self.conditioning = loaded(CONDITIONINGS[config.conditioning])
        self.blocks = nn.ModuleList(
            self.conditioning.block(
                width, config.heads, config.mlp_ratio, config.over[k % len(config.over)], config.parts(k)
            )
            for k in range(config.depth)
        )
        self.registers = nn.Parameter(torch.empty(config.registers, width)) if config.registers else None
        if self.registers is not None:
            nn.init.normal_(self.registers, std=0.02)
        self.sparse = None if config.sparse is None else SparsePath(width, config.sparse)
        self.final = self.conditioning.head(width, math.prod(config.patch_sizes) * out_channels, config.norm)
        if text_dim:
            self.text = TextEmbedding(text_dim, width, tokens=listens, pooled=config.text_pooled)
        self.in_context = config.text == "in_context"
        self.listeners = nn.ModuleList(
            TextAttention(width, config.heads, config.norm)
            for _ in range(config.depth if config.text == "cross_attention" else 0)
        )

    @property
    def repeated(self) -> list[nn.Module]:
        return [*self.blocks, *self.listeners]

    def in_training(self, drawn: Mapping[str, Any]) -> dict[str, Any]:
        if self.sparse is None:
            return {}
        return {"left": LeftOut(drawn.get("sparse_tokens"), drawn["sparse_path"] < PATH_DROP)}

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Cond | None = None,
        *,
        around: Around | None = None,
        left: LeftOut = NOTHING,
    ) -> Tensor:
        """`left` is what sparse blocks leave out, in a network that has some."""
        conditions = self.conditions(cond or {}, x.shape[2:])
        c = self.condition(t, conditions)
        return self.head(self.body(self.embed(x), c, conditions, around or alone, left), c, x.shape[2:])

    def condition(self, t: Tensor, conditions: Conditions) -> Tensor:
        """(B, D), or (B, L, D) for a time per token; of clips (B, 1, 1, D) or (B, F', 1, D). A sequence (B, N, D)
        where the conditioning makes one."""
        if t.ndim == 2 and (self.in_context or self.config.registers):
            what, instead = ("registers", "registers` 0")
            if self.in_context:
                what, instead = "a text's tokens", "text` cross_attention"
            raise InputError(
                f"a time per token or frame leaves {what} without one; give one time per image or `backbone.{instead}"
            )
        tubelet = self.config.tubelet
        if t.ndim == 2 and tubelet:
            frames = conditions.size[0] if len(conditions.size) == 3 else 1
            if t.shape[1] != frames:
                raise InputError(
                    f"times of {t.shape[1]} frames for clips of {frames}; give t of shape (B,) or (B, {frames})"
                )
            t = t[:, ::tubelet]
        c = self._combined(t, conditions, [conditions.size])
        if tubelet and c.ndim == t.ndim + 1:  # no sequence: broadcast with tokens (B, F', S, D)
            c = c.unsqueeze(-2) if t.ndim == 2 else c[:, None, None]
        return c

    def _combined(self, t: Tensor, conditions: Conditions, sizes: Sequence[Sequence[int]]) -> Tensor:
        """`sizes`: of each state, or one that all have."""
        vectors = conditions.vectors
        if self.extent is not None:
            counts = [self.patches.grid(*size) for size in sizes]
            vectors = [*vectors, self.extent(numbers(counts, t.device))]
        return self.combined(self.time(t), *vectors)

    def combined(self, time: Tensor, *others: Tensor) -> Tensor:
        return self.conditioning.combined(time, *others)

    def embed(self, x: Tensor) -> Tensor:
        """Tokens (B, L, D), of clips (B, F', S, D), with their positions where those are added."""
        if self.config.tubelet and x.ndim == 4:
            x = x[:, :, None]
        grid, width = self.patches.grid(*x.shape[2:]), self.config.width
        tokens = self.patches(x if self.stem is None else self.stem(x))
        if self.config.positions == "rotary":
            # As with positions added: under autocast, too, blocks' outputs are summed in float32.
            return tokens.float()
        table = sincos_table(self._axes(grid, (width, width / 2, width / 2)), width)
        return tokens + kept_on(x.device, table)

    def _axes(self, grid: tuple[int, ...], channels: tuple[float, ...]) -> tuple[Axis, ...]:
        """`channels`: how many are of the frame, the row and the column."""
        trained = self.config.grid or grid
        return tuple(
            axis(count, known, self.config.extrapolation, share)
            for count, known, share in zip(grid, trained, channels[-len(grid) :], strict=True)
        )

    def _rotary(self, grid: tuple[int, ...], device: torch.device) -> list[Tensor | None]:
        """Tables (2, L, d/2) of the attention over all axes, or over space and over time; none without."""
        if self.config.positions != "rotary":
            return [None] * len(self.config.over)
        dim = self.config.width // self.config.heads
        if self.config.attention == "factorised":
            frames, *space = self._axes(grid, (dim, dim / 2, dim / 2))
            parts: list[tuple[Axis, ...]] = [tuple(space), (frames,)]
        else:
            parts = [self._axes(grid, (dim / len(grid),) * len(grid))]
        return [kept_on(device, rotary_positions(axes, dim)) for axes in parts]

    def body(
        self, h: Tensor, c: Tensor, conditions: Conditions, around: Around = alone, left: LeftOut = NOTHING
    ) -> Tensor:
        shape = h.shape
        h, turns = self._tokens(h, c, conditions)
        if self.sparse is None:
            h = self._through(h, turns, around)
        else:
            depth, grid = len(self.blocks), self.patches.grid(*conditions.size)[-2:]
            middle = partial(self._through, around=around, blocks=range(DENSE, depth - DENSE))
            h = self._through(h, turns, around, range(DENSE))
            h = self.sparse(h, turns, grid, left, middle)
            h = self._through(h, turns, around, range(depth - DENSE, depth))
        return h[..., : turns[0].own, :].reshape(shape)

    def _through(
        self, h: Tensor, turns: Sequence[Tokens], around: Around, blocks: range | None = None
    ) -> Tensor:
        """All blocks, or those of these numbers, `around` each; they take turns at what is known of the tokens."""
        for k in blocks or range(len(self.blocks)):
            h = around(k, partial(self._block, k), h, turns[k % len(turns)])
        return h

    def _block(self, k: int, h: Tensor, at: Tokens) -> Tensor:
        h = self.blocks[k](h, at.c, at.among)
        return self.listeners[k](h, at.words, at.among.runs) if at.words is not None else h

    def _tokens(self, h: Tensor, c: Tensor, conditions: Conditions) -> tuple[Tensor, list[Tokens]]:
        """The tokens with any that pass through the blocks with them, and what the blocks know of them, in turn.

        Further tokens stand behind a clip's once where all attend to all, and in every frame where frames attend
        each to itself.
        """
        words, size = conditions.words if self.in_context else None, self.patches.grid(*conditions.size)
        further = [c] if self.conditioning.passes else []
        further += self._behind(len(h), words, h.dtype)
        if further and h.ndim == 4 and self.config.attention == "joint":
            h = h.flatten(1, 2)[:, None]  # (B, 1, F'·S, D)
        own = h.shape[-2]
        for tokens in further:
            tokens = tokens[:, None].expand(-1, h.shape[1], -1, -1) if h.ndim == 4 else tokens
            h = torch.cat([h, tokens], dim=-2)
        mask = None
        if words is not None and words.mask is not None:
            others = words.mask.new_ones(len(h), h.shape[-2] - words.mask.shape[1])
            mask = torch.cat([others, words.mask], dim=1)
            if h.ndim == 4:
                mask = mask.repeat_interleave(h.shape[1], dim=0)  # of the frames' sequences
        first, *rest = self._rotary(size, h.device)
        if first is not None:
            first = unturned(first, h.shape[-2] - own)
        known = Tokens(
            c,
            words=conditions.words if self.listeners else None,
            own=own,
            frames=h.shape[1] if h.ndim == 4 else 1,
            per_token=c.ndim == 3 and not self.conditioning.sequence,
        )
        grid = (own // math.prod(size[-2:]), *size[-2:]) if self.config.mlp == "depthwise" else ()
        masks = [mask, *(None for _ in rest)]
        return h, [
            known._replace(among=Arrangement(mask, table, grid=grid, first=self._first()), over=over)
            for mask, table, over in zip(masks, (first, *rest), self.config.over, strict=True)
        ]

    def _behind(self, count: int, words: Words | None, dtype: torch.dtype) -> list[Tensor]:
        """Registers and words that pass through the blocks behind the tokens of each of `count` states, (count, R, D) each."""
        registers = [] if self.registers is None else [self.registers.expand(count, -1, -1)]
        return registers if words is None else [*registers, words.tokens.to(dtype)]

    def _first(self) -> FirstValues | None:
        """Where the first block of a kind leaves its values in a forward pass."""
        return FirstValues() if self.config.value_residual else None

    def head(self, h: Tensor, c: Tensor, size: torch.Size) -> Tensor:
        return self._pixels(self.final(h, c), size)

    def _pixels(self, tokens: Tensor, size: Sequence[int]) -> Tensor:
        """What the last layer gives as a state (B, C', *size)."""
        x = unpatchify(tokens, self.patches.grid(*size), self.config.patch, self.config.tubelet)
        return x.reshape(*x.shape[:2], *size)  # of an image, without its one frame

    def packed(
        self, states: Sequence[Tensor], t: Tensor, cond: Cond | None, *, around: Around | None = None
    ) -> list[Tensor]:
        """What `forward` gives for each of N states (C, *size), of their own sizes, at times t (N,): (C', *size).

        All their tokens are one sequence, registers and a text's words behind those of the state that they belong to; cond has
        a row per state. InputError for a network whose tokens would meet others' or need a grid: factorised, conditioned by
        tokens, or with convolutions in its blocks.
        """
        config = self.config
        if why := config.cannot("packed rows"):
            raise InputError(why)
        if t.shape != (len(states),):
            raise InputError(
                f"t of shape {tuple(t.shape)} for {len(states)} packed states: give one time each"
            )
        stacked, sizes = stacks(states), [state.shape[1:] for state in states]
        conditions = self.conditions(cond or {}, ())
        words = conditions.words.packed() if self.listeners and conditions.words is not None else None
        own = [self.embed(stack).flatten(1, -2) for stack in stacked]  # (n, L_i, D) each
        inside = conditions.words if self.in_context else None
        behind = self._behind(len(states), inside, own[0].dtype)
        embedded, mask = extended(own, behind, None if inside is None else inside.mask)
        further = sum(tokens.shape[1] for tokens in behind)
        # No views: the compiler would make one form of a block for views and one for others.
        h = torch.cat([tokens.flatten(0, 1)[None] for tokens in embedded], dim=1)  # (1, L, D)
        lengths = [tokens.shape[1] for tokens in embedded for _ in tokens]
        rotary = None
        if config.positions == "rotary":
            known = {
                size: unturned(table, further)[:, None]
                for size in set(sizes)
                if (table := self._rotary(self.patches.grid(*size), t.device)[0]) is not None
            }
            rotary = torch.cat([known[size] for size in sizes], dim=2)  # (2, 1, L, d/2)
        owner, apart = owners(lengths, t.device), runs(lengths, t.device)
        among = Arrangement(mask, rotary, owner, apart, first=self._first())
        c = self._combined(t, conditions, sizes)  # (N, D)
        at = Tokens(c, among, words=words, own=h.shape[1], lengths=lengths, further=further)
        h = self._through(h, [at], around or alone)
        counts = [tokens.shape[0] * tokens.shape[1] for tokens in embedded]
        outs = self.final(h, c, among)[0].split(counts)
        return [
            state
            for out, stack, tokens in zip(outs, stacked, own, strict=True)
            for state in self._pixels(
                out.unflatten(0, (len(stack), -1))[:, : tokens.shape[1]], stack.shape[2:]
            )
        ]

    def from_map(self, m: Tensor) -> Tensor:
        return m.flatten(3).permute(0, 2, 3, 1) if self.config.tubelet else m.flatten(2).mT

    def to_map(self, h: Tensor, size: torch.Size) -> Tensor:
        if self.config.tubelet:
            return h.permute(0, 3, 1, 2).unflatten(3, self.patches.grid(*size)[1:])
        return h.mT.unflatten(2, self.patches.grid(*size))

    def check_size(self, *size: int) -> None:
        self.patches.grid(*size)
