"""`ditkit plan RECIPE`: what training it on so many GPUs takes, before one is rented."""

import json
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from ditkit.cli.info import counted, find
from ditkit.cli.kinds import switch_kinds
from ditkit.cli.parsing import parse
from ditkit.cli.plan_lines import (
    GB,
    checkpoint_lines,
    each_image,
    head_lines,
    level_lines,
    memory_lines,
    notes,
    number,
    table_lines,
    time_lines,
    words_of,
)
from ditkit.cli.shapes import Called
from ditkit.cli.verbs import typed
from ditkit.config import OneOf
from ditkit.costs.gpus import GPUS, Gpu
from ditkit.recipe import Recipe
from ditkit.training.planning import (
    DAY,
    FORMS,
    HOUR,
    Counted,
    DoesNotFit,
    NotThere,
    Options,
    Whole,
    checkpointing,
    for_gpu,
    room_of,
    stages_of,
    whole_of,
)

USAGE = """usage: ditkit plan RECIPE [--gpu h100] [--gpus 8] [--price-per-gpu-hour P] [--section.field value ...]
       ditkit plan RUN, a folder or the name of a bundled snapshot, with the flags of a recipe

What training a recipe takes on so many GPUs: memory, the images of one pass that fit, what travels between
GPUs, images per second, days, price, and how often to write a checkpoint; then a table from 1 to 1,024 GPUs.
Without --gpu, a table of the GPUs that it knows. Nothing is trained or read but what the recipe needs to be built.

Bytes and operations are counted in the recipe's own step, run without numbers. How well a GPU is used is an assumption:
25 % of its peak, the most that is published; --images-per-second takes what you measured on one of yours.
--train.parallel chooses how GPUs share the training: auto, ddp, fsdp or hsdp."""

COUNTS = tuple(2**k for k in range(11))


class PlanCommand(Recipe):
    """What training a recipe on so many GPUs takes. Every field of the recipe is a flag."""

    gpu: Annotated[str, OneOf(GPUS)] | None = None
    """Which; without it all are compared."""
    gpus: Annotated[int, Field(ge=1)] = 8
    """How many."""
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
            self.train.parallel,
            self.train.shard_size,
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
    found = Planned(command, recipe, command.gpu) if command.gpu else Compared(command, recipe)
    if command.as_json:
        print(json.dumps(found.record(), indent=1))
        return
    for line in found.lines():
        print(line, flush=True)  # the last ones take a while


def _record(found: Whole, price: float | None) -> dict[str, Any]:
    """As JSON."""
    last = found.last
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
        "days": found.seconds / DAY,
        "gpu_hours": found.gpu_hours,
        "price": None if price is None else price * found.gpu_hours,
    }


class Planned:
    """On one kind of GPU: everything."""

    def __init__(self, command: PlanCommand, recipe: Recipe, name: str):
        self.command, self.name, self.gpu = command, name, command.named(name)
        self.stages = [Counted(for_gpu(stage, self.gpu)) for stage in stages_of(recipe)]
        self.whole = whole_of(self.stages, self.gpu, command.gpus, command.options)

    def lines(self) -> Iterator[str]:
        """What takes longest to count comes last."""
        command, last, found, options = self.command, self.stages[-1], self.whole.last, self.command.options
        yield from head_lines(last, found, self.name)
        yield ""
        yield from memory_lines(last, found, self.gpu, options)
        yield from time_lines(last, self.whole, self.gpu, options, command.price_per_gpu_hour)
        yield from checkpoint_lines(last, found, options)
        yield ""
        yield from table_lines(list(_rows(self.stages, self.gpu, options)), command.price_per_gpu_hour)
        yield ""
        yield from level_lines(last, found, self.gpu, options)
        yield from notes(last.recipe)

    def record(self) -> dict[str, Any]:
        last, found, options = self.stages[-1], self.whole.last, self.command.options
        writing, price = checkpointing(last, found.gpus, options), self.command.price_per_gpu_hour
        return {
            "recipe": last.recipe.name,
            "gpu": self.name,
            "measured": False,
            "precision": last.recipe.train.precision,
            **_record(self.whole, price),
            "checkpoint": {"bytes": last.footprint.kept, "lost": writing.lost, **writing._asdict()},
            "stored_averages": {"bytes": last.stored, "files": last.stored_files},
            "table": [
                {"gpus": count, "why": row} if isinstance(row, str) else _record(row, price)
                for count, row in _rows(self.stages, self.gpu, options)
            ],
            "levels": [self._level(level, form) for level in last.levels for form in FORMS],
        }

    def _level(self, level: int, form: Literal["fused", "written"]) -> dict[str, Any]:
        room = room_of(self.gpu, self.command.options)
        size, most = each_image(self.stages[-1], self.whole.last, room, level, form)
        return {
            "checkpoint_blocks": level,
            "attention": form,
            "bytes_per_image": size,
            "most_images": most,
        }


def _rows(stages: Sequence[Counted], gpu: Gpu, options: Options) -> Iterator[tuple[int, Whole | str]]:
    """For 1 to 1,024 GPUs, of what was asked for what there is for so many; a text where there is nothing."""
    for count in COUNTS:
        asked = options
        if count == 1 or options.parallel == "none":
            asked = options._replace(parallel="auto", shard=None)
        elif options.parallel == "hsdp" and options.shard and count % options.shard:
            yield count, f"no groups of {options.shard}"
            continue
        try:
            yield count, whole_of(stages, gpu, count, asked)
        except DoesNotFit:
            yield count, "does not fit"


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
                whole = whole_of(made[precision], gpu, self.command.gpus, self.command.options)
                yield name, gpu, precision, whole
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
                yield f"{start}  {typed(found)}"
                continue
            last = found.last
            yield (
                f"{start}{gpu.products(precision) / 1e12:9,.0f}  {precision}  {last.parallel:8s}"
                f"{last.per_pass:6,d}{last.passes:8,d}{last.images_per_second:10,.0f}{number(found.seconds / DAY):>10s}"
                f"{number(found.gpu_hours):>12s}"
                + (f"{number(price * found.gpu_hours):>14s}" if price else "")
                + (f"  {words_of(last.level)} of the blocks again" if last.level else "")
            )
        yield "  TFLOP/s is the peak in the recipe's precision; images of each pass on a GPU"
        if self.recipe.train.precision == "fp32":
            yield typed(
                "  in float32; products of bf16 are several times as fast on most: `train.precision` bf16"
            )
        yield from notes(self.recipe)

    def record(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe.name,
            "measured": False,
            "table": [
                {"gpu": name, "precision": precision}
                | (
                    {"why": found}
                    if isinstance(found, str)
                    else _record(found, self.command.price_per_gpu_hour)
                )
                for name, _, precision, found in self._found()
            ],
        }
