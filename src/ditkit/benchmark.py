"""Speed of ditkit's own training step and guided evaluation against diffusers, measured on the CPU.

The contenders run in turn, round by round, in one process, so that a busy machine slows all of them;
what counts are medians and the median of the rounds' ratios. ditkit's side is made of the functions its
training loop and pipeline call; the other side is diffusers' `DiTTransformer2DModel` of the same size
in the loop everybody writes. Both see the same loss (`Transport.losses`) under the same autocast.

`measure_step` times ditkit's step alone, in a process of its own, with the memory it takes: what the
predictions of `costs.count` and `costs.speed` are compared with (`ditkit bench --cost`).
"""

import copy
import gc
import multiprocessing
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ditkit.backbones import Backbone, BackboneConfig, DiTConfig, compile_blocks
from ditkit.codecs import Codec
from ditkit.conditions import Read
from ditkit.data import Batch
from ditkit.device import Precision, autocast
from ditkit.errors import InputError
from ditkit.layout import Layout, layout_of
from ditkit.recipe import Recipe
from ditkit.recipes import recipe as named_recipe
from ditkit.sampling import cfg
from ditkit.timing import Contender, seconds
from ditkit.training.draws import with_draws
from ditkit.training.ema import Ema
from ditkit.training.step import backward, make_optimizer, update

CPU = torch.device("cpu")
CHANNELS, SIDE, CLASSES = 4, 32, 1000  # ImageNet at 256 pixels behind Stable Diffusion's autoencoder
TINY = DiTConfig(width=32, depth=2, heads=2, patch=8)
BASELINE = "diffusers"
STEP, EVALUATION = "training step", "guided evaluation"
TIME, GUIDANCE = 0.5, 1.5
EMA_DECAY = 0.9999
STATUS = Path("/proc/self/status")


class Suite(NamedTuple):
    """What is measured, and how many parameters either side has."""

    contenders: list[Contender]
    parameters: dict[str, int]


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


def build_suite(backbone: DiTConfig, batch: int, precision: Precision, compiled: bool) -> Suite:
    """Both sides, eager and, with `compiled`, compiled block by block.

    The training step is on `batch` latents with DiT's loss; the evaluation is the network on twice
    batch // 2 rows, without gradient. InputError without diffusers.
    """
    recipe = _recipe(backbone, batch, precision)
    contenders, parameters = [], {}
    for name, build, step, evaluation, compile_ in (
        (BASELINE, build_diffusers, diffusers_step, diffusers_evaluation, compile_diffusers),
        ("ditkit", Recipe.build_backbone, ditkit_step, ditkit_evaluation, compile_ditkit),
    ):
        net = build(recipe)
        parameters[name] = sum(p.numel() for p in net.parameters() if p.requires_grad)
        for form in ("", ", compiled") if compiled else ("",):
            trained = copy.deepcopy(net).train()
            frozen = copy.deepcopy(net).eval().requires_grad_(False)
            contenders.append(Contender(STEP, name + form, step(recipe, trained)))
            contenders.append(Contender(EVALUATION, name + form, evaluation(recipe, frozen)))
            if form:
                compile_(trained)
                compile_(frozen)
    contenders.sort(key=lambda contender: contender.task != STEP)
    return Suite(contenders, parameters)


def baseline_of(contender: Contender, contenders: Iterable[Contender]) -> Contender:
    """What it is compared with: diffusers, eager, at the same task."""
    return next(other for other in contenders if (other.task, other.name) == (contender.task, BASELINE))


def check_memory_known() -> None:
    """InputError where the system does not report a process's memory; Linux does, in /proc."""
    if not STATUS.exists():
        raise InputError(f"bench `cost` reads {STATUS}, which is not there: it needs Linux")


Built = Callable[[], tuple[Backbone, Callable[[], object]]]
"""Makes a network and what is to be timed of it; for another process one that can be pickled."""


class Measured(NamedTuple):
    """A training step on one thread."""

    seconds: list[float]
    """Of processor time, one per step: the time on an idle machine, whatever else runs here."""
    memory: int
    """Bytes: the peak of the resident set over its size before the network was built."""


