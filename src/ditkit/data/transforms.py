"""One Pillow image of any kind -> one square 8-bit tensor.

    prepare = to_array(center_crop(to_mode(image)))

Nothing here is random, and nothing leaves the range 0..255: augmentation lives in loader.py, the map
to [-1, 1] in the codec.
"""

import numpy as np
import torch
from PIL import Image, ImageOps
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
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def to_array(image: Image.Image) -> Tensor:
    """An "L" or "RGB" image as a uint8 tensor (C, H, W)."""
    pixels = torch.from_numpy(np.array(image))  # (H, W) or (H, W, 3)
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def prepare(image: Image.Image, size: int, channels: int) -> Tensor:
    """Any Pillow image as a uint8 tensor (channels, size, size)."""
    return to_array(center_crop(to_mode(image, channels), size))
