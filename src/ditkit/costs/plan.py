"""What a training on several GPUs costs, from a few numbers: pure functions, nothing runs.

memory = memory_of(footprint, passes, 32, "fsdp", shard=64)   # bytes of one GPU
moved = bytes_moved("fsdp", footprint.gathered(True), footprint.gradients, world=64, shard=64)
choose(world=64, replicated=memory.total, room=72 * GIB)      # "ddp": it fits

Every formula states its source; the counts of bytes that go in are those of `costs.footprint`.
"""

import math
from typing import Literal, NamedTuple

from ditkit.costs.footprint import Footprint, Pass
from ditkit.costs.gpus import Gpu
from ditkit.errors import InputError

Kind = Literal["none", "ddp", "fsdp", "hsdp"]


class Memory(NamedTuple):
    """Bytes on one GPU."""

    weights: int
    gradients: int
    optimizer: int
    averages: int
    auxiliary: int
    gathered: int
    """Where weights are sharded, those that are whole for a while."""
    activations: int
    """What autograd keeps, and what is being worked on, at the worst moment."""

    @property
    def total(self) -> int:
        return sum(self)


class Moved(NamedTuple):
    """Bytes that each GPU sends in a step, and receives."""

    all_reduce: int = 0
    all_gather: int = 0
    reduce_scatter: int = 0

    @property
    def total(self) -> int:
        return sum(self)


def choose(world: int, replicated: int, room: int) -> Kind:
    """How to share a training over `world` GPUs: whole copies (DDP) where `replicated` bytes, those of one GPU with a
    whole copy and a micro-batch of one image, are at most the `room`; sharded (FSDP) where they are not."""
    if world == 1:
        return "none"
    return "ddp" if replicated <= room else "fsdp"


def shard_of(parallel: Kind, world: int, machine: int, asked: int | None = None) -> int:
    """How many GPUs share one copy of the weights; for hsdp as asked, by default those of a machine.

    InputError where they do not divide the world, or parallel is none and there are several.
    """
    if parallel == "none" and world > 1:
        raise InputError(f"`train.parallel` none is for one GPU; give `gpus` 1, or ddp or fsdp for {world:,}")
    if asked is not None and parallel != "hsdp":
        raise InputError(
            f"`train.shard_size` {asked} is for `train.parallel` hsdp; leave it out, or give hsdp in place of {parallel}"
        )
    if parallel != "hsdp":
        return world if parallel == "fsdp" else 1
    shard = min(asked or machine, world) if asked is None else asked
    if world % shard:
        fitting = ", ".join(str(n) for n in range(1, min(world, 64) + 1) if world % n == 0)
        raise InputError(
            f"`train.shard_size` {shard}: {world:,} GPUs do not divide into groups of {shard}; give one of: {fitting}"
        )
    return shard


def memory_of(
    footprint: Footprint,
    step: Pass,
    images: int,
    parallel: Kind = "none",
    shard: int = 1,
    passes: int = 1,
    bf16: bool = False,
) -> Memory:
    """Of one GPU, with so many images in each of a step's passes. Gradients are there from the first operator on, as they
    are in the second of several passes and in DDP's buckets; in a single pass on one GPU they come as activations go.

    Sharded: a share of weights, gradients, optimiser and averages (Rajbhandari et al., "ZeRO", 2020, section 5), and of
    the blocks, which are gathered one by one, as `bf16` where products are of it, two of the largest, the next one being
    fetched meanwhile, the gradient of one, and what is no block (Zhao et al., "PyTorch FSDP", 2023, section 3.2.1). In
    several passes gradients are whole, as they are exchanged in the last. Buffers are on every GPU.
    """
    gathered = 0
    if parallel in ("fsdp", "hsdp") and shard > 1:
        *blocks, rest = footprint.units
        largest = max(blocks)
        gathered = 2 * largest // (2 if bf16 else 1) + min(largest, footprint.gradients) + rest
    buffers = footprint.weights - sum(footprint.units)

    def share(size: int) -> int:
        return math.ceil(size / shard)

    activations = step.activations(images)
    if parallel == "none" and passes == 1:
        activations = max(step.with_gradients(images) - footprint.gradients, 0)
    return Memory(
        weights=share(footprint.weights - buffers) + buffers,
        gradients=footprint.gradients if passes > 1 else share(footprint.gradients),
        optimizer=share(footprint.optimizer),
        averages=share(footprint.averages - buffers) + buffers,
        auxiliary=share(footprint.auxiliary),
        gathered=gathered,
        activations=activations,
    )


