"""What a source of images or clips is, the settings all sources share, and the two ways of holding images.

`Arrays` holds prepared pixels in memory; `Encoded` holds compressed files or rows and decodes one
when asked. Where the images come from lives in arrays.py, emoji.py, folder.py, hub.py and shards.py; how one
is made square or cut to its own size in transforms.py; order, augmentation and batches in loader.py.
"""

import logging
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from typing import Annotated, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from pydantic import Field, model_validator
from torch import Tensor

from ditkit.config import Section
from ditkit.data.transforms import prepare, prepare_native, to_mode, upright_size
from ditkit.errors import InputError
from ditkit.progress import progress_bar

Split = Literal["train", "test"]
Size = Annotated[
    int,
    Field(ge=1, description="Side of the square images, in pixels; of native ones the root of their area."),
]
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


class Listed(Protocol):
    """Things with or without a class and a caption, numbered 0 .. len - 1 in an order that never changes."""

    names: tuple[str, ...]  # of the classes, in the order of their labels; () when unlabelled
    labels: Tensor | None  # int64 (N,); None when unlabelled
    captions: Sequence[str] | None  # (N,), none of them empty; None when there are none
    broken: tuple[str, ...]  # names of those left out: they cannot be decoded, or lack a caption

    def __len__(self) -> int: ...


@runtime_checkable
class Images(Listed, Protocol):
    """A source of images."""

    def __getitem__(self, index: int) -> tuple[Image.Image, int | None]: ...

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of an image as `__getitem__` gives it, without decoding it where that can be."""


@runtime_checkable
class Clips(Listed, Protocol):
    """A source of videos, of which clips are cut."""

    def clip(self, index: int, draw: np.random.Generator | None) -> Tensor:
        """A clip of a video, uint8 (C, F, H, W): a random one by the draws of `draw`, the middle one for None."""


Source = Images | Clips


class DataSection(Section):
    """Settings every source has."""

    kind: str
    size: Size = 256
    aspect: Literal["square", "native"] = "square"
    """square: every image is cut to size × size. native: it keeps its aspect and, unless it is larger than size²
    pixels, its size; both sides are cut to multiples of what the model works on."""
    without: tuple[str, ...] = ()
    """Sizes of native images, HxW after cutting, that training leaves out."""
    channels: Channels = 3
    flip: bool = False
    """Augmentation: mirror images left to right, each with probability 1/2."""
    classes: int | None = Field(default=None, ge=0)
    """Number of classes the data must have (0: unlabelled). None: whatever is found when opened."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The nominal size in pixels: (H, W), of clips (F, H, W)."""
        return self.size, self.size

    @model_validator(mode="after")
    def _sizes_to_leave_out(self) -> "DataSection":
        for size in self.without:
            if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size):
                raise ValueError(f"--data.without {size}: a size is HxW in pixels, such as 28x12")
        if self.without and self.aspect == "square":
            raise ValueError(
                f"--data.without {' '.join(self.without)}: square images all have one size; give --data.aspect native, "
                "or leave it out"
            )
        return self

    @abstractmethod
    def open(self, split: Split = "train") -> Source:
        """The images of one part; InputError when they cannot be found or read."""

    @property
    def several_sizes(self) -> bool:
        """Whether training images are not all of one size, so that batches must be planned."""
        return self.aspect == "native"

    def training(self) -> Source:
        """What is trained on: the training part, and what there is beside it. InputError as of `open`."""
        return self.open("train")

    def check_classes(self, names: Sequence[str], where: str) -> None:
        """InputError when `where` has another number of classes than these settings ask for."""
        if self.classes is not None and self.classes != len(names):
            raise InputError(
                f"{where} has {len(names)} classes, but --data.classes is {self.classes}; "
                "correct it or leave it out"
            )


