"""What a GPU reaches in training steps and in sampling, beside what its own products reach: the parts of `ditkit bench --gpu`.

Every part is a function whose arguments and result can be pickled, for a process of its own: one that runs out of memory or
does not end leaves the others alone. Each takes the device, so that all of them can be tried on a CPU with a tiny network.
Several GPUs: several_gpus.py.
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ditkit.backbones import Backbone, DiTConfig, compile_blocks
from ditkit.backbones.sections.dit import DIT_SIZES
from ditkit.benchmarks.latents import CHANNELS, CLASSES, GUIDANCE, SIDE, TIME, TINY
from ditkit.benchmarks.ours import Latents
from ditkit.costs import recipe_cost
from ditkit.costs.gpus import known_as
from ditkit.costs.plan import memory_of, most_images
from ditkit.data import Batch
from ditkit.device import Precision, autocast
from ditkit.errors import InputError
from ditkit.processes import ALONE, Processes
from ditkit.recipe import Recipe
from ditkit.recipes import recipe as named_recipe
from ditkit.sampling import cfg
from ditkit.training.beginning import begin
from ditkit.training.draws import with_draws
from ditkit.training.parallel import Kind, mesh_of
from ditkit.training.planning import Counted
from ditkit.training.step import update

NETWORKS: dict[str, DiTConfig] = {name: DIT_SIZES[name] for name in ("DiT-S/2", "DiT-B/2", "DiT-XL/2")}
NETWORKS["tiny"] = TINY
EVALUATIONS = 50
"""Guided ones, of an image that is sampled."""
HEADROOM = 0.1
"""The share of the memory that is left free, as `ditkit plan` leaves it."""
MOST = 256
"""Images of a step at most: beyond it a GPU gets no faster, and steps take long."""
WARM = 3
"""Calls before those that are timed: the first ones choose kernels and grow the allocator's pool."""
PRECISIONS: tuple[Precision, ...] = ("bf16", "tf32", "fp32")


class Work(NamedTuple):
    """A network and what is to be measured of it."""

    network: str
    device: str
    compiled: bool
    seconds: float
    """Of timing, for each rate."""
    images: int | None = None
    """Of a step; None: as many as fit."""


def described() -> dict[str, Any]:
    """The first GPU: what it is called, by CUDA and by `ditkit plan`, and what it has."""
    there = torch.cuda.get_device_properties(0)
    return {
        "name": there.name,
        "plan": known_as(there.name),
        "count": torch.cuda.device_count(),
        "memory": there.total_memory,
        "capability": f"{there.major}.{there.minor}",
        "cuda": torch.version.cuda,
    }


def products(device: str, side: int, seconds: float) -> dict[str, float]:
    """Operations per second of the product of two matrices of that side, by precision: the best call."""
    where = torch.device(device)
    a, b = torch.randn(2, side, side, device=where)
    found: dict[str, float] = {}
    for precision in PRECISIONS:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        multiply = partial(_product, a.to(dtype), b.to(dtype), precision)
        found[precision] = 2 * side**3 / min(timed(multiply, where, seconds / len(PRECISIONS)))
    return found


def _product(a: Tensor, b: Tensor, precision: Precision) -> Tensor:
    with autocast(a.device, precision):
        return F.linear(a, b)


def measured(work: Work) -> dict[str, Any]:
    """Training steps, their memory, and guided evaluations of a network. With fewer images where not as many fit as were
    planned to."""
    recipe, device = recipe_of(work.network), torch.device(work.device)
    counted = Counted(recipe)
    images = work.images or images_that_fit(counted, device)
    if not images:
        raise InputError(f"{work.network}: not one image fits into the memory that is free")
    too_many: list[int] = []
    while True:
        try:
            found = _measured(recipe, counted, images, device, work)
            break
        except torch.OutOfMemoryError:
            too_many.append(images)
            if images == 1:
                raise
            images //= 2
        torch.cuda.empty_cache()  # out of the handler, whose traceback keeps tensors
    macs = recipe_cost(recipe).macs
    step, evaluation = found["step"], found["evaluation"]
    rates = {"step": 3 * macs * images / step, "evaluation": macs * 2 * images / evaluation}
    return {
        "network": work.network,
        "compiled": work.compiled,
        "images": images,
        "out_of_memory": too_many,
        "step_ms": 1000 * step,
        "images_per_second": images / step,
        "step_flops": 2 * rates["step"],
        "sampled_per_second": images / evaluation / EVALUATIONS,
        "evaluation_ms": 1000 * evaluation,
        "evaluation_flops": 2 * rates["evaluation"],
        "memory": found["memory"],
    }


