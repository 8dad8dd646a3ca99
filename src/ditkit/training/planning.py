"""A recipe's training on several GPUs: how it is shared, what fits, how long it takes and what it costs.

The bytes and operations are those of the recipe's own step (`footprint.py`), the formulas and their sources in `costs.plan`,
the GPUs in `costs.gpus`. How well a GPU is used is an assumption, or was measured elsewhere.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ditkit.costs.footprint import Footprint, Pass
from ditkit.costs.gpus import Gpu
from ditkit.costs.plan import (
    Checkpoints,
    Kind,
    Memory,
    Moved,
    bytes_moved,
    checkpoints,
    choose,
    memory_of,
    most_images,
    seconds_to_move,
    seconds_to_update,
    shard_of,
)
from ditkit.errors import InputError
from ditkit.recipe import Recipe
from ditkit.training.footprint import Training

LEVELS = (0, 2, 1)
"""Blocks that are computed again in the backward pass: none, every second, all (`train.checkpoint_blocks`)."""
FORMS: dict[Literal["fused", "written"], str] = {"fused": "fused", "written": "written out"}
"""Of attention."""
HOUR, DAY = 3600, 86400


class Options(NamedTuple):
    """How a training is shared and how well it runs."""

    parallel: Literal["auto", "none", "ddp", "fsdp", "hsdp"] = "auto"
    shard: int | None = None
    """GPUs that share one copy of the weights, for hsdp; by default those of a machine."""
    utilisation: float = 0.25
    """The share of the products that a GPU could compute."""
    images_per_second: float | None = None
    """Of one GPU, as measured; in place of the utilisation."""
    headroom: float = 0.1
    """The share of the memory that is left free."""
    lifetime: float = 50_000 * HOUR
    """Seconds until one GPU fails."""
    write_speed: float = 1e9
    """Bytes per second of writing checkpoints."""


class DoesNotFit(InputError):
    """Not even one image fits into the memory."""


class NotThere(InputError):
    """The GPU cannot compute in the recipe's precision."""