def stack(
    source: Source,
    picks: Sequence[int],
    config: DataSection,
    shape: tuple[int, ...] | None = None,
    *,
    shown: bool = True,
) -> Tensor:
    """The images `picks` of a source, prepared without augmentation: uint8 (N, C, size, size); of a source of clips
    the middle ones, (N, C, F, H, W). `shape` (H, W) is the size that all of them have as native images;
    InputError when it is missing."""
    shape = one_shape(config, shape)
    if (
        isinstance(source, Arrays)
        and source.boxes is None
        and source.images.shape[1:] == (config.channels, *shape)
    ):
        return source.images[picks]
    images = torch.empty((len(picks), config.channels, *shape), dtype=torch.uint8)
    read = reader(source, config, shape)

    def put(row: int) -> None:
        images[row] = read(picks[row], None)

    each(put, range(len(picks)), "preparing images", shown)
    return images


def one_shape(config: DataSection, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """The size of every image of a batch: `shape`, or what the section says; InputError where it says none."""
    if shape is None and config.aspect == "native":
        raise InputError(
            "--data.aspect native: images of several sizes do not make one array; take those of one size, or give "
            "--data.aspect square"
        )
    return shape or config.shape


def reader(
    source: Source, config: DataSection, shape: tuple[int, ...]
) -> Callable[[int, np.random.Generator | None], Tensor]:
    """What reads one image, prepared to `shape`, uint8 (C, H, W), or one clip, (C, F, H, W), as `Clips.clip` does."""
    if isinstance(source, Clips):
        return source.clip

    def prepared(index: int, draw: np.random.Generator | None) -> Tensor:
        image, _ = source[index]
        if config.aspect == "native":
            return prepare_native(image, config.size, config.channels, shape)
        return prepare(image, config.size, config.channels)

    return prepared


class Arrays:
    """Images held in memory: uint8 (N, C, H, W), with int64 labels (N,) or None and captions (N,) or None.

    With `boxes`, int64 (N, 4), an image is only what lies in its (left, top, right, bottom), so that images of
    unequal sizes are held, too.
    """

    broken: tuple[str, ...] = ()

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None,
        names: tuple[str, ...],
        captions: Sequence[str] | None = None,
        boxes: Tensor | None = None,
    ):
        self.images, self.labels, self.names, self.captions = images, labels, names, captions
        self.boxes = boxes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int | None]:
        left, top, right, bottom = self._box(index)
        pixels = (
            self.images[index, :, top:bottom, left:right].permute(1, 2, 0).contiguous().numpy()
        )  # (H, W, C)
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        return image, None if self.labels is None else int(self.labels[index])

    def size(self, index: int) -> tuple[int, int]:
        left, top, right, bottom = self._box(index)
        return right - left, bottom - top

    def _box(self, index: int) -> tuple[int, ...]:
        if self.boxes is None:
            return 0, 0, self.images.shape[3], self.images.shape[2]
        return tuple(self.boxes[index].tolist())


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
        self._sizes: dict[int, tuple[int, int]] = {}  # by number in the store, as they become known
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
        with self._named(number):
            image = self._decode(number)
        return image, None if self.labels is None else int(self.labels[index])

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of an image, from its header, upright; known without it of images that were checked."""
        number = self._kept[index]
        if number not in self._sizes:
            with self._named(number), self._open(number) as file:
                self._sizes[number] = upright_size(file)
        return self._sizes[number]

    @contextmanager
    def _named(self, number: int) -> Iterator[None]:
        """What goes wrong with an image, as an InputError that names it."""
        try:
            yield
        except Exception as error:
            raise InputError(
                f"{self._store.title(number)} in {self._store.where} cannot be decoded ({error}); "
                "--data.check leaves such images out"
            ) from error

    def _open(self, number: int) -> Image.Image:
        try:
            return Image.open(BytesIO(self._store.read(number)))
        except UnidentifiedImageError:  # its own message names a memory address
            raise ValueError("not an image") from None

    def _decode(self, number: int) -> Image.Image:
        with self._open(number) as file:
            return to_mode(file, self._channels)

    def _is_sound(self, number: int) -> bool:
        try:
            self._sizes[number] = self._decode(number).size
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
