"""Averages of weights: what they weigh, how a training keeps and stores them, and what is made of those."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import CPU
from safetensors.torch import load_file
from torch import nn

from ditkit.averages import AVERAGES, power_widths
from ditkit.averages.files import halved, stored_files, write_stored
from ditkit.averages.profiles import LEAST, MOST, Profile, exponent, fit, half_life, power
from ditkit.averaging import kept, post_hoc
from ditkit.chosen import chosen
from ditkit.cli import main
from ditkit.costs import recipe_cost
from ditkit.errors import InputError, NotFinite
from ditkit.pipeline import load
from ditkit.recipe import Recipe, TrainConfig
from ditkit.recipes import recipe
from ditkit.training import train
from ditkit.training.averages import Averages
from ditkit.training.ema import Ema
from ditkit.training.footprint import Training

TAKEN = torch.tensor(True)
POWERS = ("power:width=0.05", "power:width=0.1")


def averaged(rule, counts, values):
    """A number's average, where it has these values after so many images."""
    found = values[0]
    for (before, seen), value in zip(pairwise([0, *counts]), values, strict=True):
        found += rule(seen - before, seen) * (value - found)
    return found


@pytest.mark.parametrize("width", [LEAST, 0.05, 0.1, 0.2, MOST])
def test_a_width_is_the_spread_of_its_profile(width):
    """Mean and variance of a power law on [0, 1]."""
    gamma = exponent(width)
    mean, square = (gamma + 1) / (gamma + 2), (gamma + 1) / (gamma + 3)
    assert math.sqrt(square - mean**2) == pytest.approx(width, rel=1e-6)
    assert gamma >= 0


def test_published_exponents():
    """Of the two averages that the paper keeps."""
    assert exponent(0.05) == pytest.approx(16.97, abs=0.01)
    assert exponent(0.1) == pytest.approx(6.94, abs=0.01)


@pytest.mark.parametrize("degree", [0, 1, 2, 5])
def test_power_average_of_a_polynomial(degree):
    """The mean of u^degree under the profile, which steps that are small come near to."""
    counts = range(1, 20_001)
    found = averaged(power, counts, [(count / 20_000) ** degree for count in counts])
    gamma = exponent(0.1)
    assert found == pytest.approx((gamma + 1) / (gamma + 1 + degree), rel=1e-3)


def test_power_average_of_steps_of_any_size():
    """Weights that are constant between steps: each counts by its part of the profile, exactly."""
    counts = np.cumsum(np.random.default_rng(0).integers(1, 50, 60))
    values = np.random.default_rng(1).normal(size=60)
    found = averaged(lambda batch, seen: power(batch, seen, width=0.2), counts.tolist(), values.tolist())
    edges = np.append(0, counts / counts[-1]) ** (exponent(0.2) + 1)
    assert found == pytest.approx(float(np.diff(edges) @ values), rel=1e-12)


def profile(gamma, images, points):
    """Its values at these numbers of images."""
    inside = np.where(points <= images, points / images, 0)
    return np.where(points <= images, (gamma + 1) / images * inside**gamma, 0)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1.0, 0.05), (1.0, 0.1)),
        ((0.4, 0.1), (0.9, 0.2)),
        ((0.9, 0.2), (0.4, 0.1)),
        ((0.5, 0.25), (0.5, 0.25)),
    ],
)
def test_products_of_profiles(one, other):
    """Against the trapezoidal rule."""
    points = np.linspace(0, 1, 400_001)
    values = [profile(exponent(width), images, points) for images, width in (one, other)]
    numeric = np.trapezoid(values[0] * values[1], points)
    assert Profile(*one).dot(Profile(*other)) == pytest.approx(numeric, rel=1e-4)
    assert Profile(*one).dot(Profile(*other)) == Profile(*other).dot(Profile(*one))


def test_a_fit_is_better_with_more_stored():
    misses = []
    for count in (4, 16, 64):
        stored = [Profile(k / count, width) for k in range(1, count + 1) for width in (0.05, 0.1)]
        found = fit(stored, Profile(1.0, 0.15))
        assert sum(found.shares) == pytest.approx(1, abs=1e-12)
        points = np.linspace(0, 1, 100_001)
        sum_of = sum(
            share * profile(exponent(p.width), p.images, points)
            for share, p in zip(found.shares, stored, strict=True)
        )
        wanted = profile(exponent(0.15), 1.0, points)
        missing = math.sqrt(np.trapezoid((sum_of - wanted) ** 2, points) / np.trapezoid(wanted**2, points))
        assert found.missing == pytest.approx(missing, abs=1e-4)
        misses.append(found.missing)
    assert misses[0] > 5 * misses[1] > 50 * misses[2]


