"""What a source of images or clips is, and the settings all sources share.

Images in memory are memory.py's, compressed ones encoded.py's, clips clips.py's. Where the images come from lives in arrays.py, emoji.py, clipart.py, folder.py, hub.py and
shards.py; how one is made square or cut to its own size in transforms.py; order, augmentation and batches in loader.py.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeVar

import numpy as np
from PIL import ImageColor
from pydantic import AfterValidator, Field, model_validator

from ditkit.config import Section
from ditkit.errors import InputError
from ditkit.lazy import torch
from ditkit.progress import progress_bar
from ditkit.randomness import generator

if TYPE_CHECKING:
    from torch import Tensor

Split = Literal["train", "test"]

MOST_CLASSES = 1_000_000
"""A class's number above it is taken for a mistake: each class has an embedding."""
Size = Annotated[
    int,
    Field(
        ge=1,
        le=100_000,
        description="Side of the square images, in pixels; of native ones the root of their area.",
    ),
]


def _known_colour(name: str) -> str:
    ImageColor.getrgb(name)  # ValueError
    return name


Colour = Annotated[str, AfterValidator(_known_colour)]
"""A colour by its name or as #rrggbb."""
Channels = Annotated[Literal[1, 3], Field(description="1 for grey images, 3 for colour.")]
Result = TypeVar("Result")
AT_ONCE = 100
"""Images that are read between two movements of a progress bar."""


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


class Draw:
    """What decides how image n of a training is augmented: a function of (seed, n)."""

    def __init__(self, seed: int, number: int, flip: bool):
        self._seed, self._number, self._flip = seed, number, flip

    @property
    def mirrored(self) -> bool:
        return self._flip and generator(self._seed, self._number, "augment").random() < 0.5

    def start(self) -> np.random.Generator:
        """What draws where a clip starts; the same whether or not clips are mirrored."""
        draw = generator(self._seed, self._number, "augment")
        draw.random()  # the mirror's
        return draw


