"""What a flag takes, read off the type of its field: how many words, and what they are called in the help.

Words go to the section as they were typed. It checks them, so that a flag, a file and Python have the same rules.
"""

from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from ditkit.config import OneOf, SomeOf


class Positional:
    """Marks a field whose value comes without a flag."""


class Called(NamedTuple):
    """Marks a field whose flag has another name."""

    name: str


KINDS: dict[type, str] = {int: "INT", float: "FLOAT", Path: "PATH", str: "TEXT"}


class Shape(NamedTuple):
    """The words that a flag takes."""

    metavar: str
    words: int | None = 1
    """How many; None: any number, of what can be one value or several values (`alone`) at least one."""
    literals: tuple[Any, ...] = ()
    """The values of a choice, which need not be texts."""
    alone: bool = False

    def value(self, words: Sequence[str]) -> Any:
        """The value of the section's field for these words."""
        known = {str(literal): literal for literal in self.literals}
        values = [known.get(word, word) for word in words]
        return values[0] if (self.words == 1 or (self.alone and len(values) == 1)) else values


def shape_of(field: FieldInfo) -> Shape:
    return _shape(field.annotation, field.metadata)


def _shape(kind: Any, metadata: Sequence[Any] = ()) -> Shape:
    for note in metadata:
        if isinstance(note, OneOf):
            return Shape(_among(note.names))
        if isinstance(note, SomeOf):
            return Shape(f"{_among(note.names)} ...", None)
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _shape(inside[0], inside[1:])
    if origin in (Union, UnionType):
        parts = [_shape(part) for part in inside if part is not NoneType]
        if len(parts) == 1:
            return parts[0]
        several = any(part.words is None for part in parts)
        literals = tuple(literal for part in parts for literal in part.literals)
        return Shape("|".join(part.metavar for part in parts), None if several else 1, literals, several)
    if origin is Literal:
        return Shape(_among(map(str, inside)), literals=inside)
    if origin is tuple and inside[-1] is Ellipsis:
        one = _shape(inside[0])
        return Shape(f"{one.metavar} ...", None, one.literals)
    if origin is tuple:
        return Shape(" ".join(_shape(part).metavar for part in inside), len(inside))
    return Shape("", 0) if kind is bool else Shape(KINDS.get(kind, "TEXT"))


def _among(names: Any) -> str:
    return "{" + ",".join(names) + "}"
