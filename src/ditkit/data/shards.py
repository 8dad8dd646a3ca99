"""Webdataset shards: .tar files whose members `KEY.jpg`, `KEY.txt`, `KEY.cls`, `KEY.json` make one sample.

A member's key is its path up to the first dot of its name, and what follows the dot says what it is
(github.com/webdataset/webdataset). Shards are read by index, not as a stream: the headers are walked once,
samples are numbered in the order of the shards' names and of their members, and an image is read from its
place in the file when it is needed. So order and resumption are those of every other source.

Differs: Python's own tarfile, because the package `webdataset` streams; it shuffles within a buffer.
"""

import tarfile
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from ditkit.data.captions import BESIDE, only_texts
from ditkit.data.encoded import Encoded, EncodedSection
from ditkit.data.listing import report_passed_over
from ditkit.data.sources import Split, numbered_classes
from ditkit.errors import InputError
from ditkit.movies import image_suffixes
from ditkit.records import parse_json

CLASS = "cls"
DIGITS = 12  # of a class's number that are read


class Place(NamedTuple):
    """Where a member's bytes are."""

    shard: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with self.shard.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


class Sample(NamedTuple):
    """An image's place and those of the members beside it, by ending without the dot."""

    title: str
    image: Place
    beside: dict[str, Place]


def find_shards(path: Path) -> list[Path]:
    """The .tar files of a folder by name, or the one file; InputError when there is none."""
    shards = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if not shards or not shards[0].is_file():
        raise InputError(f"{path}: no .tar file; `data.path` names one or a folder of them")
    return shards


def walk(shard: Path, passed: Counter[str]) -> list[Sample]:
    """The samples of one shard that have an image; the endings of the others' members are counted in `passed`.
    InputError when it is compressed, cut short or no tar."""
    members: dict[str, dict[str, Place]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                key, _, ending = name.partition(".")
                if member.isfile() and key and ending:
                    place = Place(shard, member.offset_data, member.size)
                    members.setdefault(f"{folder}/{key}".lstrip("/"), {})[ending.lower()] = place
            _check_end(shard, tar.offset)
    except (tarfile.TarError, EOFError) as error:
        raise InputError(
            f"{shard} cannot be read as an uncompressed tar ({error}); unpack it (gunzip) or fetch it again"
        ) from None
    suffixes = image_suffixes()
    samples = []
    for key, parts in members.items():
        image = next((ending for ending in parts if f".{ending}" in suffixes), None)
        if image is not None:
            samples.append(Sample(f"{key}.{image} of {shard.name}", parts[image], parts))
        else:
            passed.update(f".{ending}" for ending in parts)
    return samples


def _check_end(shard: Path, end: int) -> None:
    """TarError unless only zeros, at least one block of them, follow the last member at byte `end`: where a shard was
    cut, or others were joined to it, tarfile ends without a word."""
    blocks = 0
    with shard.open("rb") as file:
        file.seek(end)
        while block := file.read(tarfile.BLOCKSIZE):
            if block.strip(b"\0"):
                raise tarfile.ReadError(f"after byte {end} there is neither a member nor the archive's end")
            blocks += len(block) == tarfile.BLOCKSIZE
    if not blocks:
        raise tarfile.ReadError("it was cut: its end is missing")


def read_field(sample: Sample, column: str) -> Any:
    """What a sample says under this name: the text of its .txt, the bytes of another member, or else a field of
    its .json; None when it has no such thing. InputError when the .json is damaged."""
    if column in sample.beside:
        return sample.beside[column].read()
    if "json" not in sample.beside:
        return None
    try:
        return parse_json(sample.beside["json"].read()).get(column)
    except (ValueError, AttributeError):
        raise InputError(f"{sample.title}: its .json is not a JSON object in UTF-8; repair it") from None


def number_classes(samples: Sequence[Sample], column: str) -> tuple[list[int], tuple[str, ...]]:
    """(labels, class names): the whole numbers of the .cls members themselves, any other values in sorted order.

    InputError naming the sample that has no label, or a .cls that is no whole number.
    """
    values = []
    for sample in samples:
        value = read_field(sample, column)
        text = value.decode("utf-8", "replace").strip() if isinstance(value, bytes) else value
        if text is None or isinstance(text, list | dict) or (column == CLASS and not text.isdecimal()):
            raise InputError(
                f"{sample.title}: {column!r} is not a label ({text!r:.40}); see `data.label_column`"
            )
        values.append(str(text))
    if column == CLASS:
        labels = [int(value[:DIGITS]) for value in values]  # longer ones are too large anyway
        highest = max(range(len(labels)), key=labels.__getitem__)
        return labels, numbered_classes(labels[highest] + 1, samples[highest].title)
    known = sorted(set(values))
    number = {value: label for label, value in enumerate(known)}
    return [number[value] for value in values], tuple(known)


def read_captions(samples: Sequence[Sample], column: str, where: str) -> list[str | None]:
    """The caption of each sample, None where it is not usable; InputError when no sample has any, or most have
    something else (`only_texts`)."""

    def read(sample: Sample) -> object:
        try:
            return read_field(sample, column)
        except InputError as error:
            return error

    values = [(sample.title, read(sample)) for sample in samples]
    if all(value is None for _, value in values):
        raise InputError(
            f"{samples[0].title} and all others: no {column!r}; `data.caption_column` is a field of the .json, or "
            f"{BESIDE}"
        )
    return only_texts(values, where, column)


class Members:
    """The images of the samples, by number."""

    def __init__(self, path: Path, samples: Sequence[Sample]):
        self.where = str(path)
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, index: int) -> bytes:
        return self._samples[index].image.read()

    def title(self, index: int) -> str:
        return self._samples[index].title

    def fingerprint(self) -> str:
        digest = sha256()
        for shard in dict.fromkeys(sample.image.shard for sample in self._samples):
            about = shard.stat()
            digest.update(
                f"{shard.resolve()} {about.st_size} {about.st_mtime_ns} {about.st_ctime_ns}\n".encode()
            )
        for sample in self._samples:
            digest.update(f"{sample.title} {sample.image.offset} {sample.image.size}\n".encode())
        return digest.hexdigest()


