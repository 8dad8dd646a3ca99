"""What a source of images is, the settings all sources share, and the two ways of holding images.

`Arrays` holds prepared pixels in memory; `Encoded` holds compressed files or rows and decodes one
when asked. Where the images come from lives in arrays.py, emoji.py, folder.py, hub.py and shards.py; how one
is made square in transforms.py; order, augmentation and batches in loader.py.
"""

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Annotated, Literal, Protocol, TypeVar

import torch
from PIL import Image, UnidentifiedImageError
from pydantic import Field
from torch import Tensor

from ditkit.config import Section
from ditkit.data.transforms import prepare, to_mode
from ditkit.errors import InputError
from ditkit.progress import progress_bar

Split = Literal["train", "test"]
Size = Annotated[int, Field(ge=1, description="Side of the square images, in pixels.")]
Channels = Annotated[Literal[1, 3], Field(description="1 for grey images, 3 for colour.")]
Result = TypeVar("Result")

log = logging.getLogger(__name__)


def each(
    function: Callable[[int], Result], items: Sequence[int], what: str, shown: bool = True
) -> list[Result]:
    """`function` of every item, in order, on a pool of threads; a progress bar when it takes long."""
    with ThreadPoolExecutor() as pool:
        results = []
        with progress_bar(len(items), what, "image", shown=shown, delay=1.0) as bar:
            for result in pool.map(function, items):
                results.append(result)
                bar.update()
        return results


class Source(Protocol):
    """Images with or without a class and a caption, numbered 0 .. len - 1 in an order that never changes."""

    names: tuple[str, ...]  # of the classes, in the order of their labels; () when unlabelled
    labels: Tensor | None  # int64 (N,); None when unlabelled
    captions: Sequence[str] | None  # (N,), none of them empty; None when there are none
    broken: tuple[str, ...]  # names of the images left out: they cannot be decoded, or lack a caption

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int | None]: ...


class DataSection(Section):
    """Settings every source has."""

    kind: str
    size: Size = 256
    channels: Channels = 3
    flip: bool = False
    """Augmentation: mirror images left to right, each with probability 1/2."""
    classes: int | None = Field(default=None, ge=0)
    """Number of classes the data must have (0: unlabelled). None: whatever is found when opened."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Height and width; of clips frames, height and width."""
        return self.size, self.size

    @abstractmethod
    def open(self, split: Split = "train") -> Source:
        """The images of one part; InputError when they cannot be found or read."""

    def check_classes(self, names: Sequence[str], where: str) -> None:
        """InputError when `where` has another number of classes than these settings ask for."""
        if self.classes is not None and self.classes != len(names):
            raise InputError(
                f"{where} has {len(names)} classes, but --data.classes is {self.classes}; "
                "correct it or leave it out"
            )


def stack(source: Source, picks: Sequence[int], config: DataSection, *, shown: bool = True) -> Tensor:
    """The images `picks` of a source, prepared without augmentation: uint8 (N, C, size, size)."""
    if isinstance(source, Arrays) and source.images.shape[1:] == (config.channels, config.size, config.size):
        return source.images[picks]
    images = torch.empty((len(picks), config.channels, config.size, config.size), dtype=torch.uint8)

    def put(row: int) -> None:
        images[row] = prepare(source[picks[row]][0], config.size, config.channels)

    each(put, range(len(picks)), "preparing images", shown)
    return images


class Arrays:
    """Images held in memory, already of one size: uint8 (N, C, H, W), with int64 labels (N,) or None and
    captions (N,) or None."""

    broken: tuple[str, ...] = ()

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None,
        names: tuple[str, ...],
        captions: Sequence[str] | None = None,
    ):
        self.images, self.labels, self.names, self.captions = images, labels, names, captions

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int | None]:
        pixels = self.images[index].permute(1, 2, 0).contiguous().numpy()  # (H, W, C)
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        return image, None if self.labels is None else int(self.labels[index])


class Store(Protocol):
    """Compressed images by number: the files of a folder, the rows of a table."""

    where: str  # what an error message calls the whole

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes: ...

    def title(self, index: int) -> str: ...


class Encoded:
    """Images that stay compressed and are decoded, to 8-bit grey or RGB, each time they are asked for.

    With `check` every image is decoded once now, on a pool of threads, and those that cannot be are
    left out, named in `broken` and logged; InputError when none is left. Without it a broken image
    raises InputError when its turn comes. Where there are `captions`, an image whose caption is None is
    left out in the same way, with or without `check`.
    """

    def __init__(
        self,
        store: Store,
        labels: Sequence[int] | None,
        names: tuple[str, ...],
        channels: int,
        check: bool,
        captions: Sequence[str | None] | None = None,
    ):
        self.names = names
        self.broken: tuple[str, ...] = ()
        self._store, self._channels = store, channels
        self._kept = list(range(len(store)))  # numbers in the store
        if captions is not None:
            self._keep(
                [captions[number] is not None for number in self._kept],
                "has a caption in UTF-8",
                "whose caption is missing, empty or not UTF-8",
                "correct them, or give another --data.caption-column",
            )
        if check:
            sound = each(self._is_sound, self._kept, "checking images")
            self._keep(sound, "can be decoded", "which cannot be decoded", "give images that Pillow reads")
        self.labels = None if labels is None else torch.tensor([labels[number] for number in self._kept])
        self.captions: Sequence[str] | None = None
        if captions is not None:
            self.captions = [captions[number] or "" for number in self._kept]  # none is None any more

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> tuple[Image.Image, int | None]:
        number = self._kept[index]
        try:
            image = self._decode(number)
        except Exception as error:
            raise InputError(
                f"{self._store.title(number)} in {self._store.where} cannot be decoded ({error}); "
                "--data.check leaves such images out"
            ) from error
        return image, None if self.labels is None else int(self.labels[index])

    def _decode(self, number: int) -> Image.Image:
        try:
            file = Image.open(BytesIO(self._store.read(number)))
        except UnidentifiedImageError:  # its own message names a memory address
            raise ValueError("not an image") from None
        with file:
            return to_mode(file, self._channels)

    def _is_sound(self, number: int) -> bool:
        try:
            self._decode(number)
        except Exception:  # on damaged files Pillow's plugins raise nearly every kind there is
            return False
        return True

    def _keep(self, good: Sequence[bool], so: str, otherwise: str, remedy: str) -> None:
        """Leave out the images that are not good, name and count them; InputError when none is."""
        bad = tuple(
            self._store.title(number) for number, is_good in zip(self._kept, good, strict=True) if not is_good
        )
        self._kept = [number for number, is_good in zip(self._kept, good, strict=True) if is_good]
        self.broken += bad
        if not self._kept:
            raise InputError(
                f"{self._store.where}: none of the {len(good)} images {so} ({bad[0]}, ...); {remedy}"
            )
        if bad:
            shown = ", ".join(bad[:5]) + (", ..." if len(bad) > 5 else "")
            log.warning(
                f"{self._store.where}: left out {len(bad)} of {len(good)} images, {otherwise}: {shown}"
            )
