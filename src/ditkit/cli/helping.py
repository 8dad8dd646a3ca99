"""`--help`: the flags that are used most, by section, with their choices; `--help-all`: every one."""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from textwrap import wrap
from typing import Any

from pydantic.fields import FieldInfo

from ditkit.cli.shapes import Positional, shape_of
from ditkit.cli.verbs import as_flags, with_program
from ditkit.config import Section

COLUMNS, INDENT = 100, 28

RECIPE = """out init seeds device json batch modules
    data.path data.root data.size data.channels data.flip data.held-out data.caption-column data.range data.id
    codec.id text.id
    backbone.width backbone.depth backbone.heads backbone.patch backbone.tubelet backbone.conditioning backbone.text
    transport.path transport.predict transport.loss transport.weight transport.variance transport.time-law
    train.images train.batch train.micro-batch train.checkpoint-blocks train.lora train.lr train.warmup-images train.schedule train.clip train.precision
    train.seed train.label-dropout train.ema-half-life-images train.compile train.latents train.track train.score-images
    sample.sampler sample.steps sample.guidance"""
COMMON: dict[str, tuple[str, ...]] = {
    "train": tuple(RECIPE.split()),
    "encode": (
        "out",
        "device",
        "shard",
        "dtype",
        *(flag for flag in RECIPE.split() if flag[:4] in ("data", "code")),
    ),
    "info": tuple(RECIPE.split()),
    "plan": (
        *"""gpu gpus price-per-gpu-hour utilisation images-per-second headroom network-gbit-per-gpu
        gpu-hours-to-failure write-gb-per-second train.parallel train.shard-size""".split(),
        *RECIPE.split(),
    ),
    "sample": tuple(
        """n labels prompt steps sampler guidance interval seed out replace png npz size batch compile device weak negative
        frames length image extend""".split()
    ),
    "compare": tuple(
        "n guidance solvers steps sampler features reference seed out batch compile device".split()
    ),
    "eval": tuple(
        "n seed features reference steps sampler guidance out replace batch compile device".split()
    ),
}
"""Of each verb the flags that `--help` shows, in this order; of one that is not here, all."""

SWITCHED = {
    "data": ("NAME|DIR", "Other data, of `ditkit list data`, or a folder of images."),
    "codec": ("NAME", "Another codec, of `ditkit list codecs`."),
    "text": ("NAME", "An encoder of captions, of `ditkit list text-encoders`, a folder or an id of the Hub."),
    "backbone": ("NAME", "Another network with its own values, of `ditkit list backbones`."),
}
"""Sections that are replaced as a whole by name, and what their flags say."""
AROUND = {
    "inner": ("NAME|RUN", "Another network inside, of `ditkit list backbones`, or that of a run."),
    "levels": ("INT", "How many levels are around it."),
}
"""The same of the parts of a network of several levels."""
SWITCHING = ("train", "encode", "info", "plan")


