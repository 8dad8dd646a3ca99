"""ditkit's own training step and evaluations, made of the functions that its training loop and pipeline call."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ditkit.backbones import Backbone, BackboneConfig, compile_blocks, sampled
from ditkit.benchmarks.latents import CHANNELS, CPU, GUIDANCE, SIDE, TIME, latents, recipe_with
from ditkit.codecs import Codec
from ditkit.conditions import Read
from ditkit.data import Batch
from ditkit.device import Precision, autocast, uses_bf16
from ditkit.layout import Layout, layout_of
from ditkit.recipe import Recipe
from ditkit.sampling import cfg
from ditkit.training.draws import with_draws
from ditkit.training.ema import Ema
from ditkit.training.step import backward, make_optimizer, update


class Latents:
    """A codec whose images are states already: training from stored latents."""

    channels = CHANNELS
    random = False

    def layout(self, *size: int) -> Layout:
        return layout_of(self.channels, *size)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        return images

    def values(self, state: Tensor) -> Tensor:
        return state

    def decode(self, state: Tensor) -> Tensor:
        return state

    def save(self, folder: Path) -> None:
        pass


def step_of(
    backbone: BackboneConfig, batch: int, precision: Precision
) -> tuple[Backbone, Callable[[], None]]:
    """A network and the training step that trains it, on `batch` latents."""
    recipe = recipe_with(backbone, batch, precision)
    net = recipe.build_backbone().train()
    return net, ditkit_step(recipe, net)


def evaluation_of(
    backbone: BackboneConfig, batch: int, precision: Precision
) -> tuple[Backbone, Callable[[], Tensor]]:
    """A network in the form it samples in, and its evaluation of `batch` latents, unguided."""
    recipe = recipe_with(backbone, batch, precision)
    net = ditkit_sampled(recipe, recipe.build_backbone().eval().requires_grad_(False))
    x, labels = latents(batch)
    t = torch.full((batch,), TIME, dtype=torch.float64)

    @torch.no_grad()
    def evaluate() -> Tensor:
        with autocast(CPU, precision):
            return net(x, t, {"label": labels})

    return net, evaluate


def ditkit_sampled(recipe: Recipe, net: Backbone) -> Backbone:
    """The network in the form that a pipeline samples with, of one that is frozen."""
    return sampled(net, uses_bf16(CPU, recipe.train.precision))


def compile_ditkit(net: Backbone) -> None:
    """As a training does it (`train.compile`)."""
    compile_blocks(net)


def ditkit_step(recipe: Recipe, net: Backbone) -> Callable[[], None]:
    """One pass of the training loop's body on latents."""
    size = recipe.train.batch
    return training_step(recipe, net, Latents(), Batch(*latents(size), torch.arange(size)))


def training_step(
    recipe: Recipe, net: Backbone, codec: Codec, batch: Batch, read: Read | None = None
) -> Callable[[], None]:
    """One pass of the training loop's body, made of its own functions."""
    ema = Ema(net, recipe.train.ema_half_life_images, recipe.train.ema_rampup)
    optimizer = make_optimizer(net, recipe.train)
    size = recipe.train.batch

    def step() -> None:
        backward(recipe, net, codec, with_draws(recipe, codec, batch), CPU, read)
        norm = update(optimizer, recipe.train.clip)
        ema.update(size, size, norm.isfinite())

    return step


def ditkit_evaluation(recipe: Recipe, net: Backbone) -> Callable[[], Tensor]:
    """What a sampler evaluates: the guided denoiser, as the pipeline makes it."""
    x, labels = latents(recipe.train.batch // 2)
    denoise = cfg(recipe.transport.denoiser(net, Latents().layout(SIDE, SIDE)), net.null, GUIDANCE)
    t = torch.full((len(x),), TIME, dtype=torch.float64)

    @torch.no_grad()
    def evaluate() -> Tensor:
        with autocast(CPU, recipe.train.precision):
            return denoise(x, t, {"label": labels}).eps

    return evaluate