def test_a_stored_one_stands_for_itself():
    stored = [Profile(images, width) for images in (500, 1000) for width in (0.05, 0.1)]
    found = fit(stored, Profile(1000, 0.05))
    assert found.shares == pytest.approx([0, 0, 1, 0], abs=1e-9)
    assert found.missing < 1e-6


def walk(images=4000, batch=10):
    """A network of 50 numbers that drift and jitter, step by step: the counts, and its weights after each."""
    draws = np.random.default_rng(0)
    counts = np.arange(batch, images + 1, batch)
    steps = draws.normal(size=(len(counts), 50)) + np.linspace(1, 0, len(counts))[:, None]
    return counts.tolist(), np.cumsum(steps, axis=0)


def test_post_hoc_is_what_would_have_been_kept():
    """Of a walk, in the 16 bits that files have, within a hundredth of how far it went in its last tenth."""
    counts, weights = walk()
    net = nn.Linear(50, 1, bias=False)
    averages = Averages(net, (*POWERS, "power:width=0.07", "power:width=0.15"))
    stored, profiles = [], []
    for seen, values in zip(counts, weights, strict=True):
        net.weight.data = torch.tensor(values[None], dtype=torch.float32)
        averages.update(10, seen, TAKEN)
        if seen % 100 == 0:
            stored += [halved(averages.tensors[place]["weight"]).double() for place in (0, 1)]
            profiles += [Profile(seen, width) for width in (0.05, 0.1)]
    moved = np.linalg.norm(weights[-1] - weights[-40])
    for place, width in ((2, 0.07), (3, 0.15)):
        shares = fit(profiles, Profile(4000, width)).shares
        made = sum(share * value for share, value in zip(shares, stored, strict=True))
        assert (made - averages.tensors[place]["weight"]).norm() < 1e-2 * moved


@pytest.mark.parametrize(("life", "rampup"), [(40.0, None), (1e9, 0.1)])
def test_half_life_is_the_rule_of_the_first_average(life, rampup):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Linear(3, 2)
        words = f"half_life:images={life}" + ("" if rampup is None else f",rampup={rampup}")
        first, further = Ema(net, life, rampup), Averages(net, (words,))
        for seen in range(8, 81, 8):
            net.weight.data += torch.randn(2, 3)
            for one in (first, further):
                one.update(8, seen, TAKEN)
    assert torch.equal(first.net.weight, further.tensors[0]["weight"])
    assert half_life(40, 1000, images=40) == 0.5


def test_a_step_that_was_left_out_moves_nothing():
    net = nn.Linear(1, 1, bias=False)
    averages = Averages(net, POWERS)
    before = net.weight.detach().clone()
    net.weight.data += 1
    averages.update(8, 8, torch.tensor(False))
    assert all(torch.equal(tensors["weight"], before) for tensors in averages.tensors)


def test_numbers_beyond_16_bits_stay_as_they_are():
    assert halved(torch.tensor([1.0, -60_000.0])).dtype is torch.float16
    large = torch.tensor([1.0, 70_000.0])
    assert torch.equal(halved(large), large)


def test_choices():
    """Several of one name, each once, as text, file and flag have them."""
    config = TrainConfig(averages=(*POWERS, "half_life:images=500_000"))
    assert power_widths(config.averages) == {0: 0.05, 1: 0.1}
    assert chosen(AVERAGES, config.averages[2])(500_000, 10**6) == 0.5
    with pytest.raises(ValueError, match=r"power:width=0\.10 is there twice"):
        TrainConfig(averages=("power:width=0.1", "power:width=0.10"))
    with pytest.raises(ValueError, match=r"width: Input should be less than or equal to 0\.288"):
        TrainConfig(averages=("power:width=0.5",))


def test_what_is_stored_needs_power_averages(small):
    with pytest.raises(InputError, match=r"train\.snapshot_images 64 .* add power:width=0\.05"):
        small.replace(train={"snapshot_images": 64, "averages": ("half_life",)})


@pytest.fixture(scope="module")
def recipe_of():
    """`digits` with a budget of about a second, and averages."""

    def made(**fields) -> Recipe:
        network = {"width": 24, "depth": 2, "heads": 2}
        budget = {
            "images": 640,
            "batch": 16,
            "warmup_images": 0,
            "schedule": "constant",
            "checkpoint_images": 320,
        }
        quiet = {"preview_images": 0, "validate_images": 0, "log_images": 160, "compile": "off"}
        averages = {"averages": (*POWERS, "half_life:images=100"), "snapshot_images": 32}
        averages |= {"ema_half_life_images": 100, "ema_rampup": None}
        return recipe("digits").replace(backbone=network, train=budget | quiet | averages | fields)

    return made


