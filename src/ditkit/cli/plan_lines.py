"""The lines of `ditkit plan`."""

from collections.abc import Iterator, Sequence
from typing import Literal

from ditkit.cli.verbs import typed
from ditkit.costs.gpus import Gpu
from ditkit.costs.plan import most_images
from ditkit.recipe import Recipe
from ditkit.training.planning import (
    DAY,
    FORMS,
    HOUR,
    Counted,
    Options,
    Share,
    Whole,
    checkpointing,
    room_of,
)

GB = 1e9
SHORT = 0.03
"""Seconds of a step in which thousands of kernels cannot be started one by one, at some microseconds each."""


def head_lines(last: Counted, found: Share, name: str) -> Iterator[str]:
    config = last.recipe.train
    gpus = f"{found.gpus:,} {name}" if found.gpus > 1 else f"one {name}"
    yield f"{last.recipe.name} on {gpus}: {config.images:,} images in batches of {last.batch:,}, {config.precision}"
    yield "Computed, and not measured on a GPU: from its maker's figures and the assumptions below."
    if found.idle:
        yield (
            f"{found.idle:,} of the GPUs have nothing to do, as a batch has {found.batch:,} images: give "
            f"{typed('`train.batch`')} {found.gpus} or fewer GPUs"
        )


def memory_lines(last: Counted, found: Share, gpu: Gpu, options: Options) -> Iterator[str]:
    images = f"{found.per_pass:,} image{'s' * (found.per_pass > 1)} in "
    images += f"each of {found.passes:,} passes" if found.passes > 1 else "one pass"
    yield f"shared            {SHARED[found.parallel]}; {images}{' on each' if found.gpus > 1 else ''}"
    yield (
        f"memory of a GPU   {number(found.memory.total / GB)} GB of {room_of(gpu, options) / GB:,.1f} "
        f"(its {gpu.memory / GB:,.1f} less {options.headroom:.0%})"
    )
    parts = {
        "optimizer": last.recipe.train.optimizer.partition(":")[0],
        "auxiliary": "terms of the loss",
        "gathered": "gathered weights",
    }
    kept = {parts.get(part, part): size for part, size in found.memory._asdict().items() if size}
    yield "                  " + ", ".join(f"{part} {size / GB:,.2f}" for part, size in kept.items())
    if found.level != last.recipe.train.checkpoint_blocks:
        yield typed(f"                  which takes `train.checkpoint_blocks` {found.level}")


def level_lines(last: Counted, found: Share, gpu: Gpu, options: Options) -> Iterator[str]:
    """Memory of activations and what fits for each way of keeping them."""
    yield f"{'':22s}{'attention fused, as on a GPU':>30s}{'attention written out':>30s}"
    per = f"{'GB an image':>14s}{'most images':>16s}"
    yield f"{'blocks computed again':22s}{per}{per}"
    for level in last.levels:
        cells = [each_image(last, found, room_of(gpu, options), level, form) for form in FORMS]
        here = "  as planned" if level == found.level else ""
        yield f"{words_of(level):22s}{''.join(f'{size / GB:14.3f}{most:16,d}' for size, most in cells)}{here}"
    yield "  the most images of a pass that fit beside all else"


def words_of(level: int) -> str:
    """Which blocks are computed again."""
    return {0: "none", 1: "all", 2: "every second"}.get(level, f"one of {level}")


def each_image(
    last: Counted, found: Share, room: int, level: int, form: Literal["fused", "written"]
) -> tuple[int, int]:
    """Bytes of one further image, and the most images that fit."""
    step = last.passes(level, form, sharded=found.shard > 1)
    most = most_images(last.footprint, step, room, found.parallel, found.shard, found.passes, last.bf16)
    at = max(most, 1)
    return step.activations(at + 1) - step.activations(at), most


SHARED = {
    "none": "all on one GPU",
    "ddp": "ddp, a whole copy on each GPU",
    "fsdp": "fsdp, one copy over all GPUs",
    "hsdp": "hsdp, one copy over each group of GPUs",
}


