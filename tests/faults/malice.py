"""Inputs that mean harm: pickles that run code, archives that leave their folder, sizes that take memory, names that take
over a terminal. Nothing is executed, nothing is written elsewhere, and each ends as any wrong input does."""

import io
import json
import os
import pickle
import shlex
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from ditkit.snapshots import SNAPSHOTS
from faults.commands import run
from faults.inputs import ASSETS, CPU, clean, digits, picture, shard, short_training, source_flags
from faults.judging import judge, limited
from faults.mutations import ESCAPE, Sound
from faults.tally import Tally
from faults.verbs import QUICK, TINY, a_codec, a_run

CANARY = "canary"

# --- pickles ---


class Evil:
    """What an ordinary unpickler makes a file of, as `how` has it called."""

    def __init__(self, canary: Path, how: str):
        self._code = f"open({str(canary)!r}, 'w').close()"
        self._how = how

    def __reduce__(self) -> tuple[Any, ...]:
        if self._how == "system":
            return os.system, (f"touch {shlex.quote(self._code.split(chr(39))[1])}",)
        return {
            "exec": (exec, (self._code,)),
            "eval": (eval, (self._code,)),
            "getattr": (map, (exec, [self._code])),
        }[self._how]


def _by_opcodes(canary: Path) -> bytes:
    """INST, an opcode of protocol 0 that calls."""
    return f"(S{str(f'touch {canary}')!r}\nios\nsystem\n.".encode()


HOW = ("system", "exec", "eval", "getattr")


def _pickled(draw: Random, canary: Path) -> bytes:
    """A bare pickle."""
    if draw.random() < 0.2:
        return _by_opcodes(canary)
    return pickle.dumps(Evil(canary, draw.choice(HOW)), protocol=draw.choice((0, 2, 4)))


def _torch_file(draw: Random, canary: Path) -> bytes:
    """A file of torch with it at some place among tensors."""
    evil: Any = Evil(canary, draw.choice(HOW))
    state: dict[str, Any] = {
        "x_embedder.proj.weight": torch.zeros(8, 1, 2, 2),
        "pos_embed": torch.zeros(1, 16, 8),
    }
    content = draw.choice(
        (
            evil,
            {"ema": state, "args": evil},
            {"model": state | {"y": evil}},
            state | {"x_embedder.proj.weight": evil},
            [evil],
        )
    )
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=draw.random() < 0.6)
    return file.getvalue()


def _objects(draw: Random, canary: Path) -> np.ndarray:
    return np.array([Evil(canary, draw.choice(HOW))] * 4, object)


def _npy(draw: Random, canary: Path) -> bytes:
    file = io.BytesIO()
    np.save(file, _objects(draw, canary), allow_pickle=True)
    return file.getvalue()


def _npz(draw: Random, canary: Path, *names: str) -> bytes:
    file = io.BytesIO()
    np.savez(file, **dict.fromkeys(names, _objects(draw, canary)))  # type: ignore[arg-type]
    return file.getvalue()


def _any(draw: Random, canary: Path) -> bytes:
    return draw.choice((_pickled, _torch_file, _npy))(draw, canary)


Place = Callable[[Random, Path, Path, Path], list[object]]
"""Puts harm into the folder, third, where the canary, fourth, would show it; the command that reads it."""


def _foreign(draw: Random, made: Path, folder: Path, canary: Path) -> list[object]:
    """Official files of every kind, and a folder of diffusers'."""
    name = draw.choice(
        (
            "DiT.pt",
            "SiT.pt",
            "U-DiT.pt",
            "vis_model.pth",
            "0400000.pt",
            "a.ckpt",
            "a.bin",
            "a.safetensors",
            "a.pth.tar",
        )
    )
    file = folder / name
    file.write_bytes(_any(draw, canary))
    kind = ["--kind", draw.choice(("DiT", "SiT", "U-DiT"))] if draw.random() < 0.5 else []
    return draw.choice(
        [
            ["convert", file, *kind, "--out", folder / "out"],
            ["sample", file, "--n", 1, "--out", folder / "out", *CPU],
            ["info", file],
            ["train", "digits", "--init", file, *short_training(folder)],
        ]
    )


