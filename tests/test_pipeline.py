"""The pipeline: what a seed decides, what an evaluation counts, what is refused."""

import json
import shutil

import pytest
import torch
from conftest import CPU

import ditkit
from ditkit.errors import InputError
from ditkit.pipeline import load
from ditkit.sampling import SAMPLERS
from ditkit.sampling.config import SamplingRequest
from ditkit.snapshots import SNAPSHOTS


@pytest.fixture(scope="module")
def pipe():
    return load("digits", CPU)


def steps_of(sampler, steps):
    """Where the sampler has them."""
    return {} if SAMPLERS[sampler].adaptive else {"steps": steps}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_image_k_depends_on_seed_k_only(pipe, sampler):
    """Whatever the batch, the company and the order: within 1 of 255."""
    seeds, labels = [7, 3, 11, 5, 2], [1, 4, 4, 8, 0]
    options = {"sampler": sampler, "guidance": 2.0, **steps_of(sampler, 4)}
    together = pipe.generate({"label": labels}, seeds=seeds, batch=5, **options)
    apart = pipe.generate({"label": labels}, seeds=seeds, batch=2, **options)
    alone = pipe.generate({"label": [4]}, seeds=[11], **options)
    assert (together.int() - apart.int()).abs().max() <= 1
    assert (together[2].int() - alone[0].int()).abs().max() <= 1
    assert (together[1].int() - together[2].int()).abs().max() > 1  # one class, two seeds


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_evaluations_are_counted_as_declared(pipe, sampler, guidance, monkeypatch):
    calls = 0
    forward = pipe.backbone.forward

    def counting(*arguments):
        nonlocal calls
        calls += 1
        return forward(*arguments)

    monkeypatch.setattr(pipe.backbone, "forward", counting)
    how = {"sampler": sampler, **steps_of(sampler, 5)}
    pipe.generate({"label": [1]}, seeds=[0], guidance=guidance, **how)
    chosen = pipe.recipe.sample.override(SamplingRequest.of(how))
    declared = chosen.nfe(chosen.times(pipe.transport), pipe.transport)
    assert calls == declared if declared else calls > 10


def test_guidance_outside_its_interval_is_none(pipe):
    plain = pipe.generate({"label": [3]}, seeds=[1], guidance=1.0)
    never = pipe.generate({"label": [3]}, seeds=[1], guidance=5.0, interval=(0.0, 0.0), sampler="euler")
    assert torch.equal(never, pipe.generate({"label": [3]}, seeds=[1], guidance=1.0, sampler="euler"))
    assert not torch.equal(plain, pipe.generate({"label": [3]}, seeds=[1], guidance=5.0))


@pytest.mark.parametrize(
    ("cond", "options", "message"),
    [
        ({}, {"seeds": [0]}, "10 classes"),
        ({"label": [1, 2]}, {"seeds": [0]}, "2 labels for 1 seeds"),
        ({"label": [-1]}, {"seeds": [0]}, "label -1 is out of range"),
        ({"label": [1]}, {"seeds": [0], "sampler": "leapfrog"}, "leapfrog.*heun"),
        ({"label": []}, {"seeds": []}, "no seeds"),
    ],
)
def test_refused(pipe, cond, options, message):
    with pytest.raises(InputError, match=message):
        pipe.generate(cond, **options)


def test_unconditional_models(tmp_path):
    """No classes: no labels, no guidance; everything else works."""
    recipe = ditkit.Recipe.read(load("digits", CPU).save(tmp_path / "x") / "recipe.json")
    values = recipe.model_dump() | {"data": {"kind": "folder", "size": 8, "channels": 1, "classes": 0}}
    recipe = ditkit.Recipe.model_validate(values)
    pipe = ditkit.Pipeline(recipe, recipe.build_backbone().eval(), recipe.build_codec(), CPU)
    assert pipe.generate(seeds=[0, 1]).shape == (2, 1, 8, 8)
    with pytest.raises(InputError, match="without classes"):
        pipe.generate({"label": [1]}, seeds=[0])
    with pytest.raises(InputError, match="cannot be guided"):
        pipe.generate(seeds=[0], guidance=2.0)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"depth": 10**9}, "less than or equal to 10000"),
        ({"width": 10**6, "heads": 1}, "the weights of this network take .* GB, and this machine has"),
    ],
)
def test_sizes_in_a_snapshots_recipe_cannot_take_time_or_memory(tmp_path, wrong, words):
    shutil.copytree(SNAPSHOTS / "digits", tmp_path / "s")
    values = json.loads((tmp_path / "s" / "recipe.json").read_text(encoding="utf-8"))
    values["backbone"] |= wrong
    (tmp_path / "s" / "recipe.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(InputError, match=words):
        load(tmp_path / "s")
