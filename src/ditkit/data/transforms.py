"""One Pillow image of any kind -> 8-bit pixels: a square, or the image's own aspect.

    prepare(image, size, channels) = to_array(center_crop(to_mode(image, channels), size))

`native_size` says how large an image is that keeps its aspect; `scale_native` and `cut_native` make it so. Nothing
here is random, and nothing leaves the range 0..255: augmentation lives in loader.py, the map to [-1, 1] in the codec.
How a file becomes a Pillow image is decoding.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, floor, isqrt
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ditkit.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

_TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")
FAINT = 8  # alpha of 255 up to which a pixel is margin
EXTREME = 8  # times as long as wide: beyond it an image is cut before it is scaled


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """The image upright, 8-bit, opaque: mode "L" for 1 channel, "RGB" for 3.

    The EXIF orientation is applied, 16-bit values are divided by 257 (65535 -> 255) where Pillow
    would clip them, transparency is laid on white. Raises ValueError for floating-point pixels, whose
    range nobody knows.
    """
    image = flatten(image)
    image.load()  # decoded now, while its file is open
    return _converted(image, "L" if channels == 1 else "RGB")


def _converted(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)  # which would copy it


def flatten(image: Image.Image) -> Image.Image:
    """The image upright, 8-bit and opaque, in a mode of its own: grey images stay "L", a quarter of the work."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save the image with 8 or 16 bits")
    if image.mode.startswith(
        "I"
    ):  # "I;16" and its byte orders, and "I", as which Pillow opens some 16-bit files
        values = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        return _on_white(image)
    return image.convert("L") if image.mode == "1" else image


