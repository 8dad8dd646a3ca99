"""The pass over all images of a store: each is looked at once, in as many processes as there are cores.

What becomes of it, and how it is read again, is prepared.py's.
"""

import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import NamedTuple, Protocol
from zlib import crc32

import numpy as np

from ditkit.data.decoding import DIGEST, Facts, Rule, examine
from ditkit.device import cores
from ditkit.errors import InputError
from ditkit.files import DAMAGED_ARRAYS, load_npy
from ditkit.progress import progress_bar
from ditkit.records import parse_json, write_whole, written_whole
from ditkit.signals import leave_to_parent, starting_workers


class Store(Protocol):
    """Compressed images by number: the files of a folder, the rows of a table."""

    where: str  # what an error message calls the whole

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes: ...

    def title(self, index: int) -> str: ...

    def fingerprint(self) -> str:
        """A hash that changes whenever one of the images does."""


class Job(NamedTuple):
    """What a process needs to look at images."""

    store: Store
    rule: Rule
    folder: Path | None  # of the pixels; None: they are not kept
    decode: bool
    length: int  # images of a file


Found = dict[int, Facts]  # by number

_job: Job | None = None  # of a process of the pool


def look_at(
    store: Store,
    rule: Rule,
    parts: Sequence[range],
    length: int,
    *,
    folder: Path | None = None,
    decode: bool = True,
    done: int = 0,
) -> Iterator[Found]:
    """The facts of the images of each part, as parts are finished. With a folder their pixels are written there, a
    file for each part, `length` being that of all parts but the last; `done` images were looked at before."""
    job = Job(store, rule, folder, decode, length)
    what = "preparing images" if folder else "checking images" if decode else "reading images"
    processes = min(cores(), len(parts))
    with progress_bar(done + sum(map(len, parts)), what, "image", initial=done, delay=1.0) as bar:
        if processes <= 1:
            for part in parts:
                yield _look_at_part(job, part)
                bar.update(len(part))
            return
        pool = ProcessPoolExecutor(processes, process_context(), _begin, (job, os.getpid()))
        try:
            with starting_workers():
                futures = [pool.submit(_look_at_mine, part) for part in parts]
            for future in as_completed(futures):
                found = future.result()
                yield found
                bar.update(len(found))
        except BrokenProcessPool:
            raise InputError(
                f"{store.where}: a process that decoded images was killed, perhaps for memory; a smaller "
                "`data.max_pixels` leaves the largest images out"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def process_context() -> BaseContext:
    """Forking is quick where it is safe: the processes run Pillow and numpy only."""
    return multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


def _begin(job: Job, parent: int) -> None:
    """In a new process: signals are the parent's to answer, and without a parent there is nothing to do."""
    global _job
    _job = job
    leave_to_parent()

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _look_at_mine(part: range) -> Found:
    assert _job is not None
    return _look_at_part(_job, part)


def _look_at_part(job: Job, part: range) -> Found:
    found: Found = {}
    pixels = [np.empty(0, np.uint8)]
    for number in part:
        made = None
        try:
            found[number], made = examine(job.store.read(number), job.rule, job.decode)
        except (OSError, ValueError) as error:  # it cannot be read at all
            found[number] = Facts(bytes(DIGEST), getattr(error, "strerror", None) or str(error))
        if job.folder is not None and made is not None:
            pixels.append(made.ravel())
    if job.folder is not None:
        _write_part(job.folder, part[0] // job.length, np.concatenate(pixels), found)
    return found


# files of a part


def shard_name(shard: int) -> str:
    return f"pixels-{shard:04d}.npy"


def _rows_name(shard: int) -> str:
    return f"part-{shard:04d}.json"


def _write_part(folder: Path, shard: int, pixels: np.ndarray, found: Found) -> None:
    """The pixels, then the facts, whose file says that the part is finished."""
    with written_whole(folder / shard_name(shard)) as place:
        np.save(place, pixels)
    rows = [[number, *facts._replace(digest=facts.digest.hex())] for number, facts in found.items()]  # type: ignore
    write_whole(folder / _rows_name(shard), json.dumps(rows).encode())


def finished_part(folder: Path, part: range, length: int, channels: int) -> Found | None:
    """What was found of a part before an interruption; None where it was not finished, or its pixels are damaged."""
    shard = part[0] // length
    try:
        rows = parse_json((folder / _rows_name(shard)).read_bytes())
        found = {}
        pixels, begin = mapped(folder / shard_name(shard)), 0
        for number, digest, reason, width, height, dark, shape, crc in rows:
            found[number] = Facts(
                bytes.fromhex(digest), reason, width, height, dark, (shape[0], shape[1]), crc
            )
            end = begin + channels * shape[0] * shape[1]
            if not reason and crc32(pixels[begin:end].data) != crc:
                return None
            begin = end
        return found if begin == len(pixels) and list(found) == list(part) else None
    except (OSError, ValueError, TypeError, IndexError, InputError):
        return None


def mapped(file: Path) -> np.ndarray:
    """The bytes of a file of pixels, mapped into memory; InputError when it is missing or damaged."""
    try:
        empty = file.stat().st_size <= 128  # only a header, which cannot be mapped
        return load_npy(file, None if empty else "r")
    except DAMAGED_ARRAYS as error:
        raise InputError(
            f"{file} is missing or damaged ({error}); delete the folder {file.parent}, it is made again"
        ) from None


def columns(rows: Sequence[Facts]) -> dict[str, np.ndarray]:
    """The facts of images as columns."""
    count = len(rows)
    digests = np.frombuffer(b"".join(row.digest for row in rows), np.uint8).reshape(count, DIGEST)
    return {
        "sizes": np.array([(row.width, row.height) for row in rows], np.int32).reshape(count, 2),
        "digests": digests,
        "dark": np.array([row.dark for row in rows], bool),
        "shapes": np.array([row.shape for row in rows], np.int32).reshape(count, 2),
        "crcs": np.array([row.crc for row in rows], np.uint32),
    }
