"""Plans: bytes that a step really keeps, formulas by hand, every recipe of a paper on 8, 64 and 1,024 GPUs."""

import json
import math
from functools import lru_cache

import pytest
import torch
from torch import nn

from ditkit.adapting import adapt
from ditkit.cli import main
from ditkit.costs.footprint import Footprint, Line, Live, Pass
from ditkit.costs.gpus import GIB, GPUS, gpu
from ditkit.costs.plan import (
    bytes_moved,
    checkpoints,
    choose,
    memory_of,
    most_images,
    seconds_to_move,
    shard_of,
)
from ditkit.errors import InputError
from ditkit.kernels.attention import attention_as
from ditkit.objectives.terms import build_terms
from ditkit.recipes import RECIPES
from ditkit.training.ema import Ema
from ditkit.training.footprint import (
    Training,
    planned_batch,
    planned_codec,
    planned_reader,
)
from ditkit.training.planning import Counted, Options, for_gpu, share, stages_of
from ditkit.training.step import backward, make_optimizer, update

CPU = torch.device("cpu")
KEPT = Footprint(weights=100, auxiliary=0, gradients=100, optimizer=200, averages=100, units=(40, 40, 20))
STEP = Pass(joint=(Line(10, 60), Line(110, 5)), others=(Line(10, 50), Line(40, 5)), products=Line(0, 1_000))


def small(name, **sections):
    recipe = RECIPES[name]()
    return recipe.replace(**sections)


SIZES = {
    "dit": small("digits", backbone={"width": 120, "depth": 5, "heads": 5}, train={"precision": "fp32"}),
    "dit-bf16": small("digits", backbone={"width": 112, "depth": 3, "heads": 4}, train={"precision": "bf16"}),
    "terms": small(
        "digits",
        backbone={"width": 72, "depth": 6, "heads": 3},
        train={"terms": ("sra",), "precision": "fp32", "routing": "tread:first=1,last=3"},
    ),
    "clips": small(
        "moving-digits", backbone={"width": 72, "depth": 4, "heads": 2}, train={"precision": "fp32"}
    ),
    "lora": small(
        "digits",
        backbone={"width": 96, "depth": 4, "heads": 3},
        train={"lora": 4, "unfreeze": ("label.*",), "optimizer": "adafactor", "precision": "fp32"},
    ),
    "levels": small("emoji-matryoshka", train={"precision": "fp32"}),
}


def measured(recipe, images, form, every, passes):
    """The most bytes of tensors in a real step of so many passes, with optimiser and average, after a first step."""
    own = {"micro_batch": images if passes > 1 else None, "checkpoint_blocks": every}
    recipe = recipe.replace(train=own)
    net = adapt(recipe.build_backbone(), recipe.train).train()
    average = Ema(net, 1000, None)
    terms = build_terms(recipe.train.terms, net, 0)
    averages = [average, *(average.of(term) for term in terms.values())]
    optimizer = make_optimizer(net, recipe.train, *terms.values())
    codec = planned_codec(recipe)
    batch = planned_batch(recipe, codec, images * passes)

    def step():
        backward(recipe, net, codec, batch, CPU, planned_reader(recipe), terms, average.net)
        norm = update(optimizer, None)
        for one in averages:
            one.update(images, 100, norm.isfinite())

    with attention_as(form):
        step()
        live = Live(1)
        live.follow(batch.draws.values())
        for module in (net, *terms.values(), *(one.net for one in averages)):
            live.follow([*module.parameters(), *module.buffers()])
        live.follow(v for state in optimizer.state.values() for v in state.values())
        with live:
            step()
    return max(moment.gradients + moment.others.at(1) for moment in live.moments)


@pytest.mark.parametrize(
    ("name", "form", "every", "passes"),
    [
        ("dit", "fused", 0, 1),
        ("dit", "written", 0, 2),
        ("dit", "fused", 2, 1),
        ("dit-bf16", "fused", 0, 1),
        ("dit-bf16", "written", 1, 2),
        ("terms", "fused", 0, 2),
        ("clips", "fused", 1, 1),
        ("levels", "fused", 0, 1),
        ("lora", "fused", 0, 2),
    ],
)
def test_bytes_of_a_real_step(name, form, every, passes):
    """Predicted without numbers, from two and three images, for five; within 1 %."""
    recipe = SIZES[name]
    training = Training(recipe)
    predicted = memory_of(training.footprint(), training.passes(form, every), 5, passes=passes).total
    assert predicted == pytest.approx(measured(recipe, 5, form, every, passes), rel=0.01)


