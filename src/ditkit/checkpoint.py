"""Checkpoints: the full state of a run, in files that hold tensors and JSON and execute nothing.

    checkpoints/000000512000/   model, ema, optimizer .safetensors, state.json

A checkpoint is written beside its place and renamed into it, so a reader sees all of it or nothing;
state.json carries the hash of every file and of itself, so a checkpoint cut short is recognised and the one before
it used. Tensors are keyed by parameter name, which survives any change of their order.
"""

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ditkit.errors import InputError
from ditkit.files import file_hash, first_line, save_tensors, sync_folder
from ditkit.processes import own
from ditkit.records import CHECKSUM, checksum, finite, read_json, write_json

STATE = "state.json"

log = logging.getLogger(__name__)

Tensors = dict[str, Tensor]


@runtime_checkable
class Composite(Protocol):
    """An optimiser some of whose values are several tensors each, such as numbers in 8 bits and their scales."""

    def split(self, value: Any) -> Tensors:
        """A value's tensors by name; none where it is a plain tensor."""
        ...

    def join(self, parts: Tensors) -> Tensor:
        """The value of these tensors."""
        ...


def save_checkpoint(folder: Path, images: int, parts: dict[str, Tensors], state: dict, keep: int) -> Path:
    """Write `parts` (file name -> tensors) and `state` as the checkpoint of `images` images.

    Keeps the newest `keep` checkpoints. InputError when the disk does not take it; the checkpoints
    that were there stay as they were.
    """
    with failing(folder, images):
        place = begin_checkpoint(folder, images)
        for name, tensors in parts.items():
            whole = {key: value.detach().contiguous().cpu() for key, value in tensors.items()}
            save_tensors(place / f"{name}.safetensors", whole)
        return finish_checkpoint(folder, images, state, keep)


def unfinished(folder: Path, images: int) -> Path:
    """Where the files of a checkpoint are written, to be renamed when all are there."""
    return folder / f"{images:012d}.unfinished"


def begin_checkpoint(folder: Path, images: int) -> Path:
    """Make the folder that the files of a checkpoint are written into, anew; its path."""
    place = unfinished(folder, images)
    if place.exists():
        shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True, exist_ok=True)
    return place


def finish_checkpoint(folder: Path, images: int, state: dict, keep: int) -> Path:
    """Make what was written a checkpoint, and keep the newest `keep`. OSError when the disk does not take it."""
    place, final = unfinished(folder, images), folder / f"{images:012d}"
    hashes = {file.name: file_hash(file) for file in sorted(place.glob("*.safetensors"))}
    values = finite({"images": images, **state, "sha256": hashes})
    write_json(place / STATE, {**values, CHECKSUM: checksum(values)})
    sync_folder(place)
    if final.exists():
        shutil.rmtree(final)
    place.rename(final)
    sync_folder(folder)
    _prune(folder, keep)
    return final


@contextmanager
def failing(folder: Path, images: int) -> Iterator[None]:
    """What goes wrong with the disk while a checkpoint is written in here is an InputError, and nothing of it is left."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished(folder, images), ignore_errors=True)
        rest = checkpoints(folder)
        good = f"the last good one is {rest[-1].name}" if rest else "there is none yet"
        raise InputError(
            f"{folder}: cannot write the checkpoint of {images} images ({error}); {good}; make room on the "
            "disk and give the same command again"
        ) from None


def _prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints. One that cannot be removed is logged: training needs only the room."""
    for old in checkpoints(folder)[:-keep]:
        try:
            shutil.rmtree(old)
        except OSError as error:
            log.warning(f"{old}: this old checkpoint cannot be removed ({error.strerror}); remove it by hand")


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if path.name.isdigit())


def load_newest(folder: Path, parts: tuple[str, ...]) -> tuple[dict, dict[str, Tensors]] | None:
    """State and the wanted parts of the newest intact checkpoint; None when there is no checkpoint. InputError as of
    `newest`."""
    found = newest(folder, parts)
    if found is None:
        return None
    path, state = found
    return state, {name: read_part(path, state, name) for name in parts}


