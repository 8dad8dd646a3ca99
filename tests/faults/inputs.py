"""Mutated inputs: images, videos, arrays, weights, shards, recipes and commands. Each is used, or counted and named, or the
command is refused in one line."""

import functools
import io
import json
import os
import re
import shlex
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

import av
import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

import ditkit.cli
from ditkit.data import Folder
from ditkit.data.video import VideoFolder
from ditkit.snapshots import SNAPSHOTS
from faults.commands import Ended
from faults.judging import fault, judge, limited, limited_call
from faults.mutations import Sound, mutated, mutated_json, mutated_words
from faults.tally import Tally
from faults.verbs import QUICK, TINY, a_run

TOGETHER = 50  # images of a folder
CPU = ["--device", "cpu"]
ASSETS = Path(str(files("ditkit"))) / "assets"


@functools.cache
def digits() -> np.ndarray:
    """uint8 (1797, 16, 16): real pictures of digits, twice as large."""
    return np.kron((load_digits().images * 15.9).astype(np.uint8), np.ones((1, 2, 2), np.uint8))


def clean(made: Path) -> Path:
    """An empty folder to work in."""
    shutil.rmtree(made / "inputs", ignore_errors=True)
    folder = made / "inputs" / "work"  # a command that writes into .. writes there
    folder.mkdir(parents=True)
    return folder


def short_training(folder: Path) -> list[object]:
    """Flags of a training that is over at once, whose run is in a working folder."""
    return [*TINY, "--train.images", 32, "--train.preview-images", 0, "--out", folder / "run"]


def source_flags(kind: str, data: Path) -> list[object]:
    """Flags of a source of grey images of 8 pixels."""
    return ["--data", kind, "--data.path", data, "--data.size", 8, "--data.channels", 1]


# --- folders of images and of videos ---

PICTURES: dict[str, tuple[str, dict[str, Any]]] = {  # ending -> mode and how it is written
    "png": ("L", {}), "jpg": ("RGB", {}), "webp": ("RGB", {}), "gif": ("P", {}), "tif": ("RGB", {}), "bmp": ("RGB", {}),
    "ppm": ("RGB", {}), "tga": ("RGB", {}), "ico": ("RGBA", {}), "pcx": ("L", {}), "jp2": ("RGB", {}), "sgi": ("RGB", {}),
    "tiff": ("I;16", {}), "jpeg": ("CMYK", {"progressive": True}), "icns": ("RGBA", {}), "dds": ("RGBA", {}), "avif": ("RGB", {}),
    "dib": ("RGB", {}), "im": ("RGB", {}), "msp": ("1", {}), "xbm": ("1", {}), "apng": ("RGBA", {}),
}  # fmt: skip