@pytest.fixture(scope="module")
def folder(recipe_of, tmp_path_factory):
    """The folder of a run that stored averages."""
    out = tmp_path_factory.mktemp("averaged") / "run"
    train(recipe_of(), out, device=CPU, progress=False)
    return out


def tensors(out):
    """All that a run's checkpoints and stored averages hold."""
    files = [*out.glob("checkpoints/*/*.safetensors"), *out.glob("averages/*.safetensors")]
    return {
        f"{file.relative_to(out)}/{name}": value for file in files for name, value in load_file(file).items()
    }


def assert_same(found, expected, difference=0.0):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).abs().max() <= difference, name


def test_a_run_stores_averages_and_resumes_bit_for_bit(folder, recipe_of, tmp_path):
    """Also where a run was stopped after more were stored than its checkpoint knows."""
    assert [*stored_files(folder)] == [*range(32, 641, 32)]
    parts = tmp_path / "parts"
    train(recipe_of(images=320), parts, device=CPU, progress=False)
    file = stored_files(parts)[320]
    for later in (336, 352):
        file.with_name(f"{later:012d}.safetensors").write_bytes(file.read_bytes())
    train(recipe_of(), parts, device=CPU, progress=False)
    assert_same(tensors(parts), tensors(folder))


def test_kept_averages(folder):
    """The first average's half-life as a further one is the same bits; a power average is what was stored of it last."""
    first = load(folder, CPU).backbone.state_dict()
    assert_same(kept(folder, "half_life:images=1e2", device=CPU).backbone.state_dict(), first)
    direct = kept(folder, POWERS[1], device=CPU)
    made = post_hoc(folder, 0.1, device=CPU)
    assert_same(
        made.backbone.state_dict(), direct.backbone.state_dict(), 1e-3
    )  # of numbers up to 2, in 16 bits
    assert direct.record["average"] == POWERS[1]
    assert made.record["missing"] < 1e-6
    assert made.record["images"] == direct.record["images"] == 640


def test_another_width_is_what_another_run_keeps(folder, recipe_of, tmp_path):
    """A training is the same whatever averages it keeps."""
    out = tmp_path / "run"
    train(recipe_of(averages=("power:width=0.08",), snapshot_images=0), out, device=CPU, progress=False)
    direct = kept(out, "power:width=0.08", device=CPU).backbone.state_dict()
    made = post_hoc(folder, 0.08, device=CPU).backbone.state_dict()
    near = post_hoc(folder, 0.05, device=CPU).backbone.state_dict()
    missed = sum((made[name] - value).square().sum() for name, value in direct.items())
    between = sum((near[name] - value).square().sum() for name, value in direct.items())
    assert missed < 1e-3 * between


