"""Clips in files: the frames of a movie, found by when they are shown. Writing: movie_writing.py.

    movie = open_movie(path)             # how many frames, when each is shown
    images = frames(movie, [0, 5, 10])   # Pillow images, upright

A movie is a video file (through PyAV, extra `video`), an animated GIF or WebP, a folder of frames, or a single
image. A video's frames are found by their time stamps after a seek to the keyframe before them, never by counting
packets: with B-frames those are not in the order in which they are shown. Pixels are taken as square.

What is wrong with a movie is a ValueError that says the reason alone; who knows more says which file it is. Movies
as tensors and clips to train on: data/video.py. Contact sheets: pictures.py.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ditkit.errors import InputError

if TYPE_CHECKING:
    pass

VIDEOS = frozenset(
    {
        ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts",
        ".webm", ".wmv", ".y4m",
    }
)  # fmt: skip
ANIMATIONS = frozenset({".gif", ".webp"})
JITTER = 0.25  # of a frame: how far from even times may be; containers round to their ticks

log = logging.getLogger(__name__)


def image_suffixes() -> frozenset[str]:
    """The file endings, in lower case, of every format Pillow can open; it knows .mpg, but cannot show one."""
    Image.init()
    opened = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    return frozenset(opened - VIDEOS)


@dataclass(frozen=True)
class Movie:
    """A movie of F frames, its frames not in memory."""

    path: Path
    keys: np.ndarray  # int64 (F,): a frame's time stamp in a video, elsewhere its number
    times: np.ndarray | None  # float64 (F,): seconds; None where frames have none, as in a folder

    @property
    def uneven(self) -> bool:
        """Whether its rate varies."""
        if self.times is None or len(self.times) < 2:
            return False
        even, step = np.linspace(self.times[0], self.times[-1], len(self.times), retstep=True)
        return bool(np.abs(self.times - even).max() > JITTER * step)

    @property
    def fps(self) -> float | None:
        """Frames a second; None when it varies, or there is one frame only, or they have no times."""
        if self.times is None or len(self.times) < 2 or self.uneven:
            return None
        return float((len(self.times) - 1) / (self.times[-1] - self.times[0]))

    def numbers(self, fps: float | None) -> np.ndarray:
        """The frames, int64 (N,), nearest to the start and every 1 / fps seconds after it, up to the last frame;
        None: all. Without times they are taken to be at that rate already."""
        if fps is None or self.times is None:
            return np.arange(len(self.keys))
        steps = int((self.times[-1] - self.times[0]) * fps + JITTER)
        wanted = self.times[0] + np.arange(steps + 1) / fps
        midways = (self.times[1:] + self.times[:-1]) / 2
        return np.searchsorted(midways, wanted - 1e-6)  # of two as near the earlier, whatever the rounding


def open_movie(path: Path, *, decode: bool = True) -> Movie:
    """The movie in a file or folder; ValueError with the reason when it has no frames that can be shown.

    With `decode` every frame is decoded once, so that what is broken is found now; without, a video's times
    come from its packets. InputError when it takes PyAV and that is not installed.
    """
    if path.is_dir():
        files = _frame_files(path)
        if decode:
            for file in files:
                _load_frame(file)
        movie = Movie(path, np.arange(len(files)), None)
    elif path.suffix.lower() in ANIMATIONS:
        movie = _time_animation(path)
    elif path.suffix.lower() in image_suffixes():
        _load(path)
        movie = Movie(path, np.arange(1), None)
    else:
        movie = _time_video(path, decode)
    if not len(movie.keys):
        raise ValueError("no frames in it")
    return movie


def frames(movie: Movie, numbers: Iterable[int]) -> list[Image.Image]:
    """The frames of these numbers, in their order; ValueError when one cannot be decoded or has another size."""
    keys = [int(movie.keys[number]) for number in numbers]
    once = sorted(set(keys))
    if movie.path.is_dir():
        files = _frame_files(movie.path)
        found = {key: _load_frame(files[key]) for key in once}
    elif movie.path.suffix.lower() in ANIMATIONS:
        found = dict(_animation_frames(movie.path, once))
    elif movie.path.suffix.lower() in image_suffixes():
        found = {0: _load(movie.path)}
    else:
        found = _video_frames(movie.path, once)
    sizes = {image.size for image in found.values()}
    if len(sizes) > 1:
        several = ", ".join(f"{width} × {height}" for width, height in sorted(sizes))
        raise ValueError(f"its frames have several sizes: {several}")
    return [found[key] for key in keys]


# images


def _load(path: Path) -> Image.Image:
    with _open_image(path) as image:
        image.load()
        return image


def _load_frame(path: Path) -> Image.Image:
    try:
        return _load(path)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


@contextmanager
def _open_image(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except UnidentifiedImageError:  # its own message names the path
        raise ValueError("not an image") from None
    except Image.DecompressionBombError as error:
        raise ValueError(str(error).partition(",")[0]) from None
    except (OSError, EOFError, SyntaxError) as error:  # so Pillow's plugins say that a file is damaged
        raise ValueError(getattr(error, "strerror", None) or str(error)) from None


def _frame_files(folder: Path) -> list[Path]:
    """Its images, 2.png before 10.png."""
    suffixes = image_suffixes()
    files = [file for file in folder.iterdir() if file.suffix.lower() in suffixes and file.name[0] != "."]
    return sorted(files, key=_natural)


def _natural(file: Path) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", file.name)]


def _time_animation(path: Path) -> Movie:
    """A frame shown for k times as long as the shortest is k frames: writers join those that are the same."""
    durations = []  # ms
    with _open_image(path) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            image.load()  # of a WebP only now is the duration known
            durations.append(round(image.info.get("duration", 0)) or 100)  # 0: what browsers make of it
    shortest = min(durations)
    repeats = [duration // shortest for duration in durations]
    if any(duration % shortest for duration in durations):
        return Movie(path, np.arange(len(durations)), np.cumsum([0, *durations[:-1]]) / 1000)
    keys = np.repeat(np.arange(len(durations)), repeats)
    return Movie(path, keys, np.arange(len(keys)) * shortest / 1000)


def _animation_frames(path: Path, keys: Sequence[int]) -> Iterator[tuple[int, Image.Image]]:
    with _open_image(path) as image:
        for key in keys:
            image.seek(key)
            yield key, image.copy()


# videos


def pyav() -> Any:
    try:
        import av
    except ImportError:
        raise InputError("video files need PyAV; pip install 'ditkit[video]', or use .gif or .webp") from None
    return av


@contextmanager
def _open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """(container, its first video stream that is not a cover picture)."""
    av = pyav()
    try:
        with av.open(str(path)) as container:
            cover = av.stream.Disposition.attached_pic
            streams = [stream for stream in container.streams.video if not stream.disposition & cover]
            if not streams:
                raise ValueError("only sound in it" if container.streams.audio else "no video in it")
            stream = streams[0]
            if stream.codec_context is None:
                raise ValueError("its video is in a format that this PyAV cannot decode")
            # With more threads, whether damage is noticed is a matter of chance.
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.error.FFmpegError as error:
        raise ValueError(error.strerror or type(error).__name__) from None


def _untimed(container: Any, stream: Any) -> bool:
    """Whether frames are shown in an order that the file does not tell: AVI stores none, and H.264 and H.265 code frames
    in another than they are shown in. They come out of the decoder in order and last equally long, so they are counted."""
    context = stream.codec_context
    return container.format.name == "avi" and context.name in ("h264", "hevc") and context.has_b_frames


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """The frames from here on; ValueError unless they are whole and each has a later time than the one before."""
    last, counted = None, _untimed(container, stream)
    for number, frame in enumerate(container.decode(stream)):
        if frame.is_corrupt:
            raise ValueError("a damaged frame in it")
        if counted:
            frame.pts = number
        if frame.pts is None or (last is not None and frame.pts <= last):
            raise ValueError("frames in it without times, or not in their order")
        last = frame.pts
        yield frame


def _time_video(path: Path, decode: bool) -> Movie:
    with _open_video(path) as (container, stream):
        counted = _untimed(container, stream)
        if decode:
            stamps = [frame.pts for frame in _decoded(container, stream)]
        else:
            packets = [packet for packet in container.demux(stream) if not packet.is_discard and packet.size]
            known = [packet.pts for packet in packets if packet.pts is not None]
            stamps = list(range(len(packets))) if counted else sorted(set(known))
        keys = np.array(stamps, dtype=np.int64)
        return Movie(path, keys, keys * float(1 / stream.average_rate if counted else stream.time_base))


def _video_frames(path: Path, keys: Sequence[int]) -> dict[int, Image.Image]:
    wanted = set(keys)
    found: dict[int, Image.Image] = {}
    for near in (True, False):  # some containers seek past the frame; then from the beginning
        with _open_video(path) as (container, stream):
            if near and not _untimed(container, stream):
                container.seek(keys[0], stream=stream)  # to the keyframe there or before
            for frame in _decoded(container, stream):
                if frame.pts in wanted:
                    found[frame.pts] = frame.to_image().rotate(frame.rotation, expand=True)
                if frame.pts >= keys[-1]:
                    break
        if len(found) == len(wanted):
            return found
    raise ValueError(f"{len(wanted) - len(found)} of {len(wanted)} frames cannot be decoded")