def _on_white(image: Image.Image) -> Image.Image:
    """A transparent image laid on white. Of a palette its few colours are, of grey one channel: as
    `Image.alpha_composite` gives, in a fraction of the time."""
    if image.mode == "P":
        image = image.copy()
        image.apply_transparency()
        colors = image.getpalette("RGBA") or []
        palette = Image.frombytes("RGBA", (len(colors) // 4, 1), bytes(colors))
        image.putpalette(_on_white(palette).tobytes())
        return image.convert("RGB")
    if image.mode == "LA":
        white = Image.new("L", image.size, 255)
        white.paste(image.getchannel("L"), mask=image.getchannel("A"))
        return white
    image = _converted(image, "RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square, `size` pixels a side, by the rule of ADM (Dhariwal and Nichol, 2021).

    Halve both sides (box filter) while the short one is at least twice `size`, scale the short one to
    `size` (bicubic; up or down), cut at floored offsets. An image that already is size × size comes
    back unchanged. Statistics of ImageNet published for diffusion models assume this rule.
    """
    image = _halved(image, size, size)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if max(width, height) > EXTREME * size:
        return _middle_scaled(image, width, height, size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    return _middle(image, size, size)


def _middle_scaled(image: Image.Image, width: int, height: int, size: int) -> Image.Image:
    """The middle of the image as it would be after scaling to width × height, without scaling the rest: a small file
    that is a thousand times as long as wide costs no more than another."""
    spans, cuts = [], []
    for before, after in ((image.width, width), (image.height, height)):
        pixel = before / after  # of the result, in those of the image
        first = (after - size) // 2 * pixel
        reach = 2 * max(1.0, pixel) + 1  # of the bicubic filter
        low, high = max(0, floor(first - reach)), min(before, ceil(first + size * pixel + reach))
        cuts.append((low, high))
        spans.append((first - low, first + size * pixel - low))
    (left, right), (top, bottom) = cuts
    box = (spans[0][0], spans[1][0], min(spans[0][1], right - left), min(spans[1][1], bottom - top))
    return image.crop((left, top, right, bottom)).resize((size, size), Image.Resampling.BICUBIC, box=box)


def _halved(image: Image.Image, width: int, height: int) -> Image.Image:
    """Both sides halved (box filter) while both are at least twice what they shall be."""
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return image


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    """The middle of an image, cut at floored offsets."""
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) that `to_mode` will give an image just opened; only a TIFF is decoded for it."""
    if image.format == "TIFF":
        image.load()  # Pillow turns a TIFF upright itself, every other kind it leaves as stored
    turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return (image.height, image.width) if turned else image.size


def native_size(width: int, height: int, size: int, multiple: int) -> tuple[int, int]:
    """(H, W) of an image that keeps its aspect and, where its area is at most size², its size; pixels.

    A larger one is scaled to the area size², each side floored: floor(size sqrt(width / height)) and its
    like. Then what is over a multiple of `multiple` is cut off each side. A side shorter than one multiple
    is stretched to one, at the cost of the aspect; what that adds to an area above size² is cut off the other.
    """
    width, height = _scaled(width, height, size)
    height = max(multiple, height // multiple * multiple)
    width = max(multiple, min(width, size * size // height) // multiple * multiple)
    height = max(multiple, min(height, size * size // width) // multiple * multiple)
    return height, width


def _scaled(width: int, height: int, size: int) -> tuple[int, int]:
    """Both sides scaled so that the area is at most size², before cutting; 0 for less than a pixel."""
    if width * height <= size * size:
        return width, height
    return isqrt(size * size * width // height), isqrt(size * size * height // width)  # floor(sqrt), exactly


def to_array(image: Image.Image) -> Tensor:
    """An "L" or "RGB" image as a uint8 tensor (C, H, W)."""
    return torch.from_numpy(pixels_of(image))


def pixels_of(image: Image.Image) -> np.ndarray:
    """An "L" or "RGB" image as uint8 (C, H, W)."""
    pixels = np.array(image)  # (H, W) or (H, W, 3)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def prepare(image: Image.Image, size: int, channels: int) -> Tensor:
    """Any Pillow image as a uint8 tensor (channels, size, size)."""
    return to_array(square(image, size, channels))


def square(image: Image.Image, size: int, channels: int) -> Image.Image:
    """Any Pillow image upright, opaque, 8-bit and cut to size × size."""
    return _cropped_as(image, channels, lambda whole: center_crop(whole, size))


def padded(image: Image.Image, size: int, channels: int, background: str) -> Image.Image:
    """Any Pillow image, whole, in the middle of a square of the background, `size` pixels a side.

    Transparency shows the background, and transparent margins are cut off first. Scaled as by `center_crop`, up or down.
    """
    if image.mode not in _TRANSPARENT and "transparency" not in image.info:
        image = flatten(image)
    image = _converted(image, "RGBA")
    image = image.crop(image.getchannel("A").point(lambda alpha: 255 * (alpha > FAINT)).getbbox())
    opaque = Image.new("RGB", image.size, background)
    opaque.paste(image, mask=image)
    scale = size / max(image.size)
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    opaque = _halved(opaque, width, height).resize((width, height), Image.Resampling.BICUBIC)
    whole = Image.new("RGB", (size, size), background)
    whole.paste(opaque, ((size - width) // 2, (size - height) // 2))
    return _converted(whole, "L" if channels == 1 else "RGB")


def _cropped_as(image: Image.Image, channels: int, crop: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`crop` of `to_mode`, where grey becomes colour last: the three channels would be scaled alike."""
    image = flatten(image)
    image = _converted(image, "L" if channels == 1 or image.mode == "L" else "RGB")
    return _converted(crop(image), "L" if channels == 1 else "RGB")


def prepare_native(image: Image.Image, size: int, channels: int, shape: tuple[int, ...]) -> Tensor:
    """Any Pillow image as a uint8 tensor (channels, H, W), (H, W) = `shape` being its `native_size`.

    Scaled as ADM does, halvings by a box filter, then bicubic, and cut in the middle. A square image larger
    than size × size comes out as by `prepare`.
    """
    return to_array(_middle(scale_native(image, size, channels, shape), shape[1], shape[0]))


def scale_native(
    image: Image.Image, size: int, channels: int, shape: tuple[int, ...] = (1, 1)
) -> Image.Image:
    """Any Pillow image with its own aspect and an area of at most size², before it is cut to `shape` (H, W)."""

    def crop(whole: Image.Image) -> Image.Image:
        width, height = _scaled(*whole.size, size)
        width, height = (
            max(width, shape[1]),
            max(height, shape[0]),
        )  # only a side below one multiple is stretched
        return _halved(whole, width, height).resize((width, height), Image.Resampling.BICUBIC)

    return _cropped_as(image, channels, crop)


def cut_native(pixels: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """The middle (C, H, W) of what `scale_native` gave, (C, h, w), for shape (H, W); None where that must be
    stretched."""
    top, left = (pixels.shape[1] - shape[0]) // 2, (pixels.shape[2] - shape[1]) // 2
    if top < 0 or left < 0:
        return None
    return pixels[:, top : top + shape[0], left : left + shape[1]]
