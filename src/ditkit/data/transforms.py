"""One Pillow image of any kind -> one 8-bit tensor: a square, or of the image's own aspect.

    prepare = to_array(center_crop(to_mode(image)))

`native_size` says how large an image is that keeps its aspect, `prepare_native` makes it so. Nothing here is random, and nothing leaves the range 0..255: augmentation lives in loader.py, the map
to [-1, 1] in the codec.
"""

from math import isqrt

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

_TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")


def to_mode(image: Image.Image, channels: int) -> Image.Image:
    """The image upright, 8-bit, opaque: mode "L" for 1 channel, "RGB" for 3.

    The EXIF orientation is applied, 16-bit values are divided by 257 (65535 -> 255) where Pillow
    would clip them, transparency is laid on white. Raises ValueError for floating-point pixels, whose
    range nobody knows.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; save the image with 8 or 16 bits")
    if image.mode.startswith(
        "I"
    ):  # "I;16" and its byte orders, and "I", as which Pillow opens some 16-bit files
        values = np.asarray(image).astype(np.float64) / 257
        image = Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))
    elif image.mode in _TRANSPARENT or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("L" if channels == 1 else "RGB")


def center_crop(image: Image.Image, size: int) -> Image.Image:
    """The central square, `size` pixels a side, by the rule of ADM (Dhariwal and Nichol, 2021).

    Halve both sides (box filter) while the short one is at least twice `size`, scale the short one to
    `size` (bicubic; up or down), cut at floored offsets. An image that already is size × size comes
    back unchanged. Statistics of ImageNet published for diffusion models assume this rule.
    """
    image = _halved(image, size, size)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    return _middle(image, size, size)


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
    pixels = torch.from_numpy(np.array(image))  # (H, W) or (H, W, 3)
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def prepare(image: Image.Image, size: int, channels: int) -> Tensor:
    """Any Pillow image as a uint8 tensor (channels, size, size)."""
    return to_array(center_crop(to_mode(image, channels), size))


def prepare_native(image: Image.Image, size: int, channels: int, shape: tuple[int, ...]) -> Tensor:
    """Any Pillow image as a uint8 tensor (channels, H, W), (H, W) = `shape` being its `native_size`.

    Scaled as ADM does, halvings by a box filter, then bicubic, and cut in the middle. A square image larger
    than size × size comes out as by `prepare`.
    """
    image = to_mode(image, channels)
    height, width = shape
    scaled = _scaled(*image.size, size)
    scaled = max(scaled[0], width), max(scaled[1], height)  # only a side below one multiple is stretched
    image = _halved(image, *scaled).resize(scaled, Image.Resampling.BICUBIC)
    return to_array(_middle(image, width, height))
