"""Images in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image

from ditkit.data.sources import Draw, Source, by_itself, several_sizes
from ditkit.data.transforms import native_size, prepare_native

if TYPE_CHECKING:
    from torch import Tensor


class Arrays(Source):
    """Images kept in memory: uint8 (N, C, H, W), with int64 labels (N,) or None and captions (N,) or None.

    With `boxes`, int64 (N, 4), an image is only what lies in its (left, top, right, bottom), so that images of
    unequal sizes are kept, too. `native` says that each is read at its own size, cut as images of at most native² pixels.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None,
        names: tuple[str, ...],
        captions: Sequence[str] | None = None,
        boxes: Tensor | None = None,
        native: int | None = None,
    ):
        self.images, self.labels, self.names, self.captions = images, labels, names, captions
        self.boxes, self._native = boxes, native

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
        """(width, height) of an image."""
        left, top, right, bottom = self._box(index)
        return right - left, bottom - top

    def sizes(self, multiple: int = 1) -> Sequence[tuple[int, ...]]:
        if self._native is None:
            return [tuple(self.images.shape[2:])] * len(self)
        return [native_size(*self.size(index), self._native, multiple) for index in range(len(self))]

    def unmirrored(
        self, places: Sequence[int], draws: Sequence[Draw] | None = None, size: tuple[int, ...] | None = None
    ) -> Tensor:
        if self._native is None:
            return self.images[places]
        if size is None:
            raise several_sizes()
        most, channels = self._native, self.images.shape[1]
        if self.boxes is None and size == tuple(self.images.shape[2:]):
            return self.images[places]

        def read(place: int, draw: Draw | None) -> Tensor:
            return prepare_native(self[place][0], most, channels, size)

        return by_itself(read, places, draws, (channels, *size))

    def _box(self, index: int) -> tuple[int, ...]:
        if self.boxes is None:
            return 0, 0, self.images.shape[3], self.images.shape[2]
        return tuple(self.boxes[index].tolist())
