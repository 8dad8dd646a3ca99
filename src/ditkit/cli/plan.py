"""`ditkit plan RECIPE`: what training it on so many GPUs takes, before one is rented."""

import json
from collections.abc import Iterator, Sequence
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
from ditkit.errors import InputError
from ditkit.recipe import Recipe
from ditkit.training.planning import (
    DAY,
    FORMS,
    HOUR,
    LEVELS,
    Counted,
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
    if command.gpu is None:
        found = _compared(command, recipe)
    else:
        found = _planned(command, recipe, command.gpu)
    if command.as_json:
        print(json.dumps(found.record, indent=1))
        return
    for line in found.lines:
        print(line)


class Found(NamedTuple):
    record: Any
    lines: Sequence[str]


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


def _planned(command: PlanCommand, recipe: Recipe, name: str) -> Found:
    """On one kind of GPU: everything."""
    gpu, options = command.named(name), command.options
    stages = [Counted(for_gpu(stage, gpu)) for stage in stages_of(recipe)]
    whole = _whole(stages, gpu, command.gpus, options)
    rows = list(_rows(stages, gpu, options))
    lines = [
        *_head(command, stages[-1], whole.last, name),
        "",
        *_memory(stages[-1], whole.last, gpu, options),
        "",
        *_time(command, stages[-1], whole, gpu),
        "",
        *_checkpoints(stages[-1], whole.last, options),
        "",
        *_table(command, rows),
        *_notes(stages[-1].recipe),
    ]
    record = {"recipe": recipe.name, "gpu": name, "precision": stages[-1].recipe.train.precision}
    record |= whole.record(command) | {
        "checkpoint": {"bytes": stages[-1].footprint.kept}
        | checkpointing(stages[-1], command.gpus, options)._asdict(),
        "table": [{"gpus": n, "why": found} if isinstance(found, str) else found.record(command) for n, found in rows],
    }
    return Found(record, lines)


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
        except InputError:
            yield count, "does not fit"


def _head(command: PlanCommand, last: Counted, found: Share, name: str) -> Iterator[str]:
    config = last.recipe.train
    gpus = f"{found.gpus:,} {name}" if found.gpus > 1 else f"one {name}"
    yield f"{last.recipe.name} on {gpus}: {config.images:,} images in batches of {last.batch:,}, {config.precision}"
    yield "Computed for these GPUs, and compared with none: their makers' figures, and an assumed utilisation."
    if found.idle:
        yield (
            f"{found.idle:,} of the {found.gpus:,} GPUs have nothing to do: a batch has {found.batch:,} images; give "
            f"{typed('`train.batch`')} {found.gpus} or more, or fewer GPUs"
        )


def _memory(last: Counted, found: Share, gpu: Gpu, options: Options) -> Iterator[str]:
    room = room_of(gpu, options)
    used = f"{found.per_pass} image{'s' * (found.per_pass > 1)} in each of {found.passes} passes"
    yield (
        f"memory of a GPU    {found.memory.total / GB:,.2f} GB of {room / GB:,.1f} "
        f"({gpu.memory / GB:,.1f} less {options.headroom:.0%}), {SHARED[found.parallel]}, "
        + (used if found.passes > 1 else used.partition(" in ")[0] + " in one pass")
    )
    parts = {"optimizer": "optimiser", "auxiliary": "terms of the loss", "gathered": "gathered weights"}
    kept = {parts.get(part, part): size for part, size in found.memory._asdict().items() if size}
    yield "  " + ", ".join(f"{part} {size / GB:,.2f}" for part, size in kept.items())
    yield ""
    yield f"  {'':20s}{'attention fused, as on a GPU':>34s}{'attention written out':>34s}"
    per = f"{'GB an image':>14s}{'most images':>20s}"
    yield f"  {'blocks recomputed':20s}{per}{per}"
    for level, words in LEVELS.items():
        cells = [_cell(last, found, room, level, form) for form in FORMS]
        here = "  <- planned" if level == found.level else ""
        yield f"  {words:20s}{''.join(cells)}{here}"


def _cell(last: Counted, found: Share, room: int, level: int, form: Literal["fused", "written"]) -> str:
    step = last.passes(level, form)
    most = most_images(last.footprint, step, room, found.parallel, found.shard)
    at = max(most, 1)
    return f"{(step.activations(at + 1) - step.activations(at)) / GB:14.3f}{most or 'none':>20}"


SHARED = {
    "none": "everything on one GPU",
    "ddp": "a whole copy on each (ddp)",
    "fsdp": "one copy shared by all (fsdp)",
    "hsdp": "one copy shared by each group (hsdp)",
}


def _time(command: PlanCommand, last: Counted, whole: Whole, gpu: Gpu) -> Iterator[str]:
    found, config = whole.last, last.recipe.train
    names = {"all_reduce": "all-reduce", "all_gather": "all-gather", "reduce_scatter": "reduce-scatter"}
    moved = [f"{names[name]} {size / GB:,.2f}" for name, size in found.moved._asdict().items() if size]
    if moved:
        speeds = dict.fromkeys((gpu.between(found.shard), gpu.between(found.gpus)))
        if found.parallel in ("ddp", "fsdp"):
            speeds = dict.fromkeys((gpu.between(found.gpus),))
        at = " and ".join(f"{speed / GB:g}" for speed in speeds)
        yield f"sent by each GPU   {found.moved.total / GB:,.2f} GB a step ({', '.join(moved)}), {found.moving * 1e3:,.0f} ms at {at} GB/s"
    yield (
        f"a step             {found.step * 1e3:,.0f} ms: {found.computing * 1e3:,.0f} computing"
        + (f" (or {found.moving * 1e3:,.0f} sending, which goes on beside it)" if moved else "")
        + (f", {found.updating * 1e3:,.0f} updating weights" if found.updating else "")
    )
    if command.images_per_second:
        why = f"at {command.images_per_second:,g} a GPU, as you measured"
    else:
        peak = speed_of(gpu, config.precision)
        why = f"assuming {command.utilisation:.0%} of {peak / 1e12:,.0f} TFLOP/s"
    yield f"images/s           {found.images_per_second:,.0f}, {why}"
    price = command.price_per_gpu_hour
    cost = "" if price is None else f", price {price * whole.gpu_hours:,.0f} at {price:g} a GPU-hour"
    stages = f" of {len(whole.stages)} stages" if len(whole.stages) > 1 else ""
    yield f"to the end         {_long(whole.seconds)}{stages}, {whole.gpu_hours:,.0f} GPU-hours{cost}"
    if config.precision == "fp32" and gpu.bf16:
        yield (
            f"                   float32 products: {typed('`train.precision`')} bf16 has "
            f"{gpu.bf16 / speed_of(gpu, 'fp32'):.0f} times the peak"
        )


def _checkpoints(last: Counted, found: Share, options: Options) -> Iterator[str]:
    advised = checkpointing(last, found.gpus, options)
    images = advised.interval * found.images_per_second
    every = last.recipe.train.checkpoint_images
    yield (
        f"a checkpoint       {last.footprint.kept / GB:,.2f} GB, {advised.write:,.0f} s to write at "
        f"{options.write_speed / GB:g} GB/s"
    )
    yield (
        f"  write one every  {_long(advised.interval)}, {images:,.0f} images (the recipe: every {every:,}, "
        f"{_long(every / found.images_per_second)}); {advised.lost:.1%} of the time is lost"
    )
    yield (
        f"  as a GPU fails every {options.lifetime / HOUR:,.0f} hours, one of {found.gpus:,} every "
        f"{_long(advised.failures)}"
    )


def _table(command: PlanCommand, rows: Sequence[tuple[int, Whole | str]]) -> Iterator[str]:
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
            + RECOMPUTED[last.level]
            + (f"  {last.idle:,} idle" if last.idle else "")
        )
    yield "  images of each pass on a GPU; GB of its memory; GB and ms that it sends in a step"


