"""One compressed image -> a Pillow image, and all that is to be known of it.

Pillow's own limit on an image's size is switched off meanwhile; `max_pixels` is the limit, and a larger image is
refused with its size before anything of it is decoded. What Pillow warns of while it decodes is not shown: an image
either can be used or is counted and named.
"""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from io import BytesIO
from typing import Literal, NamedTuple
from zlib import crc32

import numpy as np
from PIL import Image, UnidentifiedImageError

from ditkit.data.transforms import padded, pixels_of, scale_native, square, upright_size
from ditkit.errors import is_defect
from ditkit.files import first_line

DIGEST = 16  # bytes

_limit_lock = threading.Lock()
_limit_users = 0
_limit: int | None = None


@contextmanager
def own_limit() -> Iterator[None]:
    """Pillow's limit on the number of pixels is off in here, and as it was afterwards; in any number of threads."""
    global _limit_users, _limit
    with _limit_lock:
        if not _limit_users:
            _limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        _limit_users += 1
    try:
        yield
    finally:
        with _limit_lock:
            _limit_users -= 1
            if not _limit_users:
                Image.MAX_IMAGE_PIXELS = _limit


class Rule(NamedTuple):
    """What decides the pixels that are made of an image."""

    size: int
    aspect: Literal["square", "native"]
    channels: Literal[1, 3]
    max_pixels: int
    draft: bool  # whether square images are made of JPEGs decoded at a fraction of their size
    background: str = (
        ""  # the colour on which square images are laid whole; "": they are cut, and transparency is white
    )


class Facts(NamedTuple):
    """What is known of an image that was looked at."""

    digest: bytes  # of its bytes: DIGEST bytes
    reason: str = ""  # why it cannot be used; "" where it can
    width: int = 0  # as stored, but upright
    height: int = 0
    dark: bool = False  # 16-bit pixels that never exceed 12 bits
    shape: tuple[int, int] = (0, 0)  # (h, w) of its pixels, where they were made
    crc: int = 0  # of these


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """The image, not decoded yet; ValueError with the reason when it is none or larger than `max_pixels`."""
    try:
        image = Image.open(BytesIO(data))
    except UnidentifiedImageError:  # its own message names a memory address
        raise ValueError("not an image") from None
    if image.width * image.height > max_pixels:
        raise ValueError(f"{image.width} x {image.height} pixels, more than `data.max_pixels` {max_pixels}")
    return image


def make_pixels(image: Image.Image, rule: Rule) -> np.ndarray:
    """The pixels that are kept of an image just opened, uint8 (C, h, w): the square, or the native image before it is
    cut."""
    if rule.background:
        return pixels_of(padded(image, rule.size, rule.channels, rule.background))
    if rule.aspect == "square":
        if rule.draft:
            image.draft(image.mode, (2 * rule.size, 2 * rule.size))  # of JPEGs; at least twice what is needed
        return pixels_of(square(image, rule.size, rule.channels))
    return pixels_of(scale_native(image, rule.size, rule.channels))


def examine(data: bytes, rule: Rule, decode: bool = True) -> tuple[Facts, np.ndarray | None]:
    """Facts of an image, and its pixels (C, h, w) where it could be decoded; without `decode` its digest alone."""
    digest = blake2b(data, digest_size=DIGEST).digest()
    if not decode:
        return Facts(digest), None
    with own_limit(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with open_image(data, rule.max_pixels) as image:
                width, height = upright_size(image)
                dark = image.mode.startswith("I") and 255 < np.asarray(image).max() < 4096
                pixels = make_pixels(image, rule)
        except MemoryError:
            return Facts(digest, "too large for this machine's memory"), None
        except Exception as error:  # on damaged files Pillow's plugins raise nearly every kind there is
            if is_defect(error):
                raise
            return Facts(digest, first_line(error)), None
    return Facts(
        digest, "", width, height, bool(dark), (pixels.shape[1], pixels.shape[2]), crc32(pixels.data)
    ), pixels
