"""The base of every configuration section: frozen, strict, JSON in and out."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from ditkit.errors import InputError
from ditkit.records import read_json, write_json

Checked = TypeVar("Checked", bound="Section")


def write_section(section: "Section", path: Path) -> None:
    """The section as a JSON file."""
    write_json(path, section.model_dump(mode="json"))


def read_section(cls: "type[Checked]", path: Path) -> Checked:
    """The section in a JSON file; InputError when it is missing or holds something else."""
    return cls.checked(cls.upgraded(read_json(path)), str(path))


class Section(BaseModel):
    """One part's settings. Unknown fields are errors, and so are numbers that are not finite; a section never changes after
    it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

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
