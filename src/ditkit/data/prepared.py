"""Prepared images: every image of a store looked at once, on all cores, and its pixels kept in a folder.

    table.npz          a row for each image: sizes, digest, checksum of the pixels
    pixels-0000.npy    the pixels of `length` images, one after the other, uint8; read through memory maps
    index.json         what the rows mean, the reasons why images cannot be used, the table's checksum

The folder's name is the hash of what decides its content: the store's fingerprint (names, sizes and times of the
files), the rule, and the versions of this format and of Pillow. It is made as `NAME.unfinished` and renamed when it is
whole; what is in there after an interruption is checked and used. Each image's pixels are checked against their
checksum when they are read.
"""

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import PIL
from filelock import FileLock, Timeout

from ditkit.data.decoding import Facts, Rule
from ditkit.data.preparing import (
    Store,
    columns,
    finished_part,
    look_at,
    mapped,
    shard_name,
)
from ditkit.errors import InputError
from ditkit.files import file_hash
from ditkit.records import read_json, write_json, written_whole

VERSION = 1
TABLE, INDEX = "table.npz", "index.json"
SHARDS = 256  # files at most, so that all of them can be open
SHORTEST = 64  # images of a file at least
AUTO_BYTES = 16 * 10**9  # what `data.cache` auto keeps at most, of all data together
RECENT = 24 * 3600  # seconds: what was used since is never removed to make room

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What is known of N images, and their pixels where they are kept."""

    sizes: np.ndarray  # int32 (N, 2): width and height, upright; 0 where unknown or broken
    digests: np.ndarray  # uint8 (N, DIGEST): of their bytes
    reasons: dict[int, str]  # why an image cannot be used
    dark: np.ndarray  # bool (N,): 16-bit pixels of which none exceeds 12 bits
    pixels: "Pixels | None" = None


class Pixels:
    """The kept pixels of N images, mapped into memory file by file when they are first read."""

    def __init__(self, folder: Path, shapes: np.ndarray, crcs: np.ndarray, channels: int, length: int):
        self.folder = folder
        self._shapes, self._crcs, self._channels, self._length = shapes, crcs, channels, length
        ends = np.cumsum(shapes.astype(np.int64).prod(axis=1) * channels)
        self._starts = np.concatenate([[0], ends])
        self._maps: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}  # a map would be copied whole to another process

    def read(self, number: int) -> np.ndarray:
        """The pixels of an image, uint8 (C, h, w). InputError where they are not what was written."""
        shard = number // self._length
        if shard not in self._maps:
            self._maps[shard] = mapped(self.folder / shard_name(shard))
        begin = int(self._starts[number] - self._starts[shard * self._length])
        flat = self._maps[shard][begin : begin + int(self._starts[number + 1] - self._starts[number])]
        if crc32(flat.data) != self._crcs[number]:
            raise InputError(
                f"{self.folder / shard_name(shard)}: the pixels of image {number} are damaged; delete the folder "
                f"{self.folder}, it is made again"
            )
        return np.array(flat).reshape(self._channels, *self._shapes[number])

    def shape(self, number: int) -> tuple[int, int]:
        """(h, w) of an image's pixels."""
        height, width = self._shapes[number].tolist()
        return height, width

    def whole(self) -> bool:
        """Whether every file has the length that it should have."""
        for shard, first in enumerate(range(0, len(self._crcs), self._length)):
            last = min(first + self._length, len(self._crcs))
            try:
                found = len(mapped(self.folder / shard_name(shard)))
            except InputError:
                return False
            if found != self._starts[last] - self._starts[first]:
                return False
        return True


def default_root() -> Path:
    """Where `data.cache` auto keeps images: $DITKIT_CACHE, or ditkit in the user's folder of caches."""
    if named := os.environ.get("DITKIT_CACHE"):
        return Path(named) / "images"
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no home
        base = Path(tempfile.gettempdir())
    return base / "ditkit" / "images"


def look(store: Store, rule: Rule, decode: bool) -> Prepared:
    """Look at every image, without keeping anything: decode it, or without `decode` take its digest only."""
    parts = [range(first, min(first + SHORTEST, len(store))) for first in range(0, len(store), SHORTEST)]
    rows: dict[int, Facts] = {}
    for found in look_at(store, rule, parts, SHORTEST, decode=decode):
        rows |= found
    table = columns([rows[number] for number in range(len(store))])
    reasons = {number: row.reason for number, row in sorted(rows.items()) if row.reason}
    return Prepared(table["sizes"], table["digests"], reasons, table["dark"])


