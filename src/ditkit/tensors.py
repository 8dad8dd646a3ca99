"""Foreign files of weights, read without running anything.

A torch file is a pickle that says which tensors to rebuild from which bytes; an ordinary unpickler calls
whatever the pickle names. This one rebuilds tensors and dictionaries only. Everything else it names, a
training script's argparse.Namespace or an attacker's os.system, becomes an inert `Placeholder`, and a
log message says so. Read are torch's zip files (the tensors stay on disk until used), its format before
1.6, and safetensors. What the tensors mean is decided elsewhere.
"""

import logging
import math
import mmap
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from ditkit.errors import InputError

log = logging.getLogger(__name__)

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
DTYPES = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool,
}  # fmt: skip

Storage = Callable[[torch.dtype, str, int], Tensor]  # dtype, key, elements -> a flat tensor


def read_tensors(path: Path) -> Any:
    """What a .pt, .pth, .bin or .safetensors file holds: as a rule a dict, nested or not, of tensors.

    Objects that are neither tensors nor plain values are `Placeholder`s, named in a log message.

    Raises InputError: the file cannot be read, is damaged or of another kind.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        with path.open("rb") as stream:
            start = stream.read(4)
            stream.seek(0)
            reading = _read_zip if start == b"PK\x03\x04" else _read_legacy
            content, placeholders = reading(stream)
    except Exception as error:  # a damaged pickle raises nearly every kind there is
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            f"{path}: cut short, damaged, or no file of torch or safetensors weights ({reason})"
        ) from None
    if placeholders:
        log.warning(f"{path}: not rebuilt and not run, kept as placeholders: {', '.join(placeholders)}")
    return content


def read_state(path: Path) -> dict[str, Tensor]:
    """The named tensors of such a file. InputError as above, and where it holds anything else."""
    state = read_tensors(path)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise InputError(f"{path}: holds other things than named tensors; refused")
    return state


def _read_zip(stream: BinaryIO) -> tuple[Any, list[str]]:
    with zipfile.ZipFile(stream) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        if packed := [entry for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]:
            # torch compresses nothing; a pickle that is small here could be endless.
            raise ValueError(f"{packed[0].filename} is compressed")
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("big-endian numbers")
        whole = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)

        def storage(dtype: torch.dtype, key: str, elements: int) -> Tensor:
            entry = archive.getinfo(f"{root}data/{key}")
            if entry.file_size < elements * dtype.itemsize:
                raise ValueError(f"storage {key} is not {elements} numbers of {dtype}")
            # A local header is 30 bytes, the last 4 of which are the lengths of what follows it.
            name, extra = struct.unpack_from("<HH", whole, entry.header_offset + 26)
            offset = entry.header_offset + 30 + name + extra
            if not elements:
                return torch.empty(0, dtype=dtype)
            return torch.frombuffer(whole, dtype=dtype, count=elements, offset=offset)

        with archive.open(pickled) as file:
            return _unpickle(file, storage)


def _read_legacy(stream: BinaryIO) -> tuple[Any, list[str]]:
    """Before torch 1.6: pickles of a magic number, version and machine, the content, the storages' keys;
    then each storage, its length before it."""
    length = stream.seek(0, 2)
    stream.seek(0)
    if _unpickle(stream)[0] != LEGACY_MAGIC:
        raise ValueError("unknown beginning")
    _unpickle(stream)
    if not _unpickle(stream)[0]["little_endian"]:
        raise ValueError("big-endian numbers")
    storages: dict[str, Tensor] = {}

    def storage(dtype: torch.dtype, key: str, elements: int) -> Tensor:
        if not 0 <= elements * dtype.itemsize <= length:
            raise ValueError(f"storage {key} is longer than the file")
        return storages.setdefault(key, torch.empty(elements, dtype=dtype))

    content, placeholders = _unpickle(stream, storage)
    for key in _unpickle(stream)[0]:
        flat = storages[key]
        (elements,) = struct.unpack("<q", stream.read(8))
        data = stream.read(elements * flat.dtype.itemsize)
        if elements != len(flat) or len(data) < elements * flat.dtype.itemsize:
            raise ValueError(f"storage {key} is cut short")
        if elements:
            flat.copy_(torch.frombuffer(bytearray(data), dtype=flat.dtype))
    return content, placeholders


def _unpickle(stream: Any, storage: Storage | None = None) -> tuple[Any, list[str]]:
    """One pickle of the stream, and the names of what became placeholders."""
    begin = stream.tell()
    for opcode, number, place in pickletools.genops(stream):
        # The unpickler makes a table as long as the highest number, which is at most how many there were.
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(number or 0) > int(place or 0):
            raise ValueError(f"it numbers more values than it has: {number:,}")
    stream.seek(begin)
    reader = _Reader(stream, storage)
    return reader.load(), sorted(reader.placeholders)


class Placeholder:
    """Stands where the file has an object that was not rebuilt; `origin` is what it would have been.

    `state` is the object's state as the file has it, of plain values, tensors and placeholders.
    """

    origin = ""
    state: Any = None

    def __new__(cls, *_: Any, **__: Any) -> "Placeholder":
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass


class _Reader(pickle.Unpickler):
    """Resolves the names of tensors and dictionaries, and no others."""

    def __init__(self, stream: Any, storage: Storage | None):
        super().__init__(stream)
        self.placeholders: dict[str, type[Placeholder]] = {}
        self._storage = storage
        # Made anew for each file: a pickle can set attributes of the classes that it gets.
        ordered = type("OrderedDict", (dict,), {"__setstate__": lambda self, state: None})
        self._known: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): ordered,
            ("torch._utils", "_rebuild_tensor"): _RebuildTensor(),
            ("torch._utils", "_rebuild_tensor_v2"): _RebuildTensor(),
            ("torch._utils", "_rebuild_parameter"): _RebuildParameter(),
            **{("torch", f"{name}Storage"): dtype for name, dtype in DTYPES.items()},
        }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._known:
            return self._known[module, name]
        origin = f"{module}.{name}"
        if origin not in self.placeholders:
            self.placeholders[origin] = type("Placeholder", (Placeholder,), {"origin": origin})
        return self.placeholders[origin]

    def persistent_load(self, identity: Any) -> Tensor:
        kind, dtype, key, _, elements, *views = identity
        if kind != "storage" or not isinstance(dtype, torch.dtype) or any(views) or self._storage is None:
            raise ValueError(f"unknown storage {kind} of {dtype}")
        return self._storage(dtype, key, elements)


class _RebuildTensor:
    """(storage, offset, size, stride, ...) -> a view of the storage, inside its bounds."""

    __slots__ = ()

    def __call__(self, storage: Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
        if math.prod(size) > len(storage):
            raise ValueError(f"a tensor of {tuple(size)} in a storage of {len(storage)}")
        return storage.as_strided(size, stride, offset)


class _RebuildParameter:
    """(data, requires_grad, hooks) -> data."""

    __slots__ = ()

    def __call__(self, data: Tensor, *_: Any) -> Tensor:
        return data
