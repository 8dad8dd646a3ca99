"""Embeddings of a data set's captions, computed once and read from disk.

    text.json                encoder, count, the captions themselves
    text-00000.safetensors   of 10,000 captions: tokens (T, D) of all one after another, without padding; starts
                             (N + 1,), where each begins; pooled (N, D); sums (N,), a checksum of each; whose they are

Tokens are kept in the encoder's own precision, so reading gives what encoding gave, bit for bit. Equal captions
are kept once, and the empty one always. Files are written beside their places and renamed into them, the index last:
what is there is whole, and what was stopped goes on after the last whole file. Each caption's numbers are checked
against their sum when they are read; files of version 0.1 may have none.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal
from zlib import crc32

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ditkit.config import Section
from ditkit.errors import InputError
from ditkit.files import save_tensors
from ditkit.progress import progress_bar
from ditkit.records import read_json, write_whole
from ditkit.text.encoders import DTYPES, Text, TextConfig, TextEncoder
from ditkit.text.files import find_folder, identity

INDEX = "text.json"
KINDS = {torch.float32: "F32", torch.bfloat16: "BF16"}  # in safetensors' words
SHARD = 10_000  # captions per file


class TextIndex(Section):
    """What a cache holds, and what it was made with."""

    version: Literal[1] = 1
    encoder: TextConfig
    """Name, length and precision."""
    identity: str
    """SHA-256 of the encoder's files."""
    dim: int
    shard: int
    """Captions per file."""
    captions: tuple[str, ...]
    """Different ones, the empty one among them."""

    @property
    def files(self) -> list[tuple[str, tuple[str, ...]]]:
        """Names, and which captions each holds."""
        starts = range(0, len(self.captions), self.shard)
        return [
            (f"text-{number:05d}.safetensors", self.captions[start : start + self.shard])
            for number, start in enumerate(starts)
        ]

    def owner(self, captions: Sequence[str]) -> dict[str, str]:
        """What a file of these captions says of itself: one remark, as safetensors writes several in any order."""
        encoder = self.encoder.model_dump(include={"length", "dtype"})
        of = {"identity": self.identity, **encoder, "captions": captions_hash(captions)}
        return {"of": json.dumps(of)}


def distinct(captions: Iterable[str]) -> tuple[str, ...]:
    """The empty caption, then every other once, in the order of its first appearance."""
    return tuple(dict.fromkeys(["", *captions]))


def captions_hash(captions: Sequence[str]) -> str:
    """SHA-256 of captions in their order."""
    return hashlib.sha256(json.dumps(list(captions)).encode()).hexdigest()


def embed(
    captions: Iterable[str],
    config: TextConfig,
    folder: Path,
    *,
    device: torch.device | str = "cpu",
    batch: int = 64,
) -> "TextCache":
    """The cache of these captions in a folder: made, or read where it is. The encoder is freed before returning.

    InputError: the folder holds another encoder's embeddings or lacks some, or the encoder cannot be had.
    """
    if not (folder / INDEX).is_file():
        _write(config.build(device), distinct(captions), folder, batch)
        return TextCache(folder)
    cache = TextCache(folder)
    cache.check(config, captions)
    return cache


