"""Several processes at one piece of work: torchrun starts them, torch.distributed joins them.

A process that torchrun started finds RANK, WORLD_SIZE and where to meet the others in its environment. One that was
started alone is all there are, and nothing here does anything.
"""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ditkit.environment import Place, place
from ditkit.errors import InputError

Value = TypeVar("Value")

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others: longer than what one of them does alone, such as preparing images."""

MEETING = timedelta(minutes=5)
"""How long it waits for the others to begin."""

FAREWELL = timedelta(seconds=5)
"""How long the first process, when it fails, waits for the others to notice."""

FAILED = "failed"  # in the store that the processes share: how many have failed


class OtherEnded(InputError):
    """Another process has ended or cannot be reached."""


class Processes(Place):
    """Those that work together, as one of them sees them."""

    def sum(self, tensors: Iterable[Tensor]) -> None:
        """Replace scalars, all of one type on one device, by their sums over the processes; in one message."""
        values = [*tensors]
        if not self.several or not values:
            return
        joined = torch.stack(values)
        with together():
            dist.all_reduce(joined)
        for value, summed in zip(values, joined, strict=True):
            value.copy_(summed)

    def most(self, *numbers: int) -> list[int]:
        """The largest that any process has, of each number."""
        if not self.several:
            return [*numbers]
        found = torch.tensor(numbers)
        with together():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return found.tolist()

    def from_first(self, value: Value) -> Value:
        """What the first one has, which can be pickled."""
        if not self.several:
            return value
        box = [value]
        with together():
            dist.broadcast_object_list(box)
        return box[0]

    def gathered(self, value: Value) -> list[Value]:
        """What each has, which can be pickled, by rank."""
        if not self.several:
            return [value]
        found: list[Any] = [None] * self.world
        with together():
            dist.all_gather_object(found, value)
        return found

    def own_device(self, device: torch.device) -> torch.device:
        """The device of this one where each works by itself: its own GPU."""
        return torch.device("cuda", self.local) if self.several and device.type == "cuda" else device

    def part(self, count: int) -> range:
        """This one's share of `count` things in a row; the shares are as equal as they can be."""
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def wait(self) -> None:
        """Until all are here."""
        self.most(0)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first does what is in here alone, then the others do, and find what it has left."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def check_same(self, values: Mapping[str, Any]) -> None:
        """InputError, naming what differs and on which process, unless all have the same values."""
        for rank, theirs in enumerate(found := self.gathered(dict(values))):
            for name, value in found[0].items():
                if theirs.get(name) != value:
                    raise InputError(
                        f"process {rank} has {name} {theirs.get(name)!r:.80}, process 0 has {value!r:.80}; start all "
                        "of them with the same command, code and data"
                    )


ALONE = Processes()

_here = ALONE  # what `joined` and `apart` have made it


def here() -> Processes:
    """The processes that are joined where this is called; `ALONE` outside of `joined`."""
    return _here


def started() -> Processes:
    """Those of the environment, joined or not. InputError for values that are none."""
    return Processes(*place())


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """The processes that torchrun started, joined in here; one alone otherwise. Within another `joined`, the same ones.

    InputError when the environment does not say how to reach the others, or they cannot be reached. An error in here is
    marked as silent (`is_silent`) in all processes but the one that failed first.
    """
    global _here
    processes = started()
    if _here.several or not processes.several or _apart:
        yield _here
        return
    store = _meet(processes, device)
    _here = processes
    try:
        yield processes
    except BaseException as error:
        _note_failure(error, store, processes)
        raise
    finally:
        _here = ALONE
        with suppress(RuntimeError):  # the others have gone
            dist.destroy_process_group()


_apart = False


@contextmanager
def apart() -> Iterator[Processes]:
    """Each process works by itself in here; yields those that are joined outside."""
    global _here, _apart
    before = _here, _apart
    _here, _apart = ALONE, True
    try:
        yield before[0]
    finally:
        _here, _apart = before


def is_silent(error: BaseException) -> bool:
    """Whether another process prints what went wrong."""
    return getattr(error, "of_another_process", False)


@contextmanager
def together() -> Iterator[None]:
    """What the end of another process does to this one is an `OtherEnded`. An error of its own stays what it is."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):  # gloo's have no class
            raise
        raise OtherEnded(
            f"another process has ended or cannot be reached ({str(error).splitlines()[0]:.120}); the same command goes on "
            "from the last checkpoint"
        ) from error


def _meet(processes: Processes, device: torch.device) -> Any:
    """Join the others; the store that all share."""
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        raise InputError(
            f"WORLD_SIZE is {processes.world} and {missing[0]} is not set; start the processes with torchrun"
        )
    if device.type not in ("cpu", "cuda"):
        raise InputError(
            f"`device` {device.type}: {processes.world} processes work together on cpu or cuda only"
        )
    backend = "gloo"
    if device.type == "cuda":
        if processes.local >= (there := torch.cuda.device_count()):
            raise InputError(
                f"process {processes.local} of this machine has no GPU of its own: there are {there}; start as many processes"
            )
        torch.cuda.set_device(processes.local)  # what "cuda" means from here on
        backend = "cpu:gloo,cuda:nccl"
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        rendezvous = dist.rendezvous("env://", processes.rank, processes.world, timeout=MEETING)
        store, rank, world = next(rendezvous)
        # torchrun keeps its store when it starts all again, with what the processes before have left in it.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"ditkit/attempt-{attempt}", store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the {processes.world} processes do not meet at {where} ({str(error).splitlines()[0]:.120}); see that "
            "MASTER_ADDR is reached from every machine and MASTER_PORT is free"
        ) from None
    return store


def _note_failure(error: BaseException, store: Any, processes: Processes) -> None:
    """Mark an error as silent in all processes but the one that fails first. The first process, which may keep the store,
    stays for the others a while."""
    try:
        silent = store.add(FAILED, 1) > 1
        until = time.monotonic() + FAREWELL.total_seconds()
        while processes.first and time.monotonic() < until and store.add(FAILED, 0) < processes.world:
            time.sleep(0.05)
    except RuntimeError:  # the store was the first process's, which was killed
        silent = processes.rank != 1
    error.of_another_process = silent  # type: ignore[attr-defined]


def own(tensor: Tensor) -> Tensor:
    """What this process has of a tensor: its shard, or all of it."""
    # By its methods: to import DTensor takes time.
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which processes have shards; all of them call it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
