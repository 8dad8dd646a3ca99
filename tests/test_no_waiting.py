"""A GPU works beside the host: a training step asks it for nothing, so that the host is ahead with the next operators.

The `meta` device stands for a GPU. What makes the host wait is an error in here: reading a number back, operators whose
result has a size that is not known beforehand, and copies that are not marked as ones to be made beside other work, those
that torch makes by itself of numbers and of CPU tensors among them.
"""

import pytest
import torch
from conftest import CPU
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trainings import TRAININGS, batch_of, small

import ditkit.device
from ditkit.adapting import adapt
from ditkit.layout import layout_of
from ditkit.objectives.terms import build_terms
from ditkit.sampling import SAMPLERS, cfg
from ditkit.sampling.config import SamplingConfig
from ditkit.training.footprint import planned_reader
from ditkit.training.log import Log
from ditkit.training.skipped import Skipped
from ditkit.training.step import backward
from ditkit.transports import Transport

META = torch.device("meta")
READS = {
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "unique_dim",
    "_unique2",
}
COPIES = {"_to_copy", "copy_"}
# A CPU tensor without dimensions goes to a kernel of these as a number; torch copies it, and waits, for all others.
NUMBERS = {
    "add",
    "sub",
    "mul",
    "div",
    "add_",
    "sub_",
    "mul_",
    "div_",
    "pow",
    "lt",
    "le",
    "gt",
    "ge",
    "eq",
    "ne",
}
MAKERS = {torch.tensor, torch.as_tensor, torch.Tensor.new_tensor, torch.Tensor.tolist, torch.Tensor.item}


class NoWaiting(TorchDispatchMode):
    """Fails at what a GPU would have to be waited for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        there = [tensor for tensor in tensors if tensor.is_meta]
        if there:
            assert name not in READS, f"{name} waits for the device"
        if name in COPIES:
            source, target = (args[1], args[0].device) if name == "copy_" else (args[0], kwargs.get("device"))
            beside = (args[2] if len(args) > 2 else False) if name == "copy_" else kwargs.get("non_blocking")
            crosses = target is not None and source.device.type != torch.device(target).type
            assert not crosses or beside, (
                f"{name} of {tuple(source.shape)} from {source.device} to {target} waits"
            )
        elif there and len(there) < len(tensors):
            numbers = name in NUMBERS and all(tensor.is_meta or not tensor.ndim for tensor in tensors)
            assert numbers, f"{name} mixes devices: torch copies, and waits"
        if name in ("index", "index_put", "index_put_"):
            masks = [
                index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)
            ]
            assert not there or not masks, f"{name} by a mask waits for how many there are"
        if name == "repeat_interleave" and there:
            assert kwargs.get("output_size") is not None, "repeat_interleave waits for how many there are"
        return func(*args, **kwargs)


class NoMaking(TorchFunctionMode):
    """Fails where a tensor on the device is made of numbers, which `NoWaiting` does not see as the copy that it is."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in MAKERS:
            found = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
            assert not any(tensor.is_meta for tensor in found), f"{func.__name__} waits for the device"
        return out


@pytest.fixture(autouse=True)
def meta_is_a_gpu(monkeypatch):
    monkeypatch.setattr(ditkit.device, "BESIDE", ("cuda", "meta"))


@pytest.mark.parametrize(
    "waits",
    [
        lambda x: x.sum().item(),
        lambda x: torch.ones(2).to(META),
        lambda x: x.copy_(torch.ones(2)),
        lambda x: torch.tensor([1.0], device=META),
        lambda x: x.new_tensor([1.0]),
        lambda x: x[torch.tensor([0])],
        lambda x: x.to(CPU),
    ],
)
def test_what_waits_is_seen(waits):
    x = torch.ones(2, device=META)
    with NoMaking(), NoWaiting(), pytest.raises(AssertionError, match=r"wait|mixes"):
        waits(x)
    with NoMaking(), NoWaiting():
        (x.where(x > 0, 0) + torch.ones(2).to(META, non_blocking=True) * torch.tensor(2.0)).sum()


@pytest.mark.parametrize("name", TRAININGS)
def test_a_step_of_training(name):
    """The first one makes tables of positions; those of a GPU are kept there, so that the next sends none."""
    chosen = TRAININGS[name]
    with META:
        net = adapt(chosen.build_backbone(), chosen.train).train()
        average = chosen.build_backbone()
    terms = {key: term.to(META) for key, term in build_terms(chosen.train.terms, net, 0).items()}
    batch, codec = batch_of(chosen, META), chosen.build_codec(META)
    with NoMaking(), NoWaiting():
        found = backward(chosen, net, codec, batch, META, planned_reader(chosen), terms, average)
    assert all(value.is_meta for value in found.values())


def test_what_follows_a_step(tmp_path):
    """Counting the steps that are left out, and the log."""
    skipped, log = Skipped(), Log(tmp_path / "log.jsonl", 0, 0.0)
    with NoMaking(), NoWaiting():
        for step in range(3):
            taken = torch.ones((), device=META).isfinite()
            skipped.add(taken, step)
            log.add({"loss": torch.ones((), device=META)}, taken)


@pytest.mark.parametrize("sampler", sorted(name for name in SAMPLERS if not SAMPLERS[name].adaptive))
def test_steps_of_sampling(sampler):
    chosen = SamplingConfig(sampler=sampler, steps=3)
    transport = Transport(method="mean_flow") if sampler == "mean_velocity" else Transport()
    if SAMPLERS[sampler].use == "jump":
        transport = Transport(path="ddpm", predict="noise")
    net = small(transport=transport)
    with META:
        network = net.build_backbone().eval().requires_grad_(False)
    x, labels = torch.zeros(2, 1, 8, 8, device=META), {"label": torch.zeros(2, dtype=torch.long, device=META)}
    layout = layout_of(1, 8, 8)
    denoise = cfg(transport.denoiser(network, layout), network.null, 2.0)
    times = chosen.times(transport, layout)
    with NoMaking(), NoWaiting(), torch.no_grad():
        chosen.run(denoise, x, times, labels, noise=torch.zeros_like)
