"""Arrays in files: .npy, .npz and safetensors. Nothing pickled is read, so nothing that is in a file is executed.

    for array in find_arrays(Path("fields")):    # the files of a folder in natural order, or one file
        array["images"].rows([3, 5])

Arrays are mapped into memory and read row by row; those of a compressed .npz are read whole, once. A handle is opened
when it is first needed, in the process that needs it: what travels to a loader's workers is a path.
"""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from ditkit.data.listing import natural
from ditkit.errors import InputError, is_defect
from ditkit.files import DAMAGED_ARRAYS, first_line, load_npy

WHOLE = ""  # the name of the one array of an .npy file

# safetensors' names of types; a bfloat16, which numpy does not have, is read as the float32 that it is.
DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "u2", "I16": "i2", "U32": "u4", "I32": "i4", "U64": "u8", "I64": "i8",
    "F16": "f2", "BF16": "f4", "F32": "f4", "F64": "f8",
}  # fmt: skip

Rows = Callable[[slice | Sequence[int]], np.ndarray]


@dataclass(frozen=True)
class StoredArray:
    """An array of a file."""

    path: Path
    name: str
    """In the file; empty for the one of an .npy file."""
    shape: tuple[int, ...]
    dtype: np.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __str__(self) -> str:
        return f"{self.path} ({self.name})" if self.name else str(self.path)

    def rows(self, places: slice | Sequence[int]) -> np.ndarray:
        """Some of its rows, (n, ...); InputError when the file is damaged."""
        with _readable(self.path):
            return self._rows(places)

    @cached_property
    def _rows(self) -> Rows:
        return OPENED[self.path.suffix.lower()](self)

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_rows"}


def find_arrays(path: Path) -> list[dict[str, StoredArray]]:
    """The arrays of each file, by name: of the one at `path`, or of all right in a folder, 2 before 10.

    InputError when there is none, or one is damaged or of another kind.
    """
    if not path.is_dir():
        if path.exists() and path.suffix.lower() not in LISTED:
            raise InputError(f"{path}: arrays are read from {', '.join(LISTED)} files")
        return [list_arrays(path)]
    files = [file for file in path.iterdir() if file.suffix.lower() in LISTED and file.name[0] != "."]
    if not files:
        raise InputError(f"{path} holds no {', '.join(LISTED)} files; name a file of them, or their folder")
    return [list_arrays(file) for file in sorted(files, key=lambda file: natural(file.name))]


def list_arrays(file: Path) -> dict[str, StoredArray]:
    """The arrays of one file, by name. InputError when it is missing or damaged."""
    with _readable(file):
        return {array.name: array for array in LISTED[file.suffix.lower()](file)}


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Whatever is wrong with a file is one InputError."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{file} is not there") from None
    except (*DAMAGED_ARRAYS, SafetensorError) as error:
        if is_defect(error):
            raise
        raise InputError(f"{file} cannot be read ({first_line(error)}); write it again") from None


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, by columns, dtype) of the .npy that begins here."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"version {version} of the format has named columns")
    return read[version](file)


def _list_npy(path: Path) -> Iterator[StoredArray]:
    with path.open("rb") as file:
        shape, _, dtype = _header(file)
    yield StoredArray(path, WHOLE, shape, dtype)


def _open_npy(array: StoredArray) -> Rows:
    return load_npy(array.path, "r").__getitem__


def _list_npz(path: Path) -> Iterator[StoredArray]:
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            with archive.open(member) as file:
                shape, _, dtype = _header(file)  # type: ignore[arg-type]
            yield StoredArray(path, member.removesuffix(".npy"), shape, dtype)


def _open_npz(array: StoredArray) -> Rows:
    with zipfile.ZipFile(array.path) as archive:
        member = archive.getinfo(f"{array.name}.npy")
        if member.compress_type != zipfile.ZIP_STORED or array.dtype.hasobject:
            with np.load(array.path, allow_pickle=False) as file:
                return file[array.name].__getitem__
        with archive.open(member) as inside:
            shape, by_columns, dtype = _header(inside)  # type: ignore[arg-type]
            begin = inside.tell()
    with array.path.open("rb") as file:
        file.seek(member.header_offset + 26)  # of a member's own header, after which it begins
        lengths = np.frombuffer(file.read(4), "<u2")
    begin += member.header_offset + 30 + int(lengths.sum())
    order = "F" if by_columns else "C"
    return np.memmap(array.path, dtype, "r", begin, shape, order).__getitem__  # type: ignore[call-overload]


def _list_safetensors(path: Path) -> Iterator[StoredArray]:
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_slice(name)
            kind = tensor.get_dtype()
            if kind in DTYPES:
                yield StoredArray(path, name, tuple(tensor.get_shape()), np.dtype(DTYPES[kind]))


def _open_safetensors(array: StoredArray) -> Rows:
    tensor = safe_open(array.path, "pt").get_slice(array.name)

    def read(places: slice | Sequence[int]) -> np.ndarray:
        if isinstance(places, slice):
            return _plain(tensor[places], array.dtype)
        return np.concatenate([_plain(tensor[place : place + 1], array.dtype) for place in places])

    return read


def _plain(tensor, dtype: np.dtype) -> np.ndarray:
    """Numpy's array of a tensor."""
    return (tensor.float() if dtype == np.float32 else tensor).numpy()


LISTED: dict[str, Callable[[Path], Iterator[StoredArray]]] = {
    ".npy": _list_npy,
    ".npz": _list_npz,
    ".safetensors": _list_safetensors,
}
OPENED: dict[str, Callable[[StoredArray], Rows]] = {
    ".npy": _open_npy,
    ".npz": _open_npz,
    ".safetensors": _open_safetensors,
}
