"""Standard streams that do not end a command: what a terminal, a pipe or a disk does not take is left out."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TextIO

from ditkit.cli.verbs import typed


def printable(text: str) -> str:
    """The text with control characters, which names of files and classes can hold, as Python writes them: one in a
    terminal could move its cursor or change its colours."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)


def one_line(text: str, longest: int = 4000) -> str:
    """The text as `printable` has it, without line breaks, and where it is longer than so many characters, which a name
    or a word that was typed can be, without its middle."""
    line = printable(text).replace("\n", "\\n")
    half = longest // 2
    return line if len(line) <= longest else f"{line[:half]} [...] {line[-half:]}"


class PrintableFormatter(logging.Formatter):
    """Log lines as `printable` has them, with fields and commands as one types them here."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(typed(super().format(record)))


class Harmless:
    """A stream for results, which are written as `printable` has them."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(printable(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Lossy:
    """A stream for messages. When its reader has gone or its disk is full, what follows is dropped."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):  # ValueError: it is closed
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._drop()

    def _drop(self) -> None:
        with suppress(OSError, ValueError):  # a stream without a file
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def tolerant() -> Iterator[None]:
    """Results on a `Harmless` stdout with "?" for characters that it cannot show, and messages on a `Lossy` stderr; a closed stream
    is the null device."""
    before = sys.stdin, sys.stdout, sys.stderr
    with ExitStack() as opened:

        def nothing(mode: str) -> Any:
            return opened.enter_context(open(os.devnull, mode, encoding="utf-8"))

        sys.stdin = sys.stdin or nothing("r")
        sys.stdout = sys.stdout or nothing("w")
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="replace")
        sys.stdout = Harmless(sys.stdout)  # type: ignore[assignment]
        sys.stderr = Lossy(sys.stderr or nothing("w"))  # type: ignore[assignment]
        try:
            yield
        finally:
            sys.stdin, sys.stdout, sys.stderr = before
