"""Compressed files that are small on disk and huge unpacked. None takes the memory, or minutes."""

import gzip
import io
import pickle
import shlex
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from faults.foreign import captioned, text_flags
from faults.inputs import ASSETS, CPU, clean, picture, shard, short_training, source_flags
from faults.judging import judge, limited
from faults.mutations import Sound
from faults.tally import Tally

BLOCK = 1 << 24  # bytes that are unpacked from one piece
HUGE = 1 << 32
SECONDS = 40  # that a command may take at most, on a machine that does other things, too


@cache
def _deflated(byte: bytes, count: int) -> bytes:
    """Raw deflate of a byte so many times, in pieces that can stand one after another."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    piece = packer.compress(byte * count)
    return piece + packer.flush(zlib.Z_FULL_FLUSH)


def _stream(begin: bytes, repeated: bytes, size: int) -> tuple[bytes, int, int]:
    """Raw deflate of `begin` and then of a byte over and over, its crc and its length."""
    blocks = size // BLOCK
    packer = zlib.compressobj(1, zlib.DEFLATED, -15)
    head = packer.compress(begin) + packer.flush(zlib.Z_FULL_FLUSH)
    crc = zlib.crc32(begin)
    if blocks < 16:  # what reads so much to its end may look at its checksum
        for _ in range(blocks):
            crc = zlib.crc32(repeated * BLOCK, crc)
    end = zlib.compressobj(1, zlib.DEFLATED, -15).flush()
    return head + _deflated(repeated, BLOCK) * blocks + end, crc, len(begin) + blocks * BLOCK


def _zip(members: dict[str, tuple[bytes, bytes, int]]) -> bytes:
    """A zip of members given as what they begin with, a byte that follows, and their size."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, (begin, repeated, size) in members.items():
            packed, crc, length = _stream(begin, repeated, size)
            info = zipfile.ZipInfo(name)
            with archive.open(info, "w", force_zip64=True) as member:
                member.write(packed)
            # It was stored as it is; now the directory calls it deflated, and says how long it becomes.
            info.compress_type, info.CRC, info.file_size = zipfile.ZIP_DEFLATED, crc, length
            _correct(out, info)
    return out.getvalue()


def _correct(out: io.BytesIO, info: zipfile.ZipInfo) -> None:
    """Make a member's own header agree with the directory."""
    end = out.tell()
    out.seek(info.header_offset)
    out.write(info.FileHeader(zip64=True))
    out.seek(end)


def _npy(shape: tuple[int, ...], kind: str) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue()