def kept(store: Store, rule: Rule, root: Path, *, pixels: bool = True, decode: bool = True) -> Prepared:
    """The prepared images of a store from a folder in `root`, made there if it is not there yet; without `pixels`
    only what is known of them.

    InputError where the disk is full or the folder cannot be written.
    """
    facts = {
        "version": VERSION,
        "pillow": PIL.__version__,
        "store": store.fingerprint(),
        "count": len(store),
        "rule": {name: value for name, value in rule._asdict().items() if value != ""},
        "holds": "pixels" if pixels else "facts" if decode else "digests",
    }
    folder = root / sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    if (found := read(folder, facts, rule)) is not None:
        return found
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            found = read(folder, facts, rule)
            if found is None:
                _make(folder, store, rule, facts, pixels, decode)
                found = read(folder, facts, rule)
    except OSError as error:
        raise InputError(
            f"{error.filename or folder}: prepared images cannot be kept ({error.strerror or error}); make room, or "
            "give another `data.cache` DIR, or off"
        ) from None
    if found is None:
        raise InputError(
            f"{folder}: what was written cannot be read back; give another `data.cache` DIR, or off"
        )
    return found


def read(folder: Path, facts: dict[str, Any], rule: Rule) -> Prepared | None:
    """What a finished folder holds; None where there is none, or where it is damaged, which is removed."""
    if not folder.is_dir():
        return None
    try:
        index = read_json(folder / INDEX)
        if index["facts"] != facts or index["table"] != file_hash(folder / TABLE):
            raise ValueError("its checksum is wrong")
        with np.load(folder / TABLE, allow_pickle=False) as columns:
            table = {name: columns[name] for name in columns.files}
        reasons = {int(number): str(reason) for number, reason in index["reasons"].items()}
        pixels = None
        if facts["holds"] == "pixels":
            pixels = Pixels(folder, table["shapes"], table["crcs"], rule.channels, index["length"])
            if not pixels.whole():
                raise ValueError("a file of pixels is missing or cut")
        with suppress(OSError):  # of another user's folder
            os.utime(folder / INDEX)  # when it was last used
        return Prepared(table["sizes"], table["digests"], reasons, table["dark"], pixels)
    except PermissionError as error:
        raise InputError(
            f"{error.filename} cannot be read ({error.strerror}); give another `data.cache` DIR, or off"
        ) from None
    except Exception as error:
        log.warning(f"{folder}: prepared images are damaged ({error}); they are made again")
        shutil.rmtree(folder)
        return None


def _make(folder: Path, store: Store, rule: Rule, facts: dict[str, Any], pixels: bool, decode: bool) -> None:
    """Make a folder, or go on making it."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    unfinished.mkdir(exist_ok=True)
    count = len(store)
    length = max(SHORTEST, -(-count // SHARDS))
    parts = [range(first, min(first + length, count)) for first in range(0, count, length)]
    rows: dict[int, Facts] = {}
    if pixels:
        for part in parts:
            rows |= finished_part(unfinished, part, length, rule.channels) or {}
    todo = [part for part in parts if part[0] not in rows]
    if pixels:
        most = count * rule.channels * rule.size**2
        log.info(f"{store.where}: {count:,} images are prepared once, at most {size(most)} in {folder}")
    where = unfinished if pixels else None
    for found in look_at(store, rule, todo, length, folder=where, decode=decode, done=len(rows)):
        rows |= found
    table = unfinished / TABLE
    with written_whole(table) as place:
        np.savez(place, **columns([rows[number] for number in range(count)]))  # type: ignore[arg-type]
    reasons = {number: row.reason for number, row in sorted(rows.items()) if row.reason}
    index = {"facts": facts, "length": length, "reasons": reasons, "table": file_hash(table)}
    write_json(unfinished / INDEX, index)
    for leftover in unfinished.glob("part-*.json"):
        leftover.unlink()
    os.replace(unfinished, folder)


def size(count: int) -> str:
    """Bytes in words: 24.9 MB."""
    unit, name = next(
        (10**power, name)
        for power, name in ((9, "GB"), (6, "MB"), (3, "kB"), (0, "bytes"))
        if count >= 10**power or not power
    )
    return f"{count / unit:.3g} {name}"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time makes a folder; the others wait, and use it."""
    lock = FileLock(folder.with_name(folder.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info(f"{folder}: another process is preparing these images; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def make_room(root: Path, needed: int) -> int:
    """Remove the folders of prepared images that were not used for longest, but none used within a day, until
    `needed` bytes more are at most AUTO_BYTES; the bytes that there is room for, on the disk, too."""
    found = []
    for index in root.glob(f"*/{INDEX}"):
        size = sum(file.stat().st_size for file in index.parent.iterdir())
        found.append((index.stat().st_mtime, size, index.parent))
    taken = sum(size for _, size, _ in found)
    for used, size, folder in sorted(found):
        if taken + needed <= AUTO_BYTES or time.time() - used < RECENT:
            break
        log.info(f"{folder}: prepared images that were last used long ago are removed to make room")
        shutil.rmtree(folder, ignore_errors=True)
        taken -= size
    exists = next(path for path in (root, *root.parents) if path.exists())
    return min(AUTO_BYTES - taken, shutil.disk_usage(exists).free // 2)