RECOMPUTED = {0: "", 2: "  half recomputed", 1: "  recomputed"}


def _notes(recipe: Recipe) -> Iterator[str]:
    if recipe.codec.cached:
        yield "  from latents that were encoded before (`ditkit encode`), not from images"
    if recipe.text:
        yield "  the texts' embeddings are made before, and read"
    if recipe.train.tokens is not None:
        yield f"  as if every image were {' x '.join(map(str, recipe.data.shape))}, the largest"


def _compared(command: PlanCommand, recipe: Recipe) -> Found:
    """On every kind of GPU."""
    made: dict[str, list[Counted]] = {}
    records, lines = [], []
    price = "" if command.price_per_gpu_hour is None else f"{'price':>14s}"
    lines.append(
        f"{recipe.name} on {command.gpus:,} GPUs: computed, compared with none of them; --gpu NAME says more"
    )
    lines.append(
        f"{'':10s}{'GB':>6s}{'TFLOP/s':>9s}  {'':6s}{'shared':8s}{'images':>7s}{'passes':>8s}{'images/s':>11s}{'days':>10s}"
        f"{'GPU-hours':>12s}{price}"
    )
    for name in GPUS:
        gpu = command.named(name)
        try:
            chosen = [for_gpu(stage, gpu) for stage in stages_of(recipe)]
            precision = chosen[-1].train.precision
            if precision not in made:
                made[precision] = [Counted(stage) for stage in chosen]
            whole = _whole(made[precision], gpu, command.gpus, command.options)
        except InputError as error:
            lines.append(f"{name:10s}{gpu.memory / GB:6.0f}           does not fit" if made else str(error))
            records.append({"gpu": name, "why": str(error)})
            continue
        last = whole.last
        cost = "" if command.price_per_gpu_hour is None else f"{command.price_per_gpu_hour * whole.gpu_hours:14,.0f}"
        lines.append(
            f"{name:10s}{gpu.memory / GB:6.0f}{speed_of(gpu, precision) / 1e12:9,.0f}  {precision:6s}{last.parallel:8s}"
            f"{last.per_pass:7,d}{last.passes:8,d}{last.images_per_second:11,.0f}{whole.seconds / DAY:10,.1f}"
            f"{whole.gpu_hours:12,.0f}{cost}{RECOMPUTED[last.level]}"
        )
        records.append({"gpu": name, "precision": precision} | whole.record(command))
    lines += _notes(recipe)
    return Found({"recipe": recipe.name, "table": records}, lines)


def _long(seconds: float) -> str:
    """A time in the unit that suits it."""
    for name, size in (("days", DAY), ("hours", HOUR), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:,.0f} seconds"
