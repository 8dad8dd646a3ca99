"""The exceptions that stand for wrong input rather than a defect of the library."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line that names the file, flag or field and the remedy. The command line
    prints it without a traceback and exits with status 2; everything else is a bug and shows one.
    """


class NotFinite(InputError):
    """What a model computed is no finite number: it diverged in training, or the settings are beyond it."""


DEFECTS = (AssertionError, AttributeError, NameError, NotImplementedError, TypeError)
PACKAGE = Path(__file__).parent


def is_defect(error: BaseException) -> bool:
    """Whether an error that came up while something was read is a mistake of this package, not of what is read: of a kind
    that is one, and raised in its own lines, not in a library's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return (
        isinstance(error, DEFECTS)
        and trace is not None
        and Path(trace.tb_frame.f_code.co_filename).is_relative_to(PACKAGE)
    )


def no_such(what: str, name: object, known: Iterable[str]) -> InputError:
    """The error of a name that there is not: with the nearest that there is, or with all."""
    return InputError(f"{what}: {unknown_name(name, known)}")


def unknown_name(name: object, known: Iterable[str]) -> str:
    """The same in words, without what it is a name of."""
    names = list(known)
    near = get_close_matches(str(name), names, 1)
    remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
    return f"unknown {name!r}; {remedy}"
