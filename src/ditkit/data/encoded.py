"""Images that come compressed: the settings such sources share, and the source that reads them.

    Encoded = a store of compressed images + what one pass found out of each + the pixels it kept (prepared.py)

Without kept pixels an image is decoded each time it is read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from ditkit.data.decoding import Rule, make_pixels, open_image, own_limit
from ditkit.data.prepared import AUTO_BYTES, Prepared, default_root, kept, look, make_room
from ditkit.data.preparing import Store
from ditkit.data.sources import DataSection, Draw, Source, Split, by_itself, each, one_shape
from ditkit.data.transforms import cut_native, native_size, prepare_native, to_mode, upright_size
from ditkit.errors import InputError, is_defect
from ditkit.files import first_line
from ditkit.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

HELD_OUT = 0.02  # of a new run's own images
HeldOut = Annotated[float, Field(ge=0, lt=1)]

log = logging.getLogger(__name__)


class EncodedSection(DataSection):
    """Settings of every source of compressed images."""

    held_out: HeldOut | None = None
    """Share of the images kept for validation and scores, by a hash of each file's bytes: copies stay together, and
    added files move no other. By default as the run has it, 0.02 for a new run's own files."""
    check: bool = True
    """Decode every image once at the start, to leave out those that are broken; prepared images were."""
    cache: Literal["auto", "off"] | Path = "auto"
    """Where prepared images are kept: auto, in the user's folder of caches, 16 GB of them at most; a folder,
    whatever their size; or off, so that images are decoded each time they are read."""
    max_pixels: Annotated[int, Field(ge=1)] = 200_000_000
    """Leave out larger images; decoding this many takes up to 2 GB of memory."""
    draft: bool = False
    """Decode large JPEGs at a half, a quarter or an eighth of their size where the square needs no more: faster, and
    not the pixels of ADM's rule."""

    def check_split(self, split: Split, where: str, what: str) -> None:
        """InputError when the held-out part is asked for and there is none."""
        if split == "test" and not self.held_out:
            raise InputError(
                f"{where} has no held-out part; `data.held_out` 0.02 keeps one, or keep test {what} in a folder of "
                "their own"
            )

    @property
    def rule(self) -> Rule:
        return Rule(self.size, self.aspect, self.channels, self.max_pixels, self.draft)