def _write(encoder: TextEncoder, captions: tuple[str, ...], folder: Path, batch: int) -> None:
    """The files that are not there, then the index."""
    index = TextIndex(
        encoder=encoder.config, identity=encoder.identity, dim=encoder.dim, shard=SHARD, captions=captions
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with progress_bar(len(captions), "reading captions", "caption", delay=1.0) as bar:
            for name, part in index.files:
                if _owner(folder / name) != index.owner(part):
                    save_tensors(folder / name, _tensors(encoder, part, batch), index.owner(part))
                bar.update(len(part))
        write_whole(folder / INDEX, index.model_dump_json(indent=1).encode())
    except (OSError, SafetensorError) as error:
        raise InputError(f"{folder}: cannot write the captions' embeddings ({error}); make room") from None


def _owner(file: Path) -> dict[str, str] | None:
    """What a file says of itself; None where there is none, or none that can be read."""
    try:
        with safe_open(file, framework="pt") as reader:
            return reader.metadata()
    except (OSError, SafetensorError):
        return None


def _tensors(encoder: TextEncoder, captions: Sequence[str], batch: int) -> dict[str, Tensor]:
    tokens, pooled, lengths = [], [], [0]
    for start in range(0, len(captions), batch):
        text = encoder.encode(captions[start : start + batch], batch)
        tokens.append(text.tokens[text.mask].to(getattr(torch, DTYPES[encoder.config.dtype])).cpu())
        pooled.append(text.pooled.cpu())
        lengths += text.mask.sum(1).tolist()
    ends = torch.tensor(lengths).cumsum(0).tolist()
    parts = {"tokens": torch.cat(tokens), "pooled": torch.cat(pooled)}
    rows = zip(pairwise(ends), parts["pooled"], strict=True)
    sums = [_sum(parts["tokens"][start:end], row) for (start, end), row in rows]
    return parts | {"starts": torch.tensor(ends), "sums": torch.tensor(sums)}


def _sum(tokens: Tensor, pooled: Tensor) -> int:
    """CRC-32 of a caption's numbers."""
    found = 0
    for part in (tokens, pooled):
        found = crc32(part.contiguous().view(torch.uint8).numpy().data, found)
    return found


class TextCache:
    """Captions to `Text`, from a folder that `embed` wrote. Memory-mapped: only what is needed is read."""

    def __init__(self, folder: Path):
        """InputError when the folder holds no whole cache."""
        self.folder = folder
        if not (folder / INDEX).is_file():
            raise InputError(f"{folder} holds no embeddings of captions ({INDEX} is not there)")
        try:
            content = read_json(folder / INDEX)
        except InputError as error:
            raise InputError(f"{error}: it is damaged; delete the folder") from None
        self.index = TextIndex.checked(content, str(folder / INDEX))
        self.dim, self.length = self.index.dim, self.index.encoder.length
        self._rows = {caption: row for row, caption in enumerate(self.index.captions)}
        self._shards = [_Shard(folder / name, self.index, part) for name, part in self.index.files]

    def __len__(self) -> int:
        return len(self.index.captions)

    def __call__(self, captions: Sequence[str]) -> Text:
        """What the encoder gave for these captions: tokens (B, M, D), mask (B, M), pooled (B, D), on the CPU.

        InputError naming a caption that is not in the cache.
        """
        tokens = torch.zeros((len(captions), self.length, self.dim))
        mask = torch.zeros((len(captions), self.length), dtype=torch.bool)
        pooled = torch.zeros((len(captions), self.dim))
        for place, caption in enumerate(captions):
            number, row = divmod(self._row(caption), self.index.shard)
            found, pooled[place] = self._shards[number].read(row)
            tokens[place, : len(found)] = found.float()
            mask[place, : len(found)] = True
        return Text(tokens, mask, pooled)

    def check(self, config: TextConfig, captions: Iterable[str]) -> None:
        """InputError, with both values, unless all these captions were embedded by this encoder."""
        mine = self.index.encoder
        for name in ("length", "dtype"):
            here, there = getattr(mine, name), getattr(config, name)
            if here != there:
                raise InputError(
                    f"{self.folder}: its captions were embedded with `text.{name}` {here}, not {there}; give "
                    "another folder"
                )
        if self.index.identity != (found := identity(find_folder(config.id, config.revision))):
            raise InputError(
                f"{self.folder}: its captions were embedded by {mine.id} ({self.index.identity[:12]}), not by "
                f"{config.id} ({found[:12]}); give another folder"
            )
        absent = [caption for caption in distinct(captions) if caption not in self._rows]
        if absent:
            raise InputError(
                f"{self.folder} lacks {len(absent)} of the data's captions, {absent[0][:50]!r} among them; give "
                "another folder"
            )

    def _row(self, caption: str) -> int:
        try:
            return self._rows[caption]
        except KeyError:
            raise InputError(
                f"{self.folder}: {caption[:50]!r} is not among its captions; embed it anew"
            ) from None


class _Shard:
    """A file of a cache."""

    def __init__(self, file: Path, index: TextIndex, captions: Sequence[str]):
        """InputError when it is damaged or another's."""
        self._path = file
        try:
            self._file = safe_open(file, framework="pt")
            names = {*self._file.keys()}
            starts = self._file.get_tensor("starts")
            self._sums = self._file.get_tensor("sums").tolist() if "sums" in names else None
            forms = [self._form(name) for name in ("tokens", "pooled")]
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file} is damaged ({error}); delete the folder") from None
        count, kind = len(captions), getattr(torch, DTYPES[index.encoder.dtype])
        fits = (starts.dtype, starts.shape) == (torch.int64, (count + 1,)) and forms == [
            (KINDS[kind], (int(starts[-1]), index.dim)),
            (KINDS[torch.float32], (count, index.dim)),
        ]
        if not fits or self._file.metadata() != index.owner(captions):
            raise InputError(
                f"{file.parent}: {file.name} and {INDEX} do not belong together; delete the folder"
            )
        lengths = starts.diff()
        if starts[0] != 0 or lengths.min() < 0 or lengths.max() > index.encoder.length:
            raise self._damaged()
        self._starts = starts.tolist()
        self._checked = bytearray(count)

    def _form(self, name: str) -> tuple[str, tuple[int, ...]]:
        part = self._file.get_slice(name)
        return part.get_dtype(), tuple(part.get_shape())

    def read(self, row: int) -> tuple[Tensor, Tensor]:
        """A caption's tokens (n, D) and pooled (D,); InputError where they are not what was written."""
        tokens, pooled = self._tokens[self._starts[row] : self._starts[row + 1]], self._pooled[row]
        if (
            self._sums is not None and not self._checked[row]
        ):  # once: training reads every caption in every epoch
            if _sum(tokens, pooled) != self._sums[row]:
                raise self._damaged()
            self._checked[row] = True
        return tokens, pooled

    def _damaged(self) -> InputError:
        return InputError(
            f"{self._path} is damaged: its numbers are not what was written; delete the folder {self._path.parent}, it "
            "is made again"
        )

    @cached_property
    def _tokens(self) -> Tensor:
        return self._file.get_tensor("tokens")  # a view of the file; nothing is read yet

    @cached_property
    def _pooled(self) -> Tensor:
        return self._file.get_tensor("pooled")
