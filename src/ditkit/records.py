"""Records on disk: JSON files and files of JSON lines. They are written whole, and what is wrong with one is named."""

import json
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from ditkit.errors import InputError

log = logging.getLogger(__name__)


@contextmanager
def written_whole(path: Path, *, synced: bool = True) -> Iterator[Path]:
    """A place beside `path`, hidden and with the same ending, to write a file to; afterwards the file goes down to the
    disk and gets its name. What has its name is whole, whatever happens.

    Where that fails nothing stays behind, and an OSError without a file, or of the place, names `path`. Without `synced` a
    loss of power can leave an empty file: for many small files that can be made again.
    """
    unfinished = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        yield unfinished
        if synced:
            descriptor = os.open(unfinished, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        os.replace(unfinished, path)
    except BaseException as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(unfinished)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Write a file as `written_whole` does."""
    with written_whole(path) as unfinished:
        unfinished.write_bytes(content)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """A record as a JSON file, whole or not at all; numbers that are not finite become null."""
    write_whole(path, (json.dumps(finite(values), indent=1, allow_nan=False) + "\n").encode())


def parse_json(content: str | bytes) -> Any:
    """What JSON says; ValueError when it is damaged, not UTF-8 or nested too deep."""
    try:
        return json.loads(content.decode("utf-8") if isinstance(content, bytes) else content)
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; InputError when it is missing or holds something else."""
    try:
        values = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: cannot be read (it holds no JSON object)")
    return values


CHECKSUM = "checksum"


def checksum(values: Mapping[str, Any]) -> str:
    """SHA-256 of a record, its checksum left out."""
    rest = {name: value for name, value in values.items() if name != CHECKSUM}
    return sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def append_line(path: Path, values: Mapping[str, Any]) -> None:
    """One more line of a file of lines. Where it cannot be written that is logged, and nothing of it stays."""
    line = (json.dumps(finite(values), allow_nan=False) + "\n").encode()
    try:
        with path.open("ab", buffering=0) as file:
            before = file.tell()
            try:
                if file.write(line) != len(line):
                    raise OSError(None, "no space left on the disk")
            except OSError:
                file.truncate(before)
                raise
    except OSError as error:
        log.warning(f"{path}: a line could not be written ({error.strerror}); the work goes on without it")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of lines up to the first that is not whole, which is logged; [] where there is no file."""
    rows: list[dict[str, Any]] = []
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return rows
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    lines = content.split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        row = _row(line)
        if row is None:
            left = len(lines) - number
            log.warning(
                f"{path}: line {number} is damaged; it and what follows ({left - 1} lines) are left out"
            )
            return rows
        rows.append(row)
    if lines[-1]:
        log.warning(f"{path}: its last line was cut and is left out")
    return rows


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """All lines anew, whole or not at all."""
    write_whole(path, "".join(json.dumps(finite(row), allow_nan=False) + "\n" for row in rows).encode())


def finite(value: Any) -> Any:
    """The same with None in place of numbers that are not finite: JSON has no word for them."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return value
