"""The count of a class of faults."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from faults.commands import Ended


@dataclass
class Tally:
    """Cases tried. What survived gave the undisturbed result, what was refused ended with one line and lost nothing."""

    name: str
    tried: int = 0
    survived: int = 0
    refused: int = 0
    lost: int = 0
    tracebacks: int = 0
    hangs: int = 0
    executed: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.tracebacks or self.hangs or self.executed)

    @contextmanager
    def case(self, what: str) -> Iterator["Case"]:
        """One case, judged when it is over: lost unless `judge` found that it survived or was refused."""
        case = Case()
        yield case
        self.tried += 1
        self.tracebacks += case.traceback
        self.hangs += case.hung
        self.executed += case.executed
        if case.verdict == "survived":
            self.survived += 1
        elif case.verdict == "refused":
            self.refused += 1
        else:
            self.lost += 1
        if case.verdict is None or case.traceback or case.hung or case.executed:
            self.notes.append(f"{what}: {'; '.join(case.remarks) or 'lost'}")


class Case:
    """What is found out about one case."""

    def __init__(self) -> None:
        self.verdict: str | None = None
        self.traceback = self.hung = self.executed = False
        self.remarks: list[str] = []

    def saw(self, ended: Ended) -> Ended:
        """Look at how a command ended."""
        if ended.status is None:
            self.hung = True
            self.remarks.append(f"hung: {ended.err[-300:]}")
        if ended.traceback:
            self.traceback = True
            self.remarks.append(f"status {ended.status}: {ended.err.strip()[-700:]}")
        return ended

    def judge(self, difference: str, refused: bool = False) -> None:
        """Survived where nothing differs."""
        if not difference:
            self.verdict = "survived"
        elif refused:
            self.verdict = "refused"
        else:
            self.remarks.append(difference)
