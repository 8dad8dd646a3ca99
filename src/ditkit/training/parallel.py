"""How a training is spread over processes, in one place: copies of the state (DDP), shards of it (FSDP), or shards within
groups of processes that are copies of each other (HSDP).

Each process works on its share of every batch. Losses are divided by the images of the whole batch, so gradients are
summed, not averaged, and shares need not be alike.
"""

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from ditkit.backbones import Backbone
from ditkit.chosen import name_of
from ditkit.costs.plan import Kind, choose, shard_of
from ditkit.data import Batch
from ditkit.device import Precision, uses_bf16
from ditkit.errors import InputError
from ditkit.processes import ALONE, Processes, together, whole
from ditkit.recipe import TrainConfig
from ditkit.training.diverging import where_not_finite
from ditkit.training.step import Objective, accumulate, at_least_one

TRAINED, FROZEN, AVERAGE = 20, 4, 4
"""Bytes of a parameter in float32: the weight, and of a trained one its gradient, the two numbers that AdamW keeps, and its
average; and of each further average (`train.averages`)."""
FITS = 0.5
"""The share of a GPU's memory that weights and what belongs to them may take; the rest is for activations."""


def kind_of(config: TrainConfig, net: Backbone, processes: Processes, device: torch.device) -> Kind:
    """What `train.parallel` means for a network and so many processes. InputError for what is not possible."""
    if not processes.several:
        return "none"
    kind = config.parallel
    if kind == "none":
        raise InputError(
            f"`train.parallel` none with {processes.world} processes: start it without torchrun, or give auto"
        )
    if kind == "auto":
        kind = choose(processes.world, *_needed(net, device, len(config.averages)))
    if kind in ("fsdp", "hsdp"):
        _check_shards(kind, net, config)
    return kind


def _needed(net: Backbone, device: torch.device, further: int) -> tuple[int, int]:
    """Bytes of what a process keeps between steps where it keeps all of it, with so many further averages, and those that
    there are for it."""
    trained = TRAINED + further * AVERAGE
    needed = sum((trained if p.requires_grad else FROZEN) * p.numel() for p in net.parameters())
    if device.type != "cuda":  # of which nobody knows how many share it
        return needed, needed
    return needed, int(FITS * torch.cuda.get_device_properties(device).total_memory)


def _check_shards(kind: Kind, net: Backbone, config: TrainConfig) -> None:
    if not net.repeated:
        raise InputError(
            f"`train.parallel` {kind}: this network has no repeated blocks to keep shards of; give ddp"
        )
    if name_of(config.optimizer) != "adamw":
        raise InputError(
            f"`train.parallel` {kind} keeps shards of what adamw keeps; with `train.optimizer` {config.optimizer} give ddp, or adamw"
        )


