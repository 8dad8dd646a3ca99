"""Signals: a training is asked to stop, or to save and go on; every other verb stops at once.

SIGINT, SIGTERM and SIGHUP stop, SIGUSR1 saves. A signal that was ignored when the program started stays ignored, so that
`nohup` works. Signals that a system does not have, and calls outside the main thread, where Python installs no
handlers, change nothing.
"""

import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
SAVES = getattr(signal, "SIGUSR1", None)
HANDLED = STOPS if SAVES is None else (*STOPS, SAVES)


class Stopped(KeyboardInterrupt):
    """A signal ended the work; `number` is the signal's."""

    def __init__(self, number: int, message: str = ""):
        super().__init__(message)
        self.number = number


class OutOfTime(Stopped):
    """The time for the work is over, and it is not: to be started again with the same command."""

    status = 75
    """The exit status of the program: that of BSD's sysexits for trying again later, EX_TEMPFAIL."""

    def __init__(self, message: str):
        super().__init__(0, message)


@contextmanager
def handled(handlers: Mapping[int, Any]) -> Iterator[None]:
    """These handlers in here, and those that were there before afterwards."""
    before: dict[int, Any] = {}
    try:
        for number, handler in handlers.items():
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handler)
    except ValueError:  # not the main thread
        pass
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_at_once(number: int, frame: FrameType | None = None) -> None:
    """A handler: whatever runs ends with `Stopped`, its `finally` clauses are run."""
    raise Stopped(number)


@contextmanager
def starting_workers() -> Iterator[None]:
    """Start processes that call `leave_to_parent` in here: a signal that reaches one before that call waits for it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_to_parent(ending: Any = None) -> None:
    """In a process that works for another: who stops is decided there, also where a signal is sent to all of a group.

    SIGTERM, by which a parent ends its workers, does so; with `ending`, a shared `multiprocessing.RawValue`, only once
    the parent has made that true.
    """

    def end(number: int, frame: FrameType | None) -> None:
        if ending.value:
            os._exit(0)

    for number in HANDLED:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL if ending is None else end)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)


class Requests:
    """What signals have asked a training for since it began; read between steps.

    The first signal to stop is noted, so that a step is finished and a checkpoint written; the second ends the program at
    once. What takes long and changes nothing that is saved stands in `interruptible`, and ends at the first.

    Of several processes each is sent signals of its own; `agree` makes them the requests of all.
    """

    def __init__(self, minutes: float | None = None) -> None:
        """After so many minutes, counted from here, is a request to stop, too."""
        self.stop: int | None = None
        """The signal that asked to stop."""
        self.save = False
        """Whether a checkpoint was asked for."""
        self.over = False
        """Whether the time is over."""
        self._until = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self._several = False
        self._received: tuple[int, bool] = 0, False  # the same of this process, where there are several
        self._interruptible = False

    def agree(self, most: Callable[..., list[int]]) -> None:
        """Until the next call the requests are those that any process has received; `most(*numbers)` gives the largest of
        each that any process has."""
        self._several = True
        stop, save, over = most(*self._received, time.monotonic() > self._until)
        self.stop, self.save, self.over = stop or None, bool(save), bool(over)

    def look_at_the_clock(self) -> None:
        """The same for the time where there is one process."""
        self.over = self.over or time.monotonic() > self._until

    @contextmanager
    def noted(self) -> Iterator["Requests"]:
        """Signals are noted in here."""
        saves = {} if SAVES is None else {SAVES: self._note_save}
        with handled(dict.fromkeys(STOPS, self._note_stop) | saves):
            yield self

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """What is in here ends quietly when a signal asks to stop."""
        self._interruptible = self.stop is None and not self._several  # the others would wait for this one
        try:
            yield
        except Stopped:
            if self.stop is None:
                raise
        finally:
            self._interruptible = False

    @property
    def any(self) -> bool:
        """Whether a checkpoint is to be written now."""
        return self.save or self.over or self.stop is not None

    def answer(self, saved: str) -> None:
        """Call it when what was asked for has been written; `saved` says what, and is logged where the work goes on.

        Raises Stopped, with that as its message, where a signal asked to stop or the time is over.
        """
        if self.stop is not None:
            raise Stopped(self.stop, f"{name(self.stop)}: {saved}; the same command goes on from there")
        if self.over:
            raise OutOfTime(f"the time is over: {saved}; the same command goes on from there")
        if self.save:
            self.save, self._received = False, (self._received[0], False)
            log.info(saved)

    def _note_stop(self, number: int, frame: FrameType | None) -> None:
        again = self.stop is not None or self._received[0] != 0
        self._received = number, self._received[1]
        if not self._several:
            self.stop = number
        if again or self._interruptible:
            self._interruptible = False
            raise Stopped(number)

    def _note_save(self, number: int, frame: FrameType | None) -> None:
        self._received = self._received[0], True
        if not self._several:
            self.save = True


def name(number: int) -> str:
    """SIGTERM for 15."""
    return signal.Signals(number).name


def status(number: int) -> int:
    """The exit status of a program that a signal ended: 128 + its number, as shells have it."""
    return 128 + number
