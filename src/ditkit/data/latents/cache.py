"""The cache of `ditkit encode`: shards of moments, and an index that says what they are.

    index.json                 `Index`: which encoder, which data, how many, statistics of the channels
    latents-00000.safetensors  moments (n, 2 channels, height, width), moments_flip of the mirrored images where
                               the recipe flips, labels (n,) where there are classes
    captions.json              where there are captions

Of images of their own sizes a shard has moments_HxW (n, 2 channels, H, W) for each size of latents, the images of a size in
their order, and sizes (n, 2) of all, which say whose they are.

A shard is written beside its place and renamed into it, so what is there is whole and an encoding that was
killed goes on with the next one. Until the last, index.json is called unfinished.json. Nothing in the files
depends on when or in how many sittings they were made. Each shard has a checksum of its tensors, by which what was
damaged later is found when encoding goes on, and when training first reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safetensors import SafetensorError, safe_open

from ditkit.config import Section, read_section
from ditkit.data.buckets import Size, places_by_size, written
from ditkit.data.latents.source import Latents, ShardFiles, shapes
from ditkit.data.sources import DataSection, upgraded
from ditkit.errors import InputError
from ditkit.files import tensors_hash
from ditkit.lazy import torch
from ditkit.records import parse_json

if TYPE_CHECKING:
    from torch import Tensor

INDEX, PLAN, CAPTIONS = "index.json", "unfinished.json", "captions.json"
LABELS, SIZES = "labels", "sizes"  # tensors of a shard beside the moments
# Of a shard's metadata; one key, as safetensors writes several in any order.
FACTS, CHECKSUM = "means", "sha256"
# Fields of a data section that do not decide what is encoded: none are left out, and `multiple` says whether they are square.
NOT_PIXELS = {"flip", "check", "classes", "aspect", "without", "names", "changed", "cache", "content"}

Dtype = Literal["float32", "float16"]


class Index(Section):
    """What a cache holds, and what it was made from."""

    version: Literal[1] = 1
    count: int
    """Images."""
    shape: tuple[int, int, int]
    """(2 channels, height, width) of the moments of an image, or of a square where images keep their own sizes."""
    multiple: int | None = None
    """Of images of their own sizes the pixels of which both sides are multiples; None: all are square."""
    flips: bool
    """Whether the mirrored images are there, too."""
    dtype: Dtype
    shard: int
    """Images per file."""
    encoder: str
    """SHA-256 of the weights that encoded."""
    codec: dict[str, Any]
    """id, revision and what else decides the moments."""
    data: dict[str, Any]
    """What decides which images there are and how they look."""
    names: tuple[str, ...]
    """The names of the classes; () when unlabelled."""
    captions: bool
    mean: tuple[float, ...] | None = None
    """Of each channel of the latents, over images, places and draws; None until all are encoded."""
    std: tuple[float, ...] | None = None
    """The spread, likewise."""

    @property
    def files(self) -> list[tuple[str, range]]:
        """The shards' names, and which images each holds."""
        starts = range(0, self.count, self.shard)
        return [
            (f"latents-{number:05d}.safetensors", range(start, min(start + self.shard, self.count)))
            for number, start in enumerate(starts)
        ]

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the tensors of moments."""
        return ("moments", "moments_flip") if self.flips else ("moments",)

    def of_size(self, tensor: str, size: Size) -> str:
        """The name of one of these for latents of that size."""
        return tensor if self.multiple is None else f"{tensor}_{written(size)}"

    def shapes(self, count: int, sizes: Sequence[Size]) -> dict[str, tuple[int, ...]]:
        """Those of the tensors of a shard of so many images, whose latents have these sizes, by name."""
        own = {self.shape[1:]: range(count)} if self.multiple is None else places_by_size(sizes)
        found: dict[str, tuple[int, ...]] = {
            self.of_size(name, size): (len(places), self.shape[0], *size)
            for size, places in own.items()
            for name in self.tensors
        }
        found |= {} if self.multiple is None else {SIZES: (count, 2)}
        return found | ({LABELS: (count,)} if self.names else {})


def data_facts(data: DataSection) -> dict[str, Any]:
    """What of a data section decides which images there are and how they look."""
    return data.model_dump(mode="json", exclude=NOT_PIXELS)


def known_facts(index: Index, data: DataSection) -> dict[str, Any]:
    """`data_facts` of what a cache was made from; what it does not say was not to be chosen then."""
    written = upgraded(index.data)
    return data_facts(type(data).model_construct()) | {
        name: value for name, value in written.items() if name not in NOT_PIXELS
    }


def is_whole(file: Path, plan: Index, count: int) -> bool:
    """Whether a shard is there and holds these many images, as planned, by its header and the sizes it says."""
    try:
        return shapes(file) == plan.shapes(count, _sizes(file, plan))
    except InputError:
        return False


def _sizes(file: Path, plan: Index) -> list[Size]:
    """The sizes of the latents of a shard, where they differ. InputError when it cannot be read."""
    if plan.multiple is None:
        return []
    return [tuple(size) for size in ShardFiles().rows(file, SIZES).tolist()]


def is_sound(file: Path, plan: Index, count: int) -> bool:
    """Whether a shard is there, whole, unchanged since it was written, and all its numbers are finite."""
    if not is_whole(file, plan, count):
        return False
    try:
        tensors, checksum = read_shard(file)
    except InputError:
        return False
    return checksum in (None, tensors_hash(tensors)) and all(
        value.isfinite().all() for value in tensors.values()
    )


def read_shard(file: Path) -> tuple[dict[str, Tensor], str | None]:
    """A shard's tensors and the checksum that was written with them; None in one of version 0.1. InputError when it cannot
    be read."""
    try:
        with safe_open(file, "pt") as reader:
            checksum = parse_json((reader.metadata() or {}).get(FACTS, "{}")).get(CHECKSUM)
            return {name: reader.get_tensor(name) for name in reader.keys()}, checksum  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, AttributeError) as error:
        raise InputError(f"{file} is missing or damaged ({error}); encode it again") from None


def _read_captions(file: Path) -> list[str]:
    try:
        return parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file} is missing or damaged ({error}); give the `ditkit encode` command again, it makes it again"
        ) from None


class Cache(Latents):
    """A finished cache; its files are mapped into memory, checked when they are first read, and read row by row."""

    index: Index

    def __init__(self, folder: Path):
        """InputError when a file is missing or damaged."""
        self.index = read_section(Index, folder / INDEX)
        self.names, self.shape, self.flips = self.index.names, self.index.shape, self.index.flips
        self._paths = [folder / name for name, _ in self.index.files]
        for path, (_, places) in zip(self._paths, self.index.files, strict=True):
            if not is_whole(path, self.index, len(places)):
                raise InputError(
                    f"{path} is missing or damaged; give the `ditkit encode` command again, it makes it again"
                )
        self.labels = None
        if self.names:
            self.labels = torch.cat([ShardFiles().rows(path, LABELS) for path in self._paths])
        self._sizes: list[Size] = []
        self._rows: list[int] = []  # of the tensor of its size in its shard
        for path in self._paths:
            sizes = _sizes(path, self.index)
            rows = {
                place: row for places in places_by_size(sizes).values() for row, place in enumerate(places)
            }
            self._sizes += sizes
            self._rows += [rows[place] for place in range(len(sizes))]
        if self.index.captions:
            self.captions = _read_captions(folder / CAPTIONS)
        self._files = ShardFiles()
        self._checked: set[int] = set()

    def __len__(self) -> int:
        return self.index.count

    def sizes(self, multiple: int = 1) -> Sequence[Size]:
        return self._sizes or super().sizes(multiple)

    def file(self, place: int) -> Path:
        return self._paths[place // self.index.shard]

    def row(self, place: int, mirrored: bool) -> Tensor:
        """InputError for a shard that is not as it was written."""
        shard, row = divmod(place, self.index.shard)
        if shard not in self._checked:
            tensors, checksum = read_shard(self._paths[shard])
            if checksum not in (None, tensors_hash(tensors)):
                raise InputError(
                    f"{self._paths[shard]} is damaged: it does not match its checksum; give the `ditkit encode` command again, "
                    "it makes it again"
                )
            self._checked.add(shard)
        name = self.index.tensors[mirrored]
        if self._sizes:
            name, row = self.index.of_size(name, self._sizes[place]), self._rows[place]
        return self._files.rows(self._paths[shard], name, slice(row, row + 1))[0]
