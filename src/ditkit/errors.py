"""The exceptions that stand for wrong input rather than a defect of the library."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line that names the file, flag or field and the remedy. The command line
    prints it without a traceback and exits with status 2; everything else is a bug and shows one.
    """


class NotFinite(InputError):
    """What a model computed is no finite number: it was lost in training, or was asked for too much."""


def no_such(what: str, name: object, known: Iterable[str]) -> InputError:
    """The error of a name that there is not: with the nearest that there is, or with all."""
    names = list(known)
    near = get_close_matches(str(name), names, 1)
    remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
    return InputError(f"{what}: unknown {name!r}; {remedy}")