def test_a_sweep_from_the_command_line(folder, tmp_path, capsys):
    out = tmp_path / "sweep"
    assert main(["average", str(folder), "--sweep", "0.07", "0.1", "--images", "320", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"compare {out / 'width-0.07'} {out / 'width-0.1'}" in printed
    snapshot = load(out / "width-0.07", CPU)
    assert snapshot.record["images"] == 320
    assert snapshot.record["average"] == "power:width=0.07, of 20 stored"
    assert snapshot.generate({"label": [3]}, seeds=[0], steps=1).shape == (1, 1, 8, 8)
    assert main(["average", str(folder), "--name", POWERS[0], "--out", str(tmp_path / "one")]) == 0
    assert "next: " in capsys.readouterr().out


def test_an_average_between_those_stored_is_warned_of(folder, caplog):
    post_hoc(folder, 0.01, images=630, device=CPU)
    assert "of the profile of width 0.01 after 630 images" in caplog.text


def test_additions_are_averaged_and_merged(folder, recipe_of, tmp_path):
    """Of a run with low-rank additions only these are kept and stored."""
    out = tmp_path / "lora"
    train(
        recipe_of(lora=4, lr=1e-2, images=160, checkpoint_images=160),
        out,
        device=CPU,
        init=folder,
        progress=False,
    )
    stored = load_file(stored_files(out)[160])
    assert stored
    assert all("lora" in name for name in stored)
    assert_same(
        kept(out, "half_life:images=100", device=CPU).backbone.state_dict(),
        load(out, CPU).backbone.state_dict(),
    )
    assert_same(
        post_hoc(out, 0.05, device=CPU).backbone.state_dict(),
        kept(out, POWERS[0], device=CPU).backbone.state_dict(),
        1e-3,
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--width", "0.5"], "--width: Input should be less than or equal to 0.288"),
        (
            ["--width", "0.1", "--images", "7"],
            "has averages after 32 to 640 images to make others of",
        ),
        (["--width", "0.1", "--images", "700"], "--images 700: "),
        (
            ["--name", "power:width=0.2"],
            "kept no such average; it kept power:width=0.05, power:width=0.1",
        ),
        (["--name", "other"], "--name other: "),
        ([], "give one of --width, --sweep and --name"),
        (["--width", "0.1", "--name", "half_life"], "give one of --width, --sweep and --name"),
        (["--name", "half_life", "--images", "32"], "leave --images out"),
    ],
)
def test_what_cannot_be_averaged(words, message, folder, tmp_path, capsys):
    assert main(["average", str(folder), *words, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_runs_that_stored_nothing(run, recipe_of, folder, tmp_path):
    with pytest.raises(InputError, match=r"keeps no power averages; train one with `train\.averages`"):
        post_hoc(run, 0.1)
    with pytest.raises(InputError, match=r"it kept none: they are chosen by `train\.averages`"):
        kept(run, "half_life")
    with pytest.raises(InputError, match="no run; give the folder of one"):
        post_hoc(tmp_path, 0.1)
    load(run, CPU).save(tmp_path / "snapshot")
    with pytest.raises(InputError, match="no run; give the folder of one"):
        post_hoc(tmp_path / "snapshot", 0.1)
    with pytest.raises(InputError, match=r"`width` 'wide' is no width"):
        post_hoc(folder, "wide")
    bare = tmp_path / "bare"
    bare.mkdir()
    recipe_of().write(bare / "recipe.json")
    with pytest.raises(
        InputError, match=r"no averages are stored in its folder yet; give `train\.snapshot_images`"
    ):
        post_hoc(bare, 0.1)


def test_damaged_files_are_named(folder, tmp_path):
    run = tmp_path / "run"
    (run / "averages").mkdir(parents=True)
    for path in (*folder.glob("checkpoints/*/*"), folder / "recipe.json", *folder.glob("averages/*")):
        (run / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        (run / path.relative_to(folder)).write_bytes(path.read_bytes())
    file = stored_files(run)[320]
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(
        InputError,
        match=r"000000000320.safetensors is damaged: its tensors do not match their hash; remove it",
    ):
        post_hoc(run, 0.1)
    file.write_bytes(content[:100])
    with pytest.raises(InputError, match=r"000000000320.safetensors is damaged \("):
        post_hoc(run, 0.1)
    file.unlink()
    assert post_hoc(run, 0.1, device=CPU).record["average"] == "power:width=0.1, of 38 stored"
    name = next(name for name in load_file(stored_files(run)[640]) if name.startswith("ema-1/"))
    lost = {name.removeprefix("ema-1/"): torch.full((1,), math.inf)}
    write_stored(run, 640, {0: lost}, {0: 0.05})
    with pytest.raises(InputError, match="it has other tensors than"):
        post_hoc(run, 0.1)


def test_numbers_that_are_not_finite_are_refused(folder, tmp_path):
    run = tmp_path / "run"
    for path in (*folder.glob("checkpoints/*/*"), folder / "recipe.json"):
        (run / path.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
        (run / path.relative_to(folder)).write_bytes(path.read_bytes())
    values = {
        name.removeprefix("ema-1/"): value
        for name, value in load_file(stored_files(folder)[640]).items()
        if name[:5] == "ema-1"
    }
    values[next(iter(values))].fill_(math.inf)
    write_stored(run, 640, {0: values}, {0: 0.05})
    with pytest.raises(NotFinite, match="not all finite numbers"):
        post_hoc(run, 0.05)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ditkit.averages.files.save_tensors", full)
    with pytest.raises(InputError, match=r"000000000064\.safetensors: cannot be written .*make room"):
        write_stored(tmp_path, 64, {0: {"weight": torch.zeros(1)}}, {0: 0.1})


def test_what_averages_take_is_planned(folder, recipe_of):
    """Three further ones beside the first; of two powers 2 bytes a weight are stored."""
    whole = recipe_of()
    planned, memory = Training(whole), recipe_cost(whole).memory(16, training=whole.train)
    weights = 4 * sum(parameter.numel() for parameter in whole.build_backbone().parameters())
    assert planned.footprint().averages == memory.ema == 4 * weights
    assert planned.stored() == weights
    checkpoint = sorted((folder / "checkpoints").iterdir())[-1]
    on_disk = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    assert planned.footprint().kept == pytest.approx(on_disk, rel=0.1)  # headers are not counted
    assert json.loads((folder / "recipe.json").read_text())["train"]["snapshot_images"] == 32
