"""`--plugin my_module`: modules of one's own, imported before anything else is done.

They are named on the command line only: a recipe, a snapshot or a variable that could name one would execute something.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from ditkit.cli.verbs import PLUGINS
from ditkit.errors import PACKAGE, InputError

FLAG = "--plugin"


def load_plugins(argv: Sequence[str]) -> list[str]:
    """Import the modules named by `--plugin`; the arguments that are left. InputError where one cannot be imported."""
    PLUGINS.clear()
    rest, words = [], iter(argv)
    for word in words:
        flag, _, name = word.partition("=")
        if flag != FLAG:
            rest.append(word)
            continue
        name = name or next(words, "")
        if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
            raise InputError(
                f"{FLAG} {name!r}: give a module's name, my_module for my_module.py, or package.module"
            )
        _import(name)
        PLUGINS.append(name)
    return rest


def _import(name: str) -> None:
    """From the current folder, as `python -m` would, or from Python's path."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        import_module(name)
    except InputError as error:
        raise InputError(f"{FLAG} {name}: {error}") from None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise InputError(f"{FLAG} {name}: {_what(error)}") from error
        raise InputError(
            f"{FLAG} {name}: there is no {error.name}.py here, in {here}, nor on Python's path"
        ) from None
    except Exception as error:  # of somebody else's code
        raise InputError(f"{FLAG} {name}: {_what(error)}") from error
    finally:
        sys.path.remove(here)
        sys.path.append(here)  # for what it imports later, after all that is installed


def _what(error: Exception) -> str:
    """An error and where it came up in a module that is none of this package's, nor of Python's import system."""
    if isinstance(error, SyntaxError):
        return f"SyntaxError: {error.msg} ({error.filename}, line {error.lineno})"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<")
        and not frame.filename.startswith(str(PACKAGE))
        and "importlib" not in frame.filename
    ]
    where = f" ({frames[0].filename}, line {frames[0].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