def _diffusers(draw: Random, made: Path, folder: Path, canary: Path) -> list[object]:
    model = folder / "model"
    if not (kept := made / "for-diffusers").exists():
        assert run(["convert", "digits-dit", "--to", "diffusers", "--out", kept]).status == 0
    shutil.copytree(kept, model)
    for file in list(model.rglob("*.safetensors")):
        if draw.random() < 0.5:
            file.unlink()
            file = file.with_suffix(".bin")
        file.write_bytes(_any(draw, canary))
    return draw.choice([["sample", model, "--n", 1, "--out", folder / "out", *CPU], ["info", model]])


def _snapshot(draw: Random, made: Path, folder: Path, canary: Path) -> list[object]:
    snapshot = folder / "snapshot"
    shutil.copytree(SNAPSHOTS / "digits", snapshot)
    (snapshot / "model.safetensors").write_bytes(_any(draw, canary))
    return draw.choice(
        [
            ["sample", snapshot, "--n", 1, *QUICK, "--out", folder / "out", *CPU],
            ["convert", snapshot, "--out", folder / "out"],
        ]
    )


def _run(draw: Random, made: Path, folder: Path, canary: Path) -> list[object]:
    """Every file of a run's checkpoints, one at a time or all."""
    shutil.copytree(a_run(made), folder / "run")
    there = sorted(
        file for file in (folder / "run").rglob("*") if file.suffix in (".safetensors", ".npz", ".pt", ".npy")
    )
    for file in there if draw.random() < 0.5 else [draw.choice(there)]:
        file.write_bytes(_any(draw, canary))
    return ["train", "digits", *TINY, "--train.images", 384, "--out", folder / "run"]


def _samples(draw: Random, made: Path, folder: Path, canary: Path) -> list[object]:
    file = folder / "samples.npz"
    file.write_bytes(draw.choice([_npz(draw, canary, "arr_0", "labels"), _any(draw, canary)]))
    return ["eval", file, "--reference", "digits", *CPU]


def _statistics(draw: Random, made: Path, folder: Path, canary: Path) -> list[object]:
    file = folder / "statistics.npz"
    names = draw.choice(
        (("mu", "sigma"), ("network", "network_hash"), ("mu", "sigma", "mu_s", "arr_0"), ("arr_1", "arr_0"))
    )
    file.write_bytes(draw.choice([_npz(draw, canary, *names), _any(draw, canary)]))
    ruler = f"classifier={ASSETS / 'classifiers/digits.safetensors'}"
    return ["eval", made / "images", "--reference", file, "--features", ruler, *CPU]


def _arrays(draw: Random, made: Path, folder: Path, canary: Path) -> list[object]:
    name = draw.choice(("data.npz", "data.npy", "data.safetensors", "labels.npy"))
    np.savez(folder / "good.npz", images=digits()[:8, ::2, ::2, None])
    file = folder / name
    content = _npz(draw, canary, "images", "labels") if name == "data.npz" else _npy(draw, canary)
    file.write_bytes(content if draw.random() < 0.6 else _any(draw, canary))
    path = (
        ["--data.path", folder / "good.npz", "--data.labels", file]
        if name[0] == "l"
        else ["--data.path", file]
    )
    return ["train", "digits", "--data", "arrays", *path, "--backbone.patch", 2, *short_training(folder)]


def _latents(draw: Random, made: Path, folder: Path, canary: Path) -> list[object]:
    """The layouts of latents: ditkit's own, EDM2's, fast-DiT's, LightningDiT's."""
    kind = draw.randrange(4)
    latents = folder / "latents"
    latents.mkdir()
    content = draw.choice((_npy, _any))(draw, canary)
    if kind == 0:
        (latents / "dataset.json").write_text(json.dumps({"labels": [["0.npy", 1]]}))
        (latents / "0.npy").write_bytes(content)
    elif kind == 1:
        for name in ("x_features", "x_labels"):
            (latents / name).mkdir()
            (latents / name / "0.npy").write_bytes(content)
    else:
        (latents / "0.safetensors").write_bytes(_any(draw, canary))
        (latents / "latents_stats.pt").write_bytes(_torch_file(draw, canary))
        if kind == 3:
            (latents / "index.json").write_text("{}")
    return [
        "train",
        "digits",
        "--train.latents",
        latents,
        "--codec",
        "vae",
        "--codec.id",
        a_codec(made),
        *short_training(folder),
    ]