def help_text(
    target: type[Section], prog: str, known: Mapping[str, FieldInfo], default: Section | None, whole: bool
) -> str:
    """The help of a verb, whose flags are those of `known`; of all of them where it is `whole`."""
    verb = prog.split()[0]
    loose = {flag: field for flag, field in known.items() if Positional in field.metadata}
    flags = [flag for flag in known if flag not in (*loose, *SWITCHED) and not _fixed(known[flag])]
    common = [flag for flag in COMMON.get(verb, flags) if flag in flags]
    shown = [*common, *(flag for flag in flags if flag not in common)] if whole else common
    lines = [with_program(f"usage: ditkit {' '.join([prog, *map(str.upper, loose)])} [flags]"), ""]
    lines += _paragraphs(target.__doc__ or "")
    for flag, field in loose.items():
        among = takes if (takes := shape_of(field).metavar).startswith("{") else ""
        lines += [
            "",
            *_row(
                flag.upper(),
                f"{_about(target, flag, field, None, known)} {among.replace(',', ', ')}".rstrip(),
            ),
        ]
    own = type(default).model_fields if default is not None and verb in SWITCHING else {}
    switched = {flag: about for flag, about in SWITCHED.items() if flag in own}
    for section in dict.fromkeys(["", *switched, *map(_section, shown)]):
        rows = (
            list(_row(f"--{section} {switched[section][0]}", switched[section][1]))
            if section in switched
            else []
        )
        if section == "backbone" and any(flag.startswith("backbone.inner.") for flag in known):
            for name, (takes, about) in AROUND.items():
                rows += _row(f"--backbone.{name} {takes}", about)
        for flag in shown:
            if _section(flag) == section:
                takes = shape_of(known[flag]).metavar
                rows += _row(f"--{flag} {takes}", _about(target, flag, known[flag], default, known))
        lines += ["", f"{section or 'flags'}:", *rows] if rows else []
    if len(shown) < len(flags):
        lines += ["", with_program(f"{len(flags) - len(shown)} more: ditkit {prog} --help-all")]
    return "\n".join(lines)


def _section(flag: str) -> str:
    """The section that a flag is of; "" for a verb's own."""
    return flag.partition(".")[0] if "." in flag else ""


def _fixed(field: FieldInfo) -> bool:
    """Whether there is only one value."""
    return len(shape_of(field).literals) == 1


def _row(left: str, about: str) -> Iterator[str]:
    """A flag and what it says, beside it where there is room and below otherwise."""
    left = f"  {left.rstrip()}"
    parts = wrap(with_program(about), COLUMNS - INDENT, break_long_words=False, break_on_hyphens=False) or [
        ""
    ]
    if len(left) >= INDENT - 1:
        folded = wrap(left.replace(",", ", "), COLUMNS, subsequent_indent=" " * 6, break_on_hyphens=False)
        yield from (line.replace(", ", ",") for line in folded)
    else:
        parts[0] = left.ljust(INDENT) + parts[0]
        yield parts.pop(0).rstrip()
    yield from (" " * INDENT + part for part in parts)


def _about(
    target: type[Section], flag: str, field: FieldInfo, default: Section | None, known: Collection[str]
) -> str:
    """The field's docstring, with the fields that it names as flags, and its value without the flag."""
    holder: Any = default or target
    *above, name = flag.replace("-", "_").split(".")
    for part in above:
        holder = holder[int(part)] if part.isdecimal() else getattr(holder, part)
    own = holder if isinstance(holder, type) else type(holder)
    kinds = (kind.model_fields.get(name) for kind in own.__mro__ if issubclass(kind, Section))
    about = field.description or next(
        (found.description for found in kinds if found and found.description), ""
    )
    value = (
        field.get_default(call_default_factory=True)
        if isinstance(holder, type) or field.is_required()
        else getattr(holder, name, None)
    )

    def own_flag(name: str) -> str | None:
        """The flag of a field that is named here: one beside this flag, or the verb's."""
        beside = f"{flag.rpartition('.')[0]}.{name}"
        return next((own for own in (beside, name) if own in known), None)

    return f"{as_flags(' '.join(about.split()), own_flag)} {_default(value)}".strip()


def _default(value: Any) -> str:
    """In brackets, or nothing where there is none to show."""
    if value is None or value == () or value == "" or repr(value) == "PydanticUndefined":
        return ""
    if isinstance(value, bool):
        return "(on)" if value else ""
    if isinstance(value, tuple):
        return f"({' '.join(map(str, value))})"
    return f"({value})" if isinstance(value, str | int | float | Path) else ""


def _paragraphs(doc: str) -> Iterator[str]:
    """A docstring's paragraphs, folded anew."""
    for number, paragraph in enumerate(with_program(doc).strip().split("\n\n")):
        yield from [""] * bool(number)
        yield from wrap(" ".join(paragraph.split()), COLUMNS, break_on_hyphens=False)