def picture(number: int, ending: str) -> bytes:
    """A digit as a file of that kind; of TIFF compressed in turn by every way that there is."""
    mode, how = PICTURES[ending]
    if ending == "tif":
        how = {"compression": (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")[number % 5]}
    image = Image.fromarray(digits()[number % len(digits())])
    image = image.convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    if ending == "icns":
        image = image.resize((32, 32))
    file = io.BytesIO()
    image.save(file, Image.registered_extensions()[f".{ending}"], **how)
    return file.getvalue()


def _known(endings: Iterable[str]) -> list[str]:
    """Those that this Pillow writes."""
    Image.init()
    found = []
    for ending in endings:
        try:
            picture(0, ending)
        except (OSError, KeyError, ValueError):
            continue
        found.append(ending)
    return found


class Corpus:
    """Files that are one data set together: how a mutated one is made, and what must hold for all."""

    def __init__(
        self,
        make: Callable[[Random, Path, int], None],
        argv: Callable[[Path, Path], list[object]],
        listed: Callable[[Path], tuple[list[str], list[str]]],
    ):
        self.make, self.argv, self.listed = make, argv, listed


def folders(tally: Tally, corpus: Corpus, made: Path, count: int, seed: int) -> Tally:
    """`count` mutated files beside good ones, `TOGETHER` in a folder; where a folder fails, each of them alone."""
    for first in range(0, count, TOGETHER):
        numbers = range(first, min(first + TOGETHER, count))
        if _tried(corpus, made, numbers, seed)[1]:
            for number in numbers:
                ended, wrong = _tried(corpus, made, [number], seed)
                with tally.case(f"seed {seed}, case {number}") as case:
                    judge(case, ended, wrong)
        else:
            tally.tried += len(numbers)
            tally.survived += len(numbers)
    return tally


def _tried(corpus: Corpus, made: Path, numbers: Sequence[int], seed: int) -> tuple[Ended, str]:
    """How the command ended for these files, and what is wrong about it."""
    folder = clean(made)
    data = folder / "data"
    data.mkdir()
    for number in numbers:
        corpus.make(Random(f"{seed} {number}"), data, number)
    for number in range(4):
        corpus.make(None, data, number)  # type: ignore[arg-type]
    ended = limited_call(lambda: _used(corpus, data, folder), folder)
    wrong = fault(ended)
    if not wrong and ended.status != 0:
        wrong = f"good files are refused: {ended.err[-300:]}"
    return ended, wrong


def _used(corpus: Corpus, data: Path, folder: Path) -> int:
    """Run the command, and check that all files are either used or named."""
    if status := ditkit.cli.main([str(word) for word in corpus.argv(data, folder)]):
        return status
    used, named = corpus.listed(data)
    there = sorted(str(path.relative_to(data)) for path in _items(data))
    if sorted([*used, *named]) != there or not all(f"good-{k}" in " ".join(used) for k in range(4)):
        print(
            f"{len(used)} used and {len(named)} named are not the {len(there)} that there are",
            file=os.sys.stderr,
        )
        return 3
    return 0


def _items(data: Path) -> Iterator[Path]:
    yield from data.iterdir()


def images(made: Path, count: int, seed: int) -> Tally:
    kinds = _known(PICTURES)

    def make(draw: Random | None, data: Path, number: int) -> None:
        if draw is None:
            (data / f"good-{number}.png").write_bytes(picture(number, "png"))
            return
        kind = draw.choice(kinds[:6]) if draw.random() < 0.6 else draw.choice(kinds)
        (data / f"{number}.{kind}").write_bytes(mutated(draw, picture(draw.randrange(1797), kind)))

    def argv(data: Path, folder: Path) -> list[object]:
        config = ["--data", data, "--data.size", 8, "--data.channels", 1, "--data.cache", folder / "cache"]
        return [
            "train",
            "digits",
            *TINY,
            "--train.images",
            64,
            *config,
            "--data.held-out",
            0,
            "--out",
            folder / "run",
        ]

    def listed(data: Path) -> tuple[list[str], list[str]]:
        source = Folder(path=data, size=8, channels=1, cache=data.parent / "cache").open()
        plain = Folder(path=data, size=8, channels=1, cache="off").open()
        for index in range(len(source)):
            kept, read = (some.read([index]) for some in (source, plain))
            assert torch.equal(kept, read), f"{data}: image {index} is not what was prepared"
        return [line.partition(" ")[2] for line in source.lines], list(source.broken)

    return folders(Tally("inputs: images"), Corpus(make, argv, listed), made, count, seed)


ENCODED = {
    "mp4": "mpeg4",
    "mkv": "mpeg4",
    "avi": "mpeg4",
    "mov": "mpeg4",
    "webm": "libvpx",
    "mpg": "mpeg1video",
    "ts": "mpeg2video",
}
FRAMES = 6


def movie(number: int, ending: str) -> bytes:
    """Digits one after the other, as a video or an animation."""
    pictures = [Image.fromarray(digits()[(number + k) % 1797]).convert("RGB") for k in range(FRAMES)]
    file = io.BytesIO()
    if ending not in ENCODED:
        pictures[0].save(file, ending.upper(), save_all=True, append_images=pictures[1:], duration=100)
        return file.getvalue()
    form = {"mkv": "matroska", "mpg": "mpeg", "ts": "mpegts"}.get(ending, ending)
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(ENCODED[ending], rate=25)
        stream.width = stream.height = 16
        stream.pix_fmt = "yuv420p"
        for image in pictures:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return file.getvalue()


def videos(made: Path, count: int, seed: int) -> Tally:
    kinds = [*(kind for kind, codec in ENCODED.items() if codec in av.codecs_available), "gif", "webp"]

    def make(draw: Random | None, data: Path, number: int) -> None:
        if draw is None:
            (data / f"good-{number}.gif").write_bytes(movie(number, "gif"))
            return
        if draw.random() < 0.15:
            folder = data / f"{number}"
            folder.mkdir()
            bad = draw.randrange(FRAMES)
            for k in range(FRAMES):
                content = picture(k, "png")
                (folder / f"{k}.png").write_bytes(mutated(draw, content) if k == bad else content)
            return
        kind = draw.choice(kinds)
        (data / f"{number}.{kind}").write_bytes(mutated(draw, movie(draw.randrange(1000), kind)))

    def argv(data: Path, folder: Path) -> list[object]:
        network = "--backbone.patch 2 --backbone.tubelet 1 --backbone.depth 2".split()
        clips = [*source_flags("video", data), "--data.frames", 2, "--data.held-out", 0]
        return ["train", "moving-digits", *short_training(folder), *network, *clips]

    def listed(data: Path) -> tuple[list[str], list[str]]:
        source = VideoFolder(path=data, size=8, channels=1, frames=2).open()
        for index in range(len(source)):
            assert source.read([index]).shape == (1, 1, 2, 8, 8)
        named = [re.split(r" \(", text)[0] for text in source.broken]
        return [line.partition(" ")[2] for line in source.lines], named

    return folders(Tally("inputs: videos"), Corpus(make, argv, listed), made, count, seed)


# --- single files ---


def singles(
    name: str,
    made: Path,
    count: int,
    seed: int,
    prepare: Callable[[Random, Path, int], list[object]],
    sound: int = 3,
) -> Tally:
    """`count` commands, each of one mutated input that `prepare` writes into an empty folder; it gives the words. Before them
    some of sound inputs, which must be used."""
    tally = Tally(name)
    for number in range(sound):
        folder = clean(made)
        ended = limited(prepare(Sound(f"{seed} {name} {number}"), folder, number), folder)
        assert ended.status == 0, ended.err
    for number in range(count):
        folder = clean(made)
        argv = prepare(Random(f"{seed} {name} {number}"), folder, number)
        shown = shlex.join(str(word)[:200] for word in argv)
        with tally.case(f"seed {seed}, case {number}, {ascii(shown)[:400]}") as case:
            judge(case, limited(argv, folder))
    return tally


def arrays(made: Path, count: int, seed: int) -> Tally:
    """Samples for eval, statistics for --reference, arrays to train on."""
    store = made / "arrays"
    if not store.exists():
        store.mkdir()
        pixels = digits()[:96, ::2, ::2, None]
        labels = load_digits().target[:96]
        np.savez(store / "samples.npz", arr_0=pixels, labels=labels)
        np.savez_compressed(store / "packed.npz", arr_0=pixels, arr_1=labels)
        np.savez(store / "data.npz", images=pixels.astype(np.float32), labels=labels)
        np.savez_compressed(store / "small.npz", images=pixels, labels=labels)
        np.save(store / "data.npy", pixels.astype(np.float64))
        save_file({"images": torch.from_numpy(pixels.copy()).float()}, store / "data.safetensors")
        ended = limited(["reference", "digits", "--out", store / "statistics.npz", *CPU], made)
        assert ended.status == 0, ended.err

    def prepare(draw: Random, folder: Path, number: int) -> list[object]:
        kind = draw.choice(
            "samples packed statistics statistics data.npz small data.npy data.safetensors".split()
        )
        name = kind if "." in kind else f"{kind}.npz"
        file = folder / name
        file.write_bytes(mutated(draw, (store / name).read_bytes()))
        if kind in ("samples", "packed"):
            return ["eval", file, "--reference", "digits", "--features", "classifier", *CPU]
        if kind == "statistics":
            return [
                "eval",
                store / "samples.npz",
                "--reference",
                file,
                "--features",
                f"classifier={ASSETS / 'classifiers' / 'digits.safetensors'}",
                *CPU,
            ]
        config = ["--data", "arrays", "--data.path", file, "--data.range", 0, 255]
        rest = [
            "--train.images",
            32,
            "--train.preview-images",
            0,
            "--backbone.patch",
            2,
            "--out",
            folder / "run",
        ]
        return ["train", "digits", *TINY, *config, *rest]

    return singles("inputs: arrays", made, count, seed, prepare)


def official(made: Path, count: int, seed: int) -> Tally:
    """Official checkpoints, of torch's format and the one before it."""
    store = made / "official"
    if not store.exists():
        ended = limited(["convert", "digits-dit", "--to", "official", "--out", store], made)
        assert ended.status == 0, ended.err
        (file,) = store.glob("*.pt")
        state = torch.load(file, weights_only=True)
        torch.save(state, store / "zip.pt")
        torch.save({"ema": state, "args": {"model": "DiT"}, "opt": [1, 2.0, None]}, store / "nested.pt")
        torch.save(state, store / "old.pt", _use_new_zipfile_serialization=False)
        save_file(state, store / "plain.safetensors")

    def prepare(draw: Random, folder: Path, number: int) -> list[object]:
        source = store / draw.choice(("zip.pt", "nested.pt", "old.pt", "old.pt", "plain.safetensors"))
        file = folder / f"DiT{source.suffix}"
        file.write_bytes(where_it_matters(draw, source.read_bytes()))
        convert = ["convert", file, "--kind", "DiT", "--heads", 4, "--out", folder / "out"]
        return ["info", file] if number % 4 == 3 else convert  # info takes no number of heads

    return singles("inputs: official files", made, count, seed, prepare)


def where_it_matters(draw: Random, content: bytes) -> bytes:
    """Mutated; half of the times in the first or the last 20,000 bytes, where the structure is, not the numbers."""
    if draw.random() < 0.3:
        return mutated(draw, content)
    part = draw.choice((2000, 20_000))
    if draw.random() < 0.7:
        return mutated(draw, content[:part]) + content[part:]
    return content[:-part] + mutated(draw, content[-part:])


def snapshots(made: Path, count: int, seed: int) -> Tally:
    """model.safetensors of a snapshot and of a run's checkpoint."""
    bundled = SNAPSHOTS / "digits"
    bare = load_file(bundled / "model.safetensors")

    def prepare(draw: Random, folder: Path, number: int) -> list[object]:
        snapshot = folder / "snapshot"
        shutil.copytree(bundled, snapshot)
        file = snapshot / "model.safetensors"
        if draw.random() < 0.5:  # without a hash that tells
            save_file(bare, file)
        file.write_bytes(where_it_matters(draw, file.read_bytes()))
        short = [
            "--train.images",
            32,
            "--train.batch",
            32,
            "--train.preview-images",
            0,
            "--train.compile",
            "off",
        ]
        return draw.choice(
            [
                ["sample", snapshot, "--n", 1, *QUICK, "--out", folder / "out", *CPU],
                ["convert", snapshot, "--out", folder / "out"],
                ["train", "digits", "--init", snapshot, *short, "--out", folder / "run", *CPU],
            ]
        )

    return singles("inputs: snapshots", made, count, seed, prepare)


def shard(draw: Random, count: int = 8) -> bytes:
    """Webdataset: pictures with classes, captions and JSON beside them."""
    file = io.BytesIO()
    form = draw.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for number in range(count):
            folder = "long/" * 30 if draw.random() < 0.1 else ""
            parts = {
                "png": picture(number, "png"),
                "cls": str(number % 3).encode(),
                "txt": f"a picture of {number}".encode(),
                "json": json.dumps({"label": number % 3, "caption": f"the {number}"}).encode(),
            }
            for ending, content in parts.items():
                member = tarfile.TarInfo(f"{folder}{number:05d}.{ending}")
                content = mutated(draw, content) if draw.random() < 0.05 else content
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def tars(made: Path, count: int, seed: int) -> Tally:
    def prepare(draw: Random, folder: Path, number: int) -> list[object]:
        data = folder / "shards"
        data.mkdir()
        (data / "0.tar").write_bytes(mutated(draw, shard(draw)))
        (data / "1.tar").write_bytes(shard(Sound(0)))
        columns = draw.choice(([], ["--data.label-column", "label"], ["--data.caption-column", "caption"]))
        config = [
            *source_flags("webdataset", data),
            *columns,
            "--data.cache",
            folder / "cache",
            "--data.held-out",
            0,
        ]
        return ["train", "digits", *short_training(folder), *config]

    return singles("inputs: shards", made, count, seed, prepare)


# --- recipes and commands ---


def recipes(made: Path, count: int, seed: int) -> Tally:
    """recipe.json of a snapshot and of a run, read by three verbs."""
    bundled = SNAPSHOTS / "digits"
    known = [
        json.loads((bundled / "recipe.json").read_text()),
        json.loads((a_run(made) / "recipe.json").read_text()),
    ]

    def prepare(draw: Random, folder: Path, number: int) -> list[object]:
        snapshot = folder / "snapshot"
        snapshot.mkdir()
        which = draw.randrange(2)
        (snapshot / "recipe.json").write_bytes(mutated_json(draw, known[which]))
        if which == 0:
            shutil.copy(bundled / "model.safetensors", snapshot)
        else:
            shutil.copytree(a_run(made) / "checkpoints", snapshot / "checkpoints")
        return draw.choice(
            [
                ["info", snapshot],
                ["info", snapshot, "--json"],
                ["sample", snapshot, "--n", 1, *QUICK, "--out", folder / "out", *CPU],
                ["sample", snapshot, "--n", 1, "--out", folder / "out", *CPU],
            ]
        )

    return singles("inputs: recipes", made, count, seed, prepare)


def commands(made: Path, count: int, seed: int) -> Tally:
    """Real commands with other words; what is accepted is small."""
    small = [*TINY, "--train.images", "32", "--train.preview-images", "0"]
    known: list[list[str]] = [
        ["info", "digits"],
        ["info", "fashion-sit", "--backbone", "DiT-S/4", "--transport.path", "gvp", "--transport.predict", "score"],
        ["info", "DiT-S/2", "--size", "64", "--batch", "2"],
        ["info", "imagenet256-dit-xl2", "--data.classes", "10", "--backbone.depth", "2"],
        ["info", "moving-digits", "--modules"],
        ["list", "samplers"],
        ["list"],
        ["sample", "digits", "--n", "2", "--steps", "2", "--labels", "1", "7", "--guidance", "2", "--device", "cpu"],
        ["sample", "digits", "--n", "1", "--steps", "2", "--interval", "0.2", "0.8", "--png", "--npz", "--device", "cpu"],
        ["eval", "nothing.npz", "--reference", "digits", "--features", "classifier"],
        ["compare", "digits", "nothing", "--n", "4", "--guidance", "1,1.5", "--solvers", "ab2:2"],
        ["convert", "digits", "--to", "official", "--out", "release"],
        ["reference", "nothing", "--features", "classifier", "--out", "ref.npz"],
        ["likelihood", "nothing", "--n", "2"],
        ["encode", "digits", "--codec", "vae", "--codec.id", "nothing", "--out", "latents"],
        ["train", "digits", *small, "--out", "run"],
        ["train", "digits", *small, "--data", str(made / "images"), "--data.size", "8", "--data.channels", "1"],
        ["train", "digits", *small, "--train.micro-batch", "16", "--transport.predict", "noise", "--train.lr", "1e-3"],
        ["train-codec", str(made / "images"), "--data.size", "8", "--train.images", "32", "--train.batch", "16", "--n", "4"],
        ["study", "nothing", "--out", "study"],
        ["classifier", "nothing"],
        ["demo", "--help"],
        ["bench", "--help"],
        ["help"],
        ["--version"],
    ]  # fmt: skip

    def prepare(draw: Random, folder: Path, number: int) -> list[object]:
        words = mutated_words(draw, draw.choice(known))
        if words[:1] not in (["info"], ["list"]):  # what is long only because it was asked for is no fault
            words = ["2" if re.fullmatch(r"9+|1_000|65535", word) else word for word in words]
        return [word for word in words if "--help" in words or word not in ("demo", "bench")]

    return singles("inputs: commands", made, count, seed, prepare, sound=0)
