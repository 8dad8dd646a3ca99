"""Checkpoints of which every process writes what it has: files that hold tensors and execute nothing.

    checkpoints/000000512000/   shard-00001-model-00002-of-00003.safetensors, ..., state.json

torch.distributed.checkpoint writes and reads them, in Hugging Face's form: shard is the process, and the number after
"model" the part, in the order that state.json names. They are written while the training goes on, and may be read by any
number of processes.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor, distribute_tensor

from ditkit.files import first_line
from ditkit.processes import Processes, together

Tensors = dict[str, Tensor]


class ShardWriter:
    """Writes the shards of all processes beside the training, one checkpoint at a time."""

    def __init__(self, processes: Processes):
        self.processes = processes
        # Of their own: what is sent for a checkpoint must not wait for what is sent for a step, nor the other way round.
        self._group = dist.new_group(backend="gloo")
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future | None = None

    def begin(self, folder: Path, parts: Mapping[str, Tensors], then: Callable[[], object]) -> None:
        """Copy the parts and begin to write them into `folder`; the first process calls `then` when all have written.

        All processes call it. OSError as of `finish`, of the checkpoint before.
        """
        self.finish()
        numbers = {f"{name}/{key}": k for k, name in enumerate(parts, start=1) for key in parts[name]}
        tensors = {
            f"{name}/{key}": value.detach() for name, part in parts.items() for key, value in part.items()
        }
        writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=numbers, save_distributed=True)
        with together(), _checked():
            written = dcp.async_save(tensors, storage_writer=writer, process_group=self._group)
        self._pending = self._thread.submit(self._end, written, then)

    def finish(self) -> None:
        """Until what was begun is written by all. OSError when a disk did not take it."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        failure = pending.result()
        # What the first process does when all have written can fail for it alone.
        failure = self.processes.from_first(failure)
        if failure is not None:
            raise OSError(failure)

    def _end(self, written: Any, then: Callable[[], object]) -> str | None:
        """What went wrong in any process."""
        try:
            with _checked():
                written.result()
            if self.processes.first:
                then()
        except (OSError, SafetensorError) as error:
            return str(error)
        return None


def read_shards(folder: Path, part: str) -> Tensors:
    """A part of a checkpoint, whole, in this process."""
    targets = {
        name: torch.empty(known.size, dtype=known.properties.dtype)
        for name, known in _known(folder, part).items()
    }
    with _checked():
        dcp.load(targets, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return {name.partition("/")[2]: value for name, value in targets.items()}


def sizes(folder: Path, part: str) -> dict[str, torch.Size]:
    """Of the tensors of a part, by name."""
    return {name.partition("/")[2]: known.size for name, known in _known(folder, part).items()}


def fill(folder: Path, part: str, targets: Mapping[str, Tensor]) -> None:
    """Read a part into tensors of which every process has shards, or all, in place; all of them call it."""
    named = {f"{part}/{name}": value for name, value in targets.items()}
    with together(), _checked():
        dcp.load(named, storage_reader=HuggingFaceStorageReader(str(folder)))


def shard_like(target: Tensor, value: Tensor) -> Tensor:
    """Of a whole tensor, which every process has, what belongs in `target`: this process's shard where it has one."""
    if not isinstance(target, DTensor):
        return value
    return distribute_tensor(
        value.to(target.device), target.device_mesh, target.placements, src_data_rank=None
    ).to_local()


def _known(folder: Path, part: str) -> dict[str, TensorStorageMetadata]:
    metadata = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {
        name: known
        for name, known in metadata.items()
        if name.startswith(f"{part}/") and isinstance(known, TensorStorageMetadata)
    }


@contextmanager
def _checked() -> Iterator[None]:
    """OSError for what goes wrong in any process, and no notes on what the library was called with."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    except CheckpointException as error:
        found = (f"process {rank}: {first_line(failure[0])}" for rank, failure in error.failures.items())
        raise OSError("; ".join(found)) from error
