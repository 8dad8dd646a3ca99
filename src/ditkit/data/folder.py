"""A folder of image files; the first directory level is the class.

The scan is our own because `datasets`' imagefolder reads meaning into names (train, test, ...) and
silently splits or drops such folders. Here a name is a class and nothing else. Captions are read by
captions.py.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from ditkit.data.captions import read_captions
from ditkit.data.sources import DataSection, Encoded, Split
from ditkit.errors import InputError
from ditkit.movies import image_suffixes


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be listed ({error.strerror})")


def listing(
    folder: Path, suffixes: frozenset[str], what: str
) -> Iterator[tuple[PurePosixPath, list[str], list[str]]]:
    """(directory, its directories, its files that end in one of the suffixes) all through a folder, sorted, relative
    to it. Hidden entries are passed over. InputError when there is no such folder of `what`."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; --data.path DIR names the folder of {what}")
    for root, directories, names in os.walk(folder, onerror=_refuse, followlinks=True):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        files = [name for name in sorted(names) if not name.startswith(".")]
        inside = PurePosixPath(Path(root).relative_to(folder).as_posix())
        yield inside, directories, [name for name in files if os.path.splitext(name)[1].lower() in suffixes]


def by_class(
    folder: Path, found: Iterable[PurePosixPath], what: str
) -> tuple[list[str], list[int] | None, tuple[str, ...]]:
    """(paths, labels, class names) of the `what` found in a folder: each one's first directory is its class.

    Classes are labelled in the order in which they are found. Those right in the folder, and none in
    directories, are unlabelled (labels None, no names). InputError when there are none, or both kinds.
    """
    loose: list[str] = []
    classes: dict[str, list[str]] = {}
    for path in found:
        (classes.setdefault(path.parts[0], []) if len(path.parts) > 1 else loose).append(str(path))
    if loose and classes:
        raise InputError(
            f"{folder} holds {what} ({loose[0]}, ...) beside class folders ({next(iter(classes))}, ...); "
            "move them so that it is one or the other"
        )
    if not loose and not classes:
        raise InputError(f"{folder} holds no {what}; --data.path DIR names the folder of {what}")
    if loose:
        return loose, None, ()
    labels = [label for label, files in enumerate(classes.values()) for _ in files]
    return [file for files in classes.values() for file in files], labels, tuple(classes)


def scan(folder: Path) -> tuple[list[str], list[int] | None, tuple[str, ...]]:
    """(files, labels, class names) of a folder: paths relative to it, sorted, with `/` between parts.

    Each directory with images somewhere below it is a class, labelled in sorted order; images right
    in the folder and none below make it unlabelled (labels None, no names). Hidden entries and files
    whose ending Pillow does not know are passed over. InputError when there is no such folder, no
    image in it, or images both beside and inside directories.
    """
    walked = listing(folder, image_suffixes(), "images")
    return by_class(folder, (inside / name for inside, _, names in walked for name in names), "images")


class Files:
    """The image files of one folder, by number."""

    def __init__(self, folder: Path, files: list[str]):
        self.where = str(folder)
        self._folder, self._files = folder, files

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> bytes:
        return (self._folder / self._files[index]).read_bytes()

    def title(self, index: int) -> str:
        return self._files[index]


class Folder(DataSection):
    """Your own image files: one folder per class, or one folder of images without classes.

    Deeper folders belong to the class they are in. Broken images are left out and named, and so are those
    without a caption where captions are asked for.
    """

    kind: Literal["folder"] = "folder"
    path: Path | None = None
    """The folder."""
    caption_column: str | None = None
    """Column of the folder's metadata.jsonl with the captions, or txt: a .txt file beside each image."""
    check: bool = True
    """Decode every image once at the start, to leave out those that are broken."""

    def open(self, split: Split = "train") -> Encoded:
        """The images of the folder; a folder has no test part. InputError: see `scan`, `check_classes`,
        `read_captions`."""
        if self.path is None:
            raise InputError("which folder? --data.path DIR names the folder of images")
        if split == "test":
            raise InputError(f"{self.path} has no held-out part; keep test images in a folder of their own")
        files, labels, names = scan(self.path)
        self.check_classes(names, str(self.path))
        captions = read_captions(self.path, files, self.caption_column) if self.caption_column else None
        return Encoded(Files(self.path, files), labels, names, self.channels, self.check, captions)