def mesh_of(
    kind: Kind, shard_size: int | None, processes: Processes, device: torch.device
) -> DeviceMesh | None:
    """The processes as a mesh, for kinds with shards: in hsdp groups of `shard_size` processes keep a state together, by
    default those of one machine. InputError as of `shard_of`."""
    world = processes.world
    if kind == "none":
        return None
    size = shard_of(kind, world, int(os.environ.get("LOCAL_WORLD_SIZE", world)), shard_size)
    if kind == "ddp":
        return None
    if kind == "fsdp":
        return init_device_mesh(device.type, (world,), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (world // size, size), mesh_dim_names=("replicate", "shard"))


@dataclass
class Parallel:
    """A training's objective as the processes share it."""

    objective: Objective
    average: Backbone
    """The moving average of the network, to look at."""
    processes: Processes = ALONE
    sharded_average: Backbone | None = None
    """The network's moving average where processes have shards of it; `average` then has its weights in `whole_average`."""
    _run: Callable[[Batch], Mapping[str, Tensor]] | None = None
    _last: Batch | None = None

    @contextmanager
    def whole_average(self) -> Iterator[None]:
        """In here `average` can be run by each process alone. All of them enter it."""
        if self.sharded_average is None:
            yield
            return
        with torch.no_grad(), together():
            weights = {name: whole(value) for name, value in self.sharded_average.state_dict().items()}
        self.average.load_state_dict(weights, assign=True)
        self.average.requires_grad_(False)
        try:
            yield
        finally:
            _emptied(self.average)

    def backward(self, batch: Batch) -> dict[str, Tensor]:
        """As `accumulate`, of the batch of all processes: gradients and terms are those of all when it returns."""
        self._last = batch
        means = accumulate(
            self._run or self.objective,
            batch,
            self.objective.recipe.train.micro_batch,
            world=self.processes.world,
            group=self.objective.group,
            exchange=self._exchange,
        )
        self.processes.sum(means.values())
        return means

    def close(self) -> None:
        """Leave the other processes, before their group is left.

        What DDP has of the group must not be the last that is freed: it would wait for a thread of gloo's, holding the
        interpreter's lock, and where another process was killed that thread still has a tensor to free, which needs the lock.
        """
        if isinstance(self._run, DistributedDataParallel):
            del self._run.reducer, self._run.logger
        self._run = None

    def explain(self) -> str:
        """What was not finite in the last step, in words. All processes call it."""
        assert self._last is not None
        return where_not_finite(self.objective, self.objective, at_least_one(self._last))

    def _exchange(self, last: bool) -> AbstractContextManager:
        """Gradients are exchanged once a step, in the last backward pass."""
        if isinstance(self._run, DistributedDataParallel) and not last:
            return self._run.no_sync()
        if isinstance(self.objective, FSDPModule):
            self.objective.set_requires_gradient_sync(last)
            self.objective.set_is_last_backward(last)
        return together() if self.processes.several else nullcontext()


def parallel(
    objective: Objective,
    average: Backbone,
    others: Iterable[nn.Module],
    kind: Kind,
    processes: Processes,
    mesh: DeviceMesh | None,
) -> Parallel:
    """Spread the objective, in place, the average of its network, and `others`: averages of further modules. Before the
    optimiser is made: shards are other parameters."""
    if kind == "none":
        return Parallel(objective, average)
    if kind == "ddp":
        return Parallel(objective, average, processes, _run=_copies(objective))
    assert mesh is not None
    shell = _emptied(copy.deepcopy(average))
    for module, net in ((objective, objective.net), (average, average), *((other, None) for other in others)):
        _keep_shards(module, net, mesh, objective.recipe.train.precision, objective.device)
    return Parallel(objective, shell, processes, sharded_average=average)


def _copies(objective: Objective) -> DistributedDataParallel:
    """Each process has all of it. A parameter may have no gradient in a step, or in one of the processes only."""
    with warnings.catch_warnings(), together():
        warnings.simplefilter("ignore", FutureWarning)  # older versions do not have the flag's new name
        run = DistributedDataParallel(objective, broadcast_buffers=False, find_unused_parameters=True)
    run.register_comm_hook(None, _summed)
    return run


def _summed(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Gradients are summed: losses were divided by the images of all."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


def _keep_shards(
    whole: nn.Module, net: Backbone | None, mesh: DeviceMesh, precision: Precision, device: torch.device
) -> None:
    """Shard a module, in place: the repeated parts of `net` one by one, then the rest.

    Where one process multiplies in bf16, the repeated parts' weights are sent as bf16, and gradients as float32. What
    passes from part to part stays as it is.
    """
    if not any(True for _ in whole.parameters()):
        return
    rest = policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    if uses_bf16(device, precision):
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    with together():
        for part in [] if net is None else net.repeated:
            fully_shard(part, mesh=mesh, mp_policy=policy)
        # What is run without a backward pass would be left whole otherwise.
        fully_shard(whole, mesh=mesh, mp_policy=rest, reshard_after_forward=not isinstance(whole, Objective))
    for module in whole.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no sum with a factor


def _emptied(net: Backbone) -> Backbone:
    """The network without the memory of its parameters, in place."""
    nothing = {name: value.to("meta") for name, value in net.named_parameters()}
    net.load_state_dict(nothing, strict=False, assign=True)
    return net
