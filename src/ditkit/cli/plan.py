"""`ditkit plan RECIPE`: what training it on so many GPUs takes, before one is rented."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from ditkit.cli.info import counted, find
from ditkit.cli.kinds import switch_kinds
from ditkit.cli.parsing import parse
from ditkit.cli.shapes import Called
from ditkit.cli.verbs import typed
from ditkit.config import OneOf
from ditkit.costs.gpus import GPUS, Gpu
from ditkit.costs.plan import most_images
from ditkit.recipe import Recipe
from ditkit.training.planning import (
    DAY,
    FORMS,
    HOUR,
    Counted,
    DoesNotFit,
    NotThere,
    Options,
    Share,
    checkpointing,
    for_gpu,
    room_of,
    share,
    speed_of,
    stages_of,
)

USAGE = """usage: ditkit plan RECIPE [--gpu h100] [--gpus 8] [--parallel auto] [--price-per-gpu-hour P] [--section.field value ...]
       ditkit plan RUN, a folder or the name of a bundled snapshot, with the flags of a recipe

What training a recipe takes on so many GPUs: memory, the images of one pass that fit, what travels between
GPUs, images per second, days, price, and how often to write a checkpoint; then a table from 1 to 1,024 GPUs.
Without --gpu, a table of the GPUs that it knows. Nothing is trained or read but what the recipe needs to be built.

Bytes and operations are counted in the recipe's own step, run without numbers. How well a GPU is used is an assumption:
25 % of its peak, the most that is published; --images-per-second takes what you measured on one of yours."""

GB = 1e9
COUNTS = tuple(2**k for k in range(11))


class PlanCommand(Recipe):
    """What training a recipe on so many GPUs takes. Every field of the recipe is a flag."""

    gpu: Annotated[str, OneOf(GPUS)] | None = None
    """Which; without it all are compared."""
    gpus: Annotated[int, Field(ge=1)] = 8
    """How many."""
    parallel: Literal["auto", "none", "ddp", "fsdp", "hsdp"] = "auto"
    """Whole copies on each GPU (ddp), one that is shared by all (fsdp), or one by each group (hsdp); auto: ddp where it fits,
    fsdp where it does not."""
    shard: Annotated[int, Field(ge=1)] | None = None
    """GPUs of a group, for hsdp; by default those of one machine."""
    price_per_gpu_hour: Annotated[float, Field(gt=0)] | None = None
    """In any currency."""
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.25
    """The share of a GPU's peak that is reached: an assumption."""
    images_per_second: Annotated[float, Field(gt=0)] | None = None
    """Of one GPU, as you measured it, in place of the utilisation."""
    headroom: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The share of the memory that is left to CUDA, its libraries and fragments."""
    network_gbit_per_gpu: Annotated[float, Field(gt=0)] | None = None
    """Between machines; by default as in NVIDIA's own machines."""
    gpu_hours_to_failure: Annotated[float, Field(gt=0)] = 50_000
    """Of one GPU: 419 failures in 54 days of 16,384 (Llama 3, 2024, section 3.3.4)."""
    write_gb_per_second: Annotated[float, Field(gt=0)] = 1.0
    """Of checkpoints: an assumption."""
    as_json: Annotated[bool, Called("json")] = False
    """Print JSON instead."""

    @property
    def options(self) -> Options:
        return Options(
            self.parallel,
            self.shard,
            self.utilisation,
            self.images_per_second,
            self.headroom,
            self.gpu_hours_to_failure * HOUR,
            self.write_gb_per_second * GB,
        )

    def named(self, name: str) -> Gpu:
        """The GPU of that name, with the network that it is to have."""
        if self.network_gbit_per_gpu is None:
            return GPUS[name]
        return GPUS[name]._replace(network=self.network_gbit_per_gpu * 1e9 / 8)


def parse_plan(argv: Sequence[str]) -> PlanCommand:
    """The command for the recipe that comes first; InputError for anything that is not understood."""
    name, *flags = argv
    recipe, rest = switch_kinds(find(name, "plan"), flags)
    return parse(PlanCommand, rest, f"plan {name}", default=PlanCommand.model_construct(**dict(recipe)))


