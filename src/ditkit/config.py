"""The base of every configuration section: frozen, strict, JSON in and out."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ditkit.errors import InputError

Checked = TypeVar("Checked", bound="Section")


def write_section(section: "Section", path: Path) -> None:
    """The section as a JSON file."""
    path.write_text(json.dumps(section.model_dump(mode="json"), indent=1) + "\n")


def read_section(cls: "type[Checked]", path: Path) -> Checked:
    """The section in a JSON file; InputError when it is missing or holds something else."""
    return cls.checked(cls.upgraded(read_json(path)), str(path))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; InputError when it is missing or holds something else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: cannot be read (it holds no JSON object)")
    return values


class Section(BaseModel):
    """One part's settings. Unknown fields are errors; a section never changes after it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def upgraded(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The values in a file of any version, as this version means them."""
        return values

    @classmethod
    def checked(cls: type[Checked], values: dict[str, Any], what: str) -> Checked:
        """The section of these values; InputError in one line that begins with `what` if they are wrong."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in problem["loc"])
            message = problem["msg"].removeprefix("Value error, ")
            value = f" (not {problem['input']!r})" if isinstance(problem["input"], str | int | float) else ""
            raise InputError(": ".join(part for part in (what, place, message) if part) + value) from None