def measure_step(build: Built, rounds: int) -> Measured:
    """`rounds` training steps, after a first one, of what `build` makes, in a new process, on one thread."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_measure_here, build, rounds).result()


def _measure_here(build: Built, rounds: int) -> Measured:
    torch.set_num_threads(1)
    step_of(TINY, 2, "auto")[1]()  # loads the libraries' code, which is no cost of the network
    gc.collect()
    before = _memory("VmRSS")
    _, step = build()
    step()
    spent = [seconds(step, time.process_time) for _ in range(rounds)]
    return Measured(spent, _memory("VmHWM") - before)


def step_of(
    backbone: BackboneConfig, batch: int, precision: Precision
) -> tuple[Backbone, Callable[[], None]]:
    """A network and the training step that trains it, on `batch` latents."""
    recipe = _recipe(backbone, batch, precision)
    net = recipe.build_backbone().train()
    return net, ditkit_step(recipe, net)


def evaluation_of(
    backbone: BackboneConfig, batch: int, precision: Precision
) -> tuple[Backbone, Callable[[], Tensor]]:
    """A network in the form it samples in, and its evaluation of `batch` latents, unguided."""
    recipe = _recipe(backbone, batch, precision)
    net = recipe.build_backbone().eval().requires_grad_(False).fused()
    x, labels = _latents(batch)
    t = torch.full((batch,), TIME, dtype=torch.float64)

    @torch.no_grad()
    def evaluate() -> Tensor:
        with autocast(CPU, precision):
            return net(x, t, {"label": labels})

    return net, evaluate


def _memory(key: str) -> int:
    """Bytes resident now (VmRSS) or at most so far (VmHWM); unlike getrusage's, of this process alone."""
    line = next(line for line in STATUS.read_text(encoding="utf-8").splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


# ditkit's side


def _recipe(backbone: BackboneConfig, batch: int, precision: Precision) -> Recipe:
    """DiT's settings, with another network and batch."""
    train = {"batch": batch, "precision": precision}
    return named_recipe("imagenet256-dit-xl2").replace(backbone=backbone, train=train)


def compile_ditkit(net: Backbone) -> None:
    """As a training does it (`train.compile`)."""
    compile_blocks(net)


def ditkit_step(recipe: Recipe, net: Backbone) -> Callable[[], None]:
    """One pass of the training loop's body on latents."""
    size = recipe.train.batch
    return training_step(recipe, net, Latents(), Batch(*_latents(size), torch.arange(size)))


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
    x, labels = _latents(recipe.train.batch // 2)
    denoise = cfg(recipe.transport.denoiser(net, Latents().layout(SIDE, SIDE)), net.null, GUIDANCE)
    t = torch.full((len(x),), TIME, dtype=torch.float64)

    @torch.no_grad()
    def evaluate() -> Tensor:
        with autocast(CPU, recipe.train.precision):
            return denoise(x, t, {"label": labels}).eps

    return evaluate


# the other side


def build_diffusers(recipe: Recipe) -> Any:
    """diffusers' DiT of the same size; InputError when it is not installed."""
    try:
        from diffusers import DiTTransformer2DModel
    except ImportError:
        raise InputError("bench compares with diffusers: pip install 'ditkit[latent]'") from None
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
    x0, labels = _latents(train.batch)

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
    x, labels = _latents(recipe.train.batch // 2)
    both = torch.cat([labels, torch.full_like(labels, CLASSES)])
    timestep = torch.tensor([round(1000 * TIME) - 1]).expand(len(both))

    @torch.no_grad()
    def evaluate() -> Tensor:
        with autocast(CPU, recipe.train.precision):
            out = model(torch.cat([x, x]), timestep=timestep, class_labels=both).sample
        conditioned, empty = out[:, :CHANNELS].chunk(2)
        return empty + GUIDANCE * (conditioned - empty)

    return evaluate


def _latents(size: int) -> tuple[Tensor, Tensor]:
    """Made-up latents and their labels."""
    stream = torch.Generator().manual_seed(0)
    latents = torch.randn(size, CHANNELS, SIDE, SIDE, generator=stream)
    return latents, torch.randint(CLASSES, (size,), generator=stream)
