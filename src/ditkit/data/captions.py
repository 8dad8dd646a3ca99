"""Captions of image files: columns of a metadata.jsonl, or .txt files beside the images.

    {"file_name": "cats/0001.png", "text": "a cat on a mat"}       one line of metadata.jsonl per image

This is the layout of Hugging Face's imagefolder. A caption that is missing, empty or not UTF-8 is None here;
`Encoded` leaves such images out and names them. Captions of tables are in hub.py, of shards in shards.py.
"""

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ditkit.errors import InputError

BESIDE = "txt"  # as the name of a column: not a column but the text file of each image


def usable(text: str | bytes | None) -> str | None:
    """The caption without blanks around it; None when there is none, it is blank or it is not UTF-8."""
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            return None
    return (text or "").strip() or None


def read_captions(folder: Path, files: Sequence[str], column: str) -> list[str | None]:
    """The caption of each file, named relative to the folder: from `column` of the folder's metadata.jsonl, or
    for the column "txt" from the .txt file beside it. InputError: see `read_metadata`."""
    if column == BESIDE:
        return [_beside((folder / file).with_suffix(".txt")) for file in files]
    rows = read_metadata(folder / "metadata.jsonl", files)
    known = list(dict.fromkeys(name for row in rows.values() for name in row if name != "file_name"))
    if column not in known:
        raise InputError(
            f"{folder / 'metadata.jsonl'}: no column {column!r}; --data.caption-column is one of: "
            f"{', '.join([*known, BESIDE])}"
        )
    for file, row in rows.items():
        if not isinstance(row.get(column), str | None):
            raise InputError(
                f"{folder / 'metadata.jsonl'}: {column!r} of {file} is not one text ({row[column]!r:.40})"
            )
    return [usable(rows.get(file, {}).get(column)) for file in files]


def read_metadata(path: Path, files: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The rows of a metadata.jsonl by file name. InputError, with the line where there is one, when it is not
    there, a line is not UTF-8 or no JSON object with a file_name, or a file it names twice or is missing."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise InputError(
            f"{path} is not there; --data.caption-column {BESIDE} reads the .txt files beside the images"
        ) from None
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8-sig"))
            file = PurePosixPath(row["file_name"]).as_posix()
        except UnicodeDecodeError:
            raise InputError(f"{path}, line {number}: not UTF-8; save the file as UTF-8") from None
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}, line {number}: not a JSON object with a file_name") from None
        if file in rows:
            raise InputError(f"{path}, line {number}: {file} a second time; an image has one caption")
        rows[file] = row
    known = set(files)
    if missing := [file for file in rows if file not in known]:
        raise InputError(
            f"{path} names {len(missing)} images that are not in the folder ({missing[0]}); correct the file or "
            "put them back"
        )
    return rows


def _beside(path: Path) -> str | None:
    try:
        return usable(path.read_bytes())
    except FileNotFoundError:
        return None