def most_images(
    footprint: Footprint,
    step: Pass,
    room: int,
    parallel: Kind,
    shard: int,
    passes: int = 2,
    bf16: bool = False,
) -> int:
    """The most images of one of so many passes that fit into `room` bytes; 0 where none does."""

    def fits(images: int) -> bool:
        return memory_of(footprint, step, images, parallel, shard, passes, bf16).total <= room

    above = 1
    while fits(above) and above < 2**20:
        above *= 2
    low, high = above // 2, above
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def bytes_moved(
    parallel: Kind, gathered: int, gradients: int, world: int, shard: int, passes: int = 1
) -> Moved:
    """What each GPU sends in a step, of gradients of so many bytes and weights of which so many are `gathered` in a pass.

    In a ring of n an all-reduce sends 2 (n - 1) / n of the bytes, an all-gather or a reduce-scatter (n - 1) / n of them
    (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms", 2009). DDP reduces the gradients once a step (Li et
    al., "PyTorch Distributed", 2020); FSDP gathers the weights in every forward and again in every backward pass, and scatters
    the gradients once (ZeRO, section 7); HSDP does that in groups of `shard`, and all-reduces the shards of the gradients
    between the groups (Zhao et al., 2023, section 3.2.2).
    """
    if parallel in ("none", "ddp"):
        return Moved(all_reduce=in_a_ring(2 * gradients, world))
    groups = world // shard
    return Moved(
        all_reduce=in_a_ring(2 * math.ceil(gradients / shard), groups),
        all_gather=passes * in_a_ring(gathered, shard),
        reduce_scatter=in_a_ring(gradients, shard),
    )


def in_a_ring(size: int, members: int) -> int:
    """Bytes that each of so many members of a ring sends to gather, or to scatter, so many."""
    return math.ceil(size * (members - 1) / members)


def seconds_to_move(moved: Moved, gpu: Gpu, world: int, shard: int) -> float:
    """At the stated speeds of the links, without their latency. GPUs of a group of shards are neighbours; those with the same
    shard are `shard` apart."""
    sharded = (moved.all_gather + moved.reduce_scatter) / gpu.between(shard)
    return sharded + moved.all_reduce / gpu.between(world // shard, shard)


def seconds_to_update(memory: Memory, gpu: Gpu) -> float:
    """Of optimiser and averages, which are bound by the memory's bandwidth: what is trained, as large as its gradients, the
    optimiser's states and the averages are read and written, the gradients read (a roofline: Williams et al., 2009)."""
    changed = memory.gradients + memory.optimizer + memory.averages
    return (memory.gradients + 2 * changed) / gpu.bandwidth


class Checkpoints(NamedTuple):
    """How often to write checkpoints."""

    write: float
    """Seconds of writing one."""
    failures: float
    """Seconds between failures of any GPU."""
    interval: float
    """Seconds between checkpoints that lose least time."""

    @property
    def lost(self) -> float:
        """The share of the time that goes into writing and into work done twice after a failure."""
        return self.write / self.interval + self.interval / (2 * self.failures)


def checkpoints(size: int, speed: float, lifetime: float, gpus: int) -> Checkpoints:
    """For checkpoints of `size` bytes, written at `speed` bytes per second while the training waits, and GPUs of which
    one fails every `lifetime` seconds: sqrt(2 write failures) (Young, 1974; Daly, 2006, whose further terms are small
    where writing takes far less time than passes between failures)."""
    write, failures = size / speed, lifetime / gpus
    return Checkpoints(write, failures, math.sqrt(2 * write * failures))