def _codec(draw: Random, made: Path, folder: Path, canary: Path) -> list[object]:
    codec = folder / "codec"
    shutil.copytree(a_codec(made), codec)
    for file in list(codec.rglob("*.safetensors")):
        content = draw.choice((_pickled, _torch_file))(draw, canary)
        file.write_bytes(content)
        if draw.random() < 0.6:
            file.rename(file.with_suffix(".bin"))
    return [
        "encode",
        "digits",
        "--codec",
        "vae",
        "--codec.id",
        codec,
        "--backbone.patch",
        1,
        "--out",
        folder / "latents",
        *CPU,
    ]


def _rulers(draw: Random, made: Path, folder: Path, canary: Path) -> list[object]:
    name = draw.choice(("classifier", "inception", "efficientnet", "efficientnet-112", "dinov2", "clip"))
    file = folder / draw.choice(("weights.pth", "weights.pt", "weights.safetensors", "weights"))
    if name in ("dinov2", "clip"):
        file = folder / "weights"
        file.mkdir()
        (file / "config.json").write_text(
            json.dumps({"model_type": name, "auto_map": {"AutoModel": "code.Evil"}})
        )
        (file / "code.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n")
        (file / "model.safetensors").write_bytes(_any(draw, canary))
        (file / "pytorch_model.bin").write_bytes(_torch_file(draw, canary))
    else:
        file.write_bytes(draw.choice((_pickled, _torch_file))(draw, canary))
    return ["eval", made / "images", "--reference", "digits", "--features", f"{name}={file}", *CPU]


def _text(draw: Random, made: Path, folder: Path, canary: Path) -> list[object]:
    """A text encoder whose folder brings code and pickles."""
    encoder = folder / "encoder"
    encoder.mkdir()
    auto = {"AutoModel": "code.Evil", "AutoConfig": "code.Evil", "AutoTokenizer": ["code.Evil", None]}
    config = {
        "model_type": draw.choice(("bert", "evil", "t5", "clip_text_model")),
        "auto_map": auto,
        "hidden_size": 8,
    }
    (encoder / "config.json").write_text(json.dumps(config))
    (encoder / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto, "tokenizer_class": "Evil"}))
    (encoder / "code.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n")
    (encoder / "model.safetensors").write_bytes(_any(draw, canary))
    (encoder / "pytorch_model.bin").write_bytes(_torch_file(draw, canary))
    return ["train", "emoji-t2i", "--text", encoder, *short_training(folder)]


