"""Kills: SIGKILL at random moments, and before the n-th thing that is done to a file; SIGTERM likewise. The command
run again must leave what an undisturbed one leaves."""

import os
import random
import signal
from pathlib import Path

from faults.commands import Watched, run
from faults.contents import difference
from faults.tally import Case, Tally
from faults.verbs import command, fresh, results, undisturbed


def kill(name: str, made: Path, count: int, seed: int) -> Tally:
    """`count` runs of a verb, each killed once and run again."""
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
            case.judge(given_again(case, name, made, out, expected))
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
            wrong = given_again(case, name, made, out, expected)
            if first.status not in (
                0,
                128 + number,
                -number,
            ):  # the last where Python had not begun to handle signals
                wrong = f"status {first.status} instead of {128 + number}"
            case.judge(wrong)
    return tally


def given_again(
    case: Case, name: str, made: Path, out: Path, expected: dict[str, str], optional: tuple[str, ...] = ()
) -> str:
    """Give a command again to which something was done; what differs from the undisturbed results, in words. Files of the
    endings `optional` do not count."""
    ended = case.saw(run(command(name, made, out)))
    if ended.status != 0:
        return f"status {ended.status}: {ended.err[-300:]}"
    found = results(name, out)
    if optional:
        found, expected = (
            {file: value for file, value in each.items() if not file.endswith(optional)}
            for each in (found, expected)
        )
    return difference(found, expected)


def measure(name: str, made: Path) -> tuple[int, float]:
    """How many things an undisturbed run does to files, and its seconds."""
    out = fresh(made)
    watched = Watched(out, 0, lambda *_: None)
    ended = run(command(name, made, out), inside=watched)
    return watched.count, ended.seconds