class Source(ABC):
    """Images, clips or latents, numbered 0 .. len - 1 in an order that never changes.

    One of one's own has `__len__`, `sizes` and `unmirrored`, and of the rest what it has. It travels to a loader's
    processes, so it can be pickled.
    """

    names: tuple[str, ...] = ()
    """The names of the classes, in the order of their labels; () when unlabelled."""
    labels: Tensor | None = None
    """int64 (N,); None when unlabelled."""
    captions: Sequence[str] | None = None
    """(N,), none of them empty; None when there are none."""
    broken: tuple[str, ...] = ()
    """Names of those left out: they cannot be decoded, or lack a caption."""
    lines: Sequence[str] = ()
    """Where they are of files, the hash of each one's bytes and its name."""
    decodes: bool = False
    """Whether reading means decoding, so that processes which read ahead pay."""
    pixels: int = 1
    """Along a side of what is one in `sizes`; more where these are of latents."""
    gives: Literal["images", "moments"] = "images"
    """What is read, as `Batch` names it."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def sizes(self, multiple: int = 1) -> Sequence[tuple[int, ...]]:
        """(H, W) of each as it is read, of clips (F, H, W), of moments (h, w); of images that keep their own with sides that are multiples of
        `multiple` pixels. Nothing is decoded where that can be. InputError when one cannot be read."""

    @abstractmethod
    def unmirrored(
        self, places: Sequence[int], draws: Sequence[Draw] | None = None, size: tuple[int, ...] | None = None
    ) -> Tensor:
        """As `read`, before anything is mirrored; a tensor that may be written to."""

    def read(
        self, places: Sequence[int], draws: Sequence[Draw] | None = None, size: tuple[int, ...] | None = None
    ) -> Tensor:
        """Those at `places`, (B, C, *size): uint8, or float32 in [-1, 1].

        Augmented as `draws` say, one for each, in this thread; without them not at all (of clips the middle ones). `size`
        is one of `sizes`, which all of them have; not needed where all are of one. InputError as they are read.
        """
        images = self.unmirrored(places, draws, size)
        if draws is not None:
            chosen = torch.tensor([draw.mirrored for draw in draws], dtype=torch.bool)
            images[chosen] = images[chosen].flip(-1)
        return images

    @property
    def alone(self) -> Source | None:
        """What is measured where nothing is held out: these without what is only trained on besides; None where there are
        no images."""
        return self


class DataSection(Section):
    """Settings every source has."""

    own: ClassVar[bool] = False
    """Whether these are somebody's own files, of which a new run keeps a part for validation and scores."""
    resizes: ClassVar[bool] = True
    """Whether images are made of `size`; otherwise they have the size that they have."""
    captioned: ClassVar[bool | None] = None
    """Whether images have captions; None where only opening them shows it."""
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
    names: tuple[str, ...] | None = None
    """Names of the classes, in the order of their labels; recorded when the data is opened."""
    content: str | None = None
    """Hash of the files' names and contents; recorded when the data is opened."""
    changed: Literal["refuse", "accept"] = "refuse"
    """accept: go on with a run although its images or the names of its classes have changed, and record it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The nominal size in pixels: (H, W), of clips (F, H, W)."""
        return self.size, self.size

    @property
    def of_clips(self) -> bool:
        """Whether these are clips, not images."""
        return len(self.shape) == 3

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Of images that are numbers in a range of their own, its ends, which are -1 and 1 here; None for 8-bit pixels."""
        return None

    def resolved(self) -> Self:
        """These settings with what the data's files say of size and channels filled in. InputError where they cannot be
        read."""
        return self

    def scaled(self, part: int, whole: int) -> dict[str, int]:
        """The fields of images whose sides are part / whole of these."""
        return {"size": self.size * part // whole}

    @model_validator(mode="after")
    def _sizes_to_leave_out(self) -> DataSection:
        for size in self.without:
            if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", size):
                raise ValueError(f"`data.without` {size}: a size is HxW in pixels, such as 28x12")
        if self.without and self.aspect == "square":
            raise ValueError(
                f"`data.without` {' '.join(self.without)}: square images all have one size; give `data.aspect` native, "
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

    def check_images(self, what: str) -> None:
        """InputError where these are not images of one size, which is what `what` takes."""
        if self.of_clips or self.several_sizes:
            found = "clips" if self.of_clips else "images of several sizes"
            raise InputError(f"{what}: data {self.kind} is of {found}; take images of one size")

    def training(self) -> Source:
        """What is trained on: the training part, and what there is beside it. InputError as of `open`."""
        return self.open("train")

    def check_classes(self, names: Sequence[str], where: str) -> None:
        """InputError when `where` has another number of classes than these settings ask for, or other ones."""
        if self.classes is not None and self.classes != len(names):
            raise InputError(
                f"{where} has {len(names)} classes, but `data.classes` is {self.classes}; "
                "correct it or leave it out"
            )
        if self.names and tuple(names) != self.names:
            raise InputError(f"{where} has other classes than were recorded: {differing(self.names, names)}")


def numbered_classes(count: int, where: str) -> tuple[str, ...]:
    """Names of classes that are numbers only: "0", "1", ... InputError above MOST_CLASSES, which a wrong number causes."""
    if count > MOST_CLASSES:
        raise InputError(
            f"{where}: class {count - 1}, but classes are numbered from 0 to at most {MOST_CLASSES - 1:,}; correct the label"
        )
    return tuple(map(str, range(count)))


def differing(before: Sequence[str], now: Sequence[str]) -> str:
    """What became of the names of classes, in words."""
    gone = [name for name in before if name not in now]
    new = [name for name in now if name not in before]
    if not gone and not new:
        return f"their order was {', '.join(before[:5])} ... and is {', '.join(now[:5])} ..."
    if len(gone) == len(new) == 1 and len(before) == len(now):
        return f"{gone[0]!r} is now {new[0]!r}"
    parts = [
        f"{', '.join(map(repr, names[:5]))} {word}" for names, word in ((gone, "gone"), (new, "new")) if names
    ]
    return "; ".join(parts)


_VERSION_0_1: dict[str, dict[str, Any]] = {
    "folder": {"order": "plain", "held_out": 0.0},
    "video": {"order": "plain", "held_out": 0.0},
    "webdataset": {"held_out": 0.0},
}


def upgraded(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a data section in a file of any version, as this version means them."""
    kind = values.get("kind")
    return (_VERSION_0_1.get(kind, {}) if isinstance(kind, str) else {}) | values


def stack(source: Source, places: Sequence[int], size: tuple[int, ...] | None = None) -> Tensor:
    """`source.read` of many, without augmentation; a progress bar when it takes long."""
    if not len(places):
        return source.read(places, size=size)
    parts = []
    with progress_bar(len(places), "preparing images", "image", delay=1.0) as bar:
        for start in range(0, len(places), AT_ONCE):
            parts.append(source.read(places[start : start + AT_ONCE], size=size))
            bar.update(len(parts[-1]))
    return torch.cat(parts)


def by_itself(
    read: Callable[[int, Draw | None], Tensor],
    places: Sequence[int],
    draws: Sequence[Draw] | None,
    shape: tuple[int, ...],
) -> Tensor:
    """For sources that read one image at a time, uint8 `shape`: those at `places`, (B, *shape); on a pool of threads where
    nothing is drawn, as a training's images are read by processes beside each other."""
    images = torch.empty((len(places), *shape), dtype=torch.uint8)

    def put(row: int) -> None:
        images[row] = read(places[row], None if draws is None else draws[row])

    if draws is None and len(places) > 1:
        each(put, range(len(places)), "preparing images", shown=False)
    else:
        for row in range(len(places)):
            put(row)
    return images


def one_shape(config: DataSection, size: tuple[int, ...] | None) -> tuple[int, ...]:
    """The size of every image of a batch: `size`, or what the section says; InputError where it says none."""
    if size is None and config.aspect == "native":
        raise several_sizes()
    return size or config.shape


def several_sizes() -> InputError:
    """For images that are to be one array and are of several sizes."""
    return InputError(
        "`data.aspect` native: images of several sizes do not make one array; take those of one size, or give "
        "`data.aspect` square"
    )
