"""Work in a process of its own: what dies, runs out of memory or does not end there leaves this one alone. Imports little, so
that such a process starts quickly."""

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ditkit.errors import InputError


def in_own_process(seconds: float, run: Callable[..., Any], *arguments: Any) -> Any:
    """What `run` returns, in a process of its own. InputError, in one line, where it fails, ends otherwise, or does not end
    within so many seconds."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sending, run, arguments))
    process.start()
    sending.close()
    try:
        if not receiving.poll(seconds):
            raise InputError(f"did not end within {seconds:.0f} s")
        failure, found = receiving.recv()
    except EOFError:
        process.join()
        raise InputError(f"its process ended with status {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        receiving.close()
    if failure:
        raise InputError(failure)
    return found


def _answer(sending: Any, run: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    found: tuple[str | None, Any]
    try:
        found = None, run(*arguments)
    except Exception as error:
        text = next(iter(str(error).strip().splitlines()), "")
        found = (text if isinstance(error, InputError) else f"{type(error).__name__}: {text}")[:300], None
    with suppress(BrokenPipeError):
        sending.send(found)
