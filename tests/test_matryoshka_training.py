"""Networks of several resolutions: what a recipe may say, mixed resolutions, stages, another run inside, latents."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CPU
from safetensors.torch import load_file
from test_codecs import saved
from test_matryoshka import randomised

from ditkit.backbones import DiTConfig, MatryoshkaConfig, OuterLevel, UNetConfig
from ditkit.cli import main
from ditkit.cli.train import parse_train
from ditkit.codecs import VaeConfig
from ditkit.data import Batch, Share
from ditkit.errors import InputError
from ditkit.layout import unpack
from ditkit.pipeline import load
from ditkit.recipes import recipe
from ditkit.training import train
from ditkit.training.draws import with_draws
from ditkit.training.initial import load_inner
from ditkit.training.log import read_log
from ditkit.training.step import accumulate, backward, mixed

SMALL = DiTConfig(width=16, depth=1, heads=2, patch=1)
LEVEL = OuterLevel(widths=(32, 32), depth=(1, 1))
THIN = OuterLevel(widths=(32,), depth=(1,), patch=2)
TWO, THREE = (MatryoshkaConfig(inner=SMALL, levels=levels) for levels in ((THIN,), (THIN, LEVEL)))
BUDGET = {"images": 96, "batch": 32, "warmup_images": 0, "precision": "fp32", "validate_images": 0}
EVERY = {"log_images": 32, "checkpoint_images": 64, "preview_images": 96, "schedule": "constant"}


def nested(backbone=TWO, **sections):
    """`digits` at 8 pixels by that network, in a second."""
    parts = {"train": BUDGET | EVERY, "sample": {"sampler": "euler", "steps": 1}}
    base = recipe("digits").replace(backbone=backbone, **parts)
    return base.replace(**sections)


def quiet(chosen, out, **options):
    return train(chosen, out, device=CPU, progress=False, **options)


def tensors(checkpoint):
    return {
        f"{part}/{key}": value
        for part in ("model", "ema", "optimizer")
        for key, value in load_file(checkpoint / f"{part}.safetensors").items()
    }


def assert_equal(a, b):
    ours, theirs = tensors(a), tensors(b)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.equal(theirs[name]), name


# --- recipes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "sections", "message"),
    [
        (TWO, {"transport": {"level_weights": (1, 2, 3)}}, "transport.level_weights has 3 numbers, this backbone needs 2: it works on 2 levels"),
        (SMALL, {"transport": {"level_weights": (1, 2)}}, "needs 1: it works on 1 level$"),
        (TWO, {"codec": {"level_scale": (1.0,)}}, "codec.level_scale has 1 numbers, this backbone needs 2"),
        (THREE, {"sample": {"level_guidance": (1.0, 2.0)}}, "sample.level_guidance has 2 numbers, this backbone needs 3"),
        (THREE, {"train": {"level_share": (1.0,)}}, "train.level_share has 1 numbers, this backbone needs 2: it works on 3"),
        (SMALL, {"train": {"level_share": (1.0,)}}, "train.level_share has 1 numbers, this backbone needs 0"),
        (THREE, {"train": {"level_share": (0.5, 0.25)}}, "a level runs on images that the lower ones run on too"),
        (TWO, {"train": {"stages": (8, 8)}}, "train.stages has 2 stages before the last for 2 levels; at most 1"),
        (SMALL, {"train": {"stages": (8,)}}, "train.stages has 1 stages before the last for 1 level; at most 0"),
        (TWO, {"train": {"stages": (8,), "latents": "x"}, "codec": VaeConfig()}, "train.stages and train.latents: a cache is of one resolution"),
        (SMALL, {"train": {"freeze_inner": True}}, "train.freeze_inner, but backbone.kind DiT works on one resolution"),
        (SMALL, {"transport": {"cascade": 0.1}}, "transport.cascade 0.1, but backbone.kind DiT works on one resolution"),
        (TWO, {"transport": {"cascade": 1.5}}, "transport.cascade"),
        (TWO, {"transport": {"level_weights": (1, -1)}}, "transport.level_weights.1"),
        (TWO, {"codec": {"level_scale": (1, 0)}}, "codec.*level_scale.1"),
        (THREE, {"train": {"level_share": (0, 1)}}, "train.level_share.0"),
    ],
)  # fmt: skip
def test_recipes_that_do_not_fit(backbone, sections, message):
    with pytest.raises(InputError, match=message) as caught:
        nested(backbone, **sections)
    assert "\n" not in str(caught.value)


def test_networks_and_data_that_do_not_fit():
    with pytest.raises(InputError, match=r"10x10 has no levels of 4:2:1; .* multiples of 4"):
        nested(THREE, data={"size": 10}).build_backbone()
    odd = MatryoshkaConfig(inner=DiTConfig(width=16, depth=1, heads=2, patch=2), levels=(THIN,))
    with pytest.raises(InputError, match="5x5"):  # what lies inside of 10 pixels
        nested(odd, data={"size": 10}).build_backbone()
    learned = {"path": "ddpm", "predict": "noise", "variance": "learned"}
    with pytest.raises(
        InputError,
        match=r"transport\.variance learned, but backbone\.kind Matryoshka predicts no variance; .* use variance fixed",
    ):
        nested(transport=learned).build_backbone()


# --- mixed resolutions, a cascade -------------------------------------------------------------------


def test_weights_of_mixed_resolutions_keep_each_levels_mean():
    net = nested(THREE).build_backbone()
    for count, share, rows in ((8, (0.25, 0.5), (2, 4)), (7, (0.01, 0.5), (1, 3)), (4, (1.0, 1.0), (4, 4))):
        shared, weights = mixed(net, share, Share(torch.arange(count), count))
        assert shared.keywords == {"rows": list(rows), "always": False}
        torch.testing.assert_close(weights.mean(0), torch.ones(3))
        losses = torch.rand(count, 3, generator=torch.Generator().manual_seed(0))
        kept = torch.stack([losses[:n, level].mean() for level, n in enumerate((*rows, count))])
        torch.testing.assert_close((weights * losses).mean(0), kept)
    assert mixed(net, (), Share(torch.arange(8), 8)) == (net, None)


@pytest.mark.parametrize(
    "of", [lambda n: n // 2, lambda n: n % 2, lambda n: n % 3, lambda n: 0 if n < 5 else 1 + n % 2]
)
def test_which_images_a_level_has_is_decided_in_the_whole_batch(of):
    """In micro-batches, and in processes of which each has some images, the gradient is that of one batch."""
    chosen = nested(THREE, train={"level_share": (0.25, 0.5)})
    net, codec = randomised(chosen.build_backbone()), chosen.build_codec()
    drawn = with_draws(chosen, codec, batch())

    def gradients(*batches):
        net.zero_grad()
        found = [backward(chosen, net, codec, part, CPU)["loss"] for part in batches]
        return sum(found), [parameter.grad for parameter in net.parameters()]

    loss, whole = gradients(drawn)
    rows = [[n for n in range(8) if of(n) == share] for share in sorted({*map(of, range(8))})]
    in_parts, parts = gradients(*(some_of(drawn, part) for part in rows))
    torch.testing.assert_close(in_parts, loss)
    for expected, found in zip(whole, parts, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def some_of(known, rows):
    """What a process that has these images of a batch takes of it."""
    return replace(
        known,
        images=known.images[rows],
        label=known.label[rows],
        index=known.index[rows],
        draws={name: values[rows] for name, values in known.draws.items()},
        share=Share(torch.tensor(rows), len(known.index)),
    )


def test_micro_batches_have_the_levels_of_the_whole_batch():
    chosen = nested(THREE, train={"level_share": (0.25, 0.5)})
    net, codec = randomised(chosen.build_backbone()), chosen.build_codec()
    drawn = with_draws(chosen, codec, batch())
    whole = backward(chosen, net, codec, drawn, CPU)
    expected = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    found = backward(chosen.replace(train={"micro_batch": 3}), net, codec, drawn, CPU)
    torch.testing.assert_close(found["loss"], whole["loss"])
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


def batch(n=8):
    stream = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=stream)
    return Batch(images, torch.arange(n) % 10, torch.arange(n))


def test_the_loss_of_a_batch_of_mixed_resolutions():
    """Of a network whose output is still zero: the mean square of its target, over the images of each level."""
    chosen = nested(THREE, train={"level_share": (0.25, 0.5)}, transport={"predict": "data"})
    net, codec = chosen.build_backbone(), chosen.build_codec()
    drawn = with_draws(chosen, codec, batch())
    found = backward(chosen, net, codec, drawn, CPU)["loss"]
    levels = unpack(codec.encode(drawn.images), net.ratios)
    expected = sum(level[:n].square().mean() for level, n in zip(levels, (2, 4, 8), strict=True))
    torch.testing.assert_close(found, expected)


def test_a_cascade_trains_its_highest_level_with_the_others_known(monkeypatch):
    chosen = nested(THREE, transport={"predict": "data", "cascade": 0.25}, train={"seed": 3})
    net, codec, seen = chosen.build_backbone(), chosen.build_codec(), []
    drawn = with_draws(chosen, codec, batch())
    forward = net.forward
    monkeypatch.setattr(net, "forward", lambda x, t, cond: seen.append(t) or forward(x, t, cond))
    found = backward(chosen, net, codec, drawn, CPU)["loss"]
    torch.testing.assert_close(found, unpack(codec.encode(drawn.images), net.ratios)[0].square().mean())
    ((t),) = seen
    torch.testing.assert_close(t[:, 0], chosen.transport.times(1 - drawn.draws["time"]))
    assert t[:, 1].equal(t[:, 2])
    assert 0 <= t[:, 1].min() < t[:, 1].max() <= 0.25
    assert len(set(t[:, 1].tolist())) == len(t)


# --- stages -----------------------------------------------------------------------------------------


def test_recipes_of_stages():
    whole = nested(
        THREE,
        transport={"level_weights": (1, 2, 4), "level_shift": 2.0},
        codec={"level_scale": (1, 0.5, 0.25)},
        sample={"level_guidance": (1.0, 2.0, 3.0)},
        train={"stages": (64, 32), "level_share": (0.5, 1.0)},
    )
    low, middle = whole.stages
    assert (low.backbone, middle.backbone) == (SMALL, MatryoshkaConfig(inner=SMALL, levels=(LEVEL,)))
    assert [stage.name for stage in (low, middle)] == ["digits-stage-1", "digits-stage-2"]
    assert [stage.data.size for stage in (low, middle)] == [2, 4]
    assert [stage.train.images for stage in (low, middle)] == [64, 32]
    assert [stage.train.stages for stage in (low, middle)] == [(), ()]
    assert [stage.train.level_share for stage in (low, middle)] == [(), (1.0,)]
    assert [stage.transport.level_weights for stage in (low, middle)] == [(4,), (2, 4)]
    assert [stage.codec.level_scale for stage in (low, middle)] == [(0.25,), (0.5, 0.25)]
    assert [stage.sample.level_guidance for stage in (low, middle)] == [(3.0,), (2.0, 3.0)]
    for stage in (low, middle):
        assert stage.transport.level_shift == 2
        assert stage.train.batch == whole.train.batch
        stage.build_backbone()
    assert nested(THREE).stages == []
    assert len(nested(THREE, train={"stages": (64,)}).stages) == 1


def test_what_only_several_levels_can_have_comes_with_the_second():
    """A frozen inner network is trained in the first stage, and the first of a cascade has no known levels."""
    chosen = nested(THREE, transport={"cascade": 0.1}, train={"stages": (64, 32), "freeze_inner": True})
    low, middle = chosen.stages
    assert (low.train.freeze_inner, middle.train.freeze_inner) == (False, True)
    assert (low.transport.cascade, middle.transport.cascade) == (None, 0.1)


def test_a_run_in_stages_killed_in_each_is_one_that_was_not(tmp_path, monkeypatch):
    chosen = nested(train={"stages": (96,), "level_share": (0.5,)}, sample={"level_guidance": (1.0, 2.0)})
    whole = quiet(chosen, tmp_path / "whole")
    for _ in range(3):  # after the first stage's checkpoint, before the last one's first, and after that
        steps = itertools.count(1)

        def killed(*arguments, steps=steps, **named):
            if next(steps) == 3:
                raise KeyboardInterrupt
            return accumulate(*arguments, **named)

        monkeypatch.setattr("ditkit.training.parallel.accumulate", killed)
        with pytest.raises(KeyboardInterrupt):
            quiet(chosen, tmp_path / "killed")
    monkeypatch.undo()
    resumed = quiet(chosen, tmp_path / "killed")
    for last in (whole, resumed):
        assert last.name == "000000000096"
    assert_equal(whole, resumed)
    assert_equal(
        *(tmp_path / name / "stages" / "1" / "checkpoints" / last.name for name in ("whole", "killed"))
    )
    assert load(tmp_path / "killed" / "stages" / "1", CPU).recipe.data.size == 4
    pipe = load(tmp_path / "killed", CPU)
    assert pipe.generate({"label": [1]}, seeds=[0]).shape == (1, 1, 8, 8)
    assert quiet(chosen, tmp_path / "killed") == resumed  # nothing left to do
    with pytest.raises(InputError, match=r"train\.stages \[96\], not \[64\]"):
        quiet(chosen.replace(train={"stages": (64,)}), tmp_path / "killed")


def test_each_stage_starts_from_the_average_of_the_one_before(tmp_path, monkeypatch):
    starts = []
    monkeypatch.setattr("ditkit.training.loop.load_inner", lambda *a: load_inner(*a) or starts.append(a))
    quiet(nested(THREE, train={"stages": (32, 32), "images": 32}), tmp_path)
    assert [origin for _, _, origin in starts] == [tmp_path / "stages" / "1", tmp_path / "stages" / "2"]
    assert [stage.name for _, stage, _ in starts] == ["digits-stage-2", "digits"]


# --- another run inside -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inner(tmp_path_factory):
    """A run of the network inside, on images of 4 pixels."""
    out = tmp_path_factory.mktemp("inner")
    quiet(nested(SMALL, data={"size": 4}), out)
    return out


@pytest.mark.parametrize("backbone", [TWO, THREE])
def test_a_run_goes_inside(inner, backbone):
    net, chosen = nested(backbone).build_backbone(), nested(backbone)
    fresh = {name: value.clone() for name, value in net.state_dict().items()}
    load_inner(net, chosen, inner)
    theirs = load(inner, CPU).backbone.state_dict()
    for name, value in net.state_dict().items():
        expected = theirs[name.removeprefix("inner.")] if name.startswith("inner.") else fresh[name]
        assert value.equal(expected), name


def test_a_run_of_several_levels_goes_inside(inner, tmp_path):
    middle = MatryoshkaConfig(inner=SMALL, levels=(LEVEL,))
    quiet(nested(middle, data={"size": 4}, train={"images": 32}), tmp_path)
    net = nested(THREE).build_backbone()
    load_inner(net, nested(THREE), tmp_path)
    theirs = load(tmp_path, CPU).backbone.state_dict()
    assert all(net.state_dict()[name].equal(value) for name, value in theirs.items())
    assert {name.split(".")[1] for name in net.state_dict().keys() - theirs.keys()} == {"1"}


def test_what_is_frozen_stays(inner, tmp_path):
    """And what is around it learns; stopped and resumed, too."""
    chosen = nested(train={"freeze_inner": True, "images": 64, "weight_decay": 0.1})
    whole = quiet(chosen, tmp_path / "whole", init_inner=inner)
    quiet(chosen.replace(train={"images": 32}), tmp_path / "parts", init_inner=inner)
    assert_equal(whole, quiet(chosen, tmp_path / "parts", init_inner=inner))
    model, start = load_file(whole / "model.safetensors"), load(inner, CPU).backbone.state_dict()
    average = load_file(whole / "ema.safetensors")
    for name, value in start.items():
        assert average[f"inner.{name}"].equal(value), name
        assert f"inner.{name}" not in model, "in one file"
    fresh = chosen.replace(data={"classes": 10}).build_backbone().state_dict()
    assert not model["outer.0.final.weight"].equal(fresh["outer.0.final.weight"])


@pytest.mark.parametrize(
    ("backbone", "sections", "classes", "message"),
    [
        (SMALL, {}, 10, "this backbone has no levels around another; give `init` instead"),
        (MatryoshkaConfig(inner=UNetConfig(width=32), levels=(THIN,)), {}, 10, 'has backbone {"width":16,.*, the recipe has {"width":32} inside; give the same'),
        (TWO.model_copy(update={"inner": SMALL.model_copy(update={"depth": 2})}), {}, 10, '"depth":1.*"depth":2'),
        (TWO, {"transport": {"path": "gvp"}}, 10, "has path linear, the recipe has gvp inside"),
        (TWO, {"transport": {"predict": "v"}}, 10, "has prediction velocity, the recipe has v inside"),
        (TWO, {}, 4, "label.weight is of another shape; classes, channels and text must be the same"),
    ],
)  # fmt: skip
def test_what_does_not_fit_inside(inner, backbone, sections, classes, message):
    chosen = nested(backbone, **sections)
    net = backbone.build(channels=chosen.build_codec().channels, classes=classes)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(InputError, match=message) as caught:
        load_inner(net, chosen, inner)
    assert str(caught.value).startswith(f"`init_inner` {inner}")
    assert "\n" not in str(caught.value)
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())


def test_as_many_levels_do_not_fit_inside(inner, tmp_path):
    quiet(nested(train={"images": 32}), tmp_path / "two")
    net = nested().build_backbone()
    with pytest.raises(InputError, match=r"has 2 levels, this recipe 2: .* give `init`"):
        load_inner(net, nested(), tmp_path / "two")
    with pytest.raises(InputError, match="no run or snapshot there"):
        load_inner(net, nested(), tmp_path / "nothing")
    with pytest.raises(InputError, match=r"`init_inner` .* and `train\.stages`"):
        quiet(nested(train={"stages": (32,)}), tmp_path / "both", init_inner=inner)
    assert not (tmp_path / "both").exists()


# --- latents ----------------------------------------------------------------------------------------


def test_pyramids_of_latents_from_the_cache_are_those_of_the_images(tmp_path, capsys):
    vae = saved(tmp_path / "vae", blocks=2, latent_channels=3, in_channels=1, out_channels=1)
    flags = ["--codec", "vae", "--codec.id", vae, "--data.flip"]
    assert main(["encode", "digits", *flags, "--out", str(tmp_path / "latents"), "--shard", "1000"]) == 0
    base = parse_train(["digits", *flags]).recipe
    chosen = base.replace(
        backbone=TWO,
        codec={"level_scale": (1.0, 1.5)},
        train=BUDGET | EVERY,
        sample={"sampler": "euler", "steps": 1},
    )
    quiet(chosen, tmp_path / "online")
    quiet(chosen.replace(train={"latents": str(tmp_path / "latents")}), tmp_path / "cached")
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("online", "cached")]
    losses = [[row["loss"] for row in rows] for rows in logs]
    assert len(losses[0]) == 3
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    pipe = load(tmp_path / "cached", CPU)
    sizes = {
        levels: pipe.generate({"label": [1]}, seeds=[0], levels=levels).shape[2:]
        for levels in ("0", "1", "all")
    }
    assert sizes == {"0": (8, 8), "1": (4, 4), "all": (8, 16)}
