"""`ditkit info NAME`: what a backbone, a recipe, a run or a snapshot is and costs."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from ditkit.backbones import BACKBONES, DiTConfig, UDiTConfig
from ditkit.cli.kinds import switch_kinds
from ditkit.cli.parsing import parse
from ditkit.cli.shapes import Called
from ditkit.cli.verbs import typed
from ditkit.config import Section
from ditkit.costs import cost, published, recipe_cost
from ditkit.costs.count import Cost
from ditkit.costs.speed import calibrate
from ditkit.device import Precision
from ditkit.errors import InputError
from ditkit.interop import read_foreign
from ditkit.recipe import Recipe, TrainConfig
from ditkit.recipes import RECIPES
from ditkit.snapshots import own_folder

USAGE = """usage: ditkit info BACKBONE [--size 256] [--frames 16] [--batch 16] [--precision auto] [--modules]
       ditkit info RECIPE [--section.field value ...] [--batch N] [--modules] [--json]
       ditkit info RUN, a folder or the name of a bundled snapshot, or FILE, an official one, or a folder of
       diffusers', with the flags of a recipe
       ditkit info all [--size 256] [--batch 16]: a row for every backbone

Parameters, multiply-adds of one forward pass of one image (the papers' "Gflops"), memory of training,
and a forecast of the training step on this CPU, not compiled. --modules adds a table by module; --json
prints a recipe as JSON instead. A U-DiT samples in a form with fewer products than the one that is trained;
both are printed, --modules counts the former. Nothing is trained or loaded: the network is built without numbers.
A backbone is counted as published: latents of 4 channels and 1/8 of the side, 1,000 classes, learned
variance; MDM on pixels with a text of 32 tokens. Of several resolutions the share of the lowest ones is
printed, too. To count it for its own data take a recipe, or `ditkit info RECIPE --backbone NAME`."""

BATCH = 16
MB = 1e6


class NamedCommand(Section):
    """What a backbone of that name costs, as published for ImageNet."""

    size: int | None = None
    """Side of the image in pixels; as published by default."""
    frames: Annotated[int, Field(ge=1)] | None = None
    """Count a DiT as a network of clips of so many frames, with a token for each patch of each frame."""
    batch: Annotated[int, Field(ge=1)] = BATCH
    """Images, or clips, of a training step."""
    precision: Precision = "auto"
    """auto: bf16 autocast over float32 weights where this machine has fast bf16."""
    modules: bool = False
    """Also a table by module."""


class RecipeCommand(Recipe):
    """What a recipe costs; every field of it is a flag, --train.precision among them."""

    batch: Annotated[int, Field(ge=1)] | None = None
    """Images of a training step; the recipe's own by default."""
    modules: bool = False
    """Also a table by module."""
    as_json: Annotated[bool, Called("json")] = False
    """Print the recipe as JSON instead."""


def parse_info(argv: list[str]) -> NamedCommand | RecipeCommand:
    """The command for the name that comes first; InputError for anything that is not understood."""
    name, *flags = argv
    if name == "all" or name in BACKBONES:
        return parse(NamedCommand, flags, f"info {name}")
    recipe, rest = switch_kinds(find(name, "info", "a backbone, ", ", or all"), flags)
    default = RecipeCommand.model_construct(**dict(recipe))
    return parse(RecipeCommand, rest, f"info {name}", default=default)


def run(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print(typed(USAGE))
        return
    command = parse_info(argv)
    if isinstance(command, RecipeCommand):
        lines = _recipe(command)
    elif argv[0] == "all":
        lines = _every_backbone(command)
    else:
        lines = _backbone(argv[0], command)
    for line in lines:
        print(line)


def _every_backbone(command: NamedCommand) -> Iterator[str]:
    yield f"{command.size or 'published'} pixels, batches of {command.batch}; memory in MB"
    yield f"{'':12s}{'parameters':>14s}{'MACs, G':>10s}{'weights':>10s}{'training':>10s}"
    for name in BACKBONES:
        found = cost(name, command.size)
        memory = found.memory(command.batch, command.precision)
        yield (
            f"{name:12s}{found.params:14,d}{found.macs / 1e9:10.2f}{memory.weights / MB:10,.0f}"
            f"{memory.peak / MB:10,.0f}"
        )


def _backbone(name: str, command: NamedCommand) -> Iterator[str]:
    of_clips = partial(cost, name, command.size, frames=command.frames, tubelet=1)
    if command.frames and not isinstance(BACKBONES[name], DiTConfig):
        raise InputError(f"--frames {command.frames}: {name} is a network of images; clips take a DiT")
    build = of_clips if command.frames else partial(cost, name, command.size)
    found, sampled = build(), build(fused=True)
    known = published(name)
    size = command.size or known.size
    length = f"{command.frames} frames of " if command.frames else ""
    yield f"{name}: {length}{size} x {size} pixels, {known}"
    is_udit = isinstance(BACKBONES[name], UDiTConfig)
    yield from _counts(
        found, sampled, cost(name, command.size, fused=True, attention="full") if is_udit else None
    )
    if command.frames:
        yield _over_frames(sampled, of_clips(attention="factorised"))
    yield from _training(found, command.batch, command.precision)
    if command.modules:
        yield from _table(sampled)


def _over_frames(joint: Cost, factorised: Cost) -> str:
    """A clip's multiply-adds with attention of both kinds."""
    counts = (
        f"{kind} {found.macs / 1e9:,.3f} G ({_attention(found) / 1e9:,.3f} G between tokens)"
        for kind, found in (("joint", joint), ("factorised", factorised))
    )
    return f"  attention   {', '.join(counts)}"


def _recipe(command: RecipeCommand) -> Iterator[str]:
    recipe = Recipe.model_validate({name: getattr(command, name) for name in Recipe.model_fields})
    if command.as_json:
        yield json.dumps(recipe.model_dump(mode="json"), indent=1)
        return
    recipe = counted(recipe)
    train = recipe.train
    batch = command.batch or train.batch
    *length, height, width = recipe.data.shape
    state = recipe.build_codec().layout(*recipe.data.shape).shape
    yield (
        f"{recipe.name}: {recipe.backbone.kind}, {recipe.transport.path} path, predicts "
        f"{recipe.transport.predict}"
    )
    images = f"clips       {length[0]} frames of " if length else "images      "
    bounds = recipe.data.bounds
    values = "" if bounds is None else f", numbers from {bounds[0]:g} to {bounds[1]:g}"
    yield f"  {images}{height} x {width}, {recipe.data.channels} channels, {recipe.data.classes} classes{values}"
    if recipe.data.names:
        shown = ", ".join(recipe.data.names[:12]) + (", ..." if len(recipe.data.names) > 12 else "")
        yield f"  classes     {shown}"
    if recipe.data.content:
        yield f"  files       hash {recipe.data.content[:12]} of their names and bytes"
    yield f"  state       {' x '.join(map(str, state))} ({recipe.codec.kind})"
    if recipe.text:
        yield f"  text        {recipe.text.id}, {recipe.text.length} tokens of {recipe.text.dim} channels"
    batches = f"batches of {train.batch}" if train.tokens is None else f"batches of {train.tokens:,} tokens"
    yield f"  training    {train.images:,} {'clips' if length else 'images'} in {batches}"
    if isinstance(recipe.backbone, DiTConfig) and recipe.backbone.ingredients:
        chosen = (f"{name} {value}" for name, value in recipe.backbone.ingredients.items())
        yield f"  blocks      {', '.join(chosen).replace('_', '-')}"
    found, sampled = recipe_cost(recipe), recipe_cost(recipe, fused=True)
    downsampled = isinstance(recipe.backbone, UDiTConfig) and recipe.backbone.attention != "full"
    full = recipe.replace(backbone={"attention": "full"}) if downsampled else None
    yield from _counts(found, sampled, recipe_cost(full, fused=True) if full else None)
    yield from _levels(recipe)
    if isinstance(recipe.backbone, DiTConfig) and recipe.backbone.tubelet and recipe.backbone.depth % 2 == 0:
        kinds = (recipe.replace(backbone={"attention": kind}) for kind in ("joint", "factorised"))
        yield _over_frames(*map(recipe_cost, kinds))
    adapted = train.lora or train.freeze or train.freeze_inner
    trained = recipe_cost(recipe, adapted=True) if adapted else found
    if trained.frozen:
        yield f"  trained     {trained.params:,} parameters; {trained.frozen:,} are frozen"
    yield from _training(trained, batch, train.precision, train)
    if command.modules:
        yield from _table(sampled)


def _counts(found: Cost, sampled: Cost, undownsampled: Cost | None) -> Iterator[str]:
    """The counts of the network as it is trained and as it samples, which for most is the same; with downsampled attention
    also what it saves."""
    if sampled.params == found.params:
        yield f"  parameters  {found.params:,}"
        yield f"  MACs        {found.macs / 1e9:,.3f} G per image and evaluation"
    else:
        yield f"  parameters  {sampled.params:,} fused, as it samples and is published; {found.params:,} trained"
        yield (
            f"  MACs        {sampled.macs / 1e9:,.3f} G per image and evaluation fused; "
            f"{found.macs / 1e9:,.3f} G in training"
        )
    if undownsampled is not None:
        products, whole = _attention(sampled), _attention(undownsampled)
        yield (
            f"  attention   {products / 1e9:,.3f} G of them ({products / sampled.macs:.1%}); {whole / 1e9:,.3f} G "
            "without downsampling"
        )


def _levels(recipe: Recipe) -> Iterator[str]:
    """What each resolution of a network of several adds to those inside."""
    count = len(recipe.backbone.ratios)
    if count == 1:
        return
    inside = 0
    parts = []
    for lowest in range(1, count + 1):
        part = recipe.lowest(lowest)
        macs = recipe_cost(part, fused=True).macs
        parts.append(f"{part.data.size} pixels {(macs - inside) / 1e9:,.3f} G")
        inside = macs
    yield f"  levels      {', '.join(parts)}"


def _attention(found: Cost) -> int:
    """Multiply-adds of queries with keys and of weights with values."""
    return sum(part.macs for name, part in found.modules.items() if name.endswith("attention"))


def _training(
    found: Cost, batch: int, precision: Precision, train: TrainConfig | None = None
) -> Iterator[str]:
    train = train or TrainConfig()
    memory = found.memory(batch, precision, train.micro_batch, training=train)
    per_pass = min(batch, train.micro_batch or batch)
    yield f"  memory      {memory.peak / MB:,.0f} MB at its peak, training with {per_pass} images per pass on a CPU"
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "AdamW" if train.optimizer == "adamw" else train.optimizer: memory.optimizer,
        "averages" if train.averages else "EMA": memory.ema,
        "activations": memory.activations,
    }
    yield "              " + ", ".join(f"{part} {size / MB:,.0f}" for part, size in parts.items())
    yield f"              the process about {memory.resident / MB:,.0f} MB: its heap holds on to some of what is freed"
    seconds = calibrate(precision).seconds(found.work(per_pass, precision))
    yield (
        f"  speed       about {per_pass / seconds:,.3g} images/s here, forecast for this CPU, "
        f"threads: {torch.get_num_threads()}, not compiled"
    )


def _table(found: Cost) -> Iterator[str]:
    width = max(len(name) for name in found.modules)
    yield f"\n  {'module':{width}s}{'parameters':>15s}{'':>8s}{'MACs, M':>14s}"
    for name, part in found.modules.items():
        yield (
            f"  {name or 'itself':{width}s}{part.params:15,d}{part.params / found.params:8.1%}"
            f"{part.macs / 1e6:14,.3f}{part.macs / found.macs:8.1%}"
        )
    yield "  a row is what a module does itself; what is below it has rows of its own"


def counted(recipe: Recipe) -> Recipe:
    """The recipe with the number of its classes; where it does not say, its data is opened."""
    recipe = recipe.replace(data=recipe.data.resolved())
    if recipe.data.classes is None:
        recipe = recipe.replace(data={"classes": len(recipe.data.open().names)})
    return recipe


def find(name: str, verb: str, before: str = "", after: str = "") -> Recipe:
    """The recipe of that name, of a run, a snapshot or a foreign file. InputError, which says what else the verb takes, where
    there is none."""
    if name in RECIPES:
        return RECIPES[name]()
    if (folder := own_folder(Path(name))) is not None:
        return Recipe.read(folder / "recipe.json")
    if Path(name).exists() and (foreign := read_foreign(Path(name))) is not None:
        return foreign.recipe
    raise InputError(
        f"{verb}: unknown name {name!r}; give {before}a recipe or a snapshot (`ditkit list` names them), "
        f"a run's folder, an official file, a folder of diffusers'{after}"
    )
