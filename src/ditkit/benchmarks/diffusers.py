"""diffusers' `DiTTransformer2DModel`, of the same size, in the loop that everybody writes."""

import copy
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ditkit.backbones import DiTConfig
from ditkit.benchmarks.latents import CHANNELS, CLASSES, CPU, GUIDANCE, SIDE, TIME, latents
from ditkit.device import autocast
from ditkit.errors import InputError
from ditkit.recipe import Recipe

EMA_DECAY = 0.9999


def check_diffusers() -> None:
    """InputError when it is not installed."""
    if find_spec("diffusers") is None:
        raise InputError("bench compares with diffusers: pip install 'ditkit[latent]', or give `peers` paper")


def build_diffusers(recipe: Recipe) -> Any:
    """diffusers' DiT of the same size."""
    from diffusers import DiTTransformer2DModel

    config = recipe.backbone
    assert isinstance(config, DiTConfig)  # diffusers has no other
    return DiTTransformer2DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        in_channels=CHANNELS,
        out_channels=2 * CHANNELS,
        num_layers=config.depth,
        sample_size=SIDE,
        patch_size=config.patch,
        num_embeds_ada_norm=CLASSES,
        norm_type="ada_norm_zero",
    )


def compile_diffusers(model: Any) -> None:
    """Block by block, like ours."""
    for block in model.transformer_blocks:
        block.compile()


def diffusers_step(recipe: Recipe, model: Any) -> Callable[[], None]:
    """A plain loop: AdamW as it comes, the average parameter by parameter. The model drops labels itself."""
    train = recipe.train
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=train.lr, betas=train.betas, weight_decay=train.weight_decay
    )
    x0, labels = latents(train.batch)

    def net(x: Tensor, t: Tensor, cond: dict[str, Tensor]) -> Tensor:
        return model(x, timestep=(1000 * t - 1).round().long(), class_labels=cond["label"]).sample

    def step() -> None:
        t = recipe.transport.times(torch.rand(len(x0), dtype=torch.float64))
        eps = torch.randn_like(x0)
        with autocast(CPU, train.precision):
            loss = recipe.transport.losses(net, x0, {"label": labels}, t=t, eps=eps)["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for averaged, parameter in zip(average.parameters(), model.parameters(), strict=True):
                averaged.mul_(EMA_DECAY).add_(parameter, alpha=1 - EMA_DECAY)

    return step


def diffusers_evaluation(recipe: Recipe, model: Any) -> Callable[[], Tensor]:
    """The network's part of a step of diffusers' DiTPipeline."""
    x, labels = latents(recipe.train.batch // 2)
    both = torch.cat([labels, torch.full_like(labels, CLASSES)])
    timestep = torch.tensor([round(1000 * TIME) - 1]).expand(len(both))

    @torch.no_grad()
    def evaluate() -> Tensor:
        with autocast(CPU, recipe.train.precision):
            out = model(torch.cat([x, x]), timestep=timestep, class_labels=both).sample
        conditioned, empty = out[:, :CHANNELS].chunk(2)
        return empty + GUIDANCE * (conditioned - empty)

    return evaluate