def run(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print(typed(USAGE))
        return
    command = parse_plan(argv)
    recipe = counted(Recipe.model_validate({name: getattr(command, name) for name in Recipe.model_fields}))
    found = Compared(command, recipe) if command.gpu is None else Planned(command, recipe, command.gpu)
    if command.as_json:
        print(json.dumps(found.record(), indent=1))
        return
    for line in found.lines():
        print(line, flush=True)  # the last ones take a while


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

    def record(self, command: PlanCommand) -> dict[str, Any]:
        last, price = self.last, command.price_per_gpu_hour
        return {
            "gpus": last.gpus,
            "parallel": last.parallel,
            "shard": last.shard,
            "checkpoint_blocks": last.level,
            "images_per_gpu": last.images,
            "passes": last.passes,
            "most_images_per_pass": last.fits,
            "memory_bytes": last.memory._asdict() | {"total": last.memory.total},
            "moved_bytes": last.moved._asdict() | {"total": last.moved.total},
            "seconds": {"computing": last.computing, "moving": last.moving, "updating": last.updating},
            "images_per_second": last.images_per_second,
            "idle_gpus": last.idle,
            "days": self.seconds / DAY,
            "gpu_hours": self.gpu_hours,
            "price": None if price is None else price * self.gpu_hours,
        }


def _whole(stages: Sequence[Counted], gpu: Gpu, gpus: int, options: Options) -> Whole:
    return Whole([share(stage, gpu, gpus, options) for stage in stages])


class Planned:
    """On one kind of GPU: everything."""

    def __init__(self, command: PlanCommand, recipe: Recipe, name: str):
        self.command, self.name, self.gpu = command, name, command.named(name)
        self.stages = [Counted(for_gpu(stage, self.gpu)) for stage in stages_of(recipe)]
        self.whole = _whole(self.stages, self.gpu, command.gpus, command.options)

    def lines(self) -> Iterator[str]:
        """What takes longest to count comes last."""
        command, last, found, options = self.command, self.stages[-1], self.whole.last, self.command.options
        yield from _head(last, found, self.name)
        yield ""
        yield from _memory(last, found, self.gpu, options)
        yield from _time(command, last, self.whole, self.gpu)
        yield from _checkpoints(last, found, options)
        yield ""
        yield from _table(command, _rows(self.stages, self.gpu, options))
        yield ""
        yield from _levels(last, found, self.gpu, options)
        yield from _notes(last.recipe)

    def record(self) -> dict[str, Any]:
        last, found, options = self.stages[-1], self.whole.last, self.command.options
        writing = checkpointing(last, found.gpus, options)
        return {
            "recipe": last.recipe.name,
            "gpu": self.name,
            "measured": False,
            "precision": last.recipe.train.precision,
            **self.whole.record(self.command),
            "checkpoint": {"bytes": last.footprint.kept, "lost": writing.lost, **writing._asdict()},
            "table": [
                {"gpus": count, "why": row} if isinstance(row, str) else row.record(self.command)
                for count, row in _rows(self.stages, self.gpu, options)
            ],
            "levels": [
                {
                    "checkpoint_blocks": level,
                    "attention": form,
                    **dict(zip(("bytes_per_image", "most_images"), each, strict=True)),
                }
                for level in _levels_of(last)
                for form in FORMS
                for each in [_each(last, found, room_of(self.gpu, options), level, form)]
            ],
        }


def _rows(stages: Sequence[Counted], gpu: Gpu, options: Options) -> Iterator[tuple[int, Whole | str]]:
    """For 1 to 1,024 GPUs; a text where it cannot be."""
    for count in COUNTS:
        # Of what was asked for, what there is for so many.
        asked = options._replace(parallel="auto", shard=None) if options.parallel == "none" else options
        if options.parallel == "hsdp" and options.shard and count % options.shard:
            yield count, f"not groups of {options.shard}"
            continue
        try:
            yield count, _whole(stages, gpu, count, asked)
        except DoesNotFit:
            yield count, "does not fit"


def _head(last: Counted, found: Share, name: str) -> Iterator[str]:
    config = last.recipe.train
    gpus = f"{found.gpus:,} {name}" if found.gpus > 1 else f"one {name}"
    yield f"{last.recipe.name} on {gpus}: {config.images:,} images in batches of {last.batch:,}, {config.precision}"
    yield "Computed, and not measured on a GPU: from its maker's figures and the assumptions below."
    if found.idle:
        yield (
            f"{found.idle:,} of the GPUs have nothing to do, as a batch has {found.batch:,} images: give "
            f"{typed('`train.batch`')} {found.gpus} or fewer GPUs"
        )


def _memory(last: Counted, found: Share, gpu: Gpu, options: Options) -> Iterator[str]:
    images = f"{found.per_pass:,} image{'s' * (found.per_pass > 1)} in "
    images += f"each of {found.passes:,} passes" if found.passes > 1 else "one pass"
    yield f"shared            {SHARED[found.parallel]}; {images} on each"
    yield (
        f"memory of a GPU   {found.memory.total / GB:,.1f} GB of {room_of(gpu, options) / GB:,.1f} "
        f"(its {gpu.memory / GB:,.1f} less {options.headroom:.0%})"
    )
    parts = {"optimizer": last.recipe.train.optimizer.partition(":")[0], "auxiliary": "terms of the loss", "gathered": "gathered weights"}
    kept = {parts.get(part, part): size for part, size in found.memory._asdict().items() if size}
    yield "                  " + ", ".join(f"{part} {size / GB:,.2f}" for part, size in kept.items())
    if found.level != last.recipe.train.checkpoint_blocks:
        yield typed(f"                  which takes `train.checkpoint_blocks` {found.level}")


def _levels(last: Counted, found: Share, gpu: Gpu, options: Options) -> Iterator[str]:
    """Memory of activations and what fits for each way of keeping them."""
    yield f"{'':22s}{'attention fused, as on a GPU':>30s}{'attention written out':>30s}"
    per = f"{'GB an image':>14s}{'most images':>16s}"
    yield f"{'blocks computed again':22s}{per}{per}"
    for level in _levels_of(last):
        cells = [_each(last, found, room_of(gpu, options), level, form) for form in FORMS]
        here = "  as planned" if level == found.level else ""
        yield f"{_words(level):22s}{''.join(f'{size / GB:14.3f}{most:16,d}' for size, most in cells)}{here}"
    yield "  the most images of a pass that fit beside all else"


def _levels_of(last: Counted) -> list[int]:
    """All that can be planned; none comes first."""
    return list(dict.fromkeys((0, *last.levels)))


def _words(level: int) -> str:
    """Which blocks are computed again."""
    return {0: "none", 1: "all", 2: "every second"}.get(level, f"one of {level}")


def _each(
    last: Counted, found: Share, room: int, level: int, form: Literal["fused", "written"]
) -> tuple[int, int]:
    """Bytes of one further image, and the most images that fit."""
    step = last.passes(level, form)
    most = most_images(last.footprint, step, room, found.parallel, found.shard)
    at = max(most, 1)
    return step.activations(at + 1) - step.activations(at), most


SHARED = {
    "none": "all on one GPU",
    "ddp": "ddp, a whole copy on each GPU",
    "fsdp": "fsdp, one copy over all GPUs",
    "hsdp": "hsdp, one copy over each group of GPUs",
}


def _time(command: PlanCommand, last: Counted, whole: Whole, gpu: Gpu) -> Iterator[str]:
    found, config = whole.last, last.recipe.train
    names = {"all_reduce": "all-reduce", "all_gather": "all-gather", "reduce_scatter": "reduce-scatter"}
    moved = [f"{names[name]} {size / GB:,.2f}" for name, size in found.moved._asdict().items() if size]
    if moved:
        speeds = [gpu.between(found.shard)] if found.shard > 1 else []
        speeds += [gpu.between(found.gpus // found.shard, found.shard)] if found.moved.all_reduce else []
        at = " and ".join(f"{speed / GB:,.0f}" for speed in dict.fromkeys(speeds))
        yield f"sent by each GPU  {found.moved.total / GB:,.2f} GB a step ({', '.join(moved)}) at {at} GB/s"
    parts = [f"computing {found.computing * 1e3:,.0f}"]
    parts += [f"sending meanwhile {found.moving * 1e3:,.0f}"] if moved else []
    parts += [f"updating the weights {found.updating * 1e3:,.0f}"] if found.updating else []
    yield f"a step            {found.step * 1e3:,.0f} ms: {', '.join(parts)}; {found.steps:,} steps"
    if command.images_per_second:
        why = f"with {command.images_per_second:,g} of a GPU, as you measured"
    else:
        peak = speed_of(gpu, config.precision) / 1e12
        why = f"if {command.utilisation:.0%} of a GPU's {peak:,.0f} TFLOP/s are reached (nothing public is above 25%)"
    yield f"images/s          {found.images_per_second:,.0f}, {why}"
    price = command.price_per_gpu_hour
    cost = "" if price is None else f", for {price * whole.gpu_hours:,.0f} at {price:,.2f} a GPU-hour"
    stages = f" in {len(whole.stages)} stages" if len(whole.stages) > 1 else ""
    yield f"to the end        {_long(whole.seconds)}{stages}: {whole.gpu_hours:,.0f} GPU-hours{cost}"
    if config.precision == "fp32" and gpu.bf16:
        times = gpu.bf16 / speed_of(gpu, "fp32")
        yield f"                  in float32; {typed('`train.precision`')} bf16 has {times:.0f} times the peak"


def _checkpoints(last: Counted, found: Share, options: Options) -> Iterator[str]:
    advised = checkpointing(last, found.gpus, options)
    images, every = advised.interval * found.images_per_second, last.recipe.train.checkpoint_images
    yield (
        f"a checkpoint      {last.footprint.kept / GB:,.2f} GB, written in {_long(advised.write)} at "
        f"{options.write_speed / GB:g} GB/s"
    )
    yield (
        f"                  best every {_long(advised.interval)}, or {images:,.0f} images, as one of the GPUs fails every "
        f"{_long(advised.failures)}"
    )
    yield (
        f"                  ({options.lifetime / HOUR:,.0f} hours each); {advised.lost:.1%} of the time is lost then. The recipe "
        f"writes every {every:,},"
    )
    yield f"                  {_long(every / found.images_per_second)}"


def _table(command: PlanCommand, rows: Iterable[tuple[int, Whole | str]]) -> Iterator[str]:
    price = command.price_per_gpu_hour
    yield (
        f"{'GPUs':>6s}  {'shared':6s}{'images':>8s}{'passes':>8s}{'GB':>8s}{'sent, GB':>10s}{'ms':>8s}{'images/s':>11s}"
        f"{'days':>10s}{'GPU-hours':>12s}" + (f"{'price':>14s}" if price else "")
    )
    for count, found in rows:
        if isinstance(found, str):
            yield f"{count:6,d}  {found}"
            continue
        last = found.last
        yield (
            f"{count:6,d}  {last.parallel:6s}{last.per_pass:8,d}{last.passes:8,d}{last.memory.total / GB:8.1f}"
            f"{last.moved.total / GB:10.2f}{last.moving * 1e3:8,.0f}{last.images_per_second:11,.0f}"
            f"{found.seconds / DAY:10,.1f}{found.gpu_hours:12,.0f}"
            + (f"{price * found.gpu_hours:14,.0f}" if price else "")
            + _again(last)
            + (f"  {last.idle:,} idle" if last.idle else "")
        )
    yield "  images of each pass on a GPU; GB of its memory; GB and ms that it sends in a step"


def _again(found: Share) -> str:
    """What a row says of blocks that are computed again."""
    return f"  {_words(found.level)} of the blocks again" if found.level else ""


def _notes(recipe: Recipe) -> Iterator[str]:
    if recipe.codec.cached:
        yield "  from latents that were encoded before (`ditkit encode`), not from images"
    if recipe.text:
        yield "  the texts' embeddings are made before, and read"
    if recipe.train.tokens is not None:
        yield f"  as if every image were {' x '.join(map(str, recipe.data.shape))}, the largest"


class Compared:
    """On every kind of GPU."""

    def __init__(self, command: PlanCommand, recipe: Recipe):
        self.command, self.recipe = command, recipe

    def _found(self) -> Iterator[tuple[str, Gpu, str, Whole | str]]:
        """Each one's name, itself, the precision there, and what was found, or why there is nothing."""
        made: dict[str, list[Counted]] = {}
        for name in GPUS:
            gpu = self.command.named(name)
            try:
                stages = [for_gpu(stage, gpu) for stage in stages_of(self.recipe)]
                precision = stages[-1].train.precision
                if precision not in made:
                    made[precision] = [Counted(stage) for stage in stages]
                yield name, gpu, precision, _whole(made[precision], gpu, self.command.gpus, self.command.options)
            except DoesNotFit as error:
                yield name, gpu, precision, str(error)
            except NotThere as error:
                yield name, gpu, "", str(error)

    def lines(self) -> Iterator[str]:
        price = self.command.price_per_gpu_hour
        yield f"{self.recipe.name} on {self.command.gpus:,} GPUs of each kind; --gpu NAME says more of one"
        yield "Computed, and not measured on a GPU: from its maker's figures and an assumed utilisation."
        yield ""
        yield (
            f"{'':10s}{'GB':>5s}{'TFLOP/s':>9s}       {'shared':8s}{'images':>7s}{'passes':>8s}{'images/s':>10s}"
            f"{'days':>10s}{'GPU-hours':>12s}" + (f"{'price':>14s}" if price else "")
        )
        for name, gpu, precision, found in self._found():
            start = f"{name:10s}{gpu.memory / GB:5.0f}"
            if isinstance(found, str):
                yield f"{start}  {found}"
                continue
            last = found.last
            yield (
                f"{start}{speed_of(gpu, precision) / 1e12:9,.0f}  {precision}  {last.parallel:8s}"
                f"{last.per_pass:6,d}{last.passes:8,d}{last.images_per_second:10,.0f}{found.seconds / DAY:10,.1f}"
                f"{found.gpu_hours:12,.0f}"
                + (f"{price * found.gpu_hours:14,.0f}" if price else "")
                + _again(last)
            )
        yield "  TFLOP/s is the peak in the recipe's precision; images of each pass on a GPU"
        if self.recipe.train.precision == "fp32":
            yield typed("  in float32; products of bf16 are several times as fast on most: `train.precision` bf16")
        yield from _notes(self.recipe)

    def record(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.name,
            "measured": False,
            "table": [
                {"gpu": name, "precision": precision}
                | ({"why": found} if isinstance(found, str) else found.record(self.command))
                for name, _, precision, found in self._found()
            ],
        }


def _long(seconds: float) -> str:
    """A time in the unit that suits it."""
    for name, size in (("days", DAY), ("hours", HOUR), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:,.0f} seconds"
