"""`ditkit bench --sizes RECIPE`: what a training step costs a token where images have their own sizes.

Four ways, each a step on about as many tokens as the recipe's budget: the largest size alone; buckets, every size in
batches of its own; images of all sizes padded to the largest, which is a step on the largest and learns from the share of
its tokens that are not padding; and packed rows. The figure is tokens of images per second.
"""

from collections.abc import Iterator
from itertools import groupby
from statistics import median

import torch

from ditkit.backbones import compile_blocks
from ditkit.benchmarks.ours import training_step
from ditkit.cli.measured import MeasuredCommand, machine, threads, write
from ditkit.cli.parsing import parse
from ditkit.data import Batch, Plan, plan_for
from ditkit.data.buckets import written
from ditkit.errors import InputError
from ditkit.recipe import Recipe
from ditkit.recipes import recipe as named_recipe
from ditkit.scoring import software
from ditkit.timing import Contender

LARGEST, PACKED = "largest size", "packed rows"


class SizesBenchCommand(MeasuredCommand):
    """Time training steps of a recipe whose images have their own sizes: buckets, packed rows and padding, in turn.

    The sizes and how many images have them are the data's, the images are made up. Leave the machine alone meanwhile.
    """

    sizes: str
    """A recipe with data.aspect native whose data is at hand, such as anysize-fashion."""


def run(argv: list[str]) -> None:
    command = parse(SizesBenchCommand, argv, "bench")
    recipe = named_recipe(command.sizes)
    budget = recipe.train.tokens
    if recipe.data.aspect != "native" or budget is None:
        raise InputError(f"--sizes {command.sizes}: its images are all of one size; take anysize-fashion")
    command.check()
    source = recipe.data.open()
    recipe = recipe.replace(data={"classes": len(source.names)})
    plan = plan_for(source, recipe.data, recipe.multiple, recipe.tokens, budget)
    batches = made_up(recipe, plan)
    with threads(command.threads):
        net = recipe.build_backbone().train()
        if command.compile:
            compile_blocks(net)
        codec = recipe.build_codec()
        contenders = [
            Contender("step", name, training_step(recipe, net, codec, batch))
            for name, batch in batches.items()
        ]
        command.measure(contenders)
        where = machine()
    record = {
        "machine": where,
        "software": software(),
        "recipe": command.sizes,
        "rounds": command.rounds,
        "compiled": command.compile,
        "rows": rates(recipe, plan, batches, contenders),
    }
    print("\n".join(_report(record)))
    write(record, command.out)


def made_up(recipe: Recipe, plan: Plan) -> dict[str, Batch]:
    """A full batch of the largest size, one of each bucket, and a packed one of the plan's own mixture."""
    stream = torch.Generator().manual_seed(0)

    def images(count: int, size: tuple[int, ...]) -> torch.Tensor:
        return torch.randint(256, (count, recipe.data.channels, *size), generator=stream).to(torch.uint8)

    def labelled(count: int) -> tuple[torch.Tensor | None, torch.Tensor]:
        classes = recipe.data.classes
        return torch.arange(count) % classes if classes else None, torch.arange(count)

    largest = max(plan.buckets, key=lambda bucket: bucket.tokens)
    found = {LARGEST: Batch(images(largest.batch, largest.size), *labelled(largest.batch))}
    for bucket in plan.buckets:
        count = min(bucket.batch, bucket.images)
        found[written(bucket.size)] = Batch(images(count, bucket.size), *labelled(count))
    mixture = Plan(plan.sizes, recipe.tokens, plan.budget, recipe.data.without, packed=True)
    places = mixture.batches(seed=0, epoch=0)[0].tolist()
    labels, index = labelled(len(places))
    groups = [
        Batch(images(len(rows), size), None, index[rows])
        for size, run in groupby(range(len(places)), key=lambda row: plan.sizes[int(places[row])])
        if (rows := list(run))
    ]
    found[PACKED] = Batch(None, labels, index, groups=tuple(groups))
    return found


def rates(recipe: Recipe, plan: Plan, batches: dict[str, Batch], contenders: list[Contender]) -> dict:
    """Tokens of images a second, the ratio of a token's cost to that in the largest size by the median round, and every
    time, in milliseconds."""
    times = {contender.name: contender.times for contender in contenders}
    rounds = range(len(times[LARGEST]))
    largest = max(plan.buckets, key=lambda bucket: bucket.tokens)
    full = largest.batch * largest.tokens
    # A batch of each bucket stands for as many as an epoch has; the last of a bucket is smaller and counted as much.
    tokens = sum(bucket.images * bucket.tokens for bucket in plan.buckets)
    an_epoch = [
        sum(
            times[written(bucket.size)][k] * bucket.images / min(bucket.batch, bucket.images)
            for bucket in plan.buckets
        )
        for k in rounds
    ]
    mean = tokens / len(plan)
    packed = sum(len(group.index) * recipe.tokens(group.size) for group in batches[PACKED].groups)
    found = {
        LARGEST: (full, times[LARGEST]),
        "buckets": (tokens, an_epoch),
        PACKED: (packed, times[PACKED]),
        "padded": (largest.batch * mean, times[LARGEST]),
    }
    rows = {}
    for name, (count, seconds) in found.items():
        per_token = [seconds[k] / count / (times[LARGEST][k] / full) for k in rounds]
        rows[name] = {
            "tokens_per_second": count / median(seconds),
            "cost": median(per_token),
            "times_ms": [1000 * value for value in seconds],
        }
    return rows


def _report(record: dict) -> Iterator[str]:
    yield f"{'':16s}{'tokens/s':>12s}{'cost of a token':>18s}"
    for name, row in record["rows"].items():
        yield f"{name:16s}{row['tokens_per_second']:12,.0f}{row['cost']:18.2f}"
    yield "(tokens of images, without padding; cost relative to that in the largest size, medians of the rounds' ratios)"
    there, versions = record["machine"], record["software"]
    yield (
        f"{record['recipe']}, {'compiled' if record['compiled'] else 'eager'}; {there['cpu']}, "
        f"{there['threads']} threads, torch {versions['torch']}, ditkit {versions.get('commit', versions['ditkit'])}"
    )
