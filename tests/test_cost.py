"""Costs: the papers' numbers, closed forms, and predictions compared with real steps; never against a clock."""

import json
import math
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from torch import nn

import ditkit
from ditkit.backbones import BACKBONES, backbone
from ditkit.cli import main
from ditkit.costs import speed
from ditkit.costs.count import HEAP_WASTE, Memory, count_cost
from ditkit.costs.operators import CPU, Amount, Keeping, Operators
from ditkit.costs.speed import Rate, Rates
from ditkit.device import autocast
from ditkit.errors import InputError
from ditkit.interop.official_names import to_official
from ditkit.kernels.attention import MOST_EXPLICIT_TOKENS

# DiT paper, table 4 (Gflops are multiply-adds, as printed), and the released code (trainable parameters).
PAPER = {
    "S/8": ("0.36", 33_142_016),
    "S/4": ("1.41", 32_920_448),
    "S/2": ("6.06", 32_865_056),
    "B/8": ("1.42", 130_869_248),
    "B/4": ("5.56", 130_426_496),
    "B/2": ("23.01", 130_315_808),
    "L/8": ("5.01", 458_578_432),
    "L/4": ("19.70", 457_988_224),
    "L/2": ("80.71", 457_840_672),
    "XL/8": ("7.39", 675_664_640),
    "XL/4": ("29.05", 675_000_704),
    "XL/2": ("118.64", 674_834_720),
}
# Later backbones and conditionings join here: name, image size, Gflops as printed.
PRINTED = [(f"DiT-{size}", 256, gflops) for size, (gflops, _) in PAPER.items()] + [
    ("DiT-XL/2", 512, "524.60")
]


@lru_cache
def cost_of(name, size=256):
    return ditkit.cost(name, size=size)


@pytest.mark.parametrize(("name", "size", "printed"), PRINTED)
def test_the_papers_gflops(name, size, printed):
    """Equal in the printed digits or within 0.5 %, whichever is larger."""
    gigamacs = cost_of(name, size).macs / 1e9
    digits = len(printed.partition(".")[2])
    assert abs(gigamacs - float(printed)) <= max(0.5 * 10**-digits, 0.005 * float(printed))


@pytest.mark.parametrize(
    ("conditioning", "printed", "params"),
    [
        ("in_context", 119.37, 449_031_200),
        ("cross_attention", 137.62, 597_795_872),
        ("adaln", 118.56, 600_452_384),
        ("adaln_zero", 118.64, 674_834_720),
    ],
)
def test_the_papers_conditionings(conditioning, printed, params):
    cost = ditkit.cost("DiT-XL/2", conditioning=conditioning)
    assert cost.params == params
    assert cost.macs / 1e9 == pytest.approx(printed, rel=2e-4)  # norms, which are not counted, are 0.017


# U-DiT paper, tables 2 and 5: M parameters, "Gflops" at 256 pixels, which count norms and softmax, and what the
# released code, fused, multiplies and adds without them.
UDIT = {"S": (52.05, 6.04, 6.021), "B": (204.43, 22.22, 22.179), "L": (810.19, 85.00, 84.909)}


@pytest.mark.parametrize("size", UDIT)
def test_the_papers_udits(size):
    """Fused, as they sample; 512 pixels and the form for training with one of them."""
    params, printed, counted = UDIT[size]
    cost = ditkit.cost(f"U-DiT-{size}", fused=True)
    assert cost.params / 1e6 == pytest.approx(params, abs=0.005)
    assert cost.macs / 1e9 == pytest.approx(counted, abs=5e-4)
    assert cost.macs / 1e9 == pytest.approx(printed, rel=0.004)
    if size == "B":
        large = ditkit.cost("U-DiT-B", 512, fused=True).macs / 1e9
        assert large == pytest.approx(106.29, abs=0.005)
        assert large == pytest.approx(106.7, rel=0.004)
    if size == "S":
        vanilla = ditkit.cost("U-DiT-S", ffn="basic", cosine=False, rotary=False).macs / 1e9
        assert vanilla == pytest.approx(5.893, abs=5e-4)
        assert vanilla == pytest.approx(5.91, rel=0.004)
        # As released each of the three depthwise kernels is convolved by itself; here they are added first.
        hidden = cost.modules["blocks.*.mlp.depthwise"].macs / 25
        assert (cost_of("U-DiT-S").macs + (9 + 1) * hidden) / 1e9 == pytest.approx(7.129, abs=5e-4)
    if size != "L":
        assert cost_of(f"U-DiT-{size}").params == {"S": 58_896_568, "B": 231_251_304}[size]


