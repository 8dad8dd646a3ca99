"""Clip art with captions: the pictures of the Open Clip Art Library 0.18 in Debian's openclipart-png, in the public domain.

About 5,500 drawings, icons, flags and signs in the folders of 22 subjects, which are the classes; their captions are the words of
their names (clipart_names.py). A picture is laid on a background, whole, without its transparent margins (`transforms.padded`).
Left out are links, which name a picture a second time, star polygons of more than POINTS points (1,300 grey rings at 64 pixels,
a fifth of all pictures), pictures that show nothing on white, and all but the first of those that are equal at 64 pixels.

Held out for the test part is about a ninth, so that no near copy of a held-out picture is trained on. Pictures are of one family
when their titles are equal but for numbers and the words of VARIANTS, or when they look alike: the grey values of 16 × 16 squares
of both have a correlation above ALIKE. A family of more than LARGEST pictures (flags of one design, playing cards, folders)
is trained on; of the others a hash of the first path decides. All is decided at 64 pixels on white, so that parts are the same at
every size and on every background.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import numpy as np

from ditkit.data.clipart_names import STAR, caption, title
from ditkit.data.decoding import Rule
from ditkit.data.folder import Files
from ditkit.data.listing import File, by_class, ending, levels
from ditkit.data.memory import Arrays
from ditkit.data.prepared import Prepared, default_root, kept
from ditkit.data.sources import Channels, Colour, DataSection, Size, Split
from ditkit.errors import InputError
from ditkit.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path("/usr/share/openclipart/png")  # Debian's openclipart-png
SUBJECTS = (
    "animals", "buildings", "buttons", "computer", "containers", "decorations", "education", "electronics", "food", "geography",
    "logos", "office", "people", "plants", "recreation", "science", "shapes", "signs_and_symbols", "special", "tools",
    "transportation", "unsorted",
)  # fmt: skip
VARIANTS = frozenset(
    "black white grey gray red orange yellow green blue purple pink brown cyan violet seagreen colour color simple bordered "
    "ornamental shaded outline left right up down top bottom open closed new old small big large half whole one two three and "
    "of the a".split()
)
POINTS = 20
SIDE = 64  # pixels at which copies are found
SQUARES = 16  # a side, in which pictures are compared
ALIKE = 0.95
LARGEST = 20
HELD_OUT = 0.15  # of the families that are not large: a ninth of all pictures
FLAT = 16  # levels of 255 that a picture which shows something exceeds
MAX_PIXELS = 200_000_000

log = logging.getLogger(__name__)
Cached = Literal["auto", "off"] | Path


class Found(NamedTuple):
    """The pictures that are used."""

    images: Tensor  # uint8 (N, channels, size, size)
    paths: tuple[str, ...]
    held_out: np.ndarray  # bool (N,)
    lines: tuple[str, ...]
    broken: tuple[str, ...]


def files_of(root: Path) -> Files:
    """The PNG files of the subjects' folders, without links and most stars. InputError, naming Debian's package, where there are none."""
    remedy = f"apt-get install openclipart-png, or `data.root` DIR with folders such as {SUBJECTS[0]}"
    if not root.is_dir():
        raise InputError(f"{root} is not a folder of clip art; {remedy}")

    def pictures() -> Iterator[tuple[str, list[File]]]:
        for level in levels(root, "clip art"):
            if level.inside.partition("/")[0] in SUBJECTS:
                for file in level.files:
                    path = level.path(file.name)
                    star = STAR.match(file.name)
                    wanted = ending(file.name) == ".png" and (star is None or int(star[1]) <= POINTS)
                    if wanted and not (root / path).is_symlink():
                        yield path, [file]

    found = list(pictures())
    if not found:
        raise InputError(f"{root} holds no clip art; {remedy}")
    return Files(root, by_class(root, found, "clip art", "natural"))


def different(images: np.ndarray) -> np.ndarray:
    """Mask (N,) of the first of each set of equal images uint8 (N, C, H, W), without those that show nothing."""
    flat = images.reshape(len(images), -1)
    contents = [sha256(row.tobytes()).digest() for row in flat]
    first = {content: place for place, content in reversed(list(enumerate(contents)))}
    once = np.array([first[content] == place for place, content in enumerate(contents)], bool)
    return once & (flat.max(1).astype(int) - flat.min(1) > FLAT)


def look_alikes(images: np.ndarray) -> np.ndarray:
    """Pairs (P, 2) of images uint8 (N, 3, SIDE, SIDE) that look alike, the smaller number first.

    Whole numbers, so that no processor's rounding moves a picture from one part to the other.
    """
    count, step = len(images), SIDE // SQUARES
    sums = images.reshape(count, 3, SQUARES, step, SQUARES, step).sum((3, 5), dtype=np.int64)
    squares = np.tensordot(sums, np.array([299, 587, 114]), (1, 0)).reshape(count, -1) // (
        1000 * step**2
    )  # grey levels
    centred = (
        squares - squares.sum(1, keepdims=True) // SQUARES**2
    )  # at most 255: sums of products stay below 2^24
    rows = centred.astype(np.float32)
    power = (centred**2).sum(1)  # (N,)
    pairs = []
    for first in range(0, count, 256):
        products = rows[first : first + 256] @ rows.T  # exact
        near = products > np.float32(ALIKE * 0.99) * np.sqrt(np.outer(power[first : first + 256], power))
        for row, other in np.argwhere(near):
            product = int(products[row, other])
            limit = int(power[first + row]) * int(power[other])
            if first + row < other and product**2 * 10_000 > limit * round(10_000 * ALIKE**2):
                pairs.append((first + row, other))
    return np.array(pairs, int).reshape(-1, 2)


def families(paths: Sequence[str], pairs: np.ndarray) -> np.ndarray:
    """The number of each picture's family (N,): those of equal titles but for variants, and the pairs (P, 2), joined."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first: dict[str, int] = {}
    same = [(first.setdefault(stem(path), place), place) for place, path in enumerate(paths)]
    edges = np.concatenate([np.array(same, int).reshape(-1, 2), pairs])
    graph = coo_array((np.ones(len(edges), bool), (edges[:, 0], edges[:, 1])), shape=(len(paths), len(paths)))
    return connected_components(graph, directed=False)[1]


