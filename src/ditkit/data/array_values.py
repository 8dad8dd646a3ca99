"""What the arrays of files mean: which are images, which labels, which axis is what, and which range values have."""

from collections.abc import Iterator, Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ditkit.data.array_files import StoredArray
from ditkit.errors import InputError
from ditkit.files import file_hash
from ditkit.progress import progress_bar

Layout = Literal["auto", "nchw", "nhwc", "nhw"]
Bounds = tuple[float, float]

IMAGES = ("arr_0", "images", "x")  # names in any case: ADM's, and usual ones
LABELS = ("labels", "y", "arr_1")
BLOCK = 1 << 26  # bytes of an array that are looked at at once


def pick_images(arrays: dict[str, StoredArray], name: str | None) -> StoredArray:
    """The array of images among those of a file: the one called `name`, the one with a usual name, or the only one that
    has three or four axes. InputError, naming what there is, where that is not one."""
    if name is not None and name in arrays:
        return arrays[name]
    usual = [array for array in arrays.values() if array.name.lower() in IMAGES]
    possible = [array for array in arrays.values() if len(array.shape) in (3, 4)]
    found = next((some for some in (usual, possible, [*arrays.values()]) if len(some) == 1), [])
    if name is None and found:
        return found[0]
    path = next(iter(arrays.values())).path
    problem = "which of its arrays are the images?" if name is None else f"no array {name!r};"
    raise InputError(f"{path}: {problem} `data.array` is one of: {_listed(arrays)}")


def pick_labels(arrays: dict[str, StoredArray], count: int, name: str | None) -> StoredArray | None:
    """The array of labels beside `count` images: the one called `name`, or that of a usual name which can be labels; None
    without one. InputError, naming what there is, where that name is not there, or two can be."""
    if name is not None and name in arrays:
        return arrays[name]
    path = next(iter(arrays.values())).path
    if name is not None:
        raise InputError(f"{path}: no array {name!r}; `data.labels` is one of: {_listed(arrays)}")
    usual = [array for array in arrays.values() if array.name.lower() in LABELS and _are_labels(array)]
    found = [array for array in usual if array.shape == (count,)]
    if len(found) > 1:
        raise InputError(f"{path}: which are the labels? `data.labels` is one of: {_listed(arrays)}")
    return found[0] if found else None


def read_labels(array: StoredArray) -> np.ndarray:
    """int64 (N,), none negative; InputError for anything else."""
    if not _are_labels(array):
        raise InputError(f"{array} is {described(array)}, not labels: give whole numbers (N,)")
    labels = array.rows(slice(None)).astype(np.int64)
    if labels.min(initial=0) < 0:
        raise InputError(f"{array} holds the label {labels.min()}; classes are numbered from 0")
    return labels


def find_layout(array: StoredArray, layout: Layout) -> Layout:
    """Which axes the array of images has. Where `layout` is auto, channels are the axis that is shorter than both others.
    InputError for an array that holds no images, or whose channels cannot be distinguished from the other axes."""
    shape, kind = array.shape, array.dtype.kind
    if array.dtype.hasobject:
        raise InputError(f"{array} holds pickled objects, which are never read; save an array of numbers")
    if kind not in "buif":
        remedy = "real and imaginary parts as two channels" if kind == "c" else "whole or real numbers"
        raise InputError(f"{array} is {described(array)}; give {remedy}")
    if len(shape) not in (3, 4) or 0 in shape:
        raise InputError(f"{array} is {described(array)}, not images: give (N, H, W) or (N, channels, H, W)")
    if len(shape) == 3 and layout in ("auto", "nhw"):
        return "nhw"
    if len(shape) == 3 or layout == "nhw":
        raise InputError(
            f"{array} is {described(array)}, which is not `data.layout` {layout}; correct it or leave it out"
        )
    if layout != "auto":
        return layout
    _, first, second, third = shape
    if first < min(second, third):
        return "nchw"
    if third < min(first, second):
        return "nhwc"
    raise InputError(
        f"{array} is {described(array)}: which axis are the channels? `data.layout` is nchw or nhwc"
    )


def channels_first(rows: np.ndarray, layout: Layout) -> np.ndarray:
    """Images of that layout as (N, C, H, W), a view."""
    if layout == "nhw":
        return rows[:, None]
    return rows.transpose(0, 3, 1, 2) if layout == "nhwc" else rows


def in_layout(images: np.ndarray, layout: Layout) -> np.ndarray:
    """Images (N, C, H, W) in that layout, a view: what `channels_first` undoes."""
    if layout == "nhw":
        return images[:, 0]
    return images.transpose(0, 2, 3, 1) if layout == "nhwc" else images


