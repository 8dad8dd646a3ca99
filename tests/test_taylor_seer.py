"""TaylorSeer: exact where it computes or where blocks are polynomials of the time; what it spares; whole samplings."""

import pytest
import torch
from conftest import CPU

from ditkit.backbones import UNetConfig
from ditkit.errors import InputError
from ditkit.pipeline import Pipeline
from ditkit.recipes import recipe
from ditkit.sampling.taylor_seer import Memory, taylor_seer
from ditkit.transports import At


def made(**fields) -> Pipeline:
    chosen = recipe("digits").replace(backbone={"width": 24, "depth": 3, "heads": 2} | fields)
    torch.manual_seed(0)
    net = chosen.build_backbone().eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter.normal_(0, 0.1)
    return Pipeline(chosen, net, chosen.build_codec(), CPU)


def images(pipeline, **how):
    return pipeline.generate({"label": [1, 2, 3]}, seeds=[5, 6, 7], numbers=True, **how)


@pytest.mark.parametrize("sampler", ["euler", "heun", "ab2", "ddim", "euler_maruyama"])
def test_exact_when_every_evaluation_is_computed(sampler):
    pipeline = made()
    how = {"sampler": sampler, "steps": 6, "guidance": 1.5}
    assert torch.equal(images(pipeline, cache="taylor_seer:interval=1", **how), images(pipeline, **how))


def test_polynomials_of_the_time_are_forecast():
    """On any times: a line by order 1; and what does not change by order 0."""
    memory = Memory()
    for t in (0.9, 0.7):
        memory.note(0, t, torch.tensor([3 * t - 1]), 1)
        memory.note(1, t, torch.tensor([2.0]), 0)
    assert memory.forecast(0, 0.2).item() == pytest.approx(3 * 0.2 - 1)
    assert memory.forecast(1, 0.2).item() == 2


def test_derivatives_are_backward_differences():
    """F = t³ on equal steps: D1 = (F0 - F1)/h, D2 = (D1 - D1 before)/h, as the paper's recursion has it."""
    memory, h = Memory(), -0.1
    times = [0.8, 0.7, 0.6]
    for t in times:
        memory.note(0, t, torch.tensor([t**3], dtype=torch.float64), 2)
    f = [t**3 for t in times]
    first, before = (f[2] - f[1]) / h, (f[1] - f[0]) / h
    _, found = memory.series[0]
    assert [value.item() for value in found] == pytest.approx([f[2], first, (first - before) / h])


def test_an_evaluation_at_the_same_time_keeps_the_derivatives():
    memory = Memory()
    for t, value in ((0.9, 1.0), (0.8, 2.0), (0.8, 5.0)):
        memory.note(0, t, torch.tensor([value]), 1)
    assert memory.forecast(0, 0.7).item() == pytest.approx(6)


@pytest.mark.parametrize(("interval", "order", "expected"), [(3, 2, 5), (4, 1, 4), (2, 0, 5), (1, 2, 10)])
def test_blocks_that_are_run(interval, order, expected):
    """In ten evaluations: the first `order` + 1, then every interval-th."""
    pipeline, calls = made(), []
    for block in pipeline.backbone.blocks:
        block.register_forward_hook(lambda *_: calls.append(1))
    images(pipeline, sampler="euler", steps=10, cache=f"taylor_seer:interval={interval},order={order}")
    assert len(calls) == 3 * expected


def test_image_k_depends_on_its_seed_only():
    """Rows of all guidance roles are kept apart; outside its interval guidance asks for some rows only."""
    pipeline = made()
    how = {"steps": 8, "guidance": 2.0, "interval": (0.2, 0.7), "cache": "taylor_seer:interval=2,order=1"}
    together = images(pipeline, **how)
    alone = pipeline.generate({"label": [2]}, seeds=[6], numbers=True, **how)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-3, atol=0.05)
    other = images(pipeline, **(how | {"cache": "none"}))
    assert not torch.equal(together, other)


def test_a_role_that_begins_later_is_computed_first():
    store: dict = {}
    ones = torch.ones(2, 1, 1)

    def value(t, roles):
        around = taylor_seer(torch.tensor([t]), At(roles=roles, store=store), interval=3, order=0)
        ran = []

        def run(h, tokens):
            ran.append(1)
            return h + t

        around(0, run, ones[: len(roles)], None)
        return bool(ran)

    assert value(0.9, ("cond",))
    assert not value(0.8, ("cond",))
    assert value(0.7, ("cond", "null"))


def test_networks_whose_blocks_change_the_width():
    chosen = recipe("digits").with_backbone(UNetConfig(width=8, multipliers=(1, 2), depth=1))
    net = chosen.build_backbone().eval().requires_grad_(False)
    pipeline = Pipeline(chosen, net, chosen.build_codec(), CPU)
    how = {"sampler": "euler", "steps": 5}
    assert torch.equal(images(pipeline, cache="taylor_seer:interval=1", **how), images(pipeline, **how))
    assert images(pipeline, cache="taylor_seer", **how).isfinite().all()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("taylor_seer:interval=0", "interval: Input should be greater than or equal to 1"),
        ("taylorseer", "did you mean taylor_seer"),
        ("taylor_seer:order", "'order' is no setting; write taylor_seer:NAME=VALUE"),
    ],
)
def test_wrong_settings_are_refused(choice, message):
    with pytest.raises(InputError, match=message):
        images(made(), cache=choice)


def test_a_solver_that_chooses_its_times_has_no_cache():
    with pytest.raises(InputError, match="dopri5 chooses its times"):
        images(made(), sampler="dopri5", cache="taylor_seer")
