"""A DiT as the paper's authors train and sample it, written from what is published of it (Peebles and Xie, 2023, and the names,
numbers and settings of the released weights): no fused or compiled step, nothing rewritten for speed, and nothing slower than
it has to be.

Blocks run one by one, attention is torch's `scaled_dot_product_attention`. A training step is the hybrid loss, AdamW as torch
makes it, and a moving average of 0.9999, parameter by parameter. A sample is 250 ancestral steps, of which each evaluates
images with their labels and without. Weights have the released names, in their order.
"""

import copy
import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditkit.backbones import DiTConfig
from ditkit.benchmarks.latents import CHANNELS, CLASSES, CPU, GUIDANCE, SIDE, TIME, latents
from ditkit.device import autocast
from ditkit.recipe import Recipe
from ditkit.sampling import respaced
from ditkit.transports import DDPM_STEPS, Transport

LR, DECAY = 1e-4, 0.9999
DROPOUT = 0.1
"""The share of labels that are unknown in training."""
GUIDED = 3
"""Channels of a latent that the released code guides; the others are those with the label."""
FREQUENCIES, PERIOD = 256, 10_000


class PaperDiT(nn.Module):
    """(x (B, C, S, S), t (B,) of 0..999, y (B,)) -> (B, 2 C, S, S): the noise, and where its variance is, from -1 to 1."""

    def __init__(
        self,
        side: int,
        patch: int,
        channels: int,
        width: int,
        depth: int,
        heads: int,
        classes: int,
    ):
        super().__init__()
        self.classes, self.patch, self.channels = classes, patch, channels
        self.pos_embed = nn.Parameter(positions(side // patch, width), requires_grad=False)
        self.x_embedder = PatchEmbedding(channels, patch, width)
        self.t_embedder = TimeEmbedding(width)
        self.y_embedder = LabelEmbedding(classes, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch**2 * 2 * channels)
        self._begin()

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        h = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(t) + self.y_embedder(y)
        for block in self.blocks:
            h = block(h, c)
        return self._image(self.final_layer(h, c))

    def forward_with_cfg(self, x: Tensor, t: Tensor, y: Tensor, scale: float) -> Tensor:
        """Of 2 n rows, the second half without labels. The first half of x counts, and is evaluated twice; its first three
        channels are guided, and are the same in both halves."""
        half = x[: len(x) // 2]
        out = self(torch.cat([half, half]), t, y)
        with_label, without = out[:, :GUIDED].chunk(2)
        guided = without + scale * (with_label - without)
        return torch.cat([torch.cat([guided, guided]), out[:, GUIDED:]], dim=1)

    def _image(self, tokens: Tensor) -> Tensor:
        """(B, T, p p C) -> (B, C, S, S); of a token's numbers the channel is the fastest."""
        grid, p = math.isqrt(tokens.shape[1]), self.patch
        patches = tokens.view(-1, grid, grid, p, p, 2 * self.channels)
        return patches.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), -1, grid * p, grid * p)

    def _begin(self) -> None:
        """Weights as they begin: every block is the identity, and the output 0."""
        for linear in (module for module in self.modules() if isinstance(module, nn.Linear)):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(cast(Tensor, linear.bias))
        projection = self.x_embedder.proj
        nn.init.xavier_uniform_(projection.weight.view(len(projection.weight), -1))
        nn.init.zeros_(cast(Tensor, projection.bias))
        time = self.t_embedder.mlp
        for weight in (self.y_embedder.embedding_table.weight, time[0].weight, time[2].weight):
            nn.init.normal_(cast(Tensor, weight), std=0.02)
        layers = [cast(Block, block).adaLN_modulation[1] for block in self.blocks]
        for zero in (*layers, self.final_layer.adaLN_modulation[1], self.final_layer.linear):
            for parameter in zero.parameters():
                nn.init.zeros_(parameter)


class PatchEmbedding(nn.Module):
    """(B, C, S, S) -> (B, T, width)."""

    def __init__(self, channels: int, patch: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class TimeEmbedding(nn.Module):
    """(B,) -> (B, width): cosines, then sines, of t at 128 frequencies, and two layers."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = FREQUENCIES // 2
        frequencies = torch.exp(-math.log(PERIOD) / half * torch.arange(half, device=t.device))
        angles = t[:, None].float() * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class LabelEmbedding(nn.Module):
    """(B,) -> (B, width); the last row is for the unknown label, which in training a tenth become."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        if self.training:
            dropped = torch.rand(len(y), device=y.device) < DROPOUT
            y = torch.where(dropped, self.embedding_table.num_embeddings - 1, y)
        return self.embedding_table(y)


class Block(nn.Module):
    """adaLN-Zero: (B, T, width), conditioned on c (B, width)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)
        self.attn, self.mlp = Attention(width, heads), Mlp(width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(c)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)  # (B, H, T, d)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.act = nn.GELU(approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class FinalLayer(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.norm_final, self.linear = norm(width), nn.Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


def norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


def positions(grid: int, width: int) -> Tensor:
    """(1, grid², width): sines and cosines of the column, then of the row, computed in float64."""
    frequencies = PERIOD ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    one = torch.cat([angles.sin(), angles.cos()], dim=1)
    of_column, of_row = one.repeat(grid, 1), one.repeat_interleave(grid, 0)
    return torch.cat([of_column, of_row], dim=1)[None].float()


# Training


def build_paper(recipe: Recipe) -> PaperDiT:
    config = recipe.backbone
    assert isinstance(config, DiTConfig)
    return PaperDiT(SIDE, config.patch, CHANNELS, config.width, config.depth, config.heads, CLASSES)


def hybrid_loss(
    transport: Transport, net: PaperDiT, x0: Tensor, y: Tensor, index: Tensor, eps: Tensor
) -> dict[str, Tensor]:
    """The terms, each (B,), at indices 0..999: the noise's squared error, the variance's bound, and "loss", their sum."""

    def called(x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return net(x, index, cond["label"])

    return transport.losses(called, x0, {"label": y}, t=(index + 1).double() / DDPM_STEPS, eps=eps)


def paper_step(recipe: Recipe, net: PaperDiT) -> Callable[[], None]:
    average = copy.deepcopy(net).requires_grad_(False).eval()
    averaged = dict(average.named_parameters())
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=0)
    x0, y = latents(recipe.train.batch)

    def step() -> None:
        index = torch.randint(DDPM_STEPS, (len(x0),))
        with autocast(CPU, recipe.train.precision):
            loss = hybrid_loss(recipe.transport, net, x0, y, index, torch.randn_like(x0))["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                averaged[name].mul_(DECAY).add_(parameter, alpha=1 - DECAY)

    return step


# Sampling


def paper_evaluation(recipe: Recipe, net: PaperDiT) -> Callable[[], Tensor]:
    """What each of the steps of `ancestral` evaluates."""
    x, y = latents(recipe.train.batch // 2)
    x, y = torch.cat([x, x]), torch.cat([y, torch.full_like(y, CLASSES)])
    t = torch.full((len(y),), round(DDPM_STEPS * TIME) - 1)

    @torch.no_grad()
    def evaluate() -> Tensor:
        with autocast(CPU, recipe.train.precision):
            return net.forward_with_cfg(x, t, y, GUIDANCE)

    return evaluate


@torch.no_grad()
def ancestral(net: Callable[[Tensor, Tensor], Tensor], x: Tensor, steps: int = 250) -> Tensor:
    """From noise x (B, C, S, S) to a sample, by draws from each step's posterior, whose variance is learned; `net` is of (x, t).

    Guided, x is of two equal halves and `net` is `forward_with_cfg` with its labels and scale: both halves take the steps, the
    first is the sample.
    """
    kept = respaced(str(steps))
    alphas = (1 - torch.linspace(1e-4, 0.02, DDPM_STEPS, dtype=torch.float64)).cumprod(0)[kept]
    before = torch.cat([alphas.new_ones(1), alphas[:-1]])
    beta = 1 - alphas / before
    small = beta * (1 - before) / (1 - alphas)
    small[0] = small[1]  # the last step's is 0, which has no logarithm
    of_x0 = beta * before.sqrt() / (1 - alphas)
    of_x = (1 - before) * (1 - beta).sqrt() / (1 - alphas)
    for k in reversed(range(steps)):
        out = net(x, torch.full((len(x),), kept[k], device=x.device)).float()
        eps, v = out.chunk(2, dim=1)
        x0 = x / alphas[k].sqrt().item() - (1 / alphas[k] - 1).sqrt().item() * eps
        fraction = (v + 1) / 2
        log_variance = fraction * beta[k].log().item() + (1 - fraction) * small[k].log().item()
        x = of_x0[k].item() * x0 + of_x[k].item() * x
        noise = torch.randn(x.shape, device=x.device)
        if k:
            x = x + (log_variance / 2).exp() * noise
    return x
