"""Surroundings: no home, closed streams, other encodings, narrow terminals, few open files, little memory, a clock that
moves, workers that die, two writers of one folder, names of files that are hard to print. The result is the undisturbed
one, or the command is refused in one line."""

import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

from ditkit.cli import VERBS as ALL
from faults.commands import LIMIT, Ended, Watched, run
from faults.contents import contents, difference
from faults.inputs import picture
from faults.judging import fault, judge, little_memory
from faults.tally import Tally
from faults.verbs import TRAIN, VERBS, command, fresh, results, undisturbed

DECADE = 10 * 365 * 86_400.0  # seconds

# --- processes started anew ---

SETTINGS: dict[str, tuple[dict[str, str | None], str]] = {  # environment, and how a shell starts the command
    "no home": ({"HOME": None, "XDG_CACHE_HOME": None, "DITKIT_CACHE": None, "USER": None, "LOGNAME": None}, "{}"),
    "a home that is not there": ({"HOME": "/proc/nothing", "DITKIT_CACHE": None}, "{}"),
    "a home that is a file": ({"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "DITKIT_CACHE": None}, "{}"),
    "no environment": (dict.fromkeys(set(os.environ) - {"PYTHONPATH", "PATH"}), "{}"),
    "stdin closed": ({}, "{} <&-"),
    "stdout closed": ({}, "{} >&-"),
    "stderr closed": ({}, "{} 2>&-"),
    "all streams closed": ({}, "{} <&- >&- 2>&-"),
    "stdout full": ({}, "{} >/dev/full"),
    "stderr full": ({}, "{} 2>/dev/full"),
    "LC_ALL=C": ({"LC_ALL": "C"}, "{}"),
    "ASCII": ({"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, "{}"),
    "a locale that is not there": ({"LC_ALL": "de_DE.ISO-8859-1", "PYTHONUTF8": "0"}, "{}"),
    "streams in Latin-1": ({"PYTHONIOENCODING": "latin-1"}, "{}"),
    "streams in UTF-16": ({"PYTHONIOENCODING": "utf-16:strict"}, "{}"),
    "20 columns": ({"COLUMNS": "20", "LINES": "4"}, "{}"),
    "no columns": ({"COLUMNS": "0", "LINES": "0", "TERM": "dumb"}, "{}"),
    "columns of letters": ({"COLUMNS": "wide", "TERM": ""}, "{}"),
    "64 open files": ({}, "ulimit -n 64; {}"),
    "no temporary folder": ({"TMPDIR": "/proc/nothing", "TEMP": "/proc/nothing"}, "{}"),
    "a working folder that is gone": ({}, "mkdir gone; cd gone; rmdir ../gone; {}"),
    "optimised": ({"PYTHONOPTIMIZE": "2"}, "{}"),
    "another hash seed": ({"PYTHONHASHSEED": "77"}, "{}"),
    "a small stack": ({}, "ulimit -s 1024; {}"),
    "a closed umask": ({}, "umask 0777; {}"),
    "many threads": ({"OMP_NUM_THREADS": "many", "MKL_NUM_THREADS": "-1"}, "{}"),
    "a time zone": ({"TZ": "Pacific/Kiritimati"}, "{}"),
}  # fmt: skip
QUIET = ("stdout closed", "stderr closed", "all streams closed", "stdout full", "stderr full")
STARTED = ("train", "train on images", "sample", "encode", "list")


def started(argv: list[object], setting: str, folder: Path) -> Ended:
    """`python -m ditkit ARGV` in a process of its own."""
    changes, shell = SETTINGS[setting]
    environment = {name: value for name, value in (os.environ | changes).items() if value is not None}
    words = shlex.join([sys.executable, "-m", "ditkit", *map(str, argv)])
    begin = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        shown = subprocess.Popen(
            ["bash", "-c", shell.format(words)],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
        )  # fmt: skip
        try:
            status: int | None = shown.wait(LIMIT)
        except subprocess.TimeoutExpired:
            os.killpg(shown.pid, signal.SIGKILL)
            status = None
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "replace").replace("\0", ""))
    if (
        status is not None
        and status > 128
        and status - 128 in (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT)
    ):
        status = 128 - status
    return Ended(status, *texts, time.monotonic() - begin)


def settings(made: Path, count: int, seed: int) -> Tally:
    """Commands in processes of their own, in odd surroundings."""
    tally = Tally("environment: processes")
    cases = [(setting, verb) for setting in SETTINGS for verb in STARTED]
    for number, (setting, verb) in enumerate(
        Random(f"{seed} settings").sample(cases, min(count, len(cases)))
    ):
        out = fresh(made)
        argv = ["list"] if verb == "list" else command(verb, made, out)
        with tally.case(f"seed {seed}, case {number}, {setting}, {verb}") as case:
            ended = case.saw(started(argv, setting, made))
            wrong = (
                ""
                if verb == "list" or ended.status != 0
                else difference(results(verb, out), undisturbed(verb, made))
            )
            if ended.status == 2 and setting in QUIET:  # the line that is not seen
                case.judge("refused", refused=True)
            elif setting == "no environment" and wrong:  # other threads round otherwise
                case.judge(wrong, refused="differs" in wrong)
            else:
                judge(case, ended, wrong)
    return tally


# --- what is forked ---


def narrow(made: Path, count: int, seed: int) -> Tally:
    """The help of every verb in terminals of few columns."""
    tally = Tally("environment: narrow")
    cases = [(verb, columns) for verb in ALL for columns in ("20", "1", "0", "-3", "x", "100000")]
    for verb, columns in Random(f"{seed} narrow").sample(cases, min(count, len(cases))):
        with tally.case(f"{verb} --help in {columns} columns") as case:
            ended = run([verb, "--help"], inside=lambda columns=columns: os.environ.update(COLUMNS=columns))
            judge(case, ended, "" if ended.out.strip() else "no help")
    return tally


def _tried(
    tally: Tally, name: str, made: Path, inside: Callable[[], None], what: str, again: bool = False
) -> None:
    """A verb in these surroundings: the undisturbed result, or one line; then, `again`, as usual, the result."""
    out = fresh(made)
    with tally.case(what) as case:
        ended = case.saw(run(command(name, made, out), inside=inside))
        wrong = fault(ended)
        refused = not wrong and ended.status != 0
        if refused and again:
            ended = case.saw(run(command(name, made, out)))
            wrong = "" if ended.status == 0 else f"status {ended.status}: {ended.err[-300:]}"
        if not wrong and ended.status == 0:
            wrong = difference(results(name, out), undisturbed(name, made))
        case.judge(wrong or ("refused" if refused else ""), refused=not wrong)


def memory(made: Path, count: int, seed: int) -> Tally:
    """Verbs with little memory."""
    tally = Tally("environment: memory")
    draw = Random(f"{seed} memory")
    for number in range(count):
        name, beyond = draw.choice(list(VERBS)), int(2 ** draw.uniform(20, 29))
        what = f"seed {seed}, case {number}, {name} with {beyond >> 20} MB"
        _tried(tally, name, made, lambda beyond=beyond: little_memory(beyond), what, again=True)
    return tally


def open_files(made: Path, count: int, seed: int) -> Tally:
    """Verbs that may have few files open."""
    tally = Tally("environment: open files")
    draw = Random(f"{seed} files")
    for number in range(count):
        name, most = draw.choice(list(VERBS)), draw.choice((16, 24, 32, 64, 64, 64))

        def few(most: int = most) -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

        _tried(
            tally, name, made, few, f"seed {seed}, case {number}, {name} with {most} open files", again=True
        )
    return tally


def clock(made: Path, count: int, seed: int) -> Tally:
    """A clock that moves by up to ten years between a command that is killed and the same one again, or while it runs."""
    tally = Tally("environment: clock")
    draw = random.Random(f"{seed} clock")
    for number in range(count):
        name = draw.choice(
            ("train", "train", "train on images", "train-codec", "encode", "sample", "compare")
        )
        out = fresh(made)
        event, years = draw.randint(1, 30), draw.uniform(-10, 10)
        with tally.case(
            f"seed {seed}, case {number}, {name} killed at event {event}, {years:.1f} years"
        ) as case:
            inside = Watched(out, event, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            case.saw(run(command(name, made, out), inside=inside))
            jumps = draw.random() < 0.3
            ended = run(
                command(name, made, out),
                inside=lambda years=years, jumps=jumps: _move(years / 10 * DECADE, jumps),
            )
            judge(
                case,
                ended,
                difference(results(name, out), undisturbed(name, made)) if ended.status == 0 else "refused",
            )
    return tally


def _move(seconds: float, jumps: bool) -> None:
    """Move the clock of this process; where it jumps, back and forth at every look."""
    real, looks = time.time, [0]

    def moved() -> float:
        looks[0] += 1
        return real() + (seconds if not jumps or looks[0] % 2 else -seconds)

    time.time = moved
    time.time_ns = lambda: int(moved() * 1e9)


def workers(made: Path, count: int, seed: int) -> Tally:
    """Processes that read or prepare images are killed: one line, and the command run again resumes."""
    tally = Tally("environment: workers")
    draw = random.Random(f"{seed} workers")
    data = made / "many"
    if not data.exists():
        for number in range(2100):  # as many as two processes are started for
            file = data / str(number % 3) / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(picture(number, "png"))

    def argv(out: Path, cache: object) -> list[object]:
        images = ["--data", data, "--data.size", 8, "--data.channels", 1, "--data.cache", cache]
        return ["train", "digits", *TRAIN, *images, "--train.workers", 2, "--out", out / "run"]

    for number in range(count):
        off = draw.random() < 0.6
        undisturbed_out = made / f"workers-{off}"
        if not undisturbed_out.exists():
            ended = run(argv(fresh(made), "off" if off else made / "out/cache"))
            assert ended.status == 0, ended.err
            shutil.copytree(made / "out/run", undisturbed_out)
        out = fresh(made)
        words = argv(out, "off" if off else out / "cache")
        moment = draw.uniform(0, 0.2)
        with tally.case(
            f"seed {seed}, case {number}, a worker killed after {moment:.3f} s, cache {not off}"
        ) as case:
            first = case.saw(run(words, inside=lambda moment=moment: _kill_a_worker(moment)))
            ended = case.saw(run(words))
            wrong = fault(first) or (
                "" if ended.status == 0 else f"status {ended.status}: {ended.err[-300:]}"
            )
            case.judge(wrong or difference(contents(out / "run"), contents(undisturbed_out)))
    return tally


def _kill_a_worker(moment: float) -> None:
    """Kill the first process that this one starts, so many seconds after it was started."""
    me = os.getpid()

    def kill() -> None:
        while True:
            for task in Path(f"/proc/{me}/task").iterdir():
                children = (task / "children").read_text(encoding="utf-8").split()
                if children:
                    time.sleep(moment)
                    try:
                        os.kill(int(children[-1]), signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                    return
            time.sleep(0.002)

    threading.Thread(target=kill, daemon=True).start()


def writers(made: Path, count: int, seed: int) -> Tally:
    """The same command twice at once: one is refused in one line, or both agree."""
    tally = Tally("environment: two writers")
    names = [name for name in VERBS if name != "eval"]  # whose --replace says that it writes over
    draw = random.Random(f"{seed} writers")
    for number in range(count):
        name = names[number % len(names)]
        expected = undisturbed(name, made)
        out = fresh(made)
        delay = draw.choice((0, 0, draw.random() * 0.3))
        with tally.case(f"seed {seed}, case {number}, {name}, {delay:.3f} s apart") as case:
            with ThreadPoolExecutor(2) as both:
                ended = list(both.map(lambda wait: _later(command(name, made, out), wait), (0, delay)))  # noqa: B023
            wrong = "".join(fault(case.saw(one)) for one in ended)
            if not wrong and all(one.status for one in ended):
                wrong = f"both are refused: {ended[0].err[-200:]} {ended[1].err[-200:]}"
            case.judge(wrong or difference(results(name, out), expected))
    return tally


def _later(argv: list[object], seconds: float) -> Ended:
    time.sleep(seconds)
    return run(argv)


NAMES = (
    "line\nbreak", "\x1b[31mred\x07", "not UTF-8 \udcff\udcfe", " ", "-dash", "'", '"', "$(touch canary)", "%s{0}", "é\u0301", "\u202egnp",
    "a" * 200, "漢字" * 20, "*", "[0-9]", "~", ".hidden", "..dots", "a;b", "#", "\\", "tab\t", "CON", "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
)  # fmt: skip


def names(made: Path, count: int, seed: int) -> Tally:
    """Folders of results and of data with names that are hard to print, not UTF-8, or mean something to a shell."""
    tally = Tally("environment: names")
    draw = random.Random(f"{seed} names")
    for number in range(count):
        out = fresh(made)
        name, other = draw.choice(NAMES), draw.choice(NAMES)
        verb = draw.choice(
            ("train on images", "sample", "convert", "encode", "compare", "eval", "train-codec", "caption")
        )
        data = out / other
        shutil.copytree(made / "images", data / name if draw.random() < 0.5 else data)
        for file in list(data.rglob("*.png"))[:5]:
            file.rename(file.with_name(f"{draw.choice(NAMES)}.png"))
        where = out / name / "results"
        with tally.case(
            f"seed {seed}, case {number}, {verb}, {ascii(name)[:60]}, {ascii(other)[:60]}"
        ) as case:
            words = [
                str(word) for word in command("train on images" if verb == "caption" else verb, made, where)
            ]
            words = [word.replace(str(made / "images"), str(data)) for word in words]
            if verb == "caption":
                (data / "metadata.jsonl").write_text(
                    '{"file_name": "\\u001b[31m.png", "text": "\\u001b[0m"}\n'
                )
                words += ["--data.caption-column", "text"]
            judge(case, run(words))
    return tally
