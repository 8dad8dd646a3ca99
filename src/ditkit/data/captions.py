"""Captions of image files: a column of metadata.jsonl, .csv or .parquet, or .txt files beside the images.

    {"file_name": "cats/0001.png", "text": "a cat on a mat"}       one line of metadata.jsonl per image

This is the layout of Hugging Face's imagefolder. A caption that cannot be used is None here, and a line of the log
counts such captions with places and reasons; `Encoded` leaves their images out and names them. A file is refused only
where it is wrong as a whole. Captions of tables are in hub.py, of shards in shards.py.
"""

import csv
import io
import logging
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ditkit.errors import InputError
from ditkit.files import first_line
from ditkit.records import parse_json

BESIDE = "txt"  # as the name of a column: not a column but the text file of each image
FEW_ROWS, ROWS_A_FILE = 1_000_000, 10
"""More rows are a mistake, or an attack: equal ones take no room in a file, but they do in memory."""
SHOWN = 5  # places that a line of the log names

log = logging.getLogger(__name__)


def usable(text: object) -> str | None:
    """The caption without blanks around it; None when there is none, it is blank, no text or not UTF-8."""
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            return None
    return (text.strip() or None) if isinstance(text, str) else None


def only_texts(values: Iterable[tuple[str, object]], where: str, column: str) -> list[str | None]:
    """The captions among (place, value), None where one cannot be used; values that are no text, or an error in
    their place, are counted and logged.

    InputError, naming the first, when most of those that are there are no text.
    """
    captions: list[str | None] = []
    wrong: list[str] = []
    there = 0
    for place, value in values:
        there += value is not None
        if not isinstance(value, str | bytes | None):
            wrong.append(str(value) if isinstance(value, InputError) else f"{place} ({value!r:.40})")
        captions.append(usable(value))
    if 2 * len(wrong) > there:
        raise InputError(
            f"{where}: {column!r} is not one text in {len(wrong)} of {there} places, {wrong[0]}; "
            "`data.caption_column` names what holds texts"
        )
    if wrong:
        log.warning(f"{where}: {column!r} is not one text in {len(wrong)} of {there} places: {_some(wrong)}")
    return captions


def read_captions(folder: Path, files: Sequence[str], column: str) -> list[str | None]:
    """The caption of each file, named relative to the folder, None where there is none that can be used: from `column`
    of the folder's metadata file, or for the column "txt" from the .txt file beside it.

    Names match whichever way their accents are written (NFC or NFD). InputError: see `find_metadata`, `read_metadata`.
    """
    if column == BESIDE:
        read = _beside(folder)
        return [usable(read(file)) for file in files]
    captions = read_metadata(find_metadata(folder), files, column)
    return [captions.get(_name(file)) for file in files]


class Row(NamedTuple):
    """One row of a metadata file."""

    place: str
    """Such as "line 3"."""
    values: dict[str, Any]
    """By column, file_name among them; empty where the row cannot be read."""
    wrong: str = ""
    """Why it cannot."""


def find_metadata(folder: Path) -> Path:
    """The folder's metadata file; InputError when there is none, or more than one."""
    found = [path for ending in READERS if (path := folder / f"metadata{ending}").exists()]
    if not found:
        raise InputError(
            f"{folder / 'metadata.jsonl'} is not there, nor metadata.csv or metadata.parquet; `data.caption_column` "
            f"{BESIDE} reads the .txt files beside the images"
        )
    if len(found) > 1:
        raise InputError(
            f"{folder} holds both {' and '.join(path.name for path in found)}; keep the one whose captions are meant"
        )
    return found[0]


