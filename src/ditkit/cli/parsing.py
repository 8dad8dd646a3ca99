"""Flags by tyro, and its framed errors folded to the one line every error of ditkit is.

Of a switch both `--no-train.packed` and tyro's own `--train.no-packed` are understood, and of a choice between on, off and
others also what a switch has: `--train.compile` is on, `--train.no-compile` off.
"""

import contextlib
import io
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args

import tyro
from pydantic.fields import FieldInfo

from ditkit.backbones import BACKBONES, MatryoshkaConfig
from ditkit.cli.verbs import program
from ditkit.codecs import CODECS
from ditkit.config import RENAMED, Section
from ditkit.data import DATA, DataConfig, Folder
from ditkit.errors import InputError
from ditkit.recipe import Recipe
from ditkit.sampling.config import SamplingRequest
from ditkit.text import TEXT_ENCODERS, TextConfig
from ditkit.text.files import width

# Sections that come in kinds: `--backbone NAME` replaces the section by that name's default.
KINDS: dict[str, dict[str, Any]] = {"backbone": BACKBONES, "codec": CODECS, "data": DATA}

KINDS_OF_NUMBERS = {"INT": "whole number", "FLOAT": "number"}
NO_NUMBERS = {  # what int() and float() say
    "whole number": r"invalid literal for int\(\) with base 10",
    "number": "could not convert string to float",
}

WIDE = 4000  # characters: boxes so wide that folding them breaks no word


def parse(target: type[Section], argv: list[str], prog: str, default: Any = None) -> Any:
    """`target` filled from the flags; InputError for anything that is not understood."""
    options: dict[str, Any] = {"default": default} if default is not None else {}
    known = dict(fields(default or target))
    captured = io.StringIO()
    wants_help = bool({"-h", "--help"} & set(argv))
    try:
        with contextlib.redirect_stderr(captured), _columns(100 if wants_help else WIDE):
            return tyro.cli(
                target,
                args=plain(argv, known),
                prog=f"{program() if wants_help else 'ditkit'} {prog}",  # of errors `main` changes it
                config=(tyro.conf.AvoidSubcommands, tyro.conf.DisallowNone),
                **options,
            )
    except SystemExit as end:
        if not end.code:
            raise
        if unknown := unknown_flags(argv, known):
            raise InputError(f"{unknown} (see ditkit {prog} --help)") from None
        raise InputError(own_flags(fold(captured.getvalue()), known, argv)) from None