def _long_header() -> bytes:
    """The beginning of an array whose header has a gigabyte of blanks."""
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", HUGE - 1 & ~(BLOCK - 1)) + b"{"


Bomb = Callable[[Random, Path, Path], list[object]]
"""Writes one into the folder, second; the command that reads it."""


def _array(draw: Random, *shapes: tuple[int, ...]) -> tuple[bytes, bytes, int]:
    """A member: of an honest huge array, of a small one with huge content, or of one with a huge header."""
    size = draw.choice((HUGE, 2 * HUGE, HUGE // 4))
    if draw.random() < 0.2:
        return _long_header(), b" ", size
    kind = draw.choice(("|u1", "<f4", "<f8", "<i8"))
    shape = draw.choice((*shapes, (size // np.dtype(kind).itemsize,)))
    return _npy(shape, kind), b"\0", size


def _samples(draw: Random, made: Path, folder: Path) -> list[object]:
    file = folder / "samples.npz"
    images = (
        (_npy((HUGE >> 6, 8, 8, 1), "|u1"), b"\0", HUGE)
        if draw.random() < 0.5
        else _array(draw, (16, 8, 8, 1))
    )
    file.write_bytes(_zip({"arr_0.npy": images, "labels.npy": _array(draw, (16,))}))
    return ["eval", file, "--reference", "digits", "--features", "classifier", *CPU]


def _statistics(draw: Random, made: Path, folder: Path) -> list[object]:
    names = draw.choice((("mu", "sigma"), ("network", "network_hash"), ("mu", "sigma", "rows", "network")))
    file = folder / "statistics.npz"
    file.write_bytes(_zip({f"{name}.npy": _array(draw, (64,), (64, 64)) for name in names}))
    ruler = f"classifier={ASSETS / 'classifiers' / 'digits.safetensors'}"
    return ["eval", made / "images", "--reference", file, "--features", ruler, *CPU]


def _arrays(draw: Random, made: Path, folder: Path) -> list[object]:
    file = folder / "data.npz"
    file.write_bytes(_zip({"images.npy": _array(draw, (HUGE >> 6, 8, 8, 1), (16, 8, 8, 1))}))
    ranged = ["--data.range", 0, 255, "--backbone.patch", 2]
    return ["train", "digits", "--data", "arrays", "--data.path", file, *ranged, *short_training(folder)]


def _torch(draw: Random) -> bytes:
    """A zip of torch's whose pickle, or whatever else it has, is huge: values that are thrown away, marks, numbers."""
    begin, repeated = draw.choice(
        ((b"\x80\x02", b"0"), (b"\x80\x02", b"("), (b"\x80\x02", b"N"), (b"\x80\x02]", b"]"))
    )
    small = pickle.dumps({"x_embedder.proj.weight": 1}, protocol=2)
    member = draw.choice(("data.pkl", "data.pkl", "byteorder", "version", "data/0"))
    members = {"a/data.pkl": (small, b"\0", 0), "a/version": (b"3\n", b"\0", 0)}
    if member == "data.pkl":
        members["a/data.pkl"] = begin, repeated, HUGE
    else:
        members[f"a/{member}"] = b"little" if member == "byteorder" else b"3", b"\0", HUGE
    return _zip(members)


def _weights(draw: Random, made: Path, folder: Path) -> list[object]:
    file = folder / draw.choice(("DiT.pt", "U-DiT.pth", "SiT.pt"))
    file.write_bytes(_torch(draw))
    return draw.choice(
        [["info", file], ["convert", file, "--kind", "DiT", "--heads", 4, "--out", folder / "out"]]
    )


def _rulers(draw: Random, made: Path, folder: Path) -> list[object]:
    name = draw.choice(("inception", "efficientnet", "efficientnet-112"))
    file = folder / "weights.pth"
    file.write_bytes(_torch(draw))
    return ["eval", made / "images", "--reference", "digits", "--features", f"{name}={file}", *CPU]


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


@cache
def _inflating(size: int) -> bytes:
    """zlib's form of so many zeros; its checksum is wrong, which shows only at its end."""
    return b"\x78\x01" + _stream(b"", b"\0", size)[0] + bytes(4)


def _png(draw: Random) -> bytes:
    """A digit with a huge text, profile or image data, before or after its own, or in truth huge."""
    whole = picture(draw.randrange(100), "png")
    if draw.random() < 0.1:
        file = io.BytesIO()
        Image.new("L", (20_000, 20_000)).save(file, "PNG", compress_level=1)
        return file.getvalue()
    packed = _inflating(draw.choice((1 << 27, 1 << 30, HUGE)))
    name, content = draw.choice(
        (
            (b"zTXt", b"Comment\0\0" + packed),
            (b"iTXt", b"Comment\0\1\0\0\0" + packed),
            (b"iCCP", b"icc\0\0" + packed),
            (b"IDAT", packed),
        )
    )
    times = draw.choice((1, 1, 1, 20))
    end = len(whole) - 12
    place = draw.choice((33, end))  # after the header, or before the end
    return whole[:place] + _chunk(name, content) * times + whole[place:]


def _images(draw: Random, made: Path, folder: Path) -> list[object]:
    data = folder / "data"
    data.mkdir()
    for number in range(3):
        (data / f"{number}.png").write_bytes(_png(draw))
    (data / "good.png").write_bytes(picture(2, "png"))
    kept = ["--data.held-out", 0, "--data.cache", folder / "cache"]
    return ["train", "digits", *source_flags("folder", data), *kept, *short_training(folder)]


def _tars(draw: Random, made: Path, folder: Path) -> list[object]:
    """A tar that is compressed, of a member that is huge."""
    data = folder / "shards"
    data.mkdir()
    (data / "1.tar").write_bytes(shard(Sound(0)))
    begin, repeated = draw.choice(((shard(Sound(0))[:512], b"\0"), (b"", b"\0"), (shard(Sound(0)), b"\0")))
    packed, crc, length = _stream(begin, repeated, HUGE)
    header = gzip.compress(b"")[:10]
    content = header + packed + struct.pack("<II", crc, length % 2**32)
    (data / draw.choice(("0.tar", "0.tar", "0.tar.gz"))).write_bytes(content)
    return [
        "train",
        "digits",
        *source_flags("webdataset", data),
        "--data.held-out",
        0,
        *short_training(folder),
    ]


@cache
def _long_table(rows: int) -> bytes:
    """Parquet of so many equal rows, which take no room there."""
    import pyarrow
    import pyarrow.parquet

    places = pyarrow.array(np.zeros(rows, np.int8))
    columns = {
        name: pyarrow.DictionaryArray.from_arrays(places, pyarrow.array([value]))
        for name, value in (("file_name", "1.png"), ("text", "a picture of the digit one"))
    }
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file, store_schema=False)
    return file.getvalue()


def _tables(draw: Random, made: Path, folder: Path) -> list[object]:
    data = folder / "data"
    captioned(data)
    (data / "metadata.parquet").write_bytes(_long_table(draw.choice((3_000_000, 30_000_000))))
    return ["train", "emoji-t2i", *text_flags(made, data), *short_training(folder)]


BOMBS: dict[str, Bomb] = {
    "samples": _samples, "statistics": _statistics, "arrays": _arrays, "weights": _weights, "rulers": _rulers,
    "images": _images, "tars": _tars, "tables": _tables,
}  # fmt: skip


def bombs(made: Path, count: int, seed: int) -> Tally:
    tally = Tally("malice: compressed bombs")
    for number in range(count):
        name = list(BOMBS)[number % len(BOMBS)]
        draw = Random(f"{seed} bombs {number}")
        folder = clean(made)
        argv = BOMBS[name](draw, made, folder)
        with tally.case(f"seed {seed}, case {number}, {name}, {shlex.join(map(str, argv))}") as case:
            ended = limited(argv, folder)
            judge(case, ended, f"took {ended.seconds:.0f} s" if ended.seconds > SECONDS else "")
    return tally