class Encoded(Source):
    """The images of one part of a store, prepared as its section says.

    Those that one pass over all of them found to be broken, and where there are `captions` those whose caption is
    None, are left out, named in `broken` and logged; InputError when none is left. Where no pass was made a broken
    image raises InputError when its turn comes.
    """

    def __init__(
        self,
        store: Store,
        labels: Sequence[int] | None,
        names: tuple[str, ...],
        config: EncodedSection,
        captions: Sequence[str | None] | None = None,
        split: Split = "train",
    ):
        self.names = names
        self.broken: tuple[str, ...] = ()
        self._store, self._config, self._quiet = store, config, split == "test"
        self._kept = np.arange(len(store))  # numbers in the store
        if captions is not None:
            self._keep(
                lambda number: captions[number] is not None,
                "has a caption in UTF-8",
                "whose caption is missing, empty or not UTF-8",
                "correct them, or give another `data.caption_column`",
            )
        self._found = found_out(store, config)
        if self._found is not None:
            self._leave_out_broken(self._found)
            if config.held_out:
                digests = self._found.digests[self._kept]
                self._kept = self._kept[
                    held_out_places(digests, config.held_out, split, store.where, "images")
                ]
        self.labels = None if labels is None else torch.tensor(np.asarray(labels)[self._kept])
        self.captions: Sequence[str] | None = None
        if captions is not None:
            self.captions = [captions[int(number)] or "" for number in self._kept]  # none is None any more

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: int) -> tuple[Image.Image, int | None]:
        number = int(self._kept[index])
        with self._named(number), open_image(self._store.read(number), self._config.max_pixels) as file:
            image = to_mode(file, self._config.channels)
        return image, None if self.labels is None else int(self.labels[index])

    def size(self, index: int) -> tuple[int, int]:
        """(width, height) of an image, upright; known without opening it of images that were decoded once."""
        number = int(self._kept[index])
        if self._found is not None and self._found.sizes[number].all():
            width, height = self._found.sizes[number].tolist()
            return width, height
        with self._named(number), open_image(self._store.read(number), self._config.max_pixels) as file:
            return upright_size(file)

    def sizes(self, multiple: int = 1) -> Sequence[tuple[int, ...]]:
        config = self._config
        if config.aspect == "square":
            return [config.shape] * len(self)

        def one(index: int) -> tuple[int, ...]:
            return native_size(*self.size(index), config.size, multiple)

        return each(one, range(len(self)), "reading sizes")

    def unmirrored(
        self, places: Sequence[int], draws: Sequence[Draw] | None = None, size: tuple[int, ...] | None = None
    ) -> Tensor:
        shape = one_shape(self._config, size)

        def read(place: int, draw: Draw | None) -> Tensor:
            return self._one(place, shape)

        return by_itself(read, places, draws, (self._config.channels, *shape))

    def _one(self, index: int, shape: tuple[int, ...]) -> Tensor:
        """One image prepared as the section says, (H, W) = `shape`: uint8 (C, H, W)."""
        number, config = int(self._kept[index]), self._config
        if self._found is not None and self._found.pixels is not None:
            pixels = self._found.pixels.read(number)
            if config.aspect == "square":
                return torch.from_numpy(pixels)
            if (cut := cut_native(pixels, shape)) is not None:
                return torch.from_numpy(np.ascontiguousarray(cut))
        with self._named(number), open_image(self._store.read(number), config.max_pixels) as file:
            if config.aspect == "square":
                return torch.from_numpy(make_pixels(file, config.rule))
            return prepare_native(file, config.size, config.channels, shape)

    @property
    def decodes(self) -> bool:  # type: ignore[override]
        return self._found is None or self._found.pixels is None

    @property
    def lines(self) -> list[str]:  # type: ignore[override]
        """The store's images that can be used, both parts: the hash of each one's bytes, "-" where they were not read,
        and its title."""
        found, store = self._found, self._store
        usable = (number for number in range(len(store)) if found is None or number not in found.reasons)
        return [
            f"{'-' if found is None else found.digests[number].tobytes().hex()} {store.title(number)}"
            for number in usable
        ]

    @contextmanager
    def _named(self, number: int) -> Iterator[None]:
        """What goes wrong with an image, as an InputError that names it."""
        try:
            with own_limit():
                yield
        except InputError:
            raise
        except Exception as error:  # on damaged files Pillow's plugins raise nearly every kind there is
            if is_defect(error):
                raise
            raise InputError(
                f"{self._store.title(number)} in {self._store.where} cannot be decoded ({first_line(error)}); "
                "`data.check` leaves such images out"
            ) from error

    def _leave_out_broken(self, found: Prepared) -> None:
        self._keep(
            lambda number: number not in found.reasons,
            "can be decoded",
            "which cannot be decoded",
            "give images that Pillow reads",
            found.reasons,
        )
        dark = self._kept[found.dark[self._kept]]
        if len(dark) and not self._quiet:
            log.warning(
                f"{self._store.where}: {len(dark)} images of 16 bits use 12 of them and are nearly black, such as "
                f"{self._store.title(int(dark[0]))}; multiply their values by 16 where they are of a 12-bit camera"
            )

    def _keep(
        self,
        good: Callable[[int], bool],
        so: str,
        otherwise: str,
        remedy: str,
        reasons: dict[int, str] | None = None,
    ) -> None:
        """Leave out the images that are not good, name and count them; InputError when none is."""
        mask = np.array([good(int(number)) for number in self._kept], bool)
        bad, count = self._kept[~mask], len(self._kept)
        titles = tuple(self._store.title(int(number)) for number in bad)
        self._kept = self._kept[mask]
        self.broken += titles
        if not len(self._kept):
            raise InputError(
                f"{self._store.where}: none of the {count} images {so} ({titles[0]}, ...); {remedy}"
            )
        if len(bad) and not self._quiet:
            because = reasons or {}
            shown = [
                f"{title} ({because[int(number)]})" if int(number) in because else title
                for title, number in zip(titles[:5], bad, strict=False)
            ]
            log.warning(
                f"{self._store.where}: left out {len(bad)} of {count} images, {otherwise}: {', '.join(shown)}"
                + (", ..." if len(bad) > 5 else "")
            )


def held_out_places(digests: np.ndarray, share: float, split: Split, where: str, what: str) -> np.ndarray:
    """The places of one part among things of these digests, uint8 (N, DIGEST). InputError where it is empty."""
    held_out = digests[:, :8].copy().view(">u8")[:, 0] < int(share * 2**64)
    places = np.flatnonzero(held_out if split == "test" else ~held_out)
    if not len(places):
        part, other = ("held-out", "a larger") if split == "test" else ("training", "a smaller")
        raise InputError(
            f"{where} has no {part} part: `data.held_out` {share:g} of {len(digests)} {what}; give {other} share, or "
            f"more {what}"
        )
    return places


def found_out(store: Store, config: EncodedSection) -> Prepared | None:
    """What a pass over the store found out, with the pixels where they are kept; None where no pass is needed."""
    rule = config.rule
    if isinstance(config.cache, Path):
        return kept(store, rule, config.cache)
    root = default_root()
    if config.cache == "auto":
        needed = len(store) * rule.channels * rule.size**2
        room = make_room(root, needed)
        if needed <= room:
            try:
                return kept(store, rule, root)
            except InputError as error:
                log.warning(f"{store.where}: {error}; images are decoded as they are read")
        else:
            log.info(
                f"{store.where}: prepared images would take {needed / 1e9:.1f} GB; there is room for {max(room, 0) / 1e9:.1f} of "
                f"the {AUTO_BYTES / 1e9:.0f} GB that `data.cache` auto keeps. They are decoded as they are read; "
                "`data.cache` DIR keeps them"
            )
    if not (config.check or config.held_out):
        return None
    if config.cache == "auto":
        try:
            return kept(store, rule, root, pixels=False, decode=config.check)
        except InputError:
            pass
    return look(store, rule, config.check)
