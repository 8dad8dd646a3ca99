"""A folder of image files; the first directory level is the class.

The scan is our own because `datasets`' imagefolder reads meaning into names (train, test, ...) and
silently splits or drops such folders. Here a name is a class and nothing else. Captions are read by
captions.py.
"""

import os
from pathlib import Path
from typing import Literal

from PIL import Image

from ditkit.data.captions import read_captions
from ditkit.data.sources import DataSection, Encoded, Split
from ditkit.errors import InputError


def image_suffixes() -> frozenset[str]:
    """The file endings, in lower case, of every format Pillow can open."""
    Image.init()
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be listed ({error.strerror})")


def scan(folder: Path) -> tuple[list[str], list[int] | None, tuple[str, ...]]:
    """(files, labels, class names) of a folder: paths relative to it, sorted, with `/` between parts.

    Each directory with images somewhere below it is a class, labelled in sorted order; images right
    in the folder and none below make it unlabelled (labels None, no names). Hidden entries and files
    whose ending Pillow does not know are passed over. InputError when there is no such folder, no
    image in it, or images both beside and inside directories.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; --data.path DIR names the folder of images")
    suffixes = image_suffixes()
    loose: list[str] = []
    by_class: dict[str, list[str]] = {}
    for root, directories, names in os.walk(folder, onerror=_refuse, followlinks=True):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        inside = Path(root).relative_to(folder)
        images = [
            (inside / name).as_posix()
            for name in sorted(names)
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
        ]
        if images:
            (by_class.setdefault(inside.parts[0], []) if inside.parts else loose).extend(images)
    if loose and by_class:
        raise InputError(
            f"{folder} holds images ({loose[0]}, ...) beside class folders ({next(iter(by_class))}, ...); "
            "move them so that it is one or the other"
        )
    if not loose and not by_class:
        raise InputError(f"{folder} holds no images; --data.path DIR names the folder of images")
    if loose:
        return loose, None, ()
    labels = [label for label, files in enumerate(by_class.values()) for _ in files]
    return [file for files in by_class.values() for file in files], labels, tuple(by_class)


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
