"""The files of a folder: what there is, in which order, of which class.

Our own walk because `datasets`' imagefolder reads meaning into names (train, test, ...) and silently splits or drops
such folders. Here a directory's name is a class and nothing else.
"""

import logging
import os
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

from PIL import Image

from ditkit.errors import InputError

Order = Literal["natural", "plain"]

log = logging.getLogger(__name__)


class Strings(Sequence[str]):
    """Many strings in one block of bytes: a tenth of the memory, and nothing for a process to copy."""

    def __init__(self, values: Iterable[str]):
        block, ends = bytearray(), array("q", [0])
        for value in values:
            block += value.encode("utf-8", "surrogateescape")
            ends.append(len(block))
        self.block = bytes(block)
        self._ends = ends

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.block[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogateescape")


class File(NamedTuple):
    """A file of a folder, as the walk found it."""

    name: str
    size: int  # bytes
    times: tuple[int, int]  # ns: when its content and when anything of it last changed


class Level(NamedTuple):
    """One directory of a folder."""

    inside: str  # its path relative to the folder, "" for the folder itself
    directories: list[str]
    files: list[File]

    def path(self, name: str) -> str:
        return f"{self.inside}/{name}" if self.inside else name


def natural(name: str) -> tuple[list[str | int], str]:
    """A key that sorts 2 before 10."""
    parts = [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name))]
    return parts, name


KEYS: dict[Order, Callable[[str], Any]] = {"natural": natural, "plain": str}


def levels(folder: Path, what: str, order: Order = "natural") -> Iterator[Level]:
    """Every directory of a folder, the folder first, in order. Hidden files are passed over; a directory that several
    links lead to is visited once. InputError when there is no such folder of `what`, or a directory cannot be listed."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; `data.path` DIR names the folder of {what}")
    visited = set()
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        here = folder / inside
        try:
            about = here.stat()
            if (about.st_dev, about.st_ino) in visited:
                continue
            visited.add((about.st_dev, about.st_ino))
            level = _level(here, inside, KEYS[order])
        except OSError as error:
            raise InputError(f"{error.filename or here} cannot be listed ({error.strerror})") from None
        yield level
        waiting += [level.path(name) for name in reversed(level.directories)]


def _level(here: Path, inside: str, key: Callable) -> Level:
    directories, files = [], []
    with os.scandir(here) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                directories.append(entry.name)
                continue
            try:
                about = entry.stat()
            except FileNotFoundError:  # a link that leads nowhere
                files.append(File(entry.name, 0, (0, 0)))
                continue
            files.append(File(entry.name, about.st_size, (about.st_mtime_ns, about.st_ctime_ns)))
    return Level(inside, sorted(directories, key=key), sorted(files, key=lambda file: key(file.name)))


def ending(name: str) -> str:
    """The ending of a file's name in lower case, with its dot; "" for none."""
    return os.path.splitext(name)[1].lower()


def is_image(path: Path) -> bool:
    """Whether Pillow recognises the content of a file that has no ending."""
    try:
        with Image.open(path):
            return True
    except Exception:  # not an image, not readable, or too large to look at unless a flag allows it
        return False


def report_passed_over(where: str, endings: Counter[str], what: str) -> None:
    """Log how many files were not taken for `what`, by ending."""
    if endings:
        ordered = sorted(endings.items(), key=lambda item: (-item[1], item[0] or "~"))
        counts = ", ".join(f"{count:,} {name or 'without'}" for name, count in ordered[:8])
        more = ", ..." if len(endings) > 8 else ""
        log.info(f"{where}: {endings.total():,} files are no {what} by their endings: {counts}{more}")


class Listing(NamedTuple):
    """The files of a folder, or directories that count as one, by number."""

    files: Strings  # paths relative to the folder, with `/` between parts
    labels: array | None  # of each; None where the folder has no classes
    names: tuple[str, ...]  # of the classes
    stamp: str  # SHA-256 of paths, sizes and times


def by_class(folder: Path, found: Iterable[tuple[str, Sequence[File]]], what: str, order: Order) -> Listing:
    """The `what` of a folder: (path, the files that it consists of) for each one; its first directory is its class.

    Names that differ only in how Unicode composes their letters (NFC, NFD) are one class. Those right in the folder,
    and none in directories, are unlabelled. InputError when there are none, or both kinds.
    """
    digest = sha256(os.fsencode(folder.resolve()))
    loose: list[str] = []
    classes: dict[str, list[str]] = {}
    for path, files in found:
        first, slash, _ = path.partition("/")
        (classes.setdefault(unicodedata.normalize("NFC", first), []) if slash else loose).append(path)
        about = [(file.name, file.size, *file.times) for file in files]
        digest.update(f"{path}\0{about}\n".encode("utf-8", "surrogateescape"))
    if loose and classes:
        raise InputError(
            f"{folder} holds {what} ({loose[0]}, ...) beside class folders ({next(iter(classes))}, ...); "
            "move them so that it is one or the other"
        )
    if not loose and not classes:
        raise InputError(f"{folder} holds no {what}; `data.path` DIR names the folder of {what}")
    if loose:
        return Listing(Strings(loose), None, (), digest.hexdigest())
    names = sorted(classes, key=KEYS[order])
    labels = array("q", (label for label, name in enumerate(names) for _ in classes[name]))
    paths = Strings(path for name in names for path in classes[name])
    return Listing(paths, labels, tuple(names), digest.hexdigest())


def report_empty(folder: Path, names: Sequence[str], what: str, top: Sequence[str]) -> None:
    """Log which directories of a folder's classes hold none of the `what`."""
    known = set(names)
    empty = [name for name in top if unicodedata.normalize("NFC", name) not in known]
    if empty and names:
        shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        log.warning(f"{folder}: {len(empty)} class folders hold no {what} and get no label: {shown}")
