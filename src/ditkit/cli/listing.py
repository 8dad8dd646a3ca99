"""`ditkit list`: everything that can be chosen by name."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import tyro

from ditkit.backbones import MatryoshkaConfig
from ditkit.chosen import settings_of
from ditkit.cli.parsing import parse
from ditkit.config import Section
from ditkit.lazy import summary


def registries() -> dict[str, dict[str, str]]:
    """Name -> one line, for every registry."""
    from ditkit.backbones import BACKBONES
    from ditkit.codecs import CODECS
    from ditkit.data import DATA
    from ditkit.evaluation import FEATURES
    from ditkit.files import SNAPSHOTS
    from ditkit.nn.registries import CONDITIONINGS
    from ditkit.objectives import ROUTINGS, TERMS
    from ditkit.recipes import RECIPES
    from ditkit.sampling import DIFFUSIONS, SAMPLERS
    from ditkit.sampling.caching import CACHES
    from ditkit.studies import STUDIES
    from ditkit.text import TEXT_ENCODERS
    from ditkit.trackers import TRACKERS
    from ditkit.transports import LOSSES, METHODS, PATHS, PREDICTIONS, TIME_LAWS

    return {
        "recipes": {name: summary(build) for name, build in RECIPES.items()},
        "backbones": {name: _sizes(config) for name, config in BACKBONES.items()},
        "conditionings": {name: summary(block) for name, block in CONDITIONINGS.items()},
        "codecs": {name: summary(type(config)) for name, config in CODECS.items()},
        "data": {name: summary(type(config)) for name, config in DATA.items()},
        "paths": {name: summary(path.coeffs) for name, path in PATHS.items()},
        "predictions": {name: summary(prediction.view) for name, prediction in PREDICTIONS.items()},
        "losses": {name: loss.about for name, loss in LOSSES.items()},
        "time-laws": {name: summary(law) for name, law in TIME_LAWS.items()},
        "methods": _chosen(METHODS),
        "routings": _chosen(ROUTINGS),
        "terms": _chosen(TERMS),
        "samplers": {name: summary(solver.step) for name, solver in SAMPLERS.items()},
        "diffusions": {name: summary(function) for name, function in DIFFUSIONS.items()},
        "caches": _chosen(CACHES),
        "features": {name: entry.about for name, entry in FEATURES.items()},
        "text-encoders": {name: entry.about for name, entry in TEXT_ENCODERS.items()},
        "trackers": {name: entry.about for name, entry in TRACKERS.items()},
        "studies": {name: summary(study) for name, study in STUDIES.items()},
        "snapshots": {folder.name: str(folder) for folder in sorted(SNAPSHOTS.glob("*"))},
    }


class ListCommand(Section):
    """Names for flags: recipes for `train`, samplers for --sampler, paths for --transport.path, ..."""

    what: Annotated[
        Literal[
            "all", "recipes", "backbones", "conditionings", "codecs", "data", "paths", "predictions",
            "losses", "time-laws", "methods", "routings", "terms", "samplers", "diffusions", "caches", "features",
            "text-encoders", "trackers", "studies", "snapshots",
        ],
        tyro.conf.Positional,
    ] = "all"  # fmt: skip
    """One kind of name, or all."""


def run(argv: list[str]) -> None:
    command = parse(ListCommand, argv, "list")
    for title, names in registries().items():
        if command.what not in ("all", title):
            continue
        print(title)
        width = max((len(name) for name in names), default=0)
        for name, line in names.items():
            print(f"  {name:{width}s}  {line}".rstrip())


def _chosen(registry: Mapping[str, Any]) -> dict[str, str]:
    """One line for each entry, with its settings."""
    found = {}
    for name, entry in registry.items():
        settings = ", ".join(settings_of(entry))
        found[name] = summary(entry) + (f" Settings: {settings}." if settings else "")
    return found


def _sizes(config: Section) -> str:
    """What distinguishes one backbone from another of its kind."""
    if isinstance(config, MatryoshkaConfig):
        return f"{':'.join(map(str, config.ratios))} in size, widths {[x.widths for x in config.levels]}, around {_sizes(config.inner)}"
    clock = {"time_scale", "time_shift", "time_period"}
    return ", ".join(f"{name} {value}" for name, value in config.model_dump(exclude=clock).items())
