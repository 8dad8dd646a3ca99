"""Two small labelled data sets that fit in memory: scikit-learn's handwritten digits, Fashion-MNIST."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from PIL import Image
from pydantic import model_validator

from ditkit.data.hub import Hub
from ditkit.data.memory import Arrays
from ditkit.data.sources import Channels, DataSection, Size, Split, each, stack
from ditkit.data.transforms import prepare
from ditkit.errors import InputError
from ditkit.lazy import torch

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where `apt install dataset-fashion-mnist` puts it
CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
DARK = 8  # grey level of 255 up to which a pixel of Fashion-MNIST is background; its hems and soles begin faintly


def in_memory(
    pixels: np.ndarray,
    labels: np.ndarray,
    names: tuple[str, ...],
    config: DataSection,
    boxes: np.ndarray | None = None,
) -> Arrays:
    """Grey uint8 images (N, H, W) with their labels (N,), at the section's size and channels; native ones as they
    are, of which with `boxes` (N, 4) only these parts are shown."""
    images = torch.from_numpy(pixels)[:, None]  # (N, 1, H, W)
    targets = torch.from_numpy(labels.astype(np.int64))
    if config.aspect == "square" and pixels.shape[1:] != config.shape:

        def resized(index: int) -> torch.Tensor:
            return prepare(Image.fromarray(pixels[index]), config.size, 1)

        images = torch.stack(each(resized, range(len(pixels)), "preparing images"))
    images = images.expand(-1, config.channels, -1, -1)  # a view: grey is stored once
    native = config.size if config.aspect == "native" else None
    return Arrays(
        images, targets, names, boxes=None if boxes is None else torch.from_numpy(boxes), native=native
    )


def bounding_boxes(pixels: np.ndarray) -> np.ndarray:
    """(left, top, right, bottom) of what each grey image (N, H, W) shows, the pixels above DARK: int64 (N, 4). An
    image that shows nothing has its own frame."""

    def span(lines: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # (N, L): the first, and one past the last
        return lines.argmax(1), lines.shape[1] - lines[:, ::-1].argmax(1)

    left, right = span(pixels.max(axis=1) > DARK)
    top, bottom = span(pixels.max(axis=2) > DARK)
    return np.stack([left, top, right, bottom], axis=1)


def every_fifth(labels: np.ndarray) -> np.ndarray:
    """Mask (N,) of the fifth, tenth, fifteenth, ... image of each class."""
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        chosen[np.flatnonzero(labels == label)[4::5]] = True
    return chosen


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array in a gzipped idx file, the format of MNIST.

    Two zero bytes, the type (8 = uint8), the number of dimensions, each length as a big-endian int32,
    then the values. InputError, naming the file, when it is missing, damaged or something else.
    """
    try:
        with gzip.open(path) as file:
            data = file.read()
    except FileNotFoundError:
        raise InputError(f"{path} is not there; `data.root` DIR names the folder of the four files") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} is damaged ({error}); fetch it again") from None
    start = 4 + 4 * dimensions
    if len(data) < start or data[:4] != bytes([0, 0, 8, dimensions]):
        raise InputError(f"{path} is not an idx file of {dimensions}-dimensional bytes; fetch it again")
    shape = np.frombuffer(data, ">i4", count=dimensions, offset=4).astype(int)
    if len(data) - start != shape.prod():
        raise InputError(
            f"{path} holds {len(data) - start} values, but its header says {shape.prod()}; fetch it again"
        )
    return np.frombuffer(bytearray(data), np.uint8, offset=start).reshape(shape)  # bytearray: writable


class Digits(DataSection):
    """1,797 handwritten digits of 8 × 8 pixels from the UCI repository, inside scikit-learn: no download.

    The fifth, tenth, fifteenth, ... image of each class is held out: 1,442 to train, 355 to test.
    """

    captioned: ClassVar[bool | None] = False
    kind: Literal["digits"] = "digits"
    size: Size = 8
    channels: Channels = 1
    classes: Literal[10] = 10
    """Fixed by the data."""

    def open(self, split: Split = "train") -> Arrays:
        """The images of one part, the grey levels 0..16 stretched to 0..255."""
        from sklearn.datasets import load_digits  # a second to import

        data = load_digits()
        chosen = every_fifth(data.target) == (split == "test")
        pixels = np.rint(data.images[chosen] * 255 / 16).astype(np.uint8)
        return in_memory(pixels, data.target[chosen], tuple("0123456789"), self)


class FashionMNIST(DataSection):
    """70,000 grey pictures of clothes, 28 × 28 (Xiao et al., 2017): 60,000 to train, 10,000 to test."""

    captioned: ClassVar[bool | None] = False
    kind: Literal["fashion-mnist"] = "fashion-mnist"
    root: Path | None = None
    """Folder of the four *-ubyte.gz files. None: where Debian installs them, else the Hugging Face Hub."""
    size: Size = 28
    channels: Channels = 1
    crop: Literal["none", "garment"] = "none"
    """garment: each picture is cut to what it shows, so that trousers are narrow and sneakers low; for native
    aspect."""
    classes: Literal[10] = 10
    """Fixed by the data."""

    @model_validator(mode="after")
    def _garments_are_native(self) -> FashionMNIST:
        if self.crop == "garment" and self.aspect == "square":
            raise ValueError(
                "`data.crop` garment makes pictures of unequal sizes; give `data.aspect` native, too"
            )
        return self

    def open(self, split: Split = "train") -> Arrays:
        """The images of one part; InputError when they are nowhere to be had, or damaged."""
        root = self.root or (DEBIAN if DEBIAN.is_dir() else None)
        if root is None:
            return self._from_hub(split)
        part = {"train": "train", "test": "t10k"}[split]
        pixels = read_idx(root / f"{part}-images-idx3-ubyte.gz", 3)
        labels = read_idx(root / f"{part}-labels-idx1-ubyte.gz", 1)
        if len(pixels) != len(labels) or labels.max(initial=0) > 9:
            raise InputError(
                f"{root}: {part} images and labels do not belong together; fetch the four files again"
            )
        return self._arrays(pixels, labels)

    def _from_hub(self, split: Split) -> Arrays:
        hub = Hub(id="zalando-datasets/fashion_mnist", size=28, channels=1, check=False)
        try:
            source = hub.open(split)
        except InputError as error:
            raise InputError(
                "Fashion-MNIST is neither installed nor reachable on the Hub: "
                "apt install dataset-fashion-mnist, or `data.root` DIR"
            ) from error
        pixels = stack(source, range(len(source)))[:, 0].numpy()  # (N, 28, 28)
        return self._arrays(pixels, np.asarray(source.labels))

    def _arrays(self, pixels: np.ndarray, labels: np.ndarray) -> Arrays:
        boxes = bounding_boxes(pixels) if self.crop == "garment" else None
        return in_memory(pixels, labels, CLOTHES, self, boxes)
