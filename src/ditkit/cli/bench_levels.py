"""`ditkit bench --levels RECIPE`: what each resolution of a nested network adds, in time and memory."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ditkit.backbones import Backbone, MatryoshkaConfig, compile_blocks
from ditkit.benchmarks.latents import CPU
from ditkit.benchmarks.memory import check_memory_known, measure_step
from ditkit.benchmarks.ours import ditkit_sampled, training_step
from ditkit.cli.measured import MeasuredCommand, machine, threads, write
from ditkit.cli.parsing import parse
from ditkit.conditions import conditions
from ditkit.costs import recipe_cost
from ditkit.data import Batch
from ditkit.device import autocast
from ditkit.errors import InputError
from ditkit.progress import progress_bar
from ditkit.recipe import Recipe
from ditkit.recipes import recipe as named_recipe
from ditkit.scoring import software
from ditkit.text import Text
from ditkit.timing import Contender

EVALUATION, STEP = "evaluation", "training step"
MB = 1e6


class LevelsBenchCommand(MeasuredCommand):
    """Time an evaluation and a training step of a recipe's lowest level, its lowest two, ..., and of the network
    inside on the highest resolution by itself, in turn; and measure the memory of the steps.

    Images, labels and texts are made up. Memory is the peak of the resident set above its size before the network
    was built, in a process of its own, on one thread, eager. Leave the machine alone meanwhile.
    """

    levels: str
    """A recipe of several resolutions, as in `ditkit list recipes`."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Images at once."""


def run(argv: list[str]) -> None:
    command = parse(LevelsBenchCommand, argv, "bench")
    networks = contenders_of(named_recipe(command.levels), command.batch)
    command.check()
    check_memory_known()
    rows: dict[str, dict] = {name: _facts(recipe) for name, recipe in networks.items()}
    with threads(command.threads):
        for task, build in ((EVALUATION, evaluation_of), (STEP, step_of)):
            contenders = [
                Contender(task, name, _called(build, recipe, command.compile))
                for name, recipe in networks.items()
            ]
            command.measure(contenders, task)
            for contender in contenders:
                rows[contender.name] |= _times(task, contender, contenders[0])
        where = machine()
    with progress_bar(len(networks), "memory", "network") as bar:
        for name, recipe in networks.items():
            rows[name]["memory"] = measure_step(partial(step_of, recipe), 1).memory
            bar.update()
    record = {
        "machine": where,
        "software": software(),
        "recipe": command.levels,
        "batch": command.batch,
        "rounds": command.rounds,
        "compiled": command.compile,
        "rows": rows,
    }
    print("\n".join(_report(record)))
    write(record, command.out)


def contenders_of(whole: Recipe, batch: int) -> dict[str, Recipe]:
    """The recipe's lowest level, its lowest two, ..., then the network inside on the highest resolution by itself.
    InputError for a recipe of one resolution, or whose classes are not known."""
    if not isinstance(whole.backbone, MatryoshkaConfig):
        raise InputError(
            f"--levels {whole.name}: a recipe of one resolution; `ditkit bench --backbones` is for those"
        )
    if whole.data.classes is None:
        raise InputError(
            f"--levels {whole.name}: its classes are not known before its data is there; take another"
        )
    inner = whole.backbone.inner
    whole = whole.replace(train={"batch": batch, "level_share": (), "stages": ()})
    found = {}
    for count in range(1, len(whole.backbone.ratios) + 1):
        part = whole.lowest(count)
        lowest = whole.lowest(1).data.size
        found[f"{lowest} to {part.data.size} pixels" if count > 1 else f"{lowest} pixels"] = part
    found[f"{whole.data.size} pixels alone"] = whole.with_backbone(inner)
    return found


def step_of(recipe: Recipe) -> tuple[Backbone, Callable[[], object]]:
    """A recipe's network and its training step, on made-up images."""
    net = recipe.build_backbone().train()
    return net, training_step(recipe, net, recipe.build_codec(), _batch(recipe), partial(_read, recipe))