@pytest.mark.parametrize("family", ["DiT", "SiT"])
@pytest.mark.parametrize("size", PAPER)
def test_published_parameters(family, size):
    assert cost_of(f"{family}-{size}").params == PAPER[size][1]


@pytest.mark.parametrize("name", BACKBONES)
def test_contract(name):
    """Every backbone has a cost, whose parts by module add up; it keeps activations."""
    cost = cost_of(name)
    assert cost.params == sum(part.params for part in cost.modules.values()) > 0
    assert cost.macs == sum(part.macs for part in cost.modules.values()) > 0
    assert all(part.params >= 0 and part.macs >= 0 for part in cost.modules.values())
    assert not any(piece.isdigit() for module in cost.modules for piece in module.split("."))
    if cost.params < 50e6:  # the larger ones are the same code
        assert cost.memory(2, "fp32").activations > 0


@pytest.mark.parametrize(("width", "depth", "side", "patch"), [(48, 2, 8, 2), (96, 3, 16, 4)])
def test_closed_form_by_module(width, depth, side, patch):
    """D width, N depth, T tokens, C channels in and 2C out, p patch: multiply-adds and parameters."""
    net = backbone("DiT", classes=10, learned_variance=True, width=width, depth=depth, heads=4, patch=patch)
    cost = count_cost(net, (4, side, side), labelled=True)
    d, n, t, c, p = width, depth, (side // patch) ** 2, 4, patch
    assert {name: part.macs for name, part in cost.modules.items()} == {
        "patches.proj": t * d * c * p**2,
        "time.mlp.*": 256 * d + d**2,
        "label": 0,
        "blocks.*.attention": n * 2 * t**2 * d,
        "blocks.*.attention.qkv": n * 3 * d**2 * t,
        "blocks.*.attention.proj": n * d**2 * t,
        "blocks.*.mlp.*": n * 8 * d**2 * t,
        "blocks.*.modulation.linear": n * 6 * d**2,
        "final.modulation.linear": 2 * d**2,
        "final.linear": t * d * p**2 * 2 * c,
    }
    assert {name: part.params for name, part in cost.modules.items()} == {
        "patches.proj": c * p**2 * d + d,
        "time.mlp.*": 257 * d + (d + 1) * d,
        "label": 11 * d,
        "blocks.*.attention": 0,
        "blocks.*.attention.qkv": n * (d + 1) * 3 * d,
        "blocks.*.attention.proj": n * (d + 1) * d,
        "blocks.*.mlp.*": n * ((d + 1) * 4 * d + (4 * d + 1) * d),
        "blocks.*.modulation.linear": n * (d + 1) * 6 * d,
        "final.modulation.linear": (d + 1) * 2 * d,
        "final.linear": (d + 1) * p**2 * 2 * c,
    }


class Odd(nn.Module):
    """Products of its own, a child that is used twice, a frozen one, and a name with a digit in it."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(4, 4, bias=False)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.conv2 = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        self.weight = nn.Parameter(torch.eye(4))

    def forward(self, x, t, cond):
        return self.frozen(self.twice(self.twice(self.conv2(x)))) @ self.weight


def test_modules_of_any_network():
    cost = count_cost(Odd(), (1, 4, 4), labelled=False)
    assert cost.modules == {"": (16, 64), "twice": (16, 128), "frozen": (0, 64), "conv2": (9, 144)}
    assert (cost.params, cost.macs) == (41, 400)
    memory = cost.memory(1, "fp32")
    assert memory.gradients == 4 * 41
    assert memory.weights == 4 * (41 + 20)
    assert memory.ema == 4 * 41, "what is frozen is its own average"


# Memory


def inputs(net, batch, side):
    cond = {"label": torch.arange(batch) % net.classes} if net.classes else {}
    return torch.randn(batch, 4, side, side), torch.rand(batch), cond


def small(name, **fields):
    if name == "UNet":
        return backbone(name, classes=10, **({"width": 16, "depth": 1} | fields))
    if name == "U-DiT":
        return backbone(name, classes=10, **({"width": 16, "heads": 2, "depth": (1, 1, 2, 1, 1)} | fields))
    return backbone(name, classes=10, **({"width": 48, "depth": 2, "heads": 4} | fields))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("name", "side", "batch"), [("DiT", 16, 3), ("DiT", 48, 1), ("UNet", 16, 3), ("U-DiT", 16, 3)]
)
def test_activations_are_those_of_a_real_step(name, side, batch, precision):
    """To the byte, on both sides of the number of tokens up to which attention is written out.

    But for the statistics of a group norm under autocast: torch's fake ones are bf16, the real float32.
    """
    net = small(name)
    with (keeping := Keeping(net.parameters())), autocast(CPU, precision):
        kept = net(*inputs(net, batch, side))
    predicted = count_cost(net, (4, side, side), labelled=True).memory(batch, precision).activations
    assert predicted == pytest.approx(
        keeping.bytes, rel=0.002 if (name, precision) == ("UNet", "bf16") else 0
    )
    assert kept.requires_grad


def test_both_forms_of_attention_were_tried():
    assert (16 // 2) ** 2 <= MOST_EXPLICIT_TOKENS < (48 // 2) ** 2


def test_keeping_counts_storages_once_and_parameters_never():
    x, weight = torch.randn(8, 8, requires_grad=True), torch.randn(8, 8, requires_grad=True)
    with (keeping := Keeping([weight])):
        y = x @ weight  # keeps both
        (y.t() @ y).sum()  # keeps y, as it is and turned
    assert keeping.bytes == 2 * 4 * 64


def test_activations_grow_with_the_batch_and_nothing_else_does():
    cost = count_cost(small("DiT"), (4, 16, 16), labelled=True)
    two, six = cost.memory(2, "fp32"), cost.memory(6, "fp32")
    assert six.activations == 3 * two.activations > 0
    assert six == replace(two, activations=six.activations)
    assert cost.memory(6, "bf16").activations < six.activations


def test_optimizer_memory_is_that_of_adamw():
    net = small("DiT")
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    net(*inputs(net, 2, 8)).square().mean().backward()
    optimizer.step()
    state = [value for values in optimizer.state.values() for value in values.values()]
    memory = count_cost(net, (4, 8, 8), labelled=True).memory(2, "fp32")
    assert memory.optimizer == sum(value.numel() * value.element_size() for value in state)
    assert memory.gradients == sum(p.grad.numel() * p.grad.element_size() for p in net.parameters())
    assert memory.weights == memory.ema == memory.gradients


def test_peak():
    """Within one pass gradients replace activations; over several they lie beside them."""
    memory = Memory(weights=10, gradients=9, optimizer=20, ema=10, activations=100)
    assert memory.peak == 140
    assert memory.resident == 140 + HEAP_WASTE * 100
    assert Memory(10, 9, 20, 10, activations=5).peak == 49
    assert Memory(10, 9, 20, 10, 100, accumulated=True).peak == 149
    cost = count_cost(small("DiT"), (4, 16, 16), labelled=True)
    split = cost.memory(4, "fp32", micro_batch=2)
    assert split.activations == cost.memory(2, "fp32").activations
    assert split.accumulated
    assert not cost.memory(4, "fp32", micro_batch=8).accumulated


def test_nothing_is_left_behind():
    """The network is as it was, and no table kept by a network has become a fake one."""
    for name in ("DiT", "U-DiT", "UNet"):
        net = small(name)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        cost = count_cost(net, (4, 24, 24), labelled=True)
        cost.memory(2, "bf16")
        cost.work(2, "fp32")
        assert all(value.equal(before[key]) for key, value in net.state_dict().items())
        assert all(p.grad is None for p in net.parameters())
        assert net(*inputs(net, 2, 24)).isfinite().all()


# Steps


def test_work_is_that_of_a_real_step():
    """Every kind of operator as often and as large as when the same step is run in earnest."""
    net = small("DiT")
    x, t, cond = inputs(net, 2, 16)
    average = [torch.zeros_like(p) for p in net.parameters()]
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad()
    with Operators() as operators:
        with autocast(CPU, "bf16"):
            out = net(x, t, cond)
        out.backward(torch.ones_like(out))
        optimizer.step()
        torch._foreach_lerp_(average, list(net.parameters()), 0.5)
    predicted = count_cost(net, (4, 16, 16), labelled=True).work(2, "bf16")
    moves = {
        kind: amount
        for kind, amount in operators.work.items()
        if amount.size and kind not in ("ones_like", "empty", "empty_like")  # what only this test does
    }
    assert moves == {kind: predicted.get(kind) for kind in moves}
    assert {kind for kind, amount in predicted.items() if amount.size} <= moves.keys() | {
        "empty",
        "empty_like",
    }


def test_products_of_a_step_are_three_times_those_of_a_forward_pass():
    """Less the first layer's and the label's, which have no input to pass a gradient to."""
    cost = count_cost(small("DiT"), (4, 16, 16), labelled=True)
    work = cost.work(5, "fp32")
    done = sum(amount.size for kind, amount in work.items() if kind in speed.PRODUCT_NAMES)
    first = cost.modules["patches.proj"].macs + 256 * 48
    assert done == 2 * 5 * (3 * cost.macs - first)


def test_fused_attention_counts_as_products():
    """Beyond the written-out form; its backward has five products where its forward has two."""
    cost = count_cost(small("DiT", depth=1), (4, 48, 48), labelled=True)
    work = cost.work(1, "fp32")
    forward = 2 * cost.modules["blocks.*.attention"].macs
    assert work["_scaled_dot_product_flash_attention_for_cpu"].size == forward
    assert work["_scaled_dot_product_flash_attention_for_cpu_backward"].size == forward * 5 / 2


def test_bytes_of_views_and_of_work_in_place():
    x = torch.zeros(4, 8)
    with Operators() as operators:
        x.t()
        x + x
        x.add_(1)
    assert operators.work == {"t": Amount(1, 0), "add": Amount(1, 3 * 128), "add_": Amount(1, 2 * 128)}


def test_rates():
    """Known kinds by their own line, unknown products and others by the average; overhead for each call."""
    rates = Rates({"mm": Rate(1.0, 0.5)}, product=Rate(2.0, 0.25), other=Rate(0.0, 0.125), overhead=10.0)
    assert rates.seconds({"mm": Amount(2, 4)}) == 2 * 11 + 2
    assert rates.seconds({"bmm": Amount(1, 4)}) == 12 + 1
    assert rates.seconds({"gelu": Amount(1, 16)}) == 10 + 2
    assert rates.seconds({"mm": Amount(2, 4), "gelu": Amount(1, 16)}) == 24 + 12


@pytest.mark.parametrize(
    ("small_seconds", "large_seconds", "expected"),
    [
        (2 * 3 + 10 * 0.5, 1 * 3 + 100 * 0.5, (3.0, 0.5)),
        (0.01, 50.0, (0.0, 0.5)),  # a call cannot take less than nothing
        (1000.0, 50.0, (0.0, 0.5)),  # nor can a byte: what was measured is noise, the larger step counts
    ],
)
def test_a_rate_is_the_line_through_two_measurements(small_seconds, large_seconds, expected):
    rate = speed._line((Amount(2, 10), small_seconds), (Amount(1, 100), large_seconds))
    assert rate == pytest.approx(expected)
    assert speed._line((Amount(2, 0), 1.0), (Amount(4, 0), 8.0)) == (2.0, 0.0)


@pytest.fixture
def quick(monkeypatch):
    """A calibration that measures hardly anything, in no time."""
    monkeypatch.setattr(speed, "REPEATS", 1)
    monkeypatch.setattr(speed, "SMALL", {"images": 1, "width": 64, "side": 2, "channels": 8})
    monkeypatch.setattr(speed, "LARGE", {"images": 2, "width": 64, "side": 4, "channels": 16})


def test_calibration_reads_the_clock_that_is_passed(quick):
    """A clock that ticks once per reading: every operator then takes one tick, whatever its size."""
    ticks = iter(range(10**9))
    rates = speed.calibrate("fp32", lambda: float(next(ticks)))
    for kind in ("mm", "bmm", "gelu", "convolution", "native_group_norm", "_fused_adamw_"):
        assert rates.kinds[kind] == pytest.approx((1.0, 0.0), abs=1e-6), kind
    work = cost_of("DiT-S/8").work(2, "fp32")
    calls = sum(amount.calls for amount in work.values())
    assert math.isfinite(rates.seconds(work))
    assert rates.seconds(work) == pytest.approx(calls, rel=0.05)


# By name


def test_unknown_and_unfitting():
    with pytest.raises(InputError, match="DiT-S/3"):
        ditkit.cost("DiT-S/3")
    with pytest.raises(InputError, match=r"`size` 250: .* 240, 256"):
        ditkit.cost("DiT-XL/2", size=250)
    with pytest.raises(InputError, match=r"`size` 264: .* 256, 288"):
        ditkit.cost("UNet", size=264)
    for size in (0, -8):
        with pytest.raises(InputError, match="takes 16"):
            ditkit.cost("DiT-S/2", size=size)
    with pytest.raises(InputError, match="`batch` 0"):
        cost_of("DiT-S/8").memory(0)


# On the command line


@pytest.fixture
def info(capsys, quick):
    """What `ditkit info` prints; fails when it fails."""

    def run(*arguments):
        assert main(["info", *map(str, arguments)]) == 0
        return capsys.readouterr().out

    return run


def test_info_of_a_backbone(info):
    out = info("DiT-S/2", "--size", "256", "--batch", "4", "--precision", "fp32", "--modules")
    assert "32,865,056" in out
    assert "6.056 G" in out
    memory = cost_of("DiT-S/2").memory(4, "fp32")
    for size in (memory.peak, memory.resident, memory.optimizer, memory.activations):
        assert f"{size / 1e6:,.0f}" in out
    assert "images/s here" in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if "%" in line}
    assert rows["blocks.*.attention.qkv"][1:] == ["5,322,240", "16.2%", "1,358.954", "22.4%"]
    shares = [float(row[2].rstrip("%")) for row in rows.values()]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert "qkv" not in info("DiT-S/8", "--size", "64")


def test_info_of_a_udit_tells_both_forms_and_what_attention_costs(info, monkeypatch):
    monkeypatch.setattr("ditkit.cli.info._training", lambda *args: [])  # which takes long for 44 blocks
    out = info("U-DiT-S", "--modules")
    for fact in ("52,045,240 fused", "58,896,568 trained", "6.021 G", "7.078 G in training"):
        assert fact in out
    assert "attention   0.742 G of them (12.3%); 2.970 G without downsampling" in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if "%" in line}
    assert rows["blocks.*.attention"][3:] == ["742.392", "12.3%"]
    small = ["--backbone", "U-DiT", "--backbone.width", "8", "--backbone.depth", *"11111"]
    assert "without downsampling" in info("digits", *small)
    assert "without downsampling" not in info("digits", *small, "--backbone.attention", "full")


def test_info_of_a_recipe_and_its_flags(info):
    out = info("imagenet256-dit-xl2", "--train.batch", "2")
    assert "674,834,720" in out
    assert "118.621 G" in out
    assert "4 x 32 x 32" in out
    out = info("imagenet512-sit-xl2", "--backbone", "DiT-S/8", "--train.batch", "2")
    assert "4 x 64 x 64" in out
    whole, split = info("digits"), info("digits", "--train.micro-batch", "32")
    assert "training with 64 images per pass" in whole
    assert "training with 32 images per pass" in split
    assert "training with 7 images per pass" in info("digits", "--batch", "7")


def test_info_of_a_run_and_a_snapshot(run, info):
    assert json.loads(info(run, "--json"))["backbone"]["width"] == 24
    assert json.loads(info(run, "--json", "--train.batch", "7"))["train"]["batch"] == 7
    count = sum(p.numel() for p in ditkit.load(run).backbone.parameters())
    assert f"parameters  {count:,}" in info(run)
    assert "predicts noise" in info("digits-dit")


def test_info_of_an_official_file(info, tmp_path):
    state = to_official(backbone("DiT-S/8", classes=3, depth=1).state_dict(), 4)
    torch.save(state, tmp_path / "SiT-own.pt")
    text = info(str(tmp_path / "SiT-own.pt"))
    assert "SiT-own: DiT, linear path, predicts velocity" in text
    assert "4 x 32 x 32 (vae)" in text
    assert "3 classes" in text


def test_info_all(info, monkeypatch):
    names = ("DiT-S/8", "UNet")
    monkeypatch.setattr("ditkit.cli.info.BACKBONES", dict.fromkeys(names))
    rows = [line.split() for line in info("all", "--size", "64", "--batch", "3").splitlines()[2:]]
    assert [row[0] for row in rows] == list(names)
    for name, params, macs, _, training in rows:
        cost = cost_of(name, 64)
        assert params == f"{cost.params:,}"
        assert macs == f"{cost.macs / 1e9:.2f}"
        assert training == f"{cost.memory(3).peak / 1e6:,.0f}"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["DiT-S/3"], ["unknown name 'DiT-S/3'", "ditkit list"]),
        (["DiT-S/2", "--size", "250"], ["--size 250", "240, 256"]),
        (["DiT-S/2", "--batch", "0"], ["--batch"]),
        (["DiT-S/2", "--train.batch", "4"], ["--train.batch"]),
        (["all", "--size", "8"], ["--size 8", "DiT"]),
        (["digits", "--data.size", "9"], ["9x9", "--data.size"]),
        (["digits", "--train.batch", "0"], ["train.batch"]),
        (["digits", "--batch", "0"], ["--batch"]),
    ],
)
def test_info_of_wrong_input(arguments, words, capsys):
    assert main(["info", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for word in words:
        assert word in line, line
