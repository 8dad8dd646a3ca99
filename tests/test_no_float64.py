"""Devices without float64, as Apple's: nothing that is trained, sampled or scored puts such a number there.

The `meta` device stands for one: nothing is computed on it, and a dispatch mode fails at the first float64 tensor on
it, and at the first that is copied to it or from it without being converted on the CPU.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import ditkit.device
from ditkit.backbones import DiTConfig, MatryoshkaConfig, OuterLevel
from ditkit.codecs.identity import Identity, to_bounds
from ditkit.data import Batch
from ditkit.layout import Layout
from ditkit.pipeline import Pipeline
from ditkit.randomness import RowNoise
from ditkit.recipe import Recipe
from ditkit.recipes import recipe
from ditkit.sampling import SAMPLERS, cfg
from ditkit.sampling.config import SamplingConfig
from ditkit.scoring.likelihood import likelihoods
from ditkit.training.draws import with_draws
from ditkit.training.monitor import validation_loss
from ditkit.training.step import backward
from ditkit.transports import LOSSES, PATHS, PREDICTIONS, TIME_LAWS, WEIGHTS, Transport

META = torch.device("meta")
LEARNED = Transport(path="ddpm", predict="noise", variance="learned")
COPY, ITEM = torch.ops.aten._to_copy.default, torch.ops.aten._local_scalar_dense.default


class NoFloat64(TorchDispatchMode):
    """`meta` as a device without float64; what is read back from it is 0, a question to it is answered by yes."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        there = any(each.is_meta for each in tensors)
        if function is ITEM and there:
            return True
        if function is COPY and there and torch.device(kwargs.get("device") or META).type == "cpu":
            made = torch.zeros(tensors[0].shape, dtype=kwargs.get("dtype") or tensors[0].dtype)
            self.check(function, made)
            return made
        out = function(*args, **(kwargs or {}))
        found = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        if function is COPY and not there:  # converted on the CPU, then moved
            tensors = []
        if there or any(each.is_meta for each in found):
            self.check(function, *tensors, *found)
        return out

    @staticmethod
    def check(function, *tensors):
        for tensor in tensors:
            assert tensor.dtype != torch.float64, f"{function}: float64 {tuple(tensor.shape)} with the device"


@pytest.fixture(autouse=True)
def meta_has_no_float64(monkeypatch):
    monkeypatch.setattr(ditkit.device, "WITHOUT_FLOAT64", ("mps", "meta"))


def test_the_mode_sees_float64():
    """Made there, moved there, mixed in, read back as float64."""
    there, numbers = torch.zeros(2, device=META), torch.zeros(2, dtype=torch.float64)
    for wrong in (
        lambda: there.double(),
        lambda: numbers.to(META),
        lambda: torch.zeros(2, dtype=torch.float64, device=META),
        lambda: there * numbers[0],
        lambda: there.to("cpu", torch.float64),
    ):
        with NoFloat64(), pytest.raises(AssertionError, match="float64"):
            wrong()
    with NoFloat64():
        there.copy_(there * numbers.to(there))
        assert there.cpu().double().sum() == 0


def tiny(transport: Transport, **sections) -> Recipe:
    backbone = {"width": 24, "depth": 1, "heads": 2}
    train = {"micro_batch": 2, "precision": "fp32", "clip": 1.0}
    return recipe("digits").replace(backbone=backbone, transport=transport, train=train, **sections)


def kinds(losses=True):
    """Every path, prediction, variance and loss."""
    for path in PATHS:
        for predict in PREDICTIONS:
            yield Transport(path=path, predict=predict)
            if PATHS[path].knots:
                yield Transport(path=path, predict=predict, variance="learned")
            for loss in LOSSES if losses else ():
                if loss != "output":
                    yield Transport(path=path, predict=predict, loss=loss)
            for weight in WEIGHTS if losses else ():
                if weight != "none":
                    yield Transport(path=path, predict=predict, weight=weight)
    yield from (Transport(time_law=law) for law in TIME_LAWS if losses)
    if losses:
        yield Transport(size_shift=32.0)


def named(transport: Transport) -> str:
    return "-".join(map(str, transport.model_dump(exclude_defaults=True).values())) or "default"


def on_device(chosen: Recipe) -> Pipeline:
    with META:
        net = chosen.build_backbone()
    return Pipeline(chosen, net.eval().requires_grad_(False), chosen.build_codec(META), META)


def clips(transport: Transport) -> Recipe:
    small = {"width": 24, "depth": 2, "heads": 2}
    return recipe("moving-digits").replace(transport=transport, backbone=small, data={"frames": 4, "size": 8})


