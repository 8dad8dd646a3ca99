"""Checkpoints: the full state of a run, in files that hold tensors and JSON and execute nothing.

    checkpoints/000000512000/   model, ema, optimizer .safetensors, state.json

A checkpoint is written beside its place and renamed into it, so a reader sees all of it or nothing;
state.json carries the hash of every file and of itself, so a checkpoint cut short is recognised and the one before
it used. Tensors are keyed by parameter name, which survives any change of their order.
"""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ditkit.errors import InputError
from ditkit.files import file_hash, save_tensors, sync_folder
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
    final = folder / f"{images:012d}"
    unfinished = folder / f"{final.name}.unfinished"
    try:
        unfinished.mkdir(parents=True, exist_ok=True)
        hashes = {}
        for name, tensors in parts.items():
            file = unfinished / f"{name}.safetensors"
            save_tensors(file, {key: value.detach().contiguous().cpu() for key, value in tensors.items()})
            hashes[file.name] = file_hash(file)
        values = finite({"images": images, **state, "sha256": hashes})
        write_json(unfinished / STATE, {**values, CHECKSUM: checksum(values)})
        sync_folder(unfinished)
        if final.exists():
            shutil.rmtree(final)
        unfinished.rename(final)
        sync_folder(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        rest = checkpoints(folder)
        good = f"the last good one is {rest[-1].name}" if rest else "there is none yet"
        raise InputError(
            f"{folder}: cannot write the checkpoint of {images} images ({error}); {good}; make room on the "
            "disk and give the same command again"
        ) from None
    _prune(folder, keep)
    return final


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
    """State and the wanted parts of the newest intact checkpoint; None when there is no checkpoint.

    A damaged one is passed over with a warning. InputError when all are damaged, or when one cannot be read, which
    says nothing about what is in it.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            return load_checkpoint(path, parts)
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


def load_checkpoint(path: Path, parts: tuple[str, ...]) -> tuple[dict, dict[str, Tensors]]:
    """State and the wanted parts of one checkpoint; InputError naming the file that is damaged, PermissionError for one
    that may not be read. The tensors are copies: nothing stays open of files that will be pruned."""
    try:
        (path / STATE).open("rb").close()
        state = read_json(path / STATE)
        _check_state(state, path)
        for name in parts:
            file = path / f"{name}.safetensors"
            if file_hash(file) != state["sha256"].get(file.name):
                raise InputError(f"{file} is damaged: it does not match its hash in {STATE}")
        mapped = {name: load_file(path / f"{name}.safetensors") for name in parts}
        return state, {
            name: {key: value.clone() for key, value in tensors.items()} for name, tensors in mapped.items()
        }
    except PermissionError:
        raise
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is damaged ({error})") from None


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


def restore_optimizer(
    optimizer: torch.optim.Optimizer, named: Mapping[str, Tensor], tensors: Tensors
) -> None:
    """The inverse of `optimizer_tensors`, in place."""
    # Where a fused optimiser counts its steps; others do on the host.
    on_device = any(optimizer.defaults.get(kind) for kind in ("fused", "capturable"))
    for name, parameter in named.items():
        prefix = f"{name}/"
        state: dict[str, Any] = {}
        for key, value in tensors.items():
            if not key.startswith(prefix):
                continue
            field, _, part = key.removeprefix(prefix).partition("/")
            value = value if field == "step" and not on_device else value.to(parameter.device)
            if part:
                state.setdefault(field, {})[part] = value
            else:
                state[field] = value
        for field, value in state.items():
            if isinstance(value, dict):
                assert isinstance(optimizer, Composite)  # which wrote it: a run's optimiser never changes
                state[field] = optimizer.join(value)
        optimizer.state[parameter] = state
