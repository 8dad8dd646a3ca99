"""Kills: SIGKILL at random moments, and before the n-th thing that is done to a file; SIGTERM likewise. The command
given again must leave what an undisturbed one leaves."""

import os
import random
import signal
from pathlib import Path

from faults.commands import Watched, run
from faults.contents import difference
from faults.tally import Tally
from faults.verbs import command, fresh, results, undisturbed


def kill(name: str, made: Path, count: int, seed: int) -> Tally:
    """`count` runs of a verb, each killed once and given again."""
    tally = Tally(f"kills: {name}")
    draw = random.Random(f"{seed} {name}")
    expected = undisturbed(name, made)
    events, seconds = measure(name, made)
    for number in range(count):
        out = fresh(made)
        number_of_event = draw.randint(1, events)
        moment = draw.random() * seconds
        inside = Watched(out, number_of_event, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        by_event = number % 3 != 0
        what = f"event {number_of_event} of {events}" if by_event else f"after {moment:.3f} s"
        with tally.case(f"seed {seed}, case {number}, {what}") as case:
            disturbed = {"inside": inside} if by_event else {"after": (moment, signal.SIGKILL)}
            case.saw(run(command(name, made, out), **disturbed))
            ended = case.saw(run(command(name, made, out)))
            wrong = difference(results(name, out), expected)
            case.judge(wrong if ended.status == 0 else f"status {ended.status}: {ended.err[-300:]}")
    return tally


def stop(name: str, made: Path, count: int, seed: int) -> Tally:
    """`count` trainings that are asked to stop: they save, and say so by their status."""
    tally = Tally(f"signals: {name}")
    draw = random.Random(f"{seed} {name} stop")
    expected = undisturbed(name, made)
    _, seconds = measure(name, made)
    for case_number in range(count):
        out = fresh(made)
        number = draw.choice((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        moment = draw.random() * seconds
        with tally.case(f"seed {seed}, case {case_number}, {number.name} after {moment:.3f} s") as case:
            first = case.saw(run(command(name, made, out), after=(moment, number)))
            ended = case.saw(run(command(name, made, out)))
            wrong = difference(results(name, out), expected)
            if first.status not in (
                0,
                128 + number,
                -number,
            ):  # before it has begun the signal is Python's to answer
                wrong = f"status {first.status} instead of {128 + number}"
            case.judge(wrong if ended.status == 0 else f"status {ended.status}: {ended.err[-300:]}")
    return tally


def measure(name: str, made: Path) -> tuple[int, float]:
    """How many things an undisturbed run does to files, and its seconds."""
    out = fresh(made)
    watched = Watched(out, 0, lambda *_: None)
    ended = run(command(name, made, out), inside=watched)
    return watched.count, ended.seconds
