"""Terms of the loss: their values by hand, what they move, and whole trainings that stop and go on."""

import math
from dataclasses import replace

import pytest
import torch
from conftest import CPU, FOUR_STEPS

from ditkit.errors import InputError
from ditkit.layout import Layout
from ditkit.objectives import TERMS
from ditkit.objectives.layer_sync import LayerSync
from ditkit.objectives.sra import SelfAlignment, earlier
from ditkit.objectives.terms import Seen, Term
from ditkit.pipeline import load
from ditkit.recipes import recipe
from ditkit.training.loop import train
from ditkit.transports import Transport, transport

BASE = recipe("digits").replace(
    backbone={"width": 24, "depth": 7, "heads": 2, "patch": 2},
    train=FOUR_STEPS,
)


def network():
    torch.manual_seed(0)
    net = BASE.build_backbone()
    for parameter in net.parameters():
        parameter.data.normal_(0, 0.1)
    return net


def seen(captured, average=None, t=(0.3, 0.8)):
    x0, eps = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    return Seen(
        transport=transport("linear"),
        x0=x0,
        eps=eps,
        t=torch.tensor(t, dtype=torch.float64),
        cond={"label": torch.tensor([1, 2])},
        layout=Layout((1, 8, 8)),
        draws={"sra": torch.tensor([0.5, 0.5], dtype=torch.float64)},
        average=average,
        captured=captured,
    )


def test_layer_sync_by_hand():
    """Minus the mean cosine; only the early block is moved."""
    term = LayerSync(network(), early=1, late=3)
    early = torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[1.0, 1.0], [3.0, 0.0]]], requires_grad=True)
    late = torch.tensor([[[2.0, 0.0], [1.0, 0.0]], [[1.0, 0.0], [-1.0, 0.0]]], requires_grad=True)
    value = term(seen({1: early, 3: late}))
    assert value.tolist() == pytest.approx([-0.5, -(math.sqrt(0.5) - 1) / 2])
    value.sum().backward()
    assert early.grad is not None
    assert late.grad is None


def test_self_alignment_is_zero_where_the_head_gives_the_teachers_tokens():
    """The teacher is the average network at the earlier time, with the same noise."""
    net = network()
    term = SelfAlignment(net, student=1, teacher=4, interval=0.2)
    calls = []

    def average(x, t, cond, around):
        calls.append((x, t))
        return net(x, t, cond, around=around)

    what = seen({1: torch.randn(2, 16, 24)}, average)
    value = term(what)
    assert value.shape == (2,)
    assert (value > 0).all()
    (x, t), *others = calls
    assert not others
    assert t.tolist() == pytest.approx([0.2, 0.7])
    expected = (1 - t)[:, None, None, None] * what.x0 + t[:, None, None, None] * what.eps
    torch.testing.assert_close(x, expected.float())
    kept = {}

    def capture(k, run, h, at):
        kept[k] = run(h, at)
        return kept[k]

    with torch.no_grad():
        net(x, t, what.cond, around=capture)
    term.head = torch.nn.Identity()
    again = term(seen({1: kept[4]}, lambda x, t, cond, around: net(calls[0][0], t, cond, around=around)))
    assert again.tolist() == pytest.approx([0, 0], abs=1e-6)


def test_the_teachers_time_is_not_below_the_data():
    t = torch.tensor([0.05, 0.9], dtype=torch.float64)
    assert earlier(t, torch.tensor([0.5, 0.5]), 0.2).tolist() == pytest.approx([0, 0.8])
    parts = torch.tensor([[0.0, 0.5]], dtype=torch.float64)
    assert earlier(parts, torch.tensor([0.5]), 0.2).tolist() == [pytest.approx([0, 0.4])]


def test_times_of_steps_stay_steps():
    tr = transport("ddpm", predict="noise")
    assert tr.nearest(torch.tensor([0.0, 0.0123, 0.5])).tolist() == pytest.approx([0.001, 0.012, 0.5])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("layer_sync:early=5,late=2", "early 5 is not before late 2"),
        ("layer_sync:early=1,late=9", "there is no block 9; this network has 0 to 6"),
        ("sra:student=6,teacher=6", "student 6 is not before teacher 6"),
    ],
)
def test_blocks_that_cannot_be_are_refused_before_anything_is_written(choice, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train(BASE.replace(train={"terms": (choice,)}), tmp_path / "run", device=CPU, progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("choice", [*TERMS, "layer_sync:weight=1"])
def test_it_trains_resumes_and_samples(choice, tmp_path):
    """Stopped after half, it ends as a training that was not, the term's own weights too; beside tokens that are left
    out."""
    whole = BASE.replace(train={"terms": (choice,), "routing": "tread:rate=0.5"})
    last = train(whole, tmp_path / "whole", device=CPU, progress=False)
    train(whole.replace(train={"images": 16}), tmp_path / "half", device=CPU, progress=False)
    gone_on = train(whole, tmp_path / "half", device=CPU, progress=False)
    files = sorted(path.name for path in last.iterdir())
    assert ("auxiliary.safetensors" in files) == (choice == "sra")
    for name in files:
        if name.endswith(".safetensors"):
            assert (last / name).read_bytes() == (gone_on / name).read_bytes(), name
    plain = BASE.replace(train={"routing": "tread:rate=0.5"})
    train(plain, tmp_path / "plain", device=CPU, progress=False)
    ours, theirs = (load(tmp_path / run, CPU).backbone.state_dict() for run in ("whole", "plain"))
    assert any(not torch.equal(value, theirs[name]) for name, value in ours.items())
    log = (tmp_path / "whole/log.jsonl").read_text().splitlines()[-1]
    assert f'"{choice.partition(":")[0]}": ' in log
    assert load(tmp_path / "whole", CPU).generate({"label": [3]}, seeds=[0], steps=2).shape == (1, 1, 8, 8)


def test_a_term_of_ones_own(monkeypatch, tmp_path):
    class Small(Term):
        """The mean square of the last block's tokens."""

        def __init__(self, net, *, weight: float = 0.5):
            super().__init__(net, weight, (len(net.blocks) - 1,))

        def forward(self, seen):
            (tokens,) = seen.captured.values()
            return tokens.square().mean((1, 2))

    monkeypatch.setitem(TERMS, "small", Small)
    chosen = BASE.replace(train={"terms": ("small:weight=0.1",), "images": 16})
    train(chosen, tmp_path / "run", device=CPU, progress=False)
    assert '"small": ' in (tmp_path / "run/log.jsonl").read_text()


def test_a_network_that_reads_numbers_is_evaluated_with_them():
    """Of a mean flow the length of a step: of none, where a term asks the network at a time."""
    found = replace(seen({}), transport=Transport(method="mean_flow"))
    assert found.cond_at(found.t)["span"].tolist() == [0, 0]
    assert seen({}).cond_at(found.t).keys() == {"label"}
