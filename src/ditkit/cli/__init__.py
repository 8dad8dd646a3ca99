"""The command line: `ditkit VERB ...`. Each verb is a module here; `main` only picks one.

Wrong input, and a disk or a right that is missing, end with one line on stderr and status 2; anything else that fails
is a defect and shows its traceback.
"""

import importlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import NamedTuple

from ditkit.cli.plugins import load_plugins
from ditkit.cli.refusals import refusal
from ditkit.cli.several import is_reported_elsewhere, one_of_several
from ditkit.cli.streams import PrintableFormatter, one_line, tolerant
from ditkit.cli.verbs import VERBS, explained, program, to_type, typed
from ditkit.errors import InputError
from ditkit.heap import keep_freed_memory
from ditkit.signals import STOPS, OutOfTime, Stopped, handled, name, status

__all__ = ["VERBS", "main"]

STOPPED = ": stopped; the same command again goes on where that is possible"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit status. Without `argv` the process is this program's own."""
    if argv is None:
        keep_freed_memory()
    arguments = list(sys.argv[1:] if argv is None else argv)
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)
        raise Stopped(number)

    with tolerant(), handled(dict.fromkeys(STOPS, stop)):
        try:
            _quieten()
            if not one_of_several(arguments):
                return 0
            arguments[:] = load_plugins(arguments)
            _run(arguments)
            sys.stdout.flush()  # here, so that what goes wrong with it is caught here
        except BrokenPipeError:  # `ditkit list | head`: the reader has gone, which is no error
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains once more as it ends
            return 0
        except BaseException as error:
            silent = is_reported_elsewhere(error)
            ending = _ending(error, arguments, stopped)
            if ending is None:  # a defect
                if silent:
                    return 1
                raise
            if not silent:
                _print_last(ending.line)
            return ending.status
    return 0


class _Ending(NamedTuple):
    line: str
    status: int


def _ending(error: BaseException, arguments: Sequence[str], stopped: Sequence[int]) -> _Ending | None:
    """How the program ends with that error, after these signals; None where it is a defect."""
    if isinstance(error, InputError):
        return _Ending(typed(explained(str(error), arguments[0])), 2)
    if (line := refusal(error)) is not None:
        return _Ending(line, 2)
    if isinstance(error, OutOfTime):
        return _Ending(typed(str(error)), error.status)
    # Some libraries turn an interrupt while they are imported into errors of their own.
    number = getattr(error, "number", signal.SIGINT) if isinstance(error, KeyboardInterrupt) else None
    number = number or (stopped[-1] if stopped else None)
    if number is None:
        return None
    message = str(error) if isinstance(error, Stopped) else ""
    return _Ending(typed(message) or name(number) + STOPPED, status(number))


def _print_last(line: str) -> None:
    """Print the last message, on a line of its own."""
    if progress := sys.modules.get("ditkit.progress"):
        progress.close_bars()
    print(f"ditkit: {one_line(line)}", file=sys.stderr)


def _quieten() -> None:
    """Messages on stderr as they are; none of other libraries' reports on their work."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for chatty in ("httpx", "matplotlib", "datasets", "PIL", "alembic", "mlflow", "trackio", "wandb"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # or it tells of each retry; it is imported later
    warnings.filterwarnings("ignore", module="huggingface_hub")  # about how diffusers calls it
    warnings.filterwarnings("ignore", module=r"PIL\.")  # an image can be used, or is counted and named


def _run(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return
    verb, *rest = arguments
    if verb == "--version":
        from importlib.metadata import version

        print(f"ditkit {version('ditkit')}")
        return
    if verb not in VERBS:
        raise InputError(f"unknown verb {verb!r}; choose one of: {', '.join(VERBS)}")
    if not _has_a_working_folder():  # torch's mathematics library would abort
        raise InputError("the folder that this command was started in is gone; change to another: cd DIR")
    importlib.import_module(f"ditkit.cli.{VERBS[verb][0]}").run(rest)


def _has_a_working_folder() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _help() -> str:
    width = max(len(verb) for verb in VERBS)
    verbs = "\n".join(f"  {verb:{width}s}  {what}" for verb, (_, what) in VERBS.items())
    return (
        f"usage: {program()} VERB ...\n\n"
        "Diffusion transformers from the same small parts, trained, sampled and scored with one tool.\n\n"
        f"{verbs}\n\n"
        f"{program()} VERB --help explains one. --plugin MODULE, with any of them, imports a module of your own first.\n"
        f"A first look: {to_type('demo')}"
    )
