"""The command line: `ditkit VERB ...`. Each verb is a module here; `main` only picks one.

Wrong input ends with one line on stderr and status 2; anything else that fails is a defect and shows
its traceback.
"""

import errno
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Sequence

from ditkit.cli.verbs import VERBS, explained, program, to_type, typed
from ditkit.errors import InputError

__all__ = ["VERBS", "main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for chatty in ("httpx", "matplotlib", "datasets", "PIL"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # or it tells of each retry; it is imported later
    warnings.filterwarnings("ignore", module="huggingface_hub")  # about how diffusers calls it
    warnings.filterwarnings("ignore", module=r"PIL\.")  # an image can be used, or is counted and named
    try:
        if not arguments or arguments[0] in ("-h", "--help", "help"):
            print(_help())
            return 0
        verb, *rest = arguments
        if verb == "--version":
            from importlib.metadata import version

            print(f"ditkit {version('ditkit')}")
            return 0
        if verb not in VERBS:
            raise InputError(f"unknown verb {verb!r}; choose one of: {', '.join(VERBS)}")
        importlib.import_module(f"ditkit.cli.{VERBS[verb][0]}").run(rest)
    except InputError as error:
        print(f"ditkit: {typed(explained(str(error), arguments[0]))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `ditkit list | head`: the reader has gone, which is no error
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains once more as it ends
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(f"ditkit: {error.filename or 'writing'}: no space left on the disk; make room", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ditkit: stopped; a training run resumes with the same command", file=sys.stderr)
        return 130
    return 0


def _help() -> str:
    width = max(len(verb) for verb in VERBS)
    verbs = "\n".join(f"  {verb:{width}s}  {what}" for verb, (_, what) in VERBS.items())
    return (
        f"usage: {program()} VERB ...\n\n"
        "Diffusion transformers from the same small parts, trained, sampled and scored with one tool.\n\n"
        f"{verbs}\n\n"
        f"{program()} VERB --help explains one. A first look: {to_type('demo')}"
    )
