"""`ditkit info WHAT`: what a recipe, a run or a snapshot is and costs."""

import json
from pathlib import Path

import torch

from ditkit.cli.parsing import parse
from ditkit.cli.train import TrainCommand, parse_train
from ditkit.evaluation.cost import count_cost
from ditkit.pipeline import SNAPSHOTS
from ditkit.recipe import Recipe
from ditkit.recipes import RECIPES

USAGE = """usage: ditkit info RECIPE [--section.field value ...]   or   ditkit info RUN

What a recipe (with any of its flags), a run or a snapshot is and costs: image and state, trainable
parameters, multiply-adds of one evaluation (the papers' "Gflops"), memory of training; then the whole
recipe as JSON. Nothing is trained or loaded: the network is built on torch's meta device."""


def run(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return
    recipe = _recipe(argv)
    if recipe.data.classes is None:
        recipe = recipe.replace(data={"classes": len(recipe.data.open().names)})
    with torch.device("meta"):
        net = recipe.build_backbone()
    size = recipe.data.size
    state = recipe.build_codec().layout(size, size).shape
    cost = count_cost(net, state, bool(recipe.data.classes))
    weights = 4 * cost.params / 1e6  # float32, in MB
    print(
        f"{recipe.name}: {recipe.backbone.kind}, {recipe.transport.path} path, predicts {recipe.transport.predict}"
    )
    print(f"  images      {size} x {size}, {recipe.data.channels} channels, {recipe.data.classes} classes")
    print(f"  state       {' x '.join(map(str, state))} ({recipe.codec.kind})")
    print(f"  parameters  {cost.params:,} ({weights:,.0f} MB in float32)")
    print(f"  MACs        {cost.macs / 1e9:,.3f} G per image and evaluation")
    print(f"  training    {recipe.train.images:,} images in batches of {recipe.train.batch}")
    print(f"              {5 * weights:,.0f} MB for weights, gradients, AdamW and EMA, without activations")
    print(json.dumps(recipe.model_dump(mode="json"), indent=1))


def _recipe(argv: list[str]) -> Recipe:
    if argv[0] not in RECIPES:
        for folder in (Path(argv[0]), SNAPSHOTS / argv[0]):
            if (folder / "recipe.json").exists():
                base = Recipe.read(folder / "recipe.json")
                default = TrainCommand.model_validate(base.model_dump())
                return parse(TrainCommand, argv[1:], f"info {argv[0]}", default=default).recipe
    return parse_train(argv).recipe