def image_shape(array: StoredArray, layout: Layout) -> tuple[int, ...]:
    """(C, H, W) of the array's images."""
    return channels_first(np.empty((0, *array.shape[1:]), np.uint8), layout).shape[1:]


def to_signed(values: np.ndarray, bounds: Bounds) -> np.ndarray:
    """Values of that range as float32 in [-1, 1]."""
    low, high = bounds
    return ((values.astype(np.float64) - low) * (2 / (high - low)) - 1).astype(np.float32)


class Extent(NamedTuple):
    """The range of an array's values."""

    low: float
    """The smallest that is finite; infinity when none is."""
    high: float
    """The largest that is finite."""
    infinite: int
    """How many are not."""
    image: int
    """The first image with such a value."""


# Of files as they were: each is looked through once in a process.
_extents: dict[tuple, Extent] = {}
_contents: dict[tuple, str] = {}


def _as_it_is(file: Path) -> tuple:
    """What changes when a file does."""
    about = file.stat()
    return file.resolve(), about.st_mtime_ns, about.st_size


def content(file: Path) -> str:
    """The hash of the file's bytes."""
    key = _as_it_is(file)
    if key not in _contents:
        _contents[key] = file_hash(file)
    return _contents[key]


def extent(array: StoredArray) -> Extent:
    """The range of all values of the array, read block by block."""
    key = (*_as_it_is(array.path), array.name)
    if key not in _extents:
        low, high, infinite, image = np.inf, -np.inf, 0, len(array)
        for start, block in _blocks(array):
            finite = np.isfinite(block)
            if not finite.all():
                rows = (~finite).reshape(len(block), -1).any(axis=1)
                infinite, image = infinite + int((~finite).sum()), min(image, start + int(rows.argmax()))
            low = min(low, float(block.min(initial=np.inf, where=finite)))
            high = max(high, float(block.max(initial=-np.inf, where=finite)))
        _extents[key] = Extent(low, high, infinite, image)
    return _extents[key]


def check_range(arrays: Sequence[StoredArray], bounds: Bounds | None) -> None:
    """InputError unless the values of all arrays are finite and in the range; without one it names the range they
    have."""
    found = [extent(array) for array in arrays]
    for array, one in zip(arrays, found, strict=True):
        if one.infinite:
            raise InputError(
                f"{array}: {one.infinite:,} values are not finite, the first in image {one.image}; replace them, or leave "
                "such images out"
            )
    low, high = min(one.low for one in found), max(one.high for one in found)
    above = max(high, float(np.nextafter(low, np.inf)))
    suggested = f"`data.range` {_outward(low, ROUND_FLOOR)} {_outward(above, ROUND_CEILING)}"
    if bounds is None:
        raise InputError(
            f"{arrays[0]} holds {arrays[0].dtype} values from {low:g} to {high:g}; say which become -1 and 1, such as "
            f"{suggested}"
        )
    for array, one in zip(arrays, found, strict=True):
        if one.low < bounds[0] or one.high > bounds[1]:
            outside = sum(
                int(((block < bounds[0]) | (block > bounds[1])).sum()) for _, block in _blocks(array)
            )
            raise InputError(
                f"{array}: {outside:,} of {np.prod(array.shape, dtype=int):,} values, which reach from {one.low:g} to "
                f"{one.high:g}, are outside `data.range` {bounds[0]:g} {bounds[1]:g}; give a wider one, such as "
                f"{suggested}, or correct them"
            )


def _blocks(array: StoredArray) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first image, some images as float64) all through an array."""
    each = max(1, BLOCK // (8 * int(np.prod(array.shape[1:]))))
    with progress_bar(len(array), "checking values", "image", delay=1.0) as bar:
        for start in range(0, len(array), each):
            block = array.rows(slice(start, min(start + each, len(array)))).astype(np.float64)
            yield start, block
            bar.update(len(block))


def _outward(value: float, rounding: str) -> str:
    """To four digits."""
    return str(Context(prec=4, rounding=rounding).create_decimal_from_float(value))


def _are_labels(array: StoredArray) -> bool:
    return array.dtype.kind in "iub" and len(array.shape) == 1


def described(array: StoredArray) -> str:
    """uint8 (10, 8, 8)"""
    return f"{array.dtype} ({', '.join(map(str, array.shape))})"


def _listed(arrays: dict[str, StoredArray]) -> str:
    return ", ".join(f"{name or array.path.name} {described(array)}" for name, array in arrays.items())
