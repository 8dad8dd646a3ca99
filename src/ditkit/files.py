"""Files: their hash, writing them whole, and folders of models fetched from the Hugging Face Hub."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from ditkit.errors import InputError


def file_hash(*paths: str | Path) -> str:
    """SHA-256 of a file, 64 hex digits; of several, as if they were one file in this order."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def replace(path: Path, content: bytes) -> None:
    """Write a file beside its place, down to the disk, and rename it: what has its name is whole, whatever happens."""
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


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


def first_line(error: Exception) -> str:
    """What an error of many lines begins with."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
