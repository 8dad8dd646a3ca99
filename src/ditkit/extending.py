"""Parts of one's own: every registry, and the one way to add to it.

    import ditkit
    from ditkit.transports import Path

    ditkit.register("path", "quarter", Path(quarter))       # then `Transport(path="quarter")`

From the command line a module that does so is named: `ditkit train fashion-sit --plugin my_module`. No file can name one,
because files execute nothing.
"""

from importlib import import_module
from typing import Any, NamedTuple

from ditkit.config import Section
from ditkit.errors import InputError, no_such


class Registry(NamedTuple):
    """Where a registry is, "module:NAME", and the type of its choices, likewise; "" for functions."""

    place: str
    type: str = ""


REGISTRIES: dict[str, Registry] = {
    "recipe": Registry("ditkit.recipes:RECIPES"),
    "backbone": Registry("ditkit.backbones:BACKBONES", "ditkit.backbones:BackboneSection"),
    "conditioning": Registry("ditkit.nn.registries:CONDITIONINGS"),
    "codec": Registry("ditkit.codecs:CODECS", "ditkit.codecs:CodecSection"),
    "data": Registry("ditkit.data:DATA", "ditkit.data:DataSection"),
    "path": Registry("ditkit.transports:PATHS", "ditkit.transports:Path"),
    "prediction": Registry("ditkit.transports:PREDICTIONS", "ditkit.transports:Parametrisation"),
    "loss": Registry("ditkit.transports:LOSSES", "ditkit.transports:Loss"),
    "weight": Registry("ditkit.transports:WEIGHTS"),
    "time-law": Registry("ditkit.transports:TIME_LAWS"),
    "method": Registry("ditkit.transports:METHODS"),
    "routing": Registry("ditkit.objectives:ROUTINGS"),
    "term": Registry("ditkit.objectives:TERMS"),
    "average": Registry("ditkit.averages:AVERAGES"),
    "optimizer": Registry("ditkit.optimizers:OPTIMIZERS"),
    "schedule": Registry("ditkit.optimizers.schedules:SCHEDULES"),
    "sampler": Registry("ditkit.sampling:SAMPLERS", "ditkit.sampling:Solver"),
    "spacing": Registry("ditkit.sampling:SPACINGS"),
    "diffusion": Registry("ditkit.sampling:DIFFUSIONS"),
    "cache": Registry("ditkit.sampling.caching:CACHES"),
    "features": Registry("ditkit.evaluation:FEATURES", "ditkit.evaluation:Entry"),
    "text-encoder": Registry("ditkit.text:TEXT_ENCODERS", "ditkit.text:Entry"),
    "tracker": Registry("ditkit.trackers:TRACKERS", "ditkit.trackers:Backend"),
}
"""Of what a part of one's own can be registered."""


def choices(what: str) -> dict[str, Any]:
    """The registry of that name in REGISTRIES: name -> choice. InputError where there is none."""
    if what not in REGISTRIES:
        raise no_such("register", what, REGISTRIES)
    return _at(REGISTRIES[what].place)


def register(what: str, name: str, choice: Any) -> None:
    """Add `choice` to a registry, by its name, as a choice like any other.

    Args:
        what: a name in REGISTRIES, such as "path", "loss", "sampler", "backbone" or "recipe".
        choice: what such a registry holds: a `ditkit.transports.Path`, a `Loss`, a `ditkit.sampling.Solver`, a function or
            class, or the section of a network, codec or data set with the values that it has by default.

    Raises:
        InputError: no such registry, a name or the section's kind is taken, or a choice of another type.
    """
    known = choices(what)
    if name in known:
        raise InputError(f"{what} {name!r} is there already; give yours another name")
    wanted = REGISTRIES[what].type
    if not (isinstance(choice, _at(wanted)) if wanted else callable(choice)):
        example = wanted.replace(":", ".") or "function"
        raise InputError(f"{what} {name!r}: {type(choice).__name__} is no such entry; give a {example}")
    if isinstance(choice, Section):
        _check_kind(what, name, choice, known)
    known[name] = choice


def _check_kind(what: str, name: str, section: Any, known: dict[str, Any]) -> None:
    """InputError where another class of sections has this one's kind, by which it is found in files."""
    others = (other for other in known.values() if other.kind == section.kind)
    if any(type(other) is not type(section) for other in others):
        raise InputError(f"{what} {name!r}: kind {section.kind!r} is there already; give yours another kind")


def _at(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