def pyramid(transport: Transport) -> Recipe:
    inner = DiTConfig(width=16, depth=1, heads=2, patch=1)
    levels = (OuterLevel(widths=(32,), depth=(1,), patch=2),)
    return recipe("digits").replace(
        backbone=MatryoshkaConfig(inner=inner, levels=levels),
        transport=transport,
        train={"precision": "fp32"},
    )


def few(sampler: str) -> dict:
    return {"tolerance": 0.9} if SAMPLERS[sampler].adaptive else {"steps": 2}


def batch_of(chosen: Recipe) -> Batch:
    shape = (4, chosen.data.channels, *chosen.data.shape)
    batch = Batch(torch.zeros(shape, dtype=torch.uint8), torch.arange(4), torch.arange(4))
    return with_draws(chosen, chosen.build_codec(META), batch)


def train_step(chosen: Recipe) -> None:
    with META:
        net = chosen.build_backbone().train()
    with NoFloat64():
        terms = backward(chosen, net, chosen.build_codec(META), batch_of(chosen), META)
    assert all(value.is_meta for value in terms.values())
    assert all(parameter.grad is not None for parameter in net.parameters())


class Scaled(torch.nn.Module):
    """A network of one weight, for what does not depend on the network."""

    def __init__(self, transport: Transport):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1, device=META))
        self.copies = 2 if transport.variance == "learned" else 1

    def forward(self, x, t, cond):
        return (self.weight * x * t.view(-1, 1, 1, 1)).repeat(1, self.copies, 1, 1).to(x)


@pytest.mark.parametrize("transport", kinds(), ids=named)
def test_loss_and_its_gradient(transport):
    net, layout = Scaled(transport), Layout((1, 4, 4))
    with NoFloat64():
        t = transport.times(torch.rand(3, dtype=torch.float64), layout)
        x0, eps = torch.zeros(2, 3, 1, 4, 4, device=META)
        transport.losses(net, x0, {}, t=t, eps=eps, layout=layout)["loss"].sum().backward()
    assert net.weight.grad is not None


@pytest.mark.parametrize("chosen", [tiny(Transport()), tiny(LEARNED)], ids=["velocity", "learned variance"])
def test_steps_of_training(chosen):
    train_step(chosen)


@pytest.mark.parametrize(
    "chosen",
    [
        pyramid(Transport(level_shift=1.0, level_weights=(2.0, 1.0))),
        pyramid(Transport(cascade=0.2)),
        clips(Transport(known_frames=0.5)),
        clips(LEARNED),
    ],
    ids=["levels", "cascade", "frames", "variance of clips"],
)
def test_states_of_several_parts(chosen):
    train_step(chosen)


def test_the_validation_loss():
    with NoFloat64():
        validation_loss(on_device(tiny(LEARNED)), torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.arange(3))


@pytest.mark.parametrize("transport", kinds(losses=False), ids=named)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_of_every_transport(sampler, transport):
    chosen, layout = SamplingConfig(sampler=sampler, **few(sampler)), Layout((1, 4, 4))
    net = Scaled(transport).requires_grad_(False)
    with NoFloat64():
        denoise = cfg(transport.denoiser(net, layout), lambda cond: cond, 2.0)
        noise = RowNoise([0, 1])
        x = noise(torch.empty(2, 1, 4, 4, device=META))
        assert chosen.run(denoise, x, chosen.times(transport, layout), {}, noise=noise).is_meta


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_of_a_pipeline(sampler):
    with NoFloat64():
        pipe = on_device(tiny(LEARNED))
        images = pipe.generate({"label": [1, 2]}, seeds=[0, 1], sampler=sampler, guidance=2.0, **few(sampler))
    assert images.device.type == "cpu"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_of_what_begins_with_frames(sampler):
    """Whose parts have times of their own, and whose estimate is bounded."""
    first = torch.zeros(1, 1, 1, 8, 8, dtype=torch.uint8)
    with NoFloat64():
        pipe = on_device(clips(Transport(known_frames=0.5)))
        pipe.generate(
            {"label": [1]}, seeds=[0], sampler=sampler, start=first, threshold="dynamic", **few(sampler)
        )


@pytest.mark.parametrize("path", ["linear", *(name for name, path in PATHS.items() if path.knots)])
@pytest.mark.parametrize("method", ["flow", "bound"])
def test_likelihoods(method, path):
    with NoFloat64():
        found = likelihoods(on_device(tiny(Transport(path=path))), 2, method=method, steps=2)
    assert found.bits.dtype == torch.float64


def test_numbers_of_the_data():
    with NoFloat64():
        values = Identity(1).values(torch.zeros(2, 1, 4, 4, device=META))
        assert to_bounds(values, (-40.0, 40.0)).dtype == torch.float32
