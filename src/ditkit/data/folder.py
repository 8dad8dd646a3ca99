"""A folder of image files; the first directory level is the class. The walk is listing.py's, captions are captions.py's."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from ditkit.data.captions import read_captions
from ditkit.data.encoded import Encoded, EncodedSection
from ditkit.data.listing import (
    File,
    Listing,
    Order,
    by_class,
    ending,
    is_image,
    levels,
    report_empty,
    report_passed_over,
)
from ditkit.data.sources import Split
from ditkit.errors import InputError
from ditkit.movies import image_suffixes


def scan(folder: Path, order: Order = "natural", beside: frozenset[str] = frozenset()) -> Listing:
    """The image files of a folder.

    Each directory with images somewhere below it is a class, labelled in `order`; images right in the folder and none
    below make it unlabelled. Hidden files are passed over. Files without an ending are read by their content, those
    whose ending Pillow does not know are counted, but for endings of what belongs `beside` images. InputError when there is
    no such folder, no image in it, or images both beside and inside directories.
    """
    suffixes = image_suffixes()
    passed: Counter[str] = Counter()
    top: list[str] = []

    def images() -> Iterator[tuple[str, list[File]]]:
        for level in levels(folder, "images", order):
            if not level.inside:
                top.extend(level.directories)
            for file in level.files:
                kind = ending(file.name)
                path = level.path(file.name)
                if kind in suffixes or (not kind and is_image(folder / path)):
                    yield path, [file]
                elif kind not in beside and not file.name.startswith("metadata."):
                    passed[kind] += 1

    try:
        found = by_class(folder, images(), "images", order)
    finally:
        report_passed_over(str(folder), passed, "images")
    report_empty(folder, found.names, "images", top)
    return found


class Files:
    """The image files of one folder, by number."""

    def __init__(self, folder: Path, found: Listing):
        self.where = str(folder)
        self._folder, self._found = folder, found

    def __len__(self) -> int:
        return len(self._found.files)

    def path(self, index: int) -> Path:
        return self._folder / self._found.files[index]

    def read(self, index: int) -> bytes:
        return self.path(index).read_bytes()

    def title(self, index: int) -> str:
        return self._found.files[index]

    def fingerprint(self) -> str:
        return self._found.stamp


class Folder(EncodedSection):
    """Your own image files: one folder per class, or one folder of images without classes.

    Deeper folders belong to the class they are in. Broken images are left out and named, and so are those
    without a caption where captions are needed.
    """

    own: ClassVar[bool] = True
    kind: Literal["folder"] = "folder"
    path: Path | None = None
    """The folder."""
    order: Order | None = None
    """Order of classes and files: natural, 2 before 10, or plain, by characters. By default as the run has it,
    natural for a new one."""
    caption_column: str | None = None
    """Column of the folder's metadata.jsonl, .csv or .parquet with the captions, or txt: a .txt file beside each image."""

    def open(self, split: Split = "train") -> Encoded:
        """The images of the folder, without or with those that are held out. InputError: see `scan`, `check_classes`,
        `read_captions`, `Encoded`."""
        if self.path is None:
            raise InputError("which folder? `data.path` DIR names the folder of images")
        self.check_split(split, str(self.path), "images")
        beside = frozenset({".txt"} if self.caption_column == "txt" else ())
        found = scan(self.path, self.order or "natural", beside)
        self.check_classes(found.names, str(self.path))
        captions = None
        if self.caption_column:
            captions = read_captions(self.path, found.files, self.caption_column)
        return Encoded(Files(self.path, found), found.labels, found.names, self, captions, split)