def test_bytes_of_images_are_found_by_a_prime_number():
    """What another number of images would keep, from one run: of a network whose sizes it does not divide."""
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))

    def run(images, counted):
        live = Live(counted, net.parameters())
        handles = live.follow_gradients(net.parameters())
        x = torch.zeros(images, 12)
        with live:
            net(x).sum().backward()
        for handle in handles:
            handle.remove()
        net.zero_grad(set_to_none=True)
        return live.counted()

    found = run(5, 5)
    gradients = 4 * (12 * 8 + 8 + 8 * 4 + 4)
    for images in (1, 2, 7):
        whole = run(images, 1)
        assert found.activations(images) == whole.activations(1)
        assert found.with_gradients(images) == whole.with_gradients(1) >= gradients
        products = 2 * images * (12 * 8 + 8 * 4) + 2 * images * (
            12 * 8 + 2 * 8 * 4
        )  # the input needs no gradient
        assert found.products.at(images) == products


def test_recomputing_keeps_less_and_computes_more():
    counted = Counted(SIZES["dit"])
    none, half, every = (counted.passes(level) for level in (0, 2, 1))
    assert none.activations(100) > half.activations(100) > every.activations(100)
    assert none.products.each < half.products.each < every.products.each
    assert every.products.each < 4 / 3 * none.products.each
    assert counted.passes(0, "written").activations(100) > none.activations(100)


def test_what_is_kept():
    """Weights, gradients, AdamW's two moments and its counts of steps, the average; of terms also their own."""
    for name in ("dit", "terms"):
        recipe = SIZES[name]
        net = recipe.build_backbone()
        terms = build_terms(recipe.train.terms, net, 0)
        own = 4 * sum(p.numel() for p in net.parameters())
        beside = 4 * sum(p.numel() for term in terms.values() for p in term.parameters())
        tensors = sum(len([*module.parameters()]) for module in (net, *terms.values()))
        found = Training(recipe).footprint()
        assert (found.weights, found.auxiliary, found.gradients) == (own, beside, own + beside)
        assert found.optimizer == 2 * (own + beside) + 4 * tensors
        assert found.averages == own + beside
        assert sum(found.units) == own
        assert len(found.units) == recipe.backbone.depth + 1
    assert beside


def test_bytes_moved():
    """By hand: rings, gathers in both passes, shards between groups."""
    assert bytes_moved("none", 100, 100, 1, 1) == (0, 0, 0)
    assert bytes_moved("ddp", 100, 80, 4, 1, passes=3) == (120, 0, 0)
    assert bytes_moved("fsdp", 200, 80, 4, 4) == (0, 150, 60)
    assert bytes_moved("fsdp", 200, 80, 4, 4, passes=3) == (0, 450, 60)
    assert KEPT.gathered(bf16=False) == 2 * 80 + 20
    assert KEPT.gathered(bf16=True) == 80 + 20
    assert bytes_moved("hsdp", 200, 80, 8, 4) == (20, 150, 60)  # 2 · 1/2 of a shard of 20
    assert bytes_moved("hsdp", 100, 80, 8, 8) == bytes_moved("fsdp", 100, 80, 8, 8)


def test_seconds_to_move():
    """Within a machine over its links; beyond it through as many adapters as a group has GPUs in a machine."""
    h100 = gpu("h100")
    assert (h100.between(8), h100.between(16)) == (450e9, 400e9)
    assert h100.between(2, 8) == 50e9  # one GPU of each machine
    assert h100.between(4, 4) == 100e9
    assert h100.between(2, 4) == 450e9
    moved = bytes_moved("hsdp", 2 * 10**9, 10**9, 16, 8)
    assert seconds_to_move(moved, h100, 16, 8) == pytest.approx(3 * 7 / 8 / 450 + 1 / 8 / 50)
    assert seconds_to_move(bytes_moved("ddp", 10**9, 10**9, 16, 1), h100, 16, 1) == pytest.approx(
        2 * 15 / 16 / 400
    )