def stem(path: str) -> str:
    """What the titles of variants of one picture have in common; the folder where no word is left."""
    words = [word for word in title(path).split() if word.isalpha() and word not in VARIANTS]
    return " ".join(words) or path.rpartition("/")[0] + "/"


def held_out(paths: Sequence[str], family: np.ndarray) -> np.ndarray:
    """Mask (N,) of the test part: whole families, by a hash of the first of their paths."""
    sizes = Counter(family.tolist())
    firsts: dict[int, str] = {}
    for number, path in zip(family.tolist(), paths, strict=True):
        firsts[number] = min(path, firsts.get(number, path))
    chosen = {
        number
        for number, path in firsts.items()
        if sizes[number] <= LARGEST
        and int.from_bytes(sha256(path.encode()).digest()[:8], "big") < HELD_OUT * 2**64
    }
    return np.array([number in chosen for number in family.tolist()], bool)


@lru_cache(maxsize=4)
def find(root: Path, size: int, channels: Literal[1, 3], background: str, cache: Cached) -> Found:
    """The pictures at this size with their parts, decoded once and kept prepared in `cache`. InputError: see `files_of`."""
    files = files_of(root)
    paths = [files.title(number) for number in range(len(files))]
    base = Rule(SIDE, "square", 3, MAX_PIXELS, False, "white")
    rule = Rule(size, "square", channels, MAX_PIXELS, False, background)
    with TemporaryDirectory() as unkept:
        folder = default_root() if cache == "auto" else Path(unkept) if cache == "off" else cache
        compared = kept(files, base, folder)
        usable = [number for number in range(len(files)) if number not in compared.reasons]
        images = pixels_of(compared, usable)
        mask = different(images)
        chosen = [number for number, good in zip(usable, mask.tolist(), strict=True) if good]
        images = images[mask]
        out = held_out(
            [paths[number] for number in chosen],
            families([paths[number] for number in chosen], look_alikes(images)),
        )
        if rule != base:
            images = pixels_of(kept(files, rule, folder), chosen)
    broken = [paths[number] for number in compared.reasons]
    log.info(
        f"{root}: {len(chosen):,} pictures, {out.sum():,} of them held out; left out are {len(usable) - len(chosen):,} that show "
        f"nothing or are copies, and {len(broken):,} that are damaged or too large{': ' if broken else ''}{', '.join(broken[:3])}"
    )
    return Found(
        torch.from_numpy(images),
        tuple(paths[number] for number in chosen),
        out,
        tuple(f"{compared.digests[number].tobytes().hex()} {paths[number]}" for number in chosen),
        tuple(broken),
    )


def pixels_of(prepared: Prepared, numbers: Sequence[int]) -> np.ndarray:
    """The pixels of these images, uint8 (N, C, H, W)."""
    assert prepared.pixels is not None
    return np.stack([prepared.pixels.read(number) for number in numbers])


class Clipart(DataSection):
    """About 5,500 captioned pieces of clip art of 22 subjects, in the public domain (Debian: openclipart-png).

    A ninth is held out: whole families of pictures that look alike or are called alike, none of them large.
    """

    captioned: ClassVar[bool | None] = True
    kind: Literal["clipart"] = "clipart"
    size: Size = 64
    channels: Channels = 3
    classes: Literal[22] = 22
    """Fixed by the data: the subjects."""
    root: Path = ROOT
    """Folder of the subjects' folders. Debian: openclipart-png."""
    background: Colour = "white"
    """Colour behind the pictures: a name or #rrggbb."""
    cache: Cached = "auto"
    """Where prepared pictures are kept: auto, in the user's folder of caches; a folder; or off, so that all are decoded at
    each start."""

    def open(self, split: Split = "train") -> Arrays:
        """The pictures of one part with subjects and captions. InputError: see `find`."""
        found = find(self.root, self.size, self.channels, self.background, self.cache)
        picks = np.flatnonzero(found.held_out == (split == "test"))
        paths = [found.paths[number] for number in picks]
        labels = torch.tensor([SUBJECTS.index(path.partition("/")[0]) for path in paths], dtype=torch.int64)
        source = Arrays(
            found.images[torch.from_numpy(picks)], labels, SUBJECTS, [caption(path) for path in paths]
        )
        source.lines, source.broken = found.lines, found.broken
        return source