class Counted:
    """What a recipe's step keeps and computes, counted when it is first needed. Its precision is bf16 or fp32."""

    def __init__(self, recipe: Recipe):
        """InputError as of `Recipe.build_backbone`."""
        self.recipe = recipe
        self._training = Training(recipe)
        self.footprint: Footprint = self._training.footprint()
        self.stored = self._training.stored()
        self._passes: dict[tuple[str, int, bool], Pass] = {}

    def passes(self, level: int, form: Literal["fused", "written"] = "fused", sharded: bool = False) -> Pass:
        """`sharded` as of `Training`."""
        key = form, level, sharded
        if key not in self._passes:
            training = Training(self.recipe, sharded) if sharded else self._training
            self._passes[key] = training.passes(form, level)
        return self._passes[key]

    @property
    def bf16(self) -> bool:
        """Whether products are of bf16."""
        return self.recipe.train.precision == "bf16"

    @property
    def levels(self) -> Sequence[int]:
        """The recipe's own and those of `LEVELS` that it can have, the one that keeps most first."""
        found = [self.recipe.train.checkpoint_blocks]
        for level in LEVELS:
            try:
                self.recipe.replace(train={"checkpoint_blocks": level})
            except InputError:
                continue
            found.append(level)
        return sorted(set(found), key=lambda level: -level if level else -math.inf)

    @property
    def tried(self) -> Sequence[int]:
        """The recipe's own and those that keep less."""
        return self.levels[self.levels.index(self.recipe.train.checkpoint_blocks) :]

    @property
    def stored_files(self) -> int:
        """How often power averages are stored, of `stored` bytes each."""
        every = self.recipe.train.snapshot_images
        return math.ceil(self.recipe.train.images / every) if every else 0

    @property
    def batch(self) -> int:
        """Images of a batch; where it is of so many tokens, those of the recipe's size."""
        config = self.recipe.train
        if config.tokens is None:
            return config.batch
        return max(1, config.tokens // self.recipe.tokens(self.recipe.data.shape))


def room_of(gpu: Gpu, options: Options) -> int:
    """Bytes of a GPU that may be used."""
    return round(gpu.memory * (1 - options.headroom))


def for_gpu(recipe: Recipe, gpu: Gpu) -> Recipe:
    """The recipe with the precision that it has there."""
    chosen = "bf16" if gpu.bf16 else "fp32"
    if recipe.train.precision == "bf16" and not gpu.bf16:
        raise NotThere("`train.precision` bf16: this GPU has none; give fp32")
    return recipe.replace(train={"precision": chosen}) if recipe.train.precision == "auto" else recipe


@dataclass(frozen=True)
class Share:
    """A recipe's training, of one stage, on so many GPUs."""

    gpus: int
    parallel: Kind
    shard: int
    level: int
    fits: int
    """The most images of one pass."""
    images: int
    """Of one GPU in a step."""
    passes: int
    memory: Memory
    moved: Moved
    computing: float
    """Seconds of a step."""
    moving: float
    updating: float
    batch: int
    length: int
    """Images until the end."""

    @property
    def per_pass(self) -> int:
        return math.ceil(self.images / self.passes)

    @property
    def idle(self) -> int:
        """GPUs without an image."""
        return max(0, self.gpus - self.batch)

    @property
    def step(self) -> float:
        """Seconds: gradients and weights travel while others are computed (Li et al., 2020; Zhao et al., 2023), so the longer
        of the two counts, and then the update."""
        return max(self.computing, self.moving) + self.updating

    @property
    def images_per_second(self) -> float:
        return self.batch / self.step

    @property
    def seconds(self) -> float:
        """Until the end."""
        return self.length / self.images_per_second

    @property
    def steps(self) -> int:
        return math.ceil(self.length / self.batch)


def share(counted: Counted, gpu: Gpu, gpus: int, options: Options) -> Share:
    """InputError where not even one image fits, or as of `shard_of`."""
    room, batch, footprint, bf16 = room_of(gpu, options), counted.batch, counted.footprint, counted.bf16
    images = math.ceil(batch / min(gpus, batch))
    at_most = counted.recipe.train.micro_batch or images
    for level in counted.tried:
        step = counted.passes(level)
        replicated = memory_of(footprint, step, 1, "ddp").total
        parallel = choose(gpus, replicated, room) if options.parallel == "auto" else options.parallel
        shard = shard_of(parallel, gpus, gpu.machine, options.shard)
        step = counted.passes(level, sharded=shard > 1)
        several = min(images, at_most) < images
        fits = 0 if several else most_images(footprint, step, room, parallel, shard, 1, bf16)
        if fits < images:
            fits = most_images(footprint, step, room, parallel, shard, 2, bf16)
        if fits:
            break
    else:
        memory = memory_of(footprint, step, 1, parallel, shard, min(images, 2), bf16)
        raise _nowhere(memory, room, parallel, gpus)
    passes = math.ceil(images / min(fits, at_most))
    memory = memory_of(footprint, step, math.ceil(images / passes), parallel, shard, passes, bf16)
    moved = bytes_moved(parallel, footprint.gathered(bf16), footprint.gradients, gpus, shard, passes)
    speed = gpu.products(counted.recipe.train.precision)
    products = passes * step.products.constant + images * step.products.each
    updating = seconds_to_update(memory, gpu)
    measured = options.images_per_second
    return Share(
        gpus,
        parallel,
        shard,
        level,
        fits,
        images,
        passes,
        memory,
        moved,
        computing=images / measured if measured else products / (options.utilisation * speed),
        moving=seconds_to_move(moved, gpu, gpus, shard),
        updating=0.0 if measured else updating,  # it is in what was measured
        batch=batch,
        length=counted.recipe.train.images,
    )


def _nowhere(memory: Memory, room: int, parallel: Kind, gpus: int) -> DoesNotFit:
    """For a step of which not even one image fits, with as many blocks computed again as can be."""
    needed = f"one image takes {memory.total / 1e9:,.1f} GB at least, of {room / 1e9:,.1f}"
    if memory.activations > room:
        return DoesNotFit(f"{needed}; no number of GPUs helps, so give a `gpu` with more memory")
    if parallel == "none":
        return DoesNotFit(f"{needed}; give more `gpus`, which share it by fsdp, or a `gpu` with more memory")
    if parallel == "ddp":
        return DoesNotFit(f"{needed}; give `train.parallel` fsdp, or a `gpu` with more memory")
    return DoesNotFit(f"{needed}; give more than {gpus:,} `gpus`, or a `gpu` with more memory")


def checkpointing(counted: Counted, gpus: int, options: Options) -> Checkpoints:
    """How often to write a checkpoint of the whole training."""
    return checkpoints(counted.footprint.kept, options.write_speed, options.lifetime, gpus)


def stages_of(recipe: Recipe) -> Sequence[Recipe]:
    """What is trained one after the other, the recipe itself last."""
    return [*recipe.stages, recipe]


class Whole(NamedTuple):
    """All stages of a training on so many GPUs; a stage follows the one before."""

    stages: Sequence[Share]

    @property
    def last(self) -> Share:
        return self.stages[-1]

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def gpu_hours(self) -> float:
        return self.last.gpus * self.seconds / HOUR


def whole_of(stages: Sequence[Counted], gpu: Gpu, gpus: int, options: Options) -> Whole:
    """InputError as of `share`."""
    return Whole([share(stage, gpu, gpus, options) for stage in stages])
