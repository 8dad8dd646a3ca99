"""`ditkit list`: everything that can be chosen by name."""

from collections.abc import Callable
from functools import partial
from textwrap import wrap
from typing import Annotated, Any

from ditkit.backbones import BACKBONES, BackboneSection, MatryoshkaConfig
from ditkit.chosen import settings_of
from ditkit.cli.parsing import parse
from ditkit.cli.shapes import Positional
from ditkit.config import OneOf, Section
from ditkit.extending import choices
from ditkit.files import SNAPSHOTS
from ditkit.lazy import summary
from ditkit.studies import STUDIES

COLUMNS = 100


def _backbone(config: BackboneSection) -> str:
    """The kind of a backbone, and what distinguishes it from others of that kind."""
    if isinstance(config, MatryoshkaConfig):
        sizes = ":".join(map(str, config.ratios))
        return f"Matryoshka, {sizes} in size, widths {[x.widths for x in config.levels]}, around {_backbone(config.inner)}"
    kin = [other for other in BACKBONES.values() if type(other) is type(config)]
    clock = {"time_scale", "time_shift", "time_period"}
    differing = [
        name
        for name in type(config).model_fields
        if name not in clock and any(getattr(other, name) != getattr(config, name) for other in kin)
    ]
    return ", ".join([config.kind, *(f"{name} {getattr(config, name)}" for name in differing)])


def _with_settings(choice: Any) -> str:
    """One line about it, with its settings."""
    settings = ", ".join(settings_of(choice))
    return summary(choice) + (f" Settings: {settings}." if settings else "")


ABOUT: dict[str, Callable[[Any], str]] = {
    "recipe": summary,
    "backbone": _backbone,
    "conditioning": summary,
    "codec": lambda section: summary(type(section)),
    "data": lambda section: summary(type(section)),
    "path": lambda path: summary(path.coeffs),
    "prediction": lambda prediction: summary(prediction.view),
    "loss": lambda loss: loss.about,
    "weight": _with_settings,
    "time-law": _with_settings,
    "method": _with_settings,
    "routing": _with_settings,
    "term": _with_settings,
    "average": _with_settings,
    "optimizer": _with_settings,
    "schedule": _with_settings,
    "sampler": lambda solver: summary(solver.step),
    "spacing": summary,
    "diffusion": summary,
    "cache": _with_settings,
    "features": lambda choice: choice.about,
    "text-encoder": lambda choice: choice.about,
    "tracker": lambda choice: choice.about,
}
"""Of each registry, one line about a choice."""

PLURALS = {"codec": "codecs", "data": "data", "path": "paths", "loss": "losses", "features": "features"}


def _titles() -> dict[str, Callable[[], dict[str, str]]]:
    """What `ditkit list` shows under each title: name -> one line."""

    def shown(what: str) -> dict[str, str]:
        return {name: ABOUT[what](choice) for name, choice in choices(what).items()}

    return {
        **{PLURALS.get(what, f"{what}s"): partial(shown, what) for what in ABOUT},
        "studies": lambda: {name: summary(study) for name, study in STUDIES.items()},
        "snapshots": lambda: {folder.name: str(folder) for folder in sorted(SNAPSHOTS.glob("*"))},
    }


TITLES = _titles()


class ListCommand(Section):
    """Names for flags: recipes for `train`, samplers for --sampler, paths for --transport.path, ..."""

    what: Annotated[str, OneOf({"all": None, **TITLES}), Positional] = "all"
    """One kind of name, or all."""


def run(argv: list[str]) -> None:
    command = parse(ListCommand, argv, "list")
    for title, found in TITLES.items():
        if command.what not in ("all", title):
            continue
        print(title)
        names = found()
        width = max((len(name) for name in names), default=0)
        for name, line in names.items():
            first, *more = wrap(line, COLUMNS - width - 4, break_long_words=False) or [""]
            print(f"  {name:{width}s}  {first}".rstrip())
            print("".join(f"{'':{width + 4}s}{part}\n" for part in more), end="")