def evaluation_of(recipe: Recipe) -> tuple[Backbone, Callable[[], object]]:
    """A recipe's network in the form it samples in, and its evaluation, unguided."""
    net = ditkit_sampled(recipe, recipe.build_backbone().eval().requires_grad_(False))
    batch, codec = _batch(recipe), recipe.build_codec()
    x = torch.randn(len(batch.index), *codec.layout(*recipe.data.shape).shape)
    t = torch.full((len(x),), 0.5, dtype=torch.float64)
    read = partial(_read, recipe) if recipe.text else None
    cond = conditions(batch.label, batch.caption, read)

    @torch.no_grad()
    def evaluate() -> Tensor:
        with autocast(CPU, recipe.train.precision):
            return net(x, t, cond)

    return net, evaluate


def _called(
    build: Callable[[Recipe], tuple[Backbone, Callable[[], object]]], recipe: Recipe, compiled: bool
) -> Callable[[], object]:
    net, call = build(recipe)
    if compiled:
        compile_blocks(net)
    return call


def _batch(recipe: Recipe) -> Batch:
    """Images, labels and captions as many as a batch has."""
    count, data = recipe.train.batch, recipe.data
    stream = torch.Generator().manual_seed(0)
    size = (count, data.channels, data.size, data.size)
    images = torch.randint(256, size, dtype=torch.uint8, generator=stream)
    labels = torch.randint(data.classes, (count,), generator=stream) if data.classes else None
    return Batch(images, labels, torch.arange(count), ("",) * count if recipe.text else None)


def _read(recipe: Recipe, prompts: Sequence[str]) -> Text:
    """Embeddings that are made up, every token there."""
    assert recipe.text is not None
    stream = torch.Generator().manual_seed(0)
    shape = (len(prompts), recipe.text.length, recipe.text.dim)
    return Text(
        torch.randn(shape, generator=stream),
        torch.ones(shape[:2], dtype=torch.bool),
        torch.randn(shape[0], shape[2], generator=stream),
    )


def _facts(recipe: Recipe) -> dict:
    cost = recipe_cost(recipe, fused=True)
    memory = recipe_cost(recipe).memory(recipe.train.batch, recipe.train.precision)
    return {"parameters": cost.params, "macs": cost.macs, "memory_predicted": memory.resident}


def _times(task: str, contender: Contender, lowest: Contender) -> dict:
    """Milliseconds of a call, and how many times the lowest level's."""
    ratio = median(mine / theirs for mine, theirs in zip(contender.times, lowest.times, strict=True))
    times = [1000 * seconds for seconds in contender.times]
    return {task: {"ms": 1000 * contender.median, "ratio": ratio, "times_ms": times}}


def _report(record: dict) -> Iterator[str]:
    batch = record["batch"]
    yield (
        f"{'':24s}{'parameters':>14s}{'GMACs/image':>13s}{'evaluation, ms/image':>23s}{'step, ms/image':>21s}"
        f"{'memory of a step, MB':>24s}"
    )
    for name, row in record["rows"].items():
        times = "".join(
            f"{row[task]['ms'] / batch:>{wide}.2f} ({row[task]['ratio']:5.2f})"
            for task, wide in ((EVALUATION, 15), (STEP, 13))
        )
        memory = f"{row['memory'] / MB:,.0f} ({row['memory_predicted'] / MB:,.0f})"
        yield f"{name:24s}{row['parameters']:14,d}{row['macs'] / 1e9:13.3f}{times}{memory:>24s}"
    yield "(times the lowest level's, medians of the rounds' ratios; memory as `ditkit info` predicts it)"
    there, versions = record["machine"], record["software"]
    yield (
        f"{record['recipe']}, batch {batch}, {'compiled' if record['compiled'] else 'eager'}; {there['cpu']}, "
        f"{there['threads']} threads, torch {versions['torch']}, ditkit {versions.get('commit', versions['ditkit'])}"
    )
