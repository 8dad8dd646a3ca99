"""Flags made from sections: every field is one, and what a section says of a value is what its flag says.

Of a switch both `--no-train.packed` and `--train.no-packed` are understood, and of a choice between on, off and others also
what a switch has: `--train.compile` is on, `--train.no-compile` off.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from itertools import zip_longest
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from ditkit.cli.helping import help_text
from ditkit.cli.shapes import Called, Positional, shape_of
from ditkit.cli.verbs import as_flags
from ditkit.config import RENAMED, Section
from ditkit.errors import InputError, unknown_name

Command = TypeVar("Command", bound=Section)

HELP = ("-h", "--help", "--help-all")
WORDING = {  # by the type of pydantic's error
    "int_parsing": "{input!r} is no whole number",
    "int_from_float": "{input!r} is no whole number",
    "float_parsing": "{input!r} is no number",
    "missing": "it is missing",
}


def parse(target: type[Command], argv: Sequence[str], prog: str, default: Command | None = None) -> Command:
    """`target` filled from the flags, over `default`; InputError for anything that is not understood. Help is printed, and
    ends with SystemExit."""
    known = dict(fields(default or target))
    if help_flags := {*HELP} & {*argv}:
        print(help_text(target, prog, known, default, "--help-all" in help_flags))
        raise SystemExit(0)
    try:
        values = default.model_dump() if default is not None else _defaults(target)
        for flag, value in _values(argv, known).items():
            _put(values, _place(flag, known), value)
        return target.model_validate(values)
    except ValidationError as error:
        message = _worded(error, known)
    except InputError as error:
        message = str(error)
    raise InputError(f"{message} (see ditkit {prog} --help)")


def _values(argv: Sequence[str], known: Mapping[str, FieldInfo]) -> dict[str, Any]:
    """Flag -> the value for its field. InputError for flags that there are not, and words that belong to none."""
    if unknown := unknown_flags(argv, known):
        raise InputError(unknown)
    values: dict[str, Any] = {}
    loose: list[str] = []
    for group, words in _by_flag(plain(argv, known)):
        if not group:
            loose += words
            continue
        name, equals, first = words[0].removeprefix("--").partition("=")
        own = ([first] if equals else []) + words[1:]
        name = name.replace("_", "-")
        field = known.get(name)
        if field is None:  # --data.no-check
            flag = re.sub(r"(^|\.)no-", r"\1", name, count=1)
            if known[flag].annotation is not bool:
                raise InputError(
                    f"--{name}: --{flag} is no switch, and takes {shape_of(known[flag]).metavar}"
                )
            values[flag] = False
            loose += own
            continue
        shape = shape_of(field)
        count = len(own) if shape.words is None else shape.words
        if len(own) < count or (shape.alone and not own):
            raise InputError(f"--{name}: give {shape.metavar}")
        loose += own[count:]
        values[name] = shape.value(own[:count]) if count or shape.words is None else True
    return values | _positional(loose, known)


def _positional(words: list[str], known: Mapping[str, FieldInfo]) -> dict[str, Any]:
    """The values without a flag. InputError for more than are taken."""
    names = [flag for flag, field in known.items() if Positional in field.metadata]
    if words and not names:
        raise InputError(f"{words[0]!r} belongs to no flag; leave it out, or write it beside its own")
    if not words:
        return {}
    shape = shape_of(known[names[0]])
    if shape.words is not None and len(words) > shape.words:
        raise InputError(
            f"{words[shape.words]!r} is too much beside {words[0]!r}; leave it out, or name its flag"
        )
    return {names[0]: shape.value(words)}


def _defaults(target: type[Section]) -> dict[str, Any]:
    """The values of sections inside, whose fields can be set one by one."""
    return {
        name: field.default.model_dump()
        for name, field in target.model_fields.items()
        if isinstance(field.default, Section)
    }


def _place(flag: str, known: Mapping[str, FieldInfo]) -> list[str]:
    """Where a flag's field is among the values: the names of the sections that it is in, and its own."""
    *above, name = flag.replace("-", "_").split(".")
    return [*above, "as_json" if any(isinstance(note, Called) for note in known[flag].metadata) else name]


def _put(values: Any, place: Sequence[str], value: Any) -> None:
    """Set a value among those of sections, which may be inside others, or in a tuple of several."""
    *above, name = place
    for part in above:
        key: Any = int(part) if part.isdecimal() else part
        if isinstance(values[key], tuple):
            values[key] = [*values[key]]
        values = values[key]
    values[name] = value