def _hub(draw: Random, made: Path, folder: Path, canary: Path) -> list[object]:
    """A data set that brings a script."""
    data = folder / "data"
    data.mkdir()
    (data / "data.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    (data / "dataset_infos.json").write_text("{}")
    (data / "train.parquet").write_bytes(_any(draw, canary))
    return [
        "train",
        "digits",
        "--data",
        "hub",
        "--data.id",
        data,
        "--data.size",
        8,
        "--data.channels",
        1,
        *short_training(folder),
    ]


def _prepared(draw: Random, made: Path, folder: Path, canary: Path) -> list[object]:
    """What ditkit itself has prepared, replaced."""
    config = [
        "--data",
        made / "images",
        "--data.size",
        8,
        "--data.channels",
        1,
        "--data.cache",
        folder / "cache",
    ]
    argv = ["train", "digits", *config, *short_training(folder)]
    assert run(argv).status == 0
    shutil.rmtree(folder / "run")
    for file in (folder / "cache").rglob("*"):
        if file.suffix in (".npz", ".npy", ".u8", ".bin"):
            file.write_bytes(
                draw.choice(
                    (_any, lambda *_: _npz(draw, canary, "sizes", "digests", "dark", "shapes", "crcs"))
                )(draw, canary)
            )
            _own_up_to(file)
    return argv


def _own_up_to(table: Path) -> None:
    """Make the checksum beside a table right again, as one who means harm would."""
    index = next(table.parent.glob("*.json"), None)
    if index is not None:
        values = json.loads(index.read_text())
        if "table" in values:
            from ditkit.files import file_hash

            index.write_text(json.dumps(values | {"table": file_hash(table)}))


def _comparison(draw: Random, made: Path, folder: Path, canary: Path) -> list[object]:
    """The cache of compare, and parts of samples that are not finished."""
    argv = ["compare", "digits", "--n", 10, *QUICK, "--out", folder / "compare", *CPU]
    if not (kept := made / "compared").exists():
        assert run([*argv[:-4], "--out", kept, *CPU]).status == 0
    shutil.copytree(kept, folder / "compare")
    for file in (folder / "compare").rglob("*.npz"):
        file.write_bytes(
            draw.choice((_any(draw, canary), _npz(draw, canary, "mu", "sigma", "rows", "index", "network")))
        )
    return argv


PLACES: dict[str, Place] = {
    "official files": _foreign, "diffusers": _diffusers, "snapshots": _snapshot, "runs": _run, "samples": _samples,
    "statistics": _statistics, "arrays": _arrays, "latents": _latents, "codecs": _codec, "rulers": _rulers, "text": _text,
    "hub": _hub, "prepared": _prepared, "comparisons": _comparison,
}  # fmt: skip


def pickles(made: Path, count: int, seed: int) -> Tally:
    tally = Tally("malice: code in files")
    for number in range(count):
        name = list(PLACES)[number % len(PLACES)]
        draw = Random(f"{seed} malice {number}")
        folder = clean(made)
        canary = folder.parent / CANARY
        argv = PLACES[name](draw, made, folder, canary)
        with tally.case(f"seed {seed}, case {number}, {name}, {shlex.join(map(str, argv))}") as case:
            judge(case, limited(argv, folder))
            case.executed = canary.exists()
    return tally


# --- archives ---


def archives(made: Path, count: int, seed: int) -> Tally:
    """Tars whose members lead elsewhere: by their names, by links, as devices."""
    tally = Tally("malice: archives")
    for number in range(count):
        draw = Random(f"{seed} archives {number}")
        folder = clean(made)
        data = folder / "shards"
        data.mkdir()
        secret = folder.parent / "secret.png"
        secret.write_bytes(picture(0, "png"))
        with tarfile.open(data / "0.tar", "w") as tar:
            for place in range(4):
                _add(tar, f"{place}.png", picture(place, "png"))
            for _ in range(draw.randint(1, 4)):
                _lead_out(draw, tar, folder)
        (data / "1.tar").write_bytes(shard(Sound(0)))
        before = _everything(folder.parent)
        argv = ["train", "digits", *source_flags("webdataset", data), "--data.cache", folder / "cache"]
        with tally.case(f"seed {seed}, case {number}") as case:
            ended = limited([*argv, *short_training(folder)], folder)
            own = (str(folder / "run"), str(folder / "cache"))
            outside = [path for path in _everything(folder.parent) - before if not path.startswith(own)]
            judge(case, ended, f"written outside: {outside[:3]}" if outside else "")
    return tally


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _lead_out(draw: Random, tar: tarfile.TarFile, folder: Path) -> None:
    name = draw.choice(
        (
            "../../out.png",
            str(folder.parent / "out.png"),
            "a/../../../out.png",
            "/",
            "",
            f"{ESCAPE}.png",
            "link.png",
            "\n.png",
        )
    )
    kind = draw.choice(
        (
            tarfile.REGTYPE,
            tarfile.REGTYPE,
            tarfile.SYMTYPE,
            tarfile.LNKTYPE,
            tarfile.CHRTYPE,
            tarfile.FIFOTYPE,
            tarfile.DIRTYPE,
        )
    )
    member = tarfile.TarInfo(name)
    member.type, member.linkname = (
        kind,
        draw.choice(("../../secret.png", str(folder.parent / "secret.png"), "/dev/zero")),
    )
    content = picture(draw.randrange(100), "png")
    if kind == tarfile.REGTYPE:
        member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _everything(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


# --- declared sizes ---


def _huge_npy(draw: Random, shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    kind = draw.choice(("|u1", "<f4", "<f8", "<U1000", "<i8"))
    np.lib.format.write_array_header_1_0(
        file, {"descr": kind, "fortran_order": draw.random() < 0.3, "shape": shape}
    )
    return file.getvalue() + bytes(1000)


def _shape(draw: Random) -> tuple[int, ...]:
    return draw.choice(
        ((10**12,), (2**31, 2**31), (2**40, 8, 8, 1), (2**20, 2**10, 2**10, 3), (8, 2**30, 8, 1), (2**63, 2), (0, 2**62), (64, 8, 8, 10**9))
    )  # fmt: skip


def _huge_zip(draw: Random, *names: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name in names:
            archive.writestr(f"{name}.npy", _huge_npy(draw, _shape(draw)))
    return file.getvalue()


def _huge_safetensors(draw: Random) -> bytes:
    shape = list(draw.choice(((2**40,), (2**31, 2**31), (10**6, 10**6))))
    ends = draw.choice(([0, 8], [0, 2**62], [0, 4 * int(np.prod([float(side) for side in shape]))]))
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": ends}}).encode()
    length = draw.choice((len(header), 2**62, 99_000_000, 2**32))
    return struct.pack("<Q", length) + header + bytes(8)


def _huge_pickle(draw: Random) -> bytes:
    """Opcodes that say how much is to come, or where in a table to put what is there."""
    body = draw.choice(
        (
            b"\x80\x04N" + b"r" + struct.pack("<I", 2**31),  # memo
            b"\x80\x04N" + b"r" + struct.pack("<I", 2**28),
            b"\x80\x04B" + struct.pack("<I", 2**32 - 1),
            b"\x80\x04\x8e" + struct.pack("<Q", 2**50),  # bytes
            b"\x80\x04\x96" + struct.pack("<Q", 2**33),  # bytearray
            b"\x80\x04\x8d" + struct.pack("<Q", 2**40),
            b"\x80\x04\x95" + struct.pack("<Q", 2**40),  # frame
            b"N" + b"p1000000000\n",
            b"\x80\x04\x8b" + struct.pack("<I", 2**31 - 1),
            b"\x80\x02" + b"(" * 1_000_000 + b"l" * 1_000_000,
            b"\x80\x02]" + b"]a" * 10 + b"]" * 200_000 + b"a" * 200_000,
        )
    )
    return body + b"."


def _huge_torch(draw: Random) -> bytes:
    file = io.BytesIO()
    torch.save(
        {"x_embedder.proj.weight": torch.zeros(4)}, file, _use_new_zipfile_serialization=draw.random() < 0.5
    )
    if draw.random() < 0.5:
        return file.getvalue().replace(b"K\x04", b"J\xff\xff\xff\x7f")
    inside = io.BytesIO()
    with zipfile.ZipFile(inside, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", _huge_pickle(draw))
        archive.writestr("a/version", "3")
    return inside.getvalue()


def _huge_image(draw: Random) -> tuple[str, bytes]:
    side = draw.choice((2**31 - 1, 100_000, 30_000, 13_000, 65_535, 16_383))
    kind = draw.choice(("png", "bmp", "gif", "tga", "ppm", "jpg", "tif", "pcx", "sgi", "dds"))
    small = min(side, 65_535)
    content = bytearray(picture(1, kind))
    if kind == "png":
        header = b"IHDR" + struct.pack(">II", side, side) + content[24:29]
        content[12:33] = header + struct.pack(">I", zlib.crc32(header))
    elif kind == "bmp":
        content[18:26] = struct.pack("<ii", side, side)
    elif kind == "gif":
        content[6:10] = struct.pack("<HH", small, small)
    elif kind == "tga":
        content[12:16] = struct.pack("<HH", small, small)
    elif kind == "ppm":
        content = bytearray(f"P6 {side} {side} 255\n".encode() + bytes(100))
    elif kind == "jpg":
        at = content.index(b"\xff\xc0")
        content[at + 5 : at + 9] = struct.pack(">HH", small, small)
    elif kind == "tif":
        content = content.replace(
            struct.pack("<HHIHH", 256, 4, 1, 16, 0), struct.pack("<HHII", 256, 4, 1, side)
        )
        content = content.replace(
            struct.pack("<HHIHH", 257, 4, 1, 16, 0), struct.pack("<HHII", 257, 4, 1, side)
        )
    elif kind == "pcx":
        content[8:12] = struct.pack("<HH", small - 1, small - 1)
    elif kind == "sgi":
        content[6:10] = struct.pack(">HH", small, small)
    else:
        content[12:20] = struct.pack("<II", side, side)
    return kind, bytes(content)


def _huge_recipe(draw: Random, folder: Path) -> list[object]:
    snapshot = folder / "snapshot"
    shutil.copytree(SNAPSHOTS / "digits", snapshot)
    recipe = json.loads((snapshot / "recipe.json").read_text())
    section, field = draw.choice(
        (
            ("backbone", "width"),
            ("backbone", "depth"),
            ("backbone", "heads"),
            ("backbone", "patch"),
            ("backbone", "mlp_ratio"),
            ("data", "size"),
            ("data", "channels"),
            ("data", "classes"),
            ("train", "batch"),
            ("sample", "steps"),
            ("train", "keep"),
        )
    )
    recipe[section][field] = draw.choice((10**5, 10**6, 10**9, 2**31, 2**63, 10**30))
    (snapshot / "recipe.json").write_text(json.dumps(recipe))
    if (section, field) == ("sample", "steps"):  # an evaluation each, as was asked for
        return ["info", snapshot]
    return draw.choice(
        [["info", snapshot], ["sample", snapshot, "--n", 1, *QUICK, "--out", folder / "out", *CPU]]
    )


def sizes(made: Path, count: int, seed: int) -> Tally:
    """Files that say that they are larger than any memory."""
    tally = Tally("malice: declared sizes")
    for number in range(count):
        draw = Random(f"{seed} sizes {number}")
        folder = clean(made)
        argv = _huge(draw, made, folder)
        with tally.case(f"seed {seed}, case {number}, {shlex.join(map(str, argv))[:600]}") as case:
            judge(case, limited(argv, folder))
    return tally


def _huge(draw: Random, made: Path, folder: Path) -> list[object]:
    kind = draw.randrange(10)
    file = folder / "x.npz"
    if kind == 0:
        file.write_bytes(_huge_zip(draw, "arr_0", "labels"))
        return ["eval", file, "--reference", "digits", *CPU]
    if kind == 1:
        file.write_bytes(
            _huge_zip(draw, *draw.choice((("mu", "sigma"), ("mu", "sigma", "arr_0"), ("network", "rows"))))
        )
        return ["eval", made / "images", "--reference", file, "--features", "efficientnet-112", *CPU]
    if kind == 2:
        file = folder / draw.choice(("x.npz", "x.npy", "x.safetensors"))
        content = {".npz": lambda: _huge_zip(draw, "images"), ".npy": lambda: _huge_npy(draw, _shape(draw))}
        file.write_bytes(content.get(file.suffix, lambda: _huge_safetensors(draw))())
        return [
            "train",
            "digits",
            "--data",
            "arrays",
            "--data.path",
            file,
            "--backbone.patch",
            2,
            *short_training(folder),
        ]
    if kind == 3:
        shutil.copytree(SNAPSHOTS / "digits", folder / "snapshot")
        (folder / "snapshot/model.safetensors").write_bytes(_huge_safetensors(draw))
        return ["sample", folder / "snapshot", "--n", 1, "--out", folder / "out", *CPU]
    if kind in (4, 5):
        file = folder / "DiT.pt"
        file.write_bytes(_huge_torch(draw) if draw.random() < 0.6 else _huge_pickle(draw))
        return ["convert", file, "--out", folder / "out"]
    if kind in (6, 7):
        data = folder / "data"
        data.mkdir()
        for number in range(3):
            ending, content = _huge_image(draw)
            (data / f"{number}.{ending}").write_bytes(content)
        (data / "good.png").write_bytes(picture(2, "png"))
        config = ["--data", data, "--data.size", 8, "--data.channels", 1, "--data.held-out", 0]
        return ["train", "digits", *config, "--data.cache", folder / "cache", *short_training(folder)]
    if kind == 8:
        return _huge_recipe(draw, folder)
    return _huge_latents(draw, made, folder)


def _huge_latents(draw: Random, made: Path, folder: Path) -> list[object]:
    latents = folder / "latents"
    latents.mkdir()
    if draw.random() < 0.5:
        (latents / "dataset.json").write_text(
            json.dumps({"labels": [["0.npy", draw.choice((1, 2**40, -1))]]})
        )
        (latents / "0.npy").write_bytes(_huge_npy(draw, _shape(draw)))
    else:
        save_file(
            {"latents": torch.zeros(2, 4, 4, 4), "labels": torch.tensor([1, 2 ** draw.choice((20, 40, 62))])},
            latents / "0.safetensors",
        )
    codec = ["--codec", "vae", "--codec.id", a_codec(made), "--backbone.patch", 1]
    return ["train", "digits", "--train.latents", latents, *codec, *short_training(folder)]