def time_lines(last: Counted, whole: Whole, gpu: Gpu, options: Options, price: float | None) -> Iterator[str]:
    """What travels, a step, speed, and what the whole takes."""
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
    if options.images_per_second:
        why = f"with {options.images_per_second:,g} of a GPU, as you measured"
    else:
        peak = gpu.products(config.precision) / 1e12
        why = f"if {options.utilisation:.0%} of a GPU's {peak:,.0f} TFLOP/s are reached (nothing public is above 25%)"
    yield f"images/s          {found.images_per_second:,.0f}, {why}"
    cost = "" if price is None else f", for {number(price * whole.gpu_hours)} at {price:,.2f} a GPU-hour"
    stages = f" in {len(whole.stages)} stages" if len(whole.stages) > 1 else ""
    yield f"to the end        {lasting(whole.seconds)}{stages}: {number(whole.gpu_hours)} GPU-hours{cost}"
    if config.precision == "fp32" and gpu.bf16:
        times = gpu.bf16 / gpu.products("fp32")
        yield f"                  in float32; {typed('`train.precision`')} bf16 has {times:.0f} times the peak"


def checkpoint_lines(last: Counted, found: Share, options: Options) -> Iterator[str]:
    advised = checkpointing(last, found.gpus, options)
    images, every = advised.interval * found.images_per_second, last.recipe.train.checkpoint_images
    failing = f"one of the {found.gpus:,} GPUs" if found.gpus > 1 else "the GPU"
    yield (
        f"a checkpoint      {last.footprint.kept / GB:,.2f} GB, written in {lasting(advised.write)} at "
        f"{options.write_speed / GB:g} GB/s"
    )
    yield (
        f"                  best every {lasting(advised.interval)} or {images:,.0f} images, losing {advised.lost:.2%} of the time; "
        f"the recipe's {every:,} are {lasting(every / found.images_per_second)}"
    )
    yield (
        f"                  {failing} fails every {lasting(advised.failures)}, if each does every "
        f"{options.lifetime / HOUR:,.0f} hours"
    )
    if count := last.stored_files:
        yield f"averages stored   {count:,} files of {last.stored / GB:,.2f} GB, {count * last.stored / GB:,.1f} GB at the end"


def table_lines(rows: Sequence[tuple[int, Whole | str]], price: float | None) -> Iterator[str]:
    """A row for each number of GPUs."""
    again = any(found.last.level for _, found in rows if not isinstance(found, str))
    yield (
        f"{'GPUs':>6s}  {'shared':6s}{'images':>8s}{'passes':>8s}"
        + (f"{'again':>14s}" if again else "")
        + f"{'GB':>8s}{'sent, GB':>10s}{'ms':>8s}{'images/s':>11s}{'days':>9s}{'GPU-hours':>11s}"
        + (f"{'price':>11s}" if price else "")
    )
    for count, found in rows:
        if isinstance(found, str):
            yield f"{count:6,d}  {found}"
            continue
        last = found.last
        yield (
            f"{count:6,d}  {last.parallel:6s}{last.per_pass:8,d}{last.passes:8,d}"
            + (f"{words_of(last.level):>14s}" if again else "")
            + f"{last.memory.total / GB:8.1f}{last.moved.total / GB:10.2f}{last.moving * 1e3:8,.0f}"
            + f"{last.images_per_second:11,.0f}{number(found.seconds / DAY):>9s}{number(found.gpu_hours):>11s}"
            + (f"{number(price * found.gpu_hours):>11s}" if price else "")
            + (f"  {last.idle:,} idle" if last.idle else "")
        )
    yield "  images of each pass on a GPU" + (", blocks computed again in it" if again else "")
    yield "  GB of a GPU's memory; GB that it sends in a step, and for how many ms"
    if any(found.last.step < SHORT for _, found in rows if not isinstance(found, str)):
        yield f"  steps of less than {SHORT * 1e3:.0f} ms take longer: starting thousands of kernels, not computing, bounds them"


def notes(recipe: Recipe) -> Iterator[str]:
    if recipe.codec.cached:
        yield "  from latents that were encoded before (`ditkit encode`), not from images"
    if recipe.text:
        yield "  the texts' embeddings are made before, and read"
    if recipe.train.tokens is not None:
        yield f"  as if every image were {' x '.join(map(str, recipe.data.shape))}, the largest"


def lasting(seconds: float) -> str:
    """A time in the unit that suits it."""
    for name, size in (("years", 365 * DAY), ("days", DAY), ("hours", HOUR), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:,.0f} seconds"


def number(value: float) -> str:
    """With three digits or more."""
    return f"{value:,.{2 if value < 10 else 1 if value < 100 else 0}f}"