def fields(section: Section | type[Section], above: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field as its flag is called, without the dashes, and of sections those inside."""
    kind = section if isinstance(section, type) else type(section)
    for name, field in kind.model_fields.items():
        value = field.default if isinstance(section, type) else getattr(section, name)
        flag = above + name.replace("_", "-")
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
    """The arguments with every way of writing a switch as tyro reads it: `--no-data.check` as `--data.no-check`; of a
    choice that has on and off, `--compile` as `--compile on` and `--no-compile` as `--compile off`."""
    positional = any(tyro.conf.Positional in field.metadata for field in known.values())
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
        if not word.startswith("--") or {name, re.sub(r"(^|\.)no-", r"\1", name, count=1)} & {*known, "help"}:
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


def own_flags(text: str, known: Collection[str], argv: Sequence[str]) -> str:
    """The text with flags as the verb has them, `--sampler` as `--sample.sampler`, but for those that were typed."""

    def own(found: re.Match[str]) -> str:
        name = found[1]
        inside = [flag for flag in known if flag.endswith(f".{name}")]
        return f"--{inside[0]}" if len(inside) == 1 and name not in (*known, *was_typed) else found[0]

    was_typed = {word.removeprefix("--").partition("=")[0] for word in argv}
    return re.sub(r"(?<!\S)--([a-z][\w.-]*\w)", own, text)


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


def _no_type(found: re.Match[str]) -> str:
    """What tyro says of a value that is of no type that its flag takes, without these types."""
    known = KINDS_OF_NUMBERS.get(found[1])
    return f"{found[2]} is no {known}" if known else f"{found[2]}: not {found[1].strip('{}')}"


def fold(framed: str) -> str:
    """tyro's boxed message as one line."""
    parts: list[list[str]] = [[]]
    helping = False  # in the help of the argument, which tyro adds
    for line in framed.splitlines():
        text = line.strip("│╭╮╰╯|+ \t")
        helping = (helping or text == "Argument helptext:") and not text.startswith(("───", "---"))
        if helping or not text.strip("─- "):
            parts.append([])
        elif "───" not in text and "-----" not in text:  # the title of the box is in its frame
            parts[-1].append(text)
    text = "; ".join(" ".join(part) for part in parts if part)
    text = re.sub(
        r"(\d+ validation errors for .*?)\[type=.*?(?=; For full|$)", r"\1", text
    )  # the first of several
    text = re.sub(
        r"\[type=.*?\]|For further information visit \S+|Value error[,;] ",
        "",
        text,
    )
    text = re.sub(
        r"Error parsing (\S+): \d+ validation errors? for \w+ ([a-z_.]+?)(?:\.\d+)* (?=Input)",
        r"--\1.\2: ",
        text,
    )
    text = re.sub(
        r"no type matching (.+?) could be instantiated from \[(.*?)\]\.; Got errors: .*?(?=; For full|$)",
        _no_type,
        text,
    )
    for kind, pattern in NO_NUMBERS.items():
        text = re.sub(rf"{pattern}: ('.*?')(?=;|$)", rf"\1 is no {kind}", text)
    text = re.sub(r"--[A-Z]\w*\.", "--", text)  # a verb's own flags have no section
    text = re.sub(
        r"Error parsing \S+: \d+ validation errors? for \w+ |\d+ validation errors? for \w+ ", "", text
    )
    text = re.sub(r"^Error parsing (?=--)", "", text)
    text = re.sub(r"--[\w.]+", lambda flag: flag[0].replace("_", "-"), text)  # fields as their flags
    text = re.sub(r";?\s*For full helptext, (?:run|see) (.*)", r" (see \1)", text)
    return re.sub(r"\s+", " ", text).replace(":;", ":").strip()


@contextlib.contextmanager
def _columns(width: int):
    """A terminal of that width, for as long as it is needed."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(width)
    try:
        yield
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)


def switch_kinds(recipe: Recipe, argv: list[str]) -> tuple[Recipe, list[str]]:
    """The recipe with the sections chosen by name replaced, and the flags that are left.

    `--backbone DiT-S/4`, `--codec vae`, `--text minilm`, `--data fashion-mnist`, or `--data DIR`, a folder of
    images. Of a backbone of several levels `--backbone.inner` names the network inside, or a run that has it, and
    `--backbone.levels N` puts so many levels like its last around it.
    """
    sections: dict[str, Any] = {}
    nested: dict[str, str] = {}
    rest: list[str] = []
    flags = iter(argv)
    for flag in flags:
        name, _, value = flag.removeprefix("--").partition("=")
        if flag.startswith("--") and name in ("backbone.inner", "backbone.levels"):
            nested[name] = value or next(flags, "")
            continue
        if (
            flag.startswith("--") and name == "sample.sampler"
        ):  # leaves behind what only the recipe's own lets one choose
            try:
                request = SamplingRequest.of({"sampler": value or next(flags, "")})
                sections["sample"] = recipe.sample.override(request)
            except InputError as error:
                raise InputError(f"--sample.{error}") from None
            continue
        if not flag.startswith("--") or name not in (*KINDS, "text"):
            rest.append(flag)
            continue
        value = value or next(flags, "")
        if name == "text":
            sections[name] = text_section(value)
        elif name == "data":
            sections[name] = data_section(value, like=recipe.data)
        elif value in KINDS[name]:
            sections[name] = KINDS[name][value]
        else:
            raise InputError(f"--{name}: unknown {value!r}; choose one of: {', '.join(KINDS[name])}")
    backbone = sections.pop("backbone", recipe.backbone)
    chosen = recipe.with_data(sections.pop("data", recipe.data))
    chosen = chosen.with_backbone(nest(backbone, nested) if nested else backbone)
    return chosen.replace(**sections), rest


def nest(config: Section, flags: dict[str, str]) -> MatryoshkaConfig:
    """The configuration with another network inside or another number of levels; InputError for one without."""
    if not isinstance(config, MatryoshkaConfig):
        raise InputError(f"--{next(iter(flags))} is for --backbone Matryoshka or another of several levels")
    changes: dict[str, Any] = {}
    if (name := flags.get("backbone.inner")) is not None:
        file = Path(name) / "recipe.json"
        changes["inner"] = Recipe.read(file).backbone.model_dump() if file.exists() else name
    if (count := flags.get("backbone.levels")) is not None:
        if not count.isdecimal() or not int(count):
            raise InputError(
                f"--backbone.levels {count!r}: give the number of levels around the inner network"
            )
        kept = config.levels[-int(count) :]
        changes["levels"] = (kept[0],) * (int(count) - len(kept)) + kept
    return MatryoshkaConfig.checked(config.model_dump() | changes, "--backbone")


def text_section(name: str) -> TextConfig:
    """The section of a text encoder's name, folder or Hub id; of one on the Hub --text.dim says how wide."""
    if name in TEXT_ENCODERS:
        return TextConfig(id=name, dim=TEXT_ENCODERS[name].dim)
    return TextConfig(id=name, dim=width(Path(name))) if Path(name).is_dir() else TextConfig(id=name)


def data_section(name: str, like: DataConfig | None = None, flag: str | None = "data") -> DataConfig:
    """The default section of a data set's name, or that of a folder of images.

    A folder takes size, channels and flip from `like`, the recipe's own data: a recipe for 28 pixels
    stays one. Its classes are counted.
    """
    if name in DATA:
        return DATA[name]
    if Path(name).is_dir():
        if isinstance(like, Folder):
            return like.model_copy(update={"path": Path(name), "classes": None})
        if like is None:
            return Folder(path=Path(name))
        kept = {"size": like.size, "channels": like.channels, "flip": like.flip}
        return Folder.checked({"path": Path(name), **kept}, f"--{flag} {name}")
    raise InputError(
        f"{f'--{flag}: unknown' if flag else 'unknown data'} {name!r}; choose one of: {', '.join(DATA)}, or an existing "
        "folder of images"
    )
