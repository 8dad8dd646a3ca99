"""Choices with settings: what is understood, and what is refused in one line."""

from typing import Annotated

import pytest
from pydantic import Field

from ditkit.chosen import Chosen, SomeChosen, chosen, name_of, settings_of
from ditkit.config import Section
from ditkit.errors import InputError


def route(x, *, rate: Annotated[float, Field(ge=0, lt=1)] = 0.5, first: int = 2, on: bool = True):
    return x, rate, first, on


def plain(x):
    return x


PARTS = {"route": route, "plain": plain}


class Choices(Section):
    one: Annotated[str, Chosen(PARTS)] = "plain"
    some: Annotated[tuple[str, ...], SomeChosen(PARTS)] = ()


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("route", (7, 0.5, 2, True)),
        ("route:rate=0.25", (7, 0.25, 2, True)),
        ("route:rate=1e-3,first=4,on=false", (7, 0.001, 4, False)),
        ("plain", 7),
    ],
)
def test_settings_are_made(choice, expected):
    assert Choices(one=choice).one == choice
    assert chosen(PARTS, choice)(7) == expected
    assert name_of(choice) in PARTS


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("rout", "one: unknown 'rout'; did you mean route?"),
        ("route:rate=2", "'route:rate=2': rate: Input should be less than 1"),
        ("route:rate=nan", "'route:rate=nan': rate: Input should be a finite number"),
        ("route:first=x", "first: Input should be a valid integer"),
        ("route:rat=1", "unknown 'rat'; did you mean rate?"),
        ("route:rate", "'rate' is no setting; write route:NAME=VALUE,NAME=VALUE"),
        ("route:", "'' is no setting"),
        ("plain:rate=1", "plain has no settings"),
    ],
)
def test_others_are_refused_in_one_line(choice, message):
    with pytest.raises(InputError) as caught:
        Choices.checked({"one": choice}, "")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_several_are_there_once_each():
    assert Choices(some=("route:rate=0.1", "plain")).some == ("route:rate=0.1", "plain")
    with pytest.raises(InputError, match="route is there twice"):
        Choices.checked({"some": ("route:rate=0.1", "route")}, "")


def test_a_name_that_is_added_later_is_known(monkeypatch):
    monkeypatch.setitem(PARTS, "mine", plain)
    assert Choices(one="mine").one == "mine"


def test_settings_are_listed_with_their_defaults():
    assert settings_of(route) == ["rate=0.5", "first=2", "on=True"]