def read_metadata(path: Path, files: Sequence[str], column: str) -> dict[str, str]:
    """The usable captions of a metadata file, by the images' names as `_name` has them. Rows that cannot be used, have
    no caption or are about files that are not there are counted and logged with places and reasons.

    InputError when the file cannot be read, has no such column or far more rows than there are files, most of its rows
    cannot be used, or none is about one of the files.
    """
    most = max(FEW_ROWS, ROWS_A_FILE * len(files))
    rows = list(islice(READERS[path.suffix](path), most + 1))
    if len(rows) > most:
        raise InputError(
            f"{path} has more than {most:,} rows, and the folder {len(files):,} files; write one row for each"
        )
    wrong = [f"{row.place} ({row.wrong})" for row in rows if row.wrong]
    by_file: dict[str, list[Row]] = {}
    for row in rows:
        if not row.wrong:
            by_file.setdefault(_name(row.values["file_name"]), []).append(row)
    captions: dict[str, str] = {}
    empty: list[str] = []
    for file, same in by_file.items():
        reason = _wrong(same, file, column)
        if reason:
            wrong += [f"{row.place} ({reason})" for row in same]
        elif text := usable(same[0].values.get(column)):
            captions[file] = text
        else:
            empty.append(same[0].place)
    if 2 * len(wrong) > len(rows):
        raise InputError(
            f"{path}: {len(wrong)} of {len(rows)} rows cannot be used, {_some(wrong)}; correct the file"
        )
    columns = dict.fromkeys(name for row in rows for name in row.values if name != "file_name")
    if column not in columns:
        raise InputError(
            f"{path}: no column {column!r}; `data.caption_column` is one of: {', '.join([*columns, BESIDE])}"
        )
    there = {_name(file) for file in files}
    gone = [file for file in by_file if file not in there]
    if len(gone) == len(by_file):
        raise InputError(
            f"{path} names {len(gone)} files, none of which is in the folder ({gone[0]}, ...); file_name is relative to "
            f"{path.parent}"
        )
    for what, named in (
        ("rows cannot be used", wrong),
        ("rows have no caption", empty),
        ("rows are about files that are not in the folder", gone),
    ):
        if named:
            log.warning(f"{path}: {len(named)} of {len(rows)} {what}: {_some(named)}")
    return captions


def _wrong(same: Sequence[Row], file: str, column: str) -> str:
    """Why the rows about one file give it no caption; empty where they may."""
    value = same[0].values.get(column)
    if len(same) > 1:
        return f"{file} in {len(same)} rows; an image has one caption"
    if not isinstance(value, str | None):
        return f"{column!r} is not one text, {value!r:.40}"
    return "" if value is None or _is_unicode(value) else "not UTF-8"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a byte that is not UTF-8 was decoded to half a surrogate pair
        return False
    return True


def _name(file: str) -> str:
    """What a file and the rows about it are both called: parts joined by `/`, accents composed."""
    return unicodedata.normalize("NFC", PurePosixPath(file.replace("\\", "/")).as_posix())


def _some(named: Sequence[str]) -> str:
    return ", ".join(named[:SHOWN]) + (", ..." if len(named) > SHOWN else "")


def _beside(folder: Path) -> Callable[[str], bytes | None]:
    """What reads the .txt file beside an image of the folder; None where there is none."""

    @cache
    def composed(directory: Path) -> dict[str, str]:
        return {unicodedata.normalize("NFC", name): name for name in os.listdir(directory)}

    def read(file: str) -> bytes | None:
        path = (folder / file).with_suffix(".txt")
        try:
            return path.read_bytes()
        except FileNotFoundError:
            name = composed(path.parent).get(unicodedata.normalize("NFC", path.name))
            return None if name is None else (path.parent / name).read_bytes()

    return read


def _jsonl(path: Path) -> Iterator[Row]:
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if line.strip():
            try:
                values = parse_json(line.decode("utf-8-sig"))
            except UnicodeDecodeError:
                yield Row(f"line {number}", {}, "not UTF-8")
                continue
            except ValueError:
                values = None
            yield _row(f"line {number}", values, "not a JSON object with a file_name")


def _csv(path: Path) -> Iterator[Row]:
    content = path.read_bytes()
    # Bytes that are not UTF-8 become surrogates, so that they spoil their own row only.
    lines = io.StringIO(content.decode("utf-8-sig", "surrogateescape"), newline="")
    reader = csv.reader(lines, strict=True)
    header = next(reader, [])
    if "file_name" not in header:
        raise InputError(
            f"{path}: its first line names no column file_name ({','.join(header)!r:.60}); it is a table in UTF-8 with "
            "commas between columns"
        )
    while True:
        place = f"line {reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(place, {}, str(error))
            continue
        if len(cells) not in (0, len(header)):
            yield Row(place, {}, f"{len(cells)} cells of {len(header)}; a text with commas stands in quotes")
        elif cells:
            yield _row(place, dict(zip(header, cells, strict=True)), "no file_name")


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            tables = file.iter_batches(batch_size=10_000)
            for number, values in enumerate(chain.from_iterable(table.to_pylist() for table in tables)):
                yield _row(f"row {number}", values, "no file_name")
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path} cannot be read ({first_line(error)}); write it again") from None


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _row(place: str, values: Any, otherwise: str) -> Row:
    """The row, or why it is none."""
    file = values.get("file_name") if isinstance(values, dict) else None
    return Row(place, values) if file and isinstance(file, str) else Row(place, {}, otherwise)