def newest(folder: Path, parts: tuple[str, ...]) -> tuple[Path, dict] | None:
    """The newest checkpoint whose wanted parts are intact, and its state; None when there is no checkpoint.

    A damaged one is passed over with a warning. InputError when all are damaged, or when one cannot be read, which
    says nothing about what is in it.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            return path, checked_state(path, parts)
        except PermissionError as error:
            raise InputError(
                f"{error.filename or path} cannot be read ({error.strerror}); ask its owner for the right to read it"
            ) from None
        except InputError as error:
            log.warning(f"{error}; trying the one before it")
    if found:
        raise InputError(
            f"{folder}: none of the {len(found)} checkpoints is intact; give another `out` to start anew"
        )
    return None


def checked_state(path: Path, parts: tuple[str, ...]) -> dict:
    """The state of a checkpoint; InputError naming the file that is damaged, its own or one of the wanted parts',
    PermissionError for one that may not be read."""
    try:
        (path / STATE).open("rb").close()
        state = read_json(path / STATE)
        _check_state(state, path)
        for name in parts:
            for file in part_files(path, state, name):
                if file_hash(file) != state["sha256"].get(file.name):
                    raise InputError(f"{file} is damaged: it does not match its hash in {STATE}")
                with safe_open(file, "pt") as reader:
                    reader.keys()
    except PermissionError:
        raise
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is damaged ({error})") from None
    return state


def part_files(path: Path, state: dict, part: str) -> list[Path]:
    """The files of a part: one, or of shards one for each process that wrote. InputError where one is missing."""
    names = state.get("parts")
    if names is None:
        return [path / f"{part}.safetensors"]
    if part not in names:
        raise InputError(f"{path} is damaged: it has no {part}")
    ending = f"-model-{names.index(part) + 1:05d}-of-{len(names):05d}.safetensors"
    files = [path / name for name in state["sha256"] if name.endswith(ending)]
    if missing := [file for file in files if not file.exists()]:
        raise InputError(f"{path} is damaged: {missing[0].name} is missing")
    return files


def read_part(path: Path, state: dict, part: str) -> Tensors:
    """The tensors of a part, whole. They are copies: nothing stays open of files that will be pruned. InputError where
    they cannot be read."""
    try:
        if "parts" in state:
            from ditkit.sharded import read_shards  # imports torch.distributed.checkpoint

            return read_shards(path, part)
        return {key: value.clone() for key, value in load_file(path / f"{part}.safetensors").items()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is damaged ({first_line(error)})") from None


def _check_state(state: Mapping[str, Any], path: Path) -> None:
    """InputError unless the values are those of a checkpoint in this folder. Version 0.1 wrote no checksum."""
    file = path / STATE
    hashes = state.get("sha256")
    sound = (
        type(state.get("images")) is int
        and all(isinstance(state.get(name, 0), int | float) for name in ("seconds", "skipped"))
        and isinstance(hashes, dict)
        and all(isinstance(value, str) for value in hashes.values())
    )
    if not sound or f"{state['images']:012d}" != path.name:
        raise InputError(f"{file} is damaged: it does not describe the checkpoint {path.name}")
    if CHECKSUM in state and state[CHECKSUM] != checksum(state):
        raise InputError(f"{file} is damaged: it does not match its own checksum")


def optimizer_tensors(optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor]) -> Tensors:
    """The optimiser's state of these parameters as "parameter name/key" -> tensor; of a value that is several tensors
    (`Composite`) as "parameter name/key/part"."""
    split = optimizer.split if isinstance(optimizer, Composite) else lambda value: {}
    found: Tensors = {}
    for name, parameter in named.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            parts = split(value) or {"": torch.as_tensor(value)}
            found |= {f"{name}/{key}/{part}".rstrip("/"): tensor for part, tensor in parts.items()}
    return found


class Saved(NamedTuple):
    """A checkpoint that is read into what is there already: tensors, or shards of them."""

    path: Path
    state: dict

    def fill(self, part: str, targets: Mapping[str, Tensor]) -> None:
        """Read a part into tensors of its names, in place, or of shards what of it belongs there. Processes that have shards
        all call it. InputError where it cannot be read, or names or shapes differ."""
        from ditkit.sharded import fill, shard_like

        known = self._sizes(part)
        if wrong := [name for name, value in targets.items() if known.get(name) != value.shape]:
            raise InputError(
                f"{self.path}: {part} has no {wrong[0]} of shape {tuple(targets[wrong[0]].shape)}"
            )
        if "parts" in self.state:
            fill(self.path, part, targets)
            return
        with torch.no_grad(), safe_open(self.path / f"{part}.safetensors", "pt") as reader:
            for name, value in targets.items():
                own(value).copy_(shard_like(value, reader.get_tensor(name)))

    def fill_optimizer(self, optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor]) -> None:
        """The inverse of `optimizer_tensors`: numbers of a parameter's shape are kept as the parameter is."""
        # Where a fused optimiser counts its steps; others do on the host.
        on_device = {
            id(parameter)
            for group in optimizer.param_groups
            for parameter in group["params"]
            if group.get("fused") or group.get("capturable")
        }
        targets: Tensors = {}
        composite: dict[tuple[str, str], Tensors] = {}
        for key, size in self._sizes("optimizer").items():
            name, _, what = key.rpartition("/")
            if name not in named:  # a part of a value
                name, _, value = name.rpartition("/")
                dtype = self._dtype("optimizer", key)
                targets[key] = torch.zeros(size, dtype=dtype, device=named[name].device)
                composite.setdefault((name, value), {})[what] = targets[key]
                continue
            parameter = named[name]
            alike = size == parameter.shape and what != "step"
            device = parameter.device if id(parameter) in on_device or what != "step" else None
            with torch.no_grad():
                targets[key] = torch.zeros_like(parameter) if alike else torch.zeros(size, device=device)
            optimizer.state[parameter][what] = targets[key]
        self.fill("optimizer", targets)
        for (name, value), parts in composite.items():
            assert isinstance(optimizer, Composite)  # which wrote it: a run's optimiser never changes
            optimizer.state[named[name]][value] = optimizer.join(parts)

    def _dtype(self, part: str, name: str) -> torch.dtype:
        with safe_open(self.path / f"{part}.safetensors", "pt") as reader:
            return reader.get_slice(name)[:0].dtype

    def _sizes(self, part: str) -> dict[str, torch.Size]:
        from ditkit.sharded import sizes

        if "parts" in self.state:
            return sizes(self.path, part)
        with safe_open(self.path / f"{part}.safetensors", "pt") as reader:
            names = reader.keys()
            return {name: torch.Size(reader.get_slice(name).get_shape()) for name in names}
