"""What is right, changed a little: bytes, JSON values and words of a command. All is drawn from the generator that is passed."""

import json
import struct
from collections.abc import Callable, Sequence
from copy import deepcopy
from random import Random
from typing import Any

HEADER = 256  # bytes at the beginning of most files that say sizes and kinds
SIZES = (0, 1, 2, 3, 255, 65_535, 65_536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
ESCAPE = "\x1b[31mred\x1b]0;title\x07"
TEXT = b"<!doctype html><title>404 Not Found</title>\n"


class Sound(Random):
    """Draws with which nothing is changed: what is right must be used."""


# bytes


def _flip(draw: Random, data: bytearray) -> None:
    for _ in range(draw.choice((1, 1, 2, 8, 64))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _flip_header(draw: Random, data: bytearray) -> None:
    for _ in range(draw.choice((1, 2, 4))):
        data[draw.randrange(min(HEADER, len(data)))] = draw.randrange(256)


def _cut(draw: Random, data: bytearray) -> None:
    del data[draw.randrange(len(data)) :]


def _cut_end(draw: Random, data: bytearray) -> None:
    del data[-draw.randint(1, 40) :]


def _insert(draw: Random, data: bytearray) -> None:
    place = draw.randrange(len(data) + 1)
    data[place:place] = draw.randbytes(draw.choice((1, 4, 100)))


def _remove(draw: Random, data: bytearray) -> None:
    place = draw.randrange(len(data))
    del data[place : place + draw.choice((1, 4, 100))]


def _repeat(draw: Random, data: bytearray) -> None:
    place = draw.randrange(len(data))
    data[place:place] = data[place : place + draw.choice((4, 100, 1000))]


def _resize(draw: Random, data: bytearray) -> None:
    """Another number, of two, four or eight bytes, somewhere in the header or near the end, where archives have theirs."""
    code = draw.choice(("<H", ">H", "<I", ">I", "<I", ">I", "<Q"))
    number = struct.pack(code, draw.choice(SIZES) % (65_536 if code[1] == "H" else 2**32))
    if len(data) > len(number):
        ends = (min(HEADER, len(data) - len(number)), len(data) - len(number))
        place = (
            draw.randrange(ends[0]) if draw.random() < 0.7 else draw.randrange(max(0, ends[1] - 100), ends[1])
        )
        data[place : place + len(number)] = number


def _zeros(draw: Random, data: bytearray) -> None:
    place = draw.randrange(len(data))
    length = min(draw.choice((16, 512, 4096)), len(data) - place)
    data[place : place + length] = bytes(length)


def _other(draw: Random, data: bytearray) -> None:
    data[:] = draw.choice((b"", TEXT, b"\0" * len(data), draw.randbytes(len(data)), TEXT + bytes(data)))


BYTES: tuple[Callable[[Random, bytearray], None], ...] = (
    *(
        _flip,
        _flip,
        _flip_header,
        _flip_header,
        _cut,
        _cut_end,
        _insert,
        _remove,
        _repeat,
        _resize,
        _resize,
        _resize,
    ),
    *(_zeros, _other),
)


def mutated(draw: Random, data: bytes) -> bytes:
    """The bytes with one to three changes."""
    if isinstance(draw, Sound):
        return data
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if changed:
            draw.choice(BYTES)(draw, changed)
    return bytes(changed)


# JSON

NUMBERS = (
    0,
    -1,
    1,
    2,
    3,
    0.5,
    -0.0,
    1e-300,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    2**31,
    2**63,
    10**30,
)
STRINGS = (
    "",
    "nothing",
    "../../etc/passwd",
    "/dev/null",
    "a" * 10_000,
    ESCAPE,
    "\0",
    "\ud800",
    "é̄漢字",
    "on",
    "10",
)


def _value(draw: Random) -> Any:
    return draw.choice(
        (
            draw.choice(NUMBERS), draw.choice(NUMBERS), draw.choice(NUMBERS), draw.choice(STRINGS), draw.choice(STRINGS),
            None, True, False, [], {}, [draw.choice(NUMBERS)] * draw.choice((1, 3, 1000)), {"kind": draw.choice(STRINGS)},
            {draw.choice(STRINGS): 1}, [[[]]],
        )
    )  # fmt: skip


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything inside."""
    items = (
        list(value.items())
        if isinstance(value, dict)
        else list(enumerate(value))
        if isinstance(value, list)
        else []
    )
    return [(value, key) for key, _ in items] + [place for _, part in items for place in _places(part)]


def mutated_json(draw: Random, value: dict[str, Any]) -> bytes:
    """A JSON file of the object with one to three values replaced, removed or added, or written differently."""
    if isinstance(draw, Sound):
        return json.dumps(value).encode()
    value = deepcopy(value)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if not (places := _places(value)):
            break
        inside, key = draw.choice(places)
        how = draw.randrange(10)
        if how < 6:
            inside[key] = _value(draw)
        elif how < 8:
            del inside[key]
        elif isinstance(inside, dict):
            inside[draw.choice((*STRINGS, str(key).upper(), f"{key} "))] = _value(draw)
        else:
            inside.append(_value(draw))
    return _written(draw, json.dumps(value, indent=1))


def _written(draw: Random, text: str) -> bytes:
    """The text as UTF-8, or as something else."""
    how = draw.randrange(40)
    if how < 8:
        return mutated(draw, text.encode("utf-8", "surrogatepass"))
    other = {
        8: lambda: text.encode("utf-16", "surrogatepass"),
        9: lambda: text.encode("utf-8-sig", "surrogatepass"),
        10: lambda: f"{'[' * 100_000}{']' * 100_000}".encode(),
        11: lambda: f'{{"a":{"[" * 900}{"]" * 900}}}'.encode(),
        12: lambda: text.replace("}", ', "name": "twice"}', 1).encode("utf-8", "surrogatepass"),
        13: lambda: f"[{text}]".encode("utf-8", "surrogatepass"),
        14: lambda: text.replace("1", "9" * 5000, 1).encode("utf-8", "surrogatepass"),
        15: lambda: f"// comment\n{text}".encode("utf-8", "surrogatepass"),
    }
    return other.get(how, lambda: text.encode("utf-8", "surrogatepass"))()


# words

VALUES = (
    "", " ", "-1", "0", "1", "-0", "1e9", "1e308", "nan", "inf", "-inf", "0x10", "1_000", "9" * 400, "10" * 3000, "None",
    "true", "off", "é漢字", "\u202e", "a\nb", ESCAPE, "\udcff", "'", '"', "$(x)", "a b", "=", "--", "-", "-h9", "nothing", ".", "..",
    "/dev/null", "/proc/nothing/there", "x" * 100_000, "1,2", "4x4", "[]", "{}", "%s%n", "{0}",
)  # fmt: skip
FLAGS = (
    "--nothing", "--Data.size", "--data", "--data.size=", "--backbone.nothing", "--", "---", "-x", "--sample.steps", "--no-", "--=",
    "--é", f"--{ESCAPE}", "--train.no-packed", "--no-train.packed", "--transport.path", "--backbone", "--codec", "--text", "--steps",
    "--sampler", "--out", "--data.path", "--json", "--modules", "--batch", "--device", "--n", "--labels", "--guidance",
)  # fmt: skip


def mutated_words(draw: Random, words: Sequence[str]) -> list[str]:
    """The words of a command with one to three dropped, doubled, replaced, joined or added."""
    words = list(words)
    for _ in range(draw.choice((1, 1, 2, 3))):
        place = draw.randrange(0 if draw.random() < 0.1 else min(1, len(words)), len(words) + 1)
        how = draw.randrange(18)
        if how == 0 and len(words) > 1:
            del words[min(place, len(words) - 1)]
        elif how == 1 and words:
            words.insert(place, draw.choice(words))
        elif how < 10 and len(words) > 1:
            words[draw.randrange(1, len(words))] = draw.choice(VALUES)
        elif how < 14:
            words[place:place] = [draw.choice(FLAGS), draw.choice(VALUES)]
        elif how == 14:
            words.insert(place, draw.choice((*FLAGS, *VALUES)))
        elif how < 17 and words:
            at = draw.randrange(min(1, len(words) - 1), len(words))
            cut = draw.randrange(len(words[at]) + 1)
            words[at] = words[at][:cut] + draw.choice((*VALUES, "")) + words[at][cut:]
        else:
            words[1:] = draw.sample(words[1:], len(words) - 1)
    return words
