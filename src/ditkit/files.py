"""Files: their hash, tensors in them, and folders of models fetched from the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from ditkit.errors import InputError
from ditkit.lazy import torch
from ditkit.records import written_whole

if TYPE_CHECKING:
    from torch import Tensor

SNAPSHOTS = Path(__file__).parent / "assets" / "snapshots"
"""Models that come with the package."""
LOCK = ".lock"  # in a folder that one process writes into
DAMAGED_ARRAYS = (
    OSError, EOFError, MemoryError, ArithmeticError, LookupError, TypeError, ValueError, RuntimeError, SyntaxError,
    struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What numpy raises as it reads an .npy or .npz file that is damaged, or says that it is larger than the memory."""

log = logging.getLogger(__name__)

_parsing = Lock()


def load_npy(file: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    """`np.load` of an .npy file without anything pickled, also where several threads read. Raises DAMAGED_ARRAYS.

    One at a time: numpy parses a header as Python, which in Python 3.11 fails now and then in two threads at once
    (SystemError; CPython's issue 106905).
    """
    with _parsing:
        return np.load(file, mmap_mode=mmap_mode, allow_pickle=False)


def file_hash(*paths: str | Path) -> str:
    """SHA-256 of a file, 64 hex digits; of several, as if they were one file in this order."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, 64 hex digits, whatever order the tensors are in."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """A safetensors file, written whole; with the mode of other files, and the same bytes for the same tensors and
    metadata. OSError when the disk does not take it."""
    from safetensors.torch import save_file  # imports torch

    with written_whole(path) as unfinished:
        with disk_errors():
            save_file(dict(tensors), unfinished, None if metadata is None else dict(metadata))
        if metadata:
            _sort_metadata(unfinished)
        mask = os.umask(0)
        os.umask(mask)
        unfinished.chmod(0o666 & ~mask)  # safetensors makes its files the user's alone


@contextmanager
def disk_errors() -> Iterator[None]:
    """What safetensors says of the disk as the OSError that it was."""
    try:
        yield
    except SafetensorError as error:
        if found := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
        raise


def _sort_metadata(file: Path) -> None:
    """Put the metadata of a safetensors file, which it writes in an order of chance, in that of their names."""
    with file.open("r+b") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        content = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(content) <= length
        stream.seek(8)
        stream.write(content.ljust(length))


def save_torch(path: Path, values: Any) -> None:
    """A file of torch.save, written whole. OSError when the disk does not take it."""
    with written_whole(path) as unfinished, unfinished.open("wb") as file:
        writer = _Writer(file)
        try:
            torch.save(values, writer)  # type: ignore[arg-type]  # it needs no more of a file
        except RuntimeError as error:  # what torch makes of an OSError
            raise writer.failure or error from error


class _Writer:
    """A file that remembers why it could not be written to."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.failure: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.failure = error
            raise

    def flush(self) -> None:
        self._file.flush()


@contextmanager
def owned(folder: Path) -> Iterator[None]:
    """One process at a time writes into a folder, which is made if need be; InputError for a second one, or where it
    cannot be made."""
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"`out` {folder}: cannot be made ({error.strerror}); give another") from None
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"{folder}: another process is writing into this folder; wait for it to end, or give another `out`"
        ) from None
    except PermissionError as error:
        raise InputError(f"`out` {folder}: cannot be written ({error.strerror})") from None
    except (OSError, NotImplementedError) as error:  # a file system without locks
        log.warning(f"{folder}: cannot be locked ({error}); see that no second process writes into it")
    try:
        yield
    finally:
        lock.release()


def sync_folder(folder: Path) -> None:
    """Names in a folder down to the disk, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def fetch_folder(id: str, wanted: Iterable[str], remedy: str, revision: str | None = None) -> Path:
    """The local folder of a model on the Hub, of its files those that are `wanted` (patterns).

    InputError, with what to do instead, when it cannot be fetched and is not in the Hub's cache either.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(id, revision=revision, allow_patterns=list(wanted)))
    except (
        OSError,
        HFValidationError,
    ) as error:  # no such model, no network, no right to it, not an id at all
        raise InputError(
            f"{id}: neither a folder here nor fetched from the Hub ({first_line(error)}); {remedy}"
        ) from None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' bars, and its table in colours of weights that are missing, of which ditkit makes one line."""
    from transformers.utils import logging as theirs

    level, bar = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        if bar:
            theirs.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """What an error of many lines begins with."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