class Webdataset(EncodedSection):
    """Webdataset shards: .tar files of images with .txt captions, .cls classes or .json beside them."""

    own: ClassVar[bool] = True
    kind: Literal["webdataset"] = "webdataset"
    path: Path | None = None
    """Folder of the .tar files, or one of them."""
    label_column: str | None = None
    """Field of the .json with the class, or an ending such as cls. None: cls where the first image has it."""
    caption_column: str | None = None
    """Field of the .json with the caption, or an ending such as txt. None: txt where the first image has it."""

    def open(self, split: Split = "train") -> Encoded:
        """The images of all shards, without or with those that are held out. InputError: see `find_shards`, `walk`,
        `number_classes`, `read_captions`, `check_classes`."""
        if self.path is None:
            raise InputError("which shards? `data.path` names a .tar file or a folder of them")
        self.check_split(split, str(self.path), "shards")
        passed: Counter[str] = Counter()
        samples = [sample for shard in find_shards(self.path) for sample in walk(shard, passed)]
        if split == "train":
            report_passed_over(str(self.path), passed, "images")
        if not samples:
            raise InputError(
                f"{self.path} holds no images; `data.path` names a .tar file or a folder of them"
            )
        beside = samples[0].beside
        label = self.label_column or (CLASS if CLASS in beside else None)
        caption = self.caption_column or (BESIDE if BESIDE in beside else None)
        labels, names = number_classes(samples, label) if label else (None, ())
        self.check_classes(names, str(self.path))
        captions = read_captions(samples, caption, str(self.path)) if caption else None
        return Encoded(Members(self.path, samples), labels, names, self, captions, split)