def test_memory_of_shards():
    whole = memory_of(KEPT, STEP, 4, "ddp")
    assert whole == (100, 100, 200, 100, 0, 0, 210)
    shared = memory_of(KEPT, STEP, 4, "fsdp", 4)
    assert shared == (25, 25, 50, 25, 0, 2 * 40 + 40 + 20, 210)
    halved = memory_of(KEPT, STEP, 4, "fsdp", 4, passes=2, bf16=True)
    assert halved == (25, 100, 50, 25, 0, 40 + 40 + 20, 210)
    assert memory_of(KEPT, STEP, 4, "none", passes=2) == whole
    assert memory_of(KEPT, STEP, 4).total == 400 + STEP.with_gradients(4)


def test_sharded_blocks_leave_no_copies_in_bf16():
    """Autocast copies float32 weights for autograd; what is gathered as bf16 is not kept."""
    counted = Counted(SIZES["dit-bf16"])
    blocks = sum(counted.footprint.units[:-1])
    less = counted.passes(0).activations(0) - counted.passes(0, sharded=True).activations(0)
    assert less == pytest.approx(blocks / 2, rel=0.05)


def test_most_images():
    for room in (500, 550, 599, 600, 1_234_567):
        most = most_images(KEPT, STEP, room, "ddp", 1)
        assert memory_of(KEPT, STEP, most + 1, "ddp").total > room
        assert most == 0 or memory_of(KEPT, STEP, most, "ddp").total <= room


def test_auto_takes_whole_copies_where_they_fit():
    assert choose(1, 10, 5) == "none"
    assert choose(8, 5, 5) == "ddp"
    assert choose(8, 6, 5) == "fsdp"


def test_groups():
    assert shard_of("fsdp", 64, 8) == 64
    assert shard_of("ddp", 64, 8) == 1
    assert shard_of("hsdp", 64, 8) == 8
    assert shard_of("hsdp", 4, 8) == 4
    assert shard_of("hsdp", 64, 8, 16) == 16
    with pytest.raises(InputError, match="groups of 3; give one of: 1, 2, 4, 8, 16, 32, 64"):
        shard_of("hsdp", 64, 8, 3)
    with pytest.raises(InputError, match="give one of: 1, 2, 4, 8"):
        shard_of("hsdp", 8, 8, 16)
    with pytest.raises(InputError, match=r"is for `train\.parallel` hsdp"):
        shard_of("ddp", 64, 8, 8)
    with pytest.raises(InputError, match="is for one GPU"):
        shard_of("none", 2, 8)


def test_checkpoints_lose_least_at_the_interval():
    """Writing, and half an interval's work for each failure."""
    found = checkpoints(size=10**10, speed=1e9, lifetime=1e6, gpus=8)
    assert found.write == 10
    assert found.failures == 125_000
    assert found.interval == pytest.approx(math.sqrt(2 * 10 * 125_000))
    for other in (0.8, 1.25):
        assert found._replace(interval=other * found.interval).lost > found.lost


@pytest.mark.parametrize("name", GPUS)
def test_gpus_are_plausible(name):
    found = gpu(name)
    assert 24 * GIB <= found.memory <= 192 * GIB
    assert found.bf16 >= found.tf32 >= 0
    assert 15e12 <= found.fp32 < 100e12
    assert found.bandwidth > found.link > found.network


PUBLISHED = [name for name in RECIPES if name.startswith(("imagenet", "mdm", "video"))]
QUICK = ("imagenet256-dit-xl2", "imagenet512-sit-xl2")


@lru_cache
def counted_for_h100(name):
    recipe = RECIPES[name]()
    return [Counted(for_gpu(stage, GPUS["h100"])) for stage in stages_of(recipe)]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PUBLISHED]
)
def test_every_published_recipe_is_planned(name):
    for gpus in (8, 64, 1024):
        stages = [share(counted, GPUS["h100"], gpus, Options()) for counted in counted_for_h100(name)]
        assert all(stage.memory.total < 0.9 * GPUS["h100"].memory for stage in stages)
        assert all(0 < stage.seconds < math.inf for stage in stages)
        assert stages[-1].passes * stages[-1].per_pass >= stages[-1].images >= 1


