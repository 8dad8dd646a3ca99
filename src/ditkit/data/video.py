"""Your own clips: a folder of video files, folders of frames and animated images; the first directory is the class.

A clip is `frames` frames of one movie, `stride` apart, each cut to a square as images are. With `fps` a movie is
first resampled by its frames' times, so movies of different and of varying rates can be mixed; without, its own
frames are counted. How a movie's frames are found: movies.py. Captions: captions.py.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from ditkit.data.captions import read_captions
from ditkit.data.clips import Clips, ClipSection, Mixed
from ditkit.data.decoding import DIGEST
from ditkit.data.encoded import HeldOut, held_out_places
from ditkit.data.folder import Folder
from ditkit.data.listing import (
    File,
    Listing,
    Order,
    by_class,
    ending,
    levels,
    report_empty,
    report_passed_over,
)
from ditkit.data.sources import Split, each
from ditkit.data.transforms import prepare, to_array, to_mode
from ditkit.errors import InputError, is_defect
from ditkit.files import first_line
from ditkit.lazy import torch
from ditkit.movies import ANIMATIONS, VIDEOS, Movie, frames, image_suffixes, open_movie

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)


def read_movie(path: Path, channels: int = 3) -> tuple[Tensor, float | None]:
    """(clip, frames a second) of any movie or image: uint8 (channels, F, H, W) at the size it has.

    The rate is None where it is unknown: one frame, a folder of frames, uneven times. InputError, naming the
    path, when it cannot be read.
    """
    try:
        movie = open_movie(path)
        images = frames(movie, range(len(movie.keys)))
        return torch.stack([to_array(to_mode(image, channels)) for image in images], 1), movie.fps
    except InputError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly every kind there is
        if is_defect(error):
            raise
        raise InputError(
            f"{path} cannot be read as a clip ({first_line(error)}); give a video, GIF, WebP, image or folder of frames"
        ) from error


def scan_movies(folder: Path, order: Order = "natural", beside: frozenset[str] = frozenset()) -> Listing:
    """The movies of a folder, as `folder.scan` gives its images.

    A directory inside it is one movie when it holds still images, other than GIF and WebP, and neither directories nor
    video files; every other video or image file is a movie of its own.
    """
    stills = image_suffixes() - ANIMATIONS
    wanted = VIDEOS | image_suffixes()
    passed: Counter[str] = Counter()
    top: list[str] = []

    def movies() -> Iterator[tuple[str, list[File]]]:
        for level in levels(folder, "videos", order):
            if not level.inside:
                top.extend(level.directories)
            files = [file for file in level.files if ending(file.name) in wanted]
            others = [file.name for file in level.files if ending(file.name) not in wanted]
            passed.update(
                kind
                for kind, name in ((ending(name), name) for name in others)
                if kind not in beside and not name.startswith("metadata.")
            )
            of_frames = files and not level.directories and all(ending(file.name) in stills for file in files)
            if of_frames and level.inside:
                yield level.inside, files
            else:
                yield from ((level.path(file.name), [file]) for file in files)

    try:
        found = by_class(folder, movies(), "videos", order)
    finally:
        report_passed_over(str(folder), passed, "videos")
    report_empty(folder, found.names, "videos", top)
    return found


def movie_digest(path: Path) -> bytes:
    """The hash of a movie's bytes, of a folder of frames those of all its files by name."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    digest = blake2b(digest_size=DIGEST)
    for file in files:
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.digest()


class VideoFolder(ClipSection):
    """Your own clips: videos, animated GIF and WebP, folders of frames; one folder per class, or one of all.

    What is broken, has no frames or too few, only sound, or, unless `fps` resamples it, uneven times is left out and
    named with the reason; so are still images (movies of one frame), and what lacks a caption where captions are
    needed.
    """

    own: ClassVar[bool] = True
    kind: Literal["video"] = "video"
    path: Path | None = None
    """The folder."""
    order: Order | None = None
    """Order of classes and movies: natural, 2 before 10, or plain, by characters. By default as the run has it,
    natural for a new one."""
    held_out: HeldOut | None = None
    """Share of the movies kept for validation and scores, by a hash of each one's bytes. By default as the run has it,
    0.02 for a new run."""
    fps: float | None = Field(default=None, gt=0)
    """Frames a second: of each movie those nearest to these times are taken. None: its own frames. A folder of
    frames has no times and is taken to be at this rate."""
    stride: int = Field(default=1, ge=1)
    """Every which of these frames goes into a clip."""
    caption_column: str | None = None
    """Column of the folder's metadata.jsonl, .csv or .parquet with the captions, or txt: a .txt file beside each movie."""
    pictures: Path | None = None
    """Also train on the images of this folder, each a clip of one frame; classes and captions as the movies have
    them. Batches need train.tokens."""
    check: bool = True
    """Decode every movie once at the start, to leave out those that are broken; else only times are read."""

    @property
    def several_sizes(self) -> bool:
        return super().several_sizes or self.pictures is not None

    def training(self) -> Clips:
        if self.pictures is None:
            return super().training()
        folder = Folder(path=self.pictures, size=self.size, channels=self.channels, classes=self.classes)
        pictures = folder.model_copy(update={"caption_column": self.caption_column, "check": self.check})
        return Mixed(self, self.open("train"), pictures.open())

    def open(self, split: Split = "train") -> Videos:
        """The movies of the folder, without or with those that are held out. InputError: see `scan_movies`, `check_classes`,
        `read_captions`, `open_movie`; or no movie can be used."""
        if self.path is None:
            raise InputError("which folder? `data.path` DIR names the folder of videos")
        if split == "test" and not self.held_out:
            raise InputError(
                f"{self.path} has no held-out part; `data.held_out` 0.02 keeps one, or keep test videos in a folder of "
                "their own"
            )
        beside = frozenset({".txt"} if self.caption_column == "txt" else ())
        found = scan_movies(self.path, self.order or "natural", beside)
        self.check_classes(found.names, str(self.path))
        captions = read_captions(self.path, found.files, self.caption_column) if self.caption_column else None
        return Videos(self, self.path, found, captions, split)