def recipe_of(network: str) -> Recipe:
    """DiT's own training on latents of 256 pixels, with another network, in bf16."""
    return named_recipe("imagenet256-dit-xl2").replace(
        backbone=NETWORKS[network], train={"precision": "bf16", "micro_batch": None}
    )


def images_that_fit(counted: Counted, device: torch.device) -> int:
    """The power of two, at most `MOST`, that is planned to fit into the free memory; a few on a CPU."""
    if device.type != "cuda":
        return 4
    free, _ = torch.cuda.mem_get_info(device)
    room = round(free * (1 - HEADROOM))
    most = min(MOST, most_images(counted.footprint, counted.passes(0), room, "none", 1, 1, counted.bf16))
    return 1 << (most.bit_length() - 1) if most else 0


def _measured(
    recipe: Recipe, counted: Counted, images: int, device: torch.device, work: Work
) -> dict[str, Any]:
    """Seconds of a step and of an evaluation of as many images, and bytes of the step."""
    recipe = recipe.replace(train={"batch": images})
    before = _allocated(device)
    net = filled(recipe, device)
    step = training(recipe, net, batch_of(recipe, images, device), device)
    if work.compiled:
        compile_blocks(net)
    for _ in range(WARM):
        step()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    a_step = median(timed(step, device, work.seconds))
    predicted = memory_of(counted.footprint, counted.passes(0), images).total
    memory = {"predicted": predicted, "measured": peak_bytes(device, before)}
    del step
    evaluate = evaluation(recipe, net.eval().requires_grad_(False), images, device)
    return {"step": a_step, "memory": memory, "evaluation": median(timed(evaluate, device, work.seconds))}


def filled(recipe: Recipe, device: torch.device) -> Backbone:
    """The recipe's network with small random weights, made on the device: zeros would be quicker to multiply."""
    with torch.device("meta"):
        net = recipe.build_backbone()
    net = net.to_empty(device=device).train()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.02)
    return net


def batch_of(recipe: Recipe, images: int, device: torch.device) -> Batch:
    """Made-up latents with their labels and draws, pinned for a GPU, as a loader gives them."""
    stream = torch.Generator().manual_seed(0)
    latents = torch.randn(images, CHANNELS, SIDE, SIDE, generator=stream)
    labels = torch.randint(CLASSES, (images,), generator=stream)
    batch = with_draws(recipe, Latents(), Batch(latents, labels, torch.arange(images)))
    return batch.pin_memory() if device.type == "cuda" else batch


def training(
    recipe: Recipe,
    net: Backbone,
    batch: Batch,
    device: torch.device,
    kind: Kind = "none",
    processes: Processes = ALONE,
) -> Callable[[], object]:
    """One pass of the training loop's body, made of its own functions, as the processes share it."""
    mesh = mesh_of(kind, None, processes, device)
    state, shared = begin(recipe, net, Latents(), device, None, kind=kind, mesh=mesh, processes=processes)

    def step() -> None:
        terms = shared.backward(batch)
        state.advance(batch.total, terms, update(state.optimizer, recipe.train.clip))

    return step


def evaluation(recipe: Recipe, net: Backbone, images: int, device: torch.device) -> Callable[[], object]:
    """A guided evaluation of so many images, which are twice as many rows, as a sampler asks for it."""
    x = torch.randn(images, CHANNELS, SIDE, SIDE, device=device)
    cond = {"label": torch.arange(images, device=device) % CLASSES}
    denoise = cfg(recipe.transport.denoiser(net, Latents().layout(SIDE, SIDE)), net.null, GUIDANCE)
    t = torch.full((images,), TIME, dtype=torch.float64)

    @torch.no_grad()
    def evaluate() -> Tensor:
        with autocast(device, recipe.train.precision):
            return denoise(x, t, cond).eps

    return evaluate


def timed(run: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    """Seconds of a call, the mean over several between which nothing waits for the device, measured for about so long."""
    for _ in range(WARM):
        run()
    once = spent(run, 1, device)
    calls = max(1, round(seconds / 5 / max(once, 1e-6)))
    return [spent(run, calls, device) for _ in range(5)]


def spent(run: Callable[[], object], calls: int, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        run()
    _wait(device)
    return (time.perf_counter() - start) / calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def peak_bytes(device: torch.device, before: int) -> int | None:
    """Bytes of tensors at the worst moment; None where nobody counts them."""
    return torch.cuda.max_memory_allocated(device) - before if device.type == "cuda" else None