def test_the_papers_operations():
    """XL/2 trains at three forward passes, 2 · 118.64 G operations each; activations of images add up."""
    step = counted_for_h100("imagenet256-dit-xl2")[0].passes(0, "written")
    assert step.products.each / 1e9 == pytest.approx(6 * 118.64, rel=1e-3)


def test_sharding_shares_what_does_not_fit():
    counted = counted_for_h100("imagenet256-dit-xl2")
    little = GPUS["rtx-4090"]._replace(memory=14 * GIB)
    found = share(counted[0], little, 8, Options())
    assert (found.parallel, found.shard) == ("fsdp", 8)
    assert found.memory.weights * 8 == pytest.approx(
        share(counted[0], GPUS["h100"], 1, Options()).memory.weights
    )
    with pytest.raises(InputError, match="give more `gpus`, which share it by fsdp"):
        share(counted[0], little, 1, Options())
    with pytest.raises(InputError, match=r"give `train\.parallel` fsdp"):
        share(counted[0], little, 8, Options(parallel="ddp"))
    with pytest.raises(InputError, match="no number of GPUs helps"):
        share(counted[0], little._replace(memory=GIB // 1000), 8, Options())


def test_a_batch_smaller_than_the_gpus_leaves_some_idle():
    found = share(counted_for_h100("imagenet256-dit-xl2")[0], GPUS["h100"], 1024, Options())
    assert (found.images, found.idle) == (1, 768)


def test_measured_images_replace_the_assumption():
    counted = Counted(SIZES["dit"])
    found = share(counted, GPUS["a100-80"], 1, Options(images_per_second=100.0))
    assert found.images_per_second == pytest.approx(100)
    assert found.seconds == pytest.approx(counted.recipe.train.images / 100)


SMALL = ["--backbone.width", "24", "--backbone.depth", "2", "--backbone.heads", "2"]


def test_command(capsys):
    words = ["plan", "digits", "--gpu", "a100-80", "--gpus", "4", "--price-per-gpu-hour", "2", *SMALL]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("digits on 4 a100-80: ")
    assert "not measured" in lines[1]
    counts = [line.split()[0] for line in lines if line[:6].strip().replace(",", "").isdecimal()]
    assert counts == [f"{2**k:,}" for k in range(11)]
    for words in ("every second", "attention fused", "a checkpoint", "GPU-hours", "sent by each GPU"):
        assert any(words in line for line in lines), words


def test_json(capsys):
    words = ["plan", "digits", "--gpu", "h100", "--gpus", "16", "--train.parallel", "hsdp", "--json", *SMALL]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["parallel"], found["shard"], found["measured"]) == ("hsdp", 8, False)
    assert [row["gpus"] for row in found["table"]] == [2**k for k in range(11)]
    assert len(found["levels"]) == 6
    assert found["price"] is None
    assert found["checkpoint"]["interval"] > found["checkpoint"]["write"]


def test_all_gpus_are_compared(capsys):
    assert main(["plan", "digits", *SMALL]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{name} " in out for name in GPUS)
    assert main(["plan", "digits", "--train.precision", "bf16", *SMALL]) == 0
    assert "v100         34  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["digts"], "unknown name 'digts'"),
        (["digits", "--gpu", "h10"], "unknown 'h10'; did you mean h100?"),
        (["digits", "--gpus", "0"], "--gpus: "),
        (
            ["digits", "--gpu", "h100", "--gpus", "6", "--train.parallel", "hsdp", "--train.shard-size", "4"],
            "groups of 4",
        ),
        (
            ["digits", "--gpu", "h100", "--gpus", "6", "--train.parallel", "none"],
            "--train.parallel none is for one GPU",
        ),
        (["digits", "--gpu", "v100", "--train.precision", "bf16"], "--train.precision bf16"),
        (["digits", "--utilisation", "1.5"], "--utilisation: "),
        (["digits", "--headroom", "0.99999999", "--gpu", "h100"], "give a --gpu with more memory"),
    ],
)
def test_wrong_input(words, message, capsys):
    assert main(["plan", *words, *SMALL]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