class Videos(Clips):
    """The movies of one part of a folder that give clips, decoded each time they are read."""

    decodes = True
    _config: VideoFolder

    def __init__(
        self,
        config: VideoFolder,
        folder: Path,
        found: Listing,
        captions: Sequence[str | None] | None,
        split: Split = "train",
    ):
        titles = found.files
        self.names = found.names
        super().__init__(config)
        self._folder = folder
        self._span = (config.frames - 1) * config.stride + 1

        def examine(number: int) -> Movie | str:
            if captions is not None and captions[number] is None:
                return "no caption in UTF-8"
            return self._examine(titles[number])

        looked = each(examine, range(len(titles)), "checking videos")
        kept = [number for number, movie in enumerate(looked) if isinstance(movie, Movie)]
        self.broken = tuple(
            f"{title} ({reason})"
            for title, reason in zip(titles, looked, strict=True)
            if isinstance(reason, str)
        )
        if not kept:
            raise InputError(
                f"{folder}: none of the {len(titles)} videos can be used: {self.broken[0]}, ...; correct them, or "
                "change what `data.frames`, `data.stride` and `data.fps` ask for"
            )
        if self.broken and split == "train":
            shown = ", ".join(self.broken[:5]) + (", ..." if len(self.broken) > 5 else "")
            log.warning(f"{folder}: left out {len(self.broken)} of {len(titles)} videos: {shown}")
        self.lines = self._lines(titles, kept)
        if config.held_out:
            digests = np.frombuffer(
                bytes.fromhex("".join(line[: 2 * DIGEST] for line in self.lines)), np.uint8
            )
            places = held_out_places(
                digests.reshape(len(kept), DIGEST), config.held_out, split, str(folder), "videos"
            )
            kept = [kept[place] for place in places]
        self._movies = [movie for number in kept if isinstance(movie := looked[number], Movie)]
        self.labels = (
            None if found.labels is None else torch.tensor([found.labels[number] for number in kept])
        )
        self.captions: Sequence[str] | None = None
        if captions is not None:
            self.captions = [captions[number] or "" for number in kept]  # none is None any more

    def _lines(self, titles: Sequence[str], kept: Sequence[int]) -> list[str]:
        """The movies that can be used, both parts, each in a line as `Encoded.lines` has them."""

        def line(number: int) -> str:
            known = movie_digest(self._folder / titles[number]).hex() if self._config.held_out else "-"
            return f"{known} {titles[number]}"

        return each(line, kept, "reading videos")

    def __len__(self) -> int:
        return len(self._movies)

    def clip(self, index: int, draw: np.random.Generator | None = None) -> Tensor:
        """A clip of movie `index`, uint8 (C, F, size, size), from a start that `draw` draws, or the middle for None."""
        movie, config = self._movies[index], self._config
        numbers = movie.numbers(config.fps)
        last = len(numbers) - self._span
        start = last // 2 if draw is None else int(draw.integers(last + 1))
        try:
            images = frames(movie, numbers[start : start + self._span : config.stride])
            return torch.stack([prepare(image, config.size, config.channels) for image in images], 1)
        except Exception as error:
            if is_defect(error):
                raise
            raise InputError(
                f"{movie.path} cannot be decoded ({first_line(error)}); `data.check` leaves such videos out"
            ) from error

    def _examine(self, title: str) -> Movie | str:
        """The movie, or the reason why it gives no clips."""
        config = self._config
        try:
            movie = open_movie(self._folder / title, decode=config.check)
        except InputError:  # not the file's fault
            raise
        except Exception as error:  # on damaged files Pillow's plugins raise nearly every kind there is
            if is_defect(error):
                raise
            return first_line(error)
        if config.fps is None and movie.uneven:
            return "frames at uneven times; `data.fps` resamples them"
        count = len(movie.numbers(config.fps))
        if count < self._span:
            return f"{count} of {self._span} frames"
        return movie