def _worded(error: ValidationError, known: Mapping[str, FieldInfo]) -> str:
    """The first problem that was found, in a line that begins with its flag."""
    problem = error.errors(include_url=False)[0]
    parts = [str(part).replace("_", "-") for part in problem["loc"]]
    whole = ".".join(parts)
    flag = next(
        (".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in known), whole
    )
    field, value = known.get(flag), problem["input"]
    message = as_flags(problem["msg"].removeprefix("Value error, "), partial(own_flag, known))
    if problem["type"] in WORDING:
        message = WORDING[problem["type"]].format(input=value)
    elif problem["type"] == "literal_error" and field is not None:
        message = unknown_name(value, map(str, shape_of(field).literals))
    if not flag or message.startswith("--"):
        return message
    return f"{flag if field is not None and Positional in field.metadata else f'--{flag}'}: {message}"


def fields(section: Section | type[Section], above: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field as its flag is called, without the dashes, and of sections those inside."""
    kind = section if isinstance(section, type) else type(section)
    for name, field in kind.model_fields.items():
        value = field.default if isinstance(section, type) else getattr(section, name)
        called = next((note.name for note in field.metadata if isinstance(note, Called)), name)
        flag = above + called.replace("_", "-")
        parts = (
            {f"{flag}.{k}": part for k, part in enumerate(value)}
            if isinstance(value, tuple)
            else {flag: value}
        )
        if parts and all(isinstance(part, Section) for part in parts.values()):
            for place, part in parts.items():
                yield from fields(part, f"{place}.")
        else:
            yield flag, field


def plain(argv: Sequence[str], known: Mapping[str, FieldInfo]) -> list[str]:
    """The arguments with every way of writing a switch as the section has it: `--no-data.check` as `--data.no-check`; of a
    choice that has on and off, `--compile` as `--compile on` and `--no-compile` as `--compile off`."""
    positional = any(Positional in field.metadata for field in known.values())
    found: list[str] = []
    for word, after in zip_longest(argv, argv[1:], fillvalue=""):
        found.append(word)
        name = word.removeprefix("--").replace("_", "-")
        flag = name if name in known else re.sub(r"(^|\.)no-", r"\1", name, count=1)
        if not word.startswith("--") or flag not in known:
            continue
        negated, choices = flag != name, get_args(known[flag].annotation)
        if negated and known[flag].annotation is bool:
            section, dot, last = flag.rpartition(".")
            found[-1] = f"--{section}{dot}no-{last}"
        elif {"on", "off"} <= {*choices}:
            # A word that is none of the choices is one of the verb's own, where it has any.
            bare = not after or after.startswith("--") or (positional and after not in choices)
            found[-1:] = [f"--{flag}", "off"] if negated else [word, "on"] if bare else [word]
    return found


def unknown_flags(argv: Sequence[str], known: Collection[str]) -> str:
    """The flags that the verb does not have, each with the nearest that it has, in words; "" when it has all."""
    found = []
    for word in argv:
        name = word.removeprefix("--").partition("=")[0].replace("_", "-")
        if not word.startswith("--") or {name, re.sub(r"(^|\.)no-", r"\1", name, count=1)} & {*known}:
            continue
        inside = {flag.rpartition(".")[2]: flag for flag in known}
        section, _, field = name.replace("-", "_").rpartition(".")
        if field in RENAMED.get(section, {}):
            found.append(f"--{name} (now --{section}.{RENAMED[section][field][0].replace('_', '-')})")
            continue
        near = get_close_matches(name, known, 1) or get_close_matches(name.rpartition(".")[2], inside, 1)
        found.append(f"--{name}" + (f" (did you mean --{inside.get(near[0], near[0])}?)" if near else ""))
    if not found:
        return ""
    return f"unknown flag{'s' if len(found) > 1 else ''} {', '.join(found)}"


def own_flag(known: Collection[str], name: str) -> str:
    """The verb's flag of a field: sample.sampler of the sampler, where it has no other."""
    inside = [flag for flag in known if flag.endswith(f".{name}")]
    return inside[0] if name not in known and len(inside) == 1 else name


def without(argv: Sequence[str], names: Collection[str]) -> list[str]:
    """The arguments but for these fields' flags and their values."""
    return [word for flag, words in _by_flag(argv) if flag not in names for word in words]


def only(argv: Sequence[str], section: str) -> list[str]:
    """The flags of a section, with their values."""
    return [word for flag, words in _by_flag(argv) if flag.startswith(f"{section}.") for word in words]


def _by_flag(argv: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """The arguments in groups, each a flag and what follows it; what comes before the first has the flag ""."""
    flag: str = ""
    words: list[str] = []
    for word in argv:
        if word.startswith("--"):
            yield flag, words
            flag, words = word[2:].partition("=")[0].replace("-", "_"), []
        words.append(word)
    yield flag, words
