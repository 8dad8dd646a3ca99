"""Choices that have settings of their own: `tread`, or `tread:rate=0.5,first=2`.

A registry holds functions (or classes); a choice's settings are the keyword-only parameters of its function that have a default,
checked against their annotations. So a new choice is one function and one line of the registry: no section, no flag.
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ditkit.config import OneOf, SomeOf, not_there
from ditkit.errors import unknown_name
from ditkit.lazy import Named, loaded


class Chosen(OneOf):
    """Annotates a field that is such a choice: `Annotated[str, Chosen(CACHES)]`."""

    def checked(self, name: str) -> str:
        """The choice; ValueError where there is none of that name, or a setting is none of its."""
        split(self.names, name)
        return name


class SomeChosen(SomeOf):
    """The same of a field that is a tuple of choices, one or several, each once; with `alike` a name may be there several
    times, with other settings."""

    def __init__(self, names: Mapping[str, Any], *, alike: bool = False):
        super().__init__(names)
        self._alike = alike

    def checked(self, names: Iterable[str]) -> tuple[str, ...]:
        """The choices; ValueError as of `Chosen`, or where one is there twice."""
        choices = tuple(names)
        found = [split(self.names, choice) for choice in choices]
        same = found if self._alike else [name for name, _ in found]
        for place, choice in enumerate(choices):
            if same[place] in same[:place]:
                raise ValueError(
                    f"{choice if self._alike else name_of(choice)} is there twice; give each once"
                )
        return choices


def chosen(registry: Mapping[str, Any], choice: str) -> Callable[..., Any]:
    """The function of a choice, with its settings bound. ValueError as of `split`."""
    name, settings = split(registry, choice)
    return partial(loaded(registry[name]), **settings)


def name_of(choice: str) -> str:
    """`tread` of `tread:rate=0.5`."""
    return choice.partition(":")[0]


def split(registry: Mapping[str, Any], choice: str) -> tuple[str, dict[str, Any]]:
    """A choice's name and its settings by name. ValueError, naming what there is, where there is none of that name, or a
    setting has no value, one of the wrong kind, or is none of its."""
    name, colon, rest = choice.partition(":")
    if name not in registry:
        raise not_there(name, registry)
    if not colon:
        return name, {}
    known = parameters(loaded(registry[name]))
    settings = {}
    for pair in rest.split(","):
        key, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"{choice!r}: {pair!r} is no setting; write {name}:NAME=VALUE,NAME=VALUE")
        if key not in known:
            there = known or "no settings"
            raise ValueError(f"{choice!r}: {unknown_name(key, known) if known else f'{name} has {there}'}")
        try:
            settings[key] = known[key].validate_strings(text)
        except ValidationError as error:
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"{choice!r}: {key}: {message}") from None
    return name, settings


def settings_of(function: Callable[..., Any]) -> list[str]:
    """The settings of a choice, as `name=default`."""
    if isinstance(function, Named):
        return function.keywords
    return [
        f"{parameter.name}={parameter.default}"
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]


def parameters(function: Callable[..., Any]) -> dict[str, TypeAdapter[Any]]:
    """The settings of a choice, each with what reads its values."""
    module = vars(sys.modules[function.__module__])
    return {
        parameter.name: TypeAdapter(
            # Annotations may be text, among others that only type checkers resolve.
            eval(parameter.annotation, module)
            if isinstance(parameter.annotation, str)
            else parameter.annotation,
            config=ConfigDict(allow_inf_nan=False),  # as of sections
        )
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is not parameter.empty
    }
