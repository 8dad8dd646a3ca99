"""What a folder of results holds, without what differs between two undisturbed runs: times."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

TIMED = frozenset({"minutes", "seconds", "images_per_second", "checksum", "seconds_left"})
DRAWN = frozenset({"loss.png", "validation.png", "scores.png"})  # curves over minutes, and what is drawn anew


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(part) for key, part in value.items() if key not in TIMED}
    if isinstance(value, list):
        return [without_times(part) for part in value]
    return value


def digest(file: Path) -> str:
    """A file's hash; of JSON without times."""
    data = file.read_bytes()
    if file.suffix == ".json":
        data = json.dumps(without_times(json.loads(data)), sort_keys=True).encode()
    elif file.suffix == ".jsonl":
        rows = [without_times(json.loads(line)) for line in data.splitlines()]
        data = json.dumps(rows, sort_keys=True).encode()
    return sha256(data).hexdigest()


def contents(folder: Path) -> dict[str, str]:
    """Hash by path in the folder, locks and curves left out."""
    return {
        str(file.relative_to(folder)): digest(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        and file.name not in DRAWN
        and not file.name.endswith(".lock")
        and file.name[0] != "."
    }


def difference(found: dict[str, str], expected: dict[str, str]) -> str:
    """The first thing that is not as expected, in words; "" where all is."""
    for name in sorted(found.keys() | expected.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{name} is left over"
        if found[name] != expected[name]:
            return f"{name} differs"
    return ""
