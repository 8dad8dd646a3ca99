"""Arrays of numbers as images: scientific data of any number of channels, in .npy, .npz or safetensors files.

    ArrayFiles(path="wind.npy", range=(-40, 40)).open().read([0, 1])      # float32 (2, C, H, W) in [-1, 1]

8-bit values are pixels, 0 to 255, and stay so. Of all others the range is stated, whose ends become -1 and 1, and they
are never rounded to 8 bits. Nothing is resized. How files are read: array_files.py; what their arrays mean:
array_values.py. Small data sets that are kept in memory: arrays.py.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from ditkit.data.array_files import WHOLE, StoredArray, find_arrays
from ditkit.data.array_values import (
    Bounds,
    Layout,
    channels_first,
    check_range,
    content,
    described,
    find_layout,
    image_shape,
    pick_images,
    pick_labels,
    read_labels,
    to_signed,
)
from ditkit.data.sources import DataSection, Draw, Source, Split, numbered_classes
from ditkit.errors import InputError
from ditkit.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor


class Numbers(Source):
    """The images of stored arrays, read when they are needed."""

    def __init__(
        self,
        arrays: Sequence[StoredArray],
        layout: Layout,
        bounds: Bounds | None,
        labels: Tensor | None,
        names: tuple[str, ...],
        lines: Sequence[str] = (),
    ):
        """`lines`: the files and the hashes of their content, to be recorded with a run."""
        self.labels, self.names, self.lines = labels, names, lines
        self._arrays, self._layout, self._bounds = arrays, layout, bounds
        self._ends = list(accumulate(map(len, arrays)))

    def __len__(self) -> int:
        return self._ends[-1]

    def sizes(self, multiple: int = 1) -> Sequence[tuple[int, ...]]:
        return [image_shape(self._arrays[0], self._layout)[1:]] * len(self)

    def unmirrored(
        self, places: Sequence[int], draws: Sequence[Draw] | None = None, size: tuple[int, ...] | None = None
    ) -> Tensor:
        """(B, C, H, W): float32 whose -1 and 1 are the ends of the range, or uint8 where none is stated."""
        shape = image_shape(self._arrays[0], self._layout)
        rows = np.empty((len(places), *shape), np.uint8 if self._bounds is None else np.float32)
        by_array: dict[int, list[int]] = {}
        for row, place in enumerate(places):
            by_array.setdefault(bisect_right(self._ends, place), []).append(row)
        for number, some in by_array.items():
            begin = self._ends[number - 1] if number else 0
            values = channels_first(
                self._arrays[number].rows([places[row] - begin for row in some]), self._layout
            )
            rows[some] = values if self._bounds is None else to_signed(values, self._bounds)
        return torch.from_numpy(rows)


class ArrayFiles(DataSection):
    """Arrays of numbers in .npy, .npz or safetensors files, 8-bit or with a stated range; any number of channels.

    An array is (N, H, W) or (N, channels, H, W), channels first or last; a folder's follow each other. Height, width
    and channels are the array's own: nothing is resized.
    """

    resizes: ClassVar[bool] = False
    captioned: ClassVar[bool | None] = False
    kind: Literal["arrays"] = "arrays"
    path: Path | None = None
    """The file, or a folder of such files, which are taken in natural order: 2 before 10."""
    test: Path | None = None
    """The held-out part, a file or a folder likewise."""
    array: str | None = None
    """Name of the images' array in .npz and safetensors files. None: arr_0, images or x, or the only one that can be."""
    labels: str | None = None
    """Name of the array of class numbers in these files (None: labels, y or arr_1), or an .npy file of them."""
    test_labels: str | None = None
    """The same of the held-out part. None: `labels`, where that is a name."""
    layout: Layout = "auto"
    """The array's axes: nchw, nhwc or nhw. auto: channels are the axis that is shorter than both others."""
    range: Bounds | None = None
    """Lowest and highest value, which become -1 and 1; needed for all but 8-bit values."""
    names: tuple[str, ...] | None = None
    """Names of the classes, in the order of their numbers; by default the numbers."""
    size: Annotated[int, Field(ge=0)] = 0
    """Height in pixels, to be checked. 0: as the array has it."""
    width: Annotated[int, Field(ge=0)] = 0
    """Width in pixels, likewise."""
    channels: Annotated[int, Field(ge=0)] = 0  # type: ignore[assignment]
    """Channels, likewise."""
    aspect: Literal["square"] = "square"
    """Fixed: all images are of one size, whatever their aspect."""
    check: bool = True
    """Look at all values once at the start: any out of the range, or not finite, is refused, and so is a run's file that
    has changed."""

    @model_validator(mode="after")
    def _low_is_below_high(self) -> ArrayFiles:
        if self.range and not (all(map(isfinite, self.range)) and self.range[0] < self.range[1]):
            raise ValueError(
                f"`data.range` {self.range[0]:g} {self.range[1]:g}: give LOW HIGH, two numbers that rise"
            )
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size, self.width or self.size

    @property
    def bounds(self) -> Bounds | None:
        return self.range

    def resolved(self) -> ArrayFiles:
        """The same with height, width, channels and layout as the files have them, of which only headers are read.
        InputError as of `open`, values apart."""
        if self.size and self.width and self.channels and self.layout != "auto":
            return self
        arrays, layout = self._arrays("train")
        channels, height, width = image_shape(arrays[0], layout)
        found = {"size": height, "width": width, "channels": channels, "layout": layout}
        resolved = self.model_copy(update=found)
        if self.test is not None:
            resolved._arrays("test")
        return resolved

    def open(self, split: Split = "train") -> Numbers:
        """The images of one part. InputError: no such files or arrays, arrays of several shapes or types, an unclear
        layout, labels that are none, values that need a range, are out of it or not finite."""
        arrays, layout = self._arrays(split)
        label_arrays = self._label_arrays(arrays, split)
        labels, names = self._labels(arrays, label_arrays)
        self.check_classes(names, str(arrays[0].path))
        pixels = arrays[0].dtype == np.uint8
        if self.range is None and not pixels:
            check_range(arrays, None)
        elif self.range and self.check:
            check_range(arrays, self.range)
        lines = self._lines(arrays, label_arrays)
        return Numbers(arrays, layout, self.range, labels, names, lines)

    def training(self) -> Numbers:
        if self.test is not None:
            self.open("test")  # what is wrong with it must not be taken for "nothing is held out"
        return self.open("train")

    def scaled(self, part: int, whole: int) -> dict[str, int]:
        return {"size": self.size * part // whole, "width": self.width * part // whole}

    def _files(self, split: Split) -> list[dict[str, StoredArray]]:
        """The arrays of each of a part's files, without files that hold its labels or the other part."""
        path = self.path if split == "train" else self.test
        if path is None and split == "train":
            raise InputError(
                "which arrays? `data.path` names an .npy, .npz or safetensors file, or a folder of them"
            )
        if path is None:
            raise InputError(f"{self.path} has no held-out part; `data.test` names a file of it")
        apart = {Path(name).resolve() for name in (self.labels, self.test_labels, self.test) if name}
        found = [arrays for arrays in find_arrays(path) if arrays]
        if path.is_dir():
            found = [arrays for arrays in found if next(iter(arrays.values())).path.resolve() not in apart]
        if not found:
            raise InputError(f"{path} holds no arrays of images; `data.path` names others")
        return found

    def _arrays(self, split: Split) -> tuple[list[StoredArray], Layout]:
        """A part's arrays of images and their layout, checked against each other and these settings."""
        arrays = [pick_images(file, self.array) for file in self._files(split)]
        first = arrays[0]
        layout = find_layout(first, self.layout)
        for array in arrays[1:]:
            if (array.shape[1:], array.dtype) != (first.shape[1:], first.dtype):
                raise InputError(
                    f"{array} is {described(array)}, {first} is {described(first)}; give arrays of one kind and size"
                )
        channels, height, width = image_shape(first, layout)
        for name, chosen, there in (
            ("channels", self.channels, channels),
            ("size", self.size, height),
            ("width", self.width, width),
        ):
            if chosen not in (0, there):
                raise InputError(
                    f"{first} is {described(first)}, which are images of {height}x{width} with {channels} channels "
                    f"({layout}), but `data.{name}` is {chosen}; correct it, or leave it out: nothing is resized"
                )
        return arrays, layout

    def _labels(
        self, arrays: Sequence[StoredArray], found: Sequence[StoredArray]
    ) -> tuple[Tensor | None, tuple[str, ...]]:
        """The labels of a part's images, from the arrays of labels that were found, and the classes' names."""
        if not found:
            if self.names:
                raise InputError(f"`data.names`: {arrays[0].path} has no labels; `data.labels` names them")
            return None, ()
        labels = np.concatenate([read_labels(array) for array in found])
        count, most = sum(map(len, arrays)), int(labels.max(initial=-1)) + 1
        if len(labels) != count:
            raise InputError(f"{found[0]} has {len(labels)} labels for {count} images; give one for each")
        if self.names and most > len(self.names):
            raise InputError(
                f"{found[0]} has labels up to {most - 1}, but `data.names` are {len(self.names)}; give {most}"
            )
        return torch.from_numpy(labels), self.names or numbered_classes(
            max(most, self.classes or 0), str(found[0])
        )

    def _lines(self, arrays: Sequence[StoredArray], labels: Sequence[StoredArray]) -> list[str]:
        """The files, each with the hash of its content, "-" where it was not looked at."""
        files = dict.fromkeys(array.path for array in (*arrays, *labels))
        return [f"{content(file) if self.check else '-'} {file.name}" for file in files]

    def _label_arrays(self, arrays: Sequence[StoredArray], split: Split) -> list[StoredArray]:
        """A part's arrays of labels, in order; none when it is unlabelled."""
        if self.classes == 0:
            return []
        chosen = self.labels if split == "train" else self.test_labels or self.labels
        if chosen is not None and Path(chosen).suffix.lower() == ".npy":
            if split == "test" and self.test_labels is None:
                raise InputError(
                    f"`data.labels` {chosen}: `data.test_labels` names those of the held-out part"
                )
            return [find_arrays(Path(chosen))[0][WHOLE]]
        files = zip(self._files(split), arrays, strict=True)
        found = [pick_labels(file, len(array), chosen) for file, array in files]
        labels = [array for array in found if array is not None]
        if labels and len(labels) < len(found):
            raise InputError(
                f"{arrays[found.index(None)].path} has no labels, {labels[0].path} has; give all of them some, or "
                "`data.classes` 0"
            )
        return labels
