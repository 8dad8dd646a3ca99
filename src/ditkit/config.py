"""The base of every configuration section: frozen, strict, JSON in and out."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError, field_validator
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from ditkit.errors import InputError, no_such, unknown_name
from ditkit.records import CHECKSUM, checksum, finite, read_json, write_json

log = logging.getLogger(__name__)

Checked = TypeVar("Checked", bound="Section")
UNKNOWN = "unknown_name"  # the type of an error
LARGEST = 2**53  # up to which JSON means the same everywhere

RENAMED: dict[str, dict[str, tuple[str, dict[str, str]]]] = {
    "transport": {
        "weighting": ("loss", {"none": "output"}),
        "given_frames": ("known_frames", {}),
    },
    "backbone": {"told": ("condition_width", {})},
}
"""Of each section the fields that had another name in an earlier version: their names now, and those of their values that
have another name too."""


def renamed(section: str, values: dict[str, Any]) -> dict[str, Any]:
    """A section's values in a file of any version, by the names that its fields have now."""
    found = {}
    for field, value in values.items():
        name, words = RENAMED.get(section, {}).get(field, (field, {}))
        found[name] = words.get(value, value) if isinstance(value, str) else value
    return found


class OneOf:
    """Annotates a field that is a name in a registry: `Annotated[str, OneOf(PATHS)]`.

    The registry is read whenever a name is checked or the help is shown, so names that are registered later are known.
    Others are refused in one line, with the nearest that there is.
    """

    def __init__(self, names: Mapping[str, Any]):
        self.names = names

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.checked, handler(source))

    def checked(self, name: str) -> str:
        """The name; ValueError where it is none of them."""
        if name not in self.names:
            raise not_there(name, self.names)
        return name


def not_there(name: object, names: Iterable[str]) -> PydanticCustomError:
    """The error of a name that is not in a registry; what it is in a file of another's, `refusal` says."""
    found = list(names)
    return PydanticCustomError(UNKNOWN, "{message}", {"message": unknown_name(name, found), "names": found})


class KindOf:
    """Annotates a field that is a section of one of the kinds in a registry: `Annotated[BackboneSection, KindOf(BACKBONES)]`.

    The kind is the section's `kind`, looked up whenever values are checked, so kinds that are registered later are known.
    """

    def __init__(self, sections: Mapping[str, Any]):
        self.sections = sections

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.checked)

    def checked(self, value: Any) -> "Section":
        """The section of these values; ValueError where they are of no kind that there is, or not what it takes."""
        kinds: dict[str, type[Section]] = {section.kind: type(section) for section in self.sections.values()}
        if type(value) in kinds.values():
            return value
        if not isinstance(value, Mapping) or "kind" not in value:
            raise ValueError(f"no section: give its values, with a kind, one of {', '.join(kinds)}")
        kind = value["kind"]
        if not isinstance(kind, str) or kind not in kinds:
            raise not_there(kind, kinds)
        return kinds[kind].model_validate(value)


class SomeOf:
    """The same of a field that is a tuple of such names, one or several: `Annotated[tuple[str, ...], SomeOf(TRACKERS)]`."""

    def __init__(self, names: Mapping[str, Any]):
        self.names = names

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.checked, handler(source))

    def checked(self, names: Iterable[str]) -> tuple[str, ...]:
        """The names, each once; ValueError as of `OneOf`."""
        return tuple(dict.fromkeys(map(OneOf(self.names).checked, names)))


def write_section(section: "Section", path: Path) -> None:
    """The section as a JSON file, with its checksum."""
    values = finite(section.model_dump(mode="json"))
    write_json(path, {**values, CHECKSUM: checksum(values)})


def read_section(cls: "type[Checked]", path: Path) -> Checked:
    """The section in a JSON file; InputError when it is missing or holds something else. A file that was
    changed since it was written is logged: somebody meant it, or the disk is failing."""
    values = read_json(path)
    if values.pop(CHECKSUM, written := checksum(values)) != written:
        log.warning(
            f"{path} was changed after it was written; its present values are used. Remove its line {CHECKSUM!r} to silence "
            "this warning"
        )
    return cls.recorded(values, str(path))


def refusal(
    error: ValidationError, what: str, known: Iterable[str] = (), *, of_file: bool = False
) -> InputError:
    """The first problem that pydantic found, in one line that begins with `what` and names the field; `known` are the
    fields that there are. `of_file`: the values are a file's, whose names need not be typing errors."""
    problem = error.errors(include_url=False)[0]
    if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
        return no_such(what, problem["loc"][0], known)
    place = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    value = problem["input"]
    if problem["type"] == UNKNOWN and of_file:
        there = ", ".join(problem["ctx"]["names"])
        message = f"unknown {problem_name(value)!r}; there are {there}; a module of one's own may have made it: `plugin` MODULE"
    short = isinstance(value, str | float) or (isinstance(value, int) and value.bit_length() <= 1000)
    shown = f" (not {value!r})" if short and repr(value) not in message else ""
    return InputError(": ".join(part for part in (what, place, message) if part) + shown)


def problem_name(value: Any) -> Any:
    """The name that is unknown, of a section its kind."""
    return value.get("kind") if isinstance(value, Mapping) else value


class Section(BaseModel):
    """One part's settings. Unknown fields are errors, and so are numbers that are not finite; a section never changes after
    it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _whole_numbers_fit(cls, value: Any) -> Any:
        """Larger ones are mistakes, and do not fit into what computes with them."""
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and abs(number) > LARGEST:
                raise ValueError(
                    f"Input should be at most {LARGEST}, the largest whole number that is understood"
                )
        return value

    @classmethod
    def upgraded(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The values in a file of any version, as this version means them."""
        return values

    @classmethod
    def recorded(cls: type[Checked], values: dict[str, Any], what: str) -> Checked:
        """The section of the values in a file of any version; InputError as of `checked`."""
        try:
            return cls.model_validate(cls.upgraded(values))
        except ValidationError as error:
            raise refusal(error, what, cls.model_fields, of_file=True) from None

    @classmethod
    def checked(cls: type[Checked], values: dict[str, Any], what: str) -> Checked:
        """The section of these values; InputError in one line that begins with `what` if they are wrong."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise refusal(error, what, cls.model_fields) from None

    def replaced(self, values: Mapping[str, Any], what: str) -> Self:
        """The section with other values of some fields; InputError as of `checked`."""
        return self.checked(self.model_dump() | dict(values), what)
