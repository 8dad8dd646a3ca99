"""What sections and networks both count with: sizes of patches and of groups."""

from collections.abc import Sequence

from ditkit.errors import InputError

GROUPS = 8
"""The groups of a convolutional network's norms."""
MDM_GROUPS = 32
"""The same of Matryoshka Diffusion's."""


def patch_sizes(patch: int, tubelet: int) -> tuple[int, ...]:
    """(p, p), or (pt, p, p) with a tubelet."""
    return (tubelet, patch, patch) if tubelet else (patch, patch)


def image_size(size: Sequence[int]) -> tuple[int, int]:
    """(H, W) of an image's state; InputError when it is a clip's, (F, H, W)."""
    if len(size) != 2:
        raise InputError(
            f"frames asked of a network of images: a state of {'x'.join(map(str, size))} (frames, height, width); take a "
            "DiT with `backbone.tubelet` 1 or more, or leave `data.frames` out"
        )
    height, width = size
    return height, width


def check_halvings(size: Sequence[int], halvings: int, otherwise: str = "") -> None:
    """InputError unless the state of an image, (H, W), can be halved so often; `otherwise` is another remedy than its size."""
    height, width = image_size(size)
    factor = 2**halvings
    if height % factor or width % factor:
        raise InputError(
            f"a state of {height}x{width} cannot be halved {halvings} times; change `data.size` to a multiple of {factor} "
            f"(times the codec's downsampling){f' or {otherwise}' if otherwise else ''}"
        )
