"""What a run's data is: settled when the run begins, recorded with it, and compared when it goes on.

recipe.json holds the names of the classes and a hash of all images; images.txt.gz their list, so that what has changed
can be named; data-changes.jsonl what was accepted.
"""

import gzip
import logging
import unicodedata
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

from ditkit.data import DataSection, Source, differing, upgraded
from ditkit.data.encoded import HELD_OUT
from ditkit.data.latents import INDEX, PLAN
from ditkit.errors import InputError
from ditkit.records import append_line, read_json, write_whole

LIST, CHANGES = "images.txt.gz", "data-changes.jsonl"
UNREAD = "-"  # in place of the hash of an image that was not read

Data = TypeVar("Data", bound=DataSection)

log = logging.getLogger(__name__)


def settled(data: Data, settings: Path, latents: Path | None = None) -> Data:
    """The section with nothing left open: what is not set is as the data's files say, as in the run that has these
    `settings` (recipe.json), or as the latents were encoded with, or as a new run begins."""
    data = data.resolved()
    before: Mapping[str, Any] = {}
    if settings.is_file():
        before = upgraded(read_json(settings).get("data", {}))
    elif latents is not None:
        index = next((latents / name for name in (INDEX, PLAN) if (latents / name).is_file()), None)
        before = upgraded(read_json(index).get("data", {})) if index else {}
    begins = {"order": "natural", "held_out": HELD_OUT if data.own else 0.0}
    alike = before if before.get("kind") == data.kind else {}
    missing = {name: value for name, value in begins.items() if getattr(data, name, value) is None}
    return data.model_copy(update={name: alike.get(name, value) for name, value in missing.items()})


def recorded(data: Data, source: Source) -> Data:
    """The section with what the opened source has: how many classes, their names, and a hash of the images."""
    lines = image_lines(source)
    content = sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest() if lines else None
    facts = {"classes": len(source.names), "names": tuple(source.names), "content": content or data.content}
    return data.model_copy(update=facts)


def image_lines(source: Source) -> list[str]:
    """Every image of a source of files: the hash of its bytes and its name, composed as NFC; [] of others."""
    return [unicodedata.normalize("NFC", line) for line in source.lines]


def check_data(before: DataSection, now: DataSection, source: Source, out: Path) -> None:
    """InputError naming the first thing that has changed since a run began, unless `now.changed` accepts it; then it
    is recorded. Nothing is compared where a run of version 0.1 recorded nothing."""
    found = _classes_changed(before, now)
    if not found and before.content and now.content and before.content != now.content:
        found = _images_changed(read_lines(out), image_lines(source))
    if not found:
        return
    if before.names and len(before.names) != len(now.names or ()):
        raise InputError(
            f"{out}: {found}; a network for {len(before.names)} classes cannot go on with {len(now.names or ())}: put them "
            f"back, or give another `out` and `init` {out}"
        )
    if now.changed != "accept":
        raise InputError(
            f"{out}: {found}; put them back, or give `data.changed` accept to go on with them as they are"
        )
    log.warning(f"{out}: {found}; accepted")
    append_line(out / CHANGES, {"changed": found, "before": before.content, "now": now.content})


def _classes_changed(before: DataSection, now: DataSection) -> str:
    if before.names is None or before.names == now.names:
        return ""
    return f"the classes have changed since this run began: {differing(before.names, now.names or ())}"


def _images_changed(before: Sequence[str], now: Sequence[str]) -> str:
    """What is different between two lists of images, in words; "" where nothing is known to be."""
    if not before:
        return "the images have changed since this run began"
    old, new = _by_name(before), _by_name(now)
    changed = [
        name
        for name, value in old.items()
        if UNREAD not in (value, new.get(name, UNREAD)) and value != new[name]
    ]
    gone = [name for name in old if name not in new]
    added = [name for name in new if name not in old]
    parts = [
        f"{len(names):,} {what} ({names[0]}{', ...' if len(names) > 1 else ''})"
        for names, what in ((changed, "changed"), (gone, "gone"), (added, "added"))
        if names
    ]
    return f"the images have changed since this run began: {', '.join(parts)}" if parts else ""


def _by_name(lines: Sequence[str]) -> dict[str, str]:
    """The hash of each image's bytes."""
    parts = (line.partition(" ") for line in lines)
    return {name: value for value, _, name in parts}


def write_lines(source: Source, out: Path) -> None:
    """Keep the list of images in a run's folder."""
    if lines := image_lines(source):
        text = "".join(f"{line}\n" for line in lines)
        write_whole(out / LIST, gzip.compress(text.encode("utf-8", "surrogateescape"), mtime=0))


def read_lines(out: Path) -> list[str]:
    """The list in a run's folder; [] where there is none that can be read."""
    try:
        text = gzip.decompress((out / LIST).read_bytes()).decode("utf-8", "surrogateescape")
    except (OSError, EOFError, ValueError):
        return []
    return text.splitlines()
