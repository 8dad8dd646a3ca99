"""The Inception network of the Fréchet Inception Distance, as frozen by TensorFlow in December 2015.

It is not torchvision's Inception v3: it has 1008 classes, averages exclude the padding, and the last
block pools by maximum. Names of weights are those of mseitzer/pytorch-fid, whose file it reads:

    stem -> Mixed_5b 5c 5d (35²) -> 6a 6b 6c 6d 6e (17²) -> 7a 7b 7c (8²) -> mean = pooled, 2048
    pooled · fc.weightᵀ = logits, 1008, without bias (ADM, torch-fidelity, NVIDIA)
    the first 7 channels of Mixed_6d.branch1x1, in the order (h, w, c) = spatial, 2023 (sFID)

Three conventions of input are in use and give different values (`INPUTS`). Sources: Szegedy et al. 2015;
Heusel et al. 2017; openai/guided-diffusion `evaluator.py`; mseitzer/pytorch-fid; Parmar et al. 2022.
"""

import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditkit.errors import InputError
from ditkit.evaluation.networks.features import Features
from ditkit.evaluation.networks.frozen import Frozen, convolved
from ditkit.evaluation.networks.resize import RESIZES
from ditkit.files import file_hash
from ditkit.tensors import read_state

URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
SIDE = 299

Convention = Literal["adm", "pytorch-fid", "clean"]

INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "adm": lambda pixels: (pixels - 128) / 128,
    "pytorch-fid": lambda pixels: 2 * (pixels / 255) - 1,
    "clean": lambda pixels: (pixels - 128) / 128,
}
"""Pixels of 0 to 255, resized by the convention of the same name, to what the network reads."""


class Unit(nn.Module):
    """Convolution without bias, batch norm by stored statistics, ReLU."""

    def __init__(self, inner: int, outer: int, kernel: int | tuple[int, int], stride: int, padded: bool):
        super().__init__()
        high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (high // 2, wide // 2) if padded else 0
        self.conv = nn.Conv2d(inner, outer, (high, wide), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outer, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(convolved(x, self.conv, self.bn), inplace=True)


class Row(NamedTuple):
    """One part of a block: a convolution, or a pool, which has no width and no weights."""

    name: str
    source: str
    """The part it reads; "" is the block's input."""
    width: int = 0
    kernel: int | tuple[int, int] = 1
    stride: int = 1
    pool: Callable[[], nn.Module] | None = None


def average() -> nn.Module:
    return nn.AvgPool2d(3, 1, padding=1, count_include_pad=False)  # torchvision's counts the padding


def maximum() -> nn.Module:
    return nn.MaxPool2d(3, 1, padding=1)


def shrink() -> nn.Module:
    return nn.MaxPool2d(3, 2)


def block_a(pooled: int) -> list[Row]:
    return [
        Row("branch1x1", "", 64),
        Row("branch5x5_1", "", 48),
        Row("branch5x5_2", "branch5x5_1", 64, 5),
        Row("branch3x3dbl_1", "", 64),
        Row("branch3x3dbl_2", "branch3x3dbl_1", 96, 3),
        Row("branch3x3dbl_3", "branch3x3dbl_2", 96, 3),
        Row("pool", "", pool=average),
        Row("branch_pool", "pool", pooled),
    ]


def block_b() -> list[Row]:
    return [
        Row("branch3x3", "", 384, 3, 2),
        Row("branch3x3dbl_1", "", 64),
        Row("branch3x3dbl_2", "branch3x3dbl_1", 96, 3),
        Row("branch3x3dbl_3", "branch3x3dbl_2", 96, 3, 2),
        Row("pool", "", pool=shrink),
    ]


def block_c(c7: int) -> list[Row]:
    return [
        Row("branch1x1", "", 192),
        Row("branch7x7_1", "", c7),
        Row("branch7x7_2", "branch7x7_1", c7, (1, 7)),
        Row("branch7x7_3", "branch7x7_2", 192, (7, 1)),
        Row("branch7x7dbl_1", "", c7),
        Row("branch7x7dbl_2", "branch7x7dbl_1", c7, (7, 1)),
        Row("branch7x7dbl_3", "branch7x7dbl_2", c7, (1, 7)),
        Row("branch7x7dbl_4", "branch7x7dbl_3", c7, (7, 1)),
        Row("branch7x7dbl_5", "branch7x7dbl_4", 192, (1, 7)),
        Row("pool", "", pool=average),
        Row("branch_pool", "pool", 192),
    ]


def block_d() -> list[Row]:
    return [
        Row("branch3x3_1", "", 192),
        Row("branch3x3_2", "branch3x3_1", 320, 3, 2),
        Row("branch7x7x3_1", "", 192),
        Row("branch7x7x3_2", "branch7x7x3_1", 192, (1, 7)),
        Row("branch7x7x3_3", "branch7x7x3_2", 192, (7, 1)),
        Row("branch7x7x3_4", "branch7x7x3_3", 192, 3, 2),
        Row("pool", "", pool=shrink),
    ]


def block_e(pool: Callable[[], nn.Module]) -> list[Row]:
    return [
        Row("branch1x1", "", 320),
        Row("branch3x3_1", "", 384),
        Row("branch3x3_2a", "branch3x3_1", 384, (1, 3)),
        Row("branch3x3_2b", "branch3x3_1", 384, (3, 1)),
        Row("branch3x3dbl_1", "", 448),
        Row("branch3x3dbl_2", "branch3x3dbl_1", 384, 3),
        Row("branch3x3dbl_3a", "branch3x3dbl_2", 384, (1, 3)),
        Row("branch3x3dbl_3b", "branch3x3dbl_2", 384, (3, 1)),
        Row("pool", "", pool=pool),
        Row("branch_pool", "pool", 192),
    ]


class Block(nn.Module):
    """The parts of a table, each reading another; those that none reads are concatenated, in order."""

    def __init__(self, inner: int, rows: list[Row]):
        super().__init__()
        widths = {"": inner}
        for row in rows:
            width = widths[row.source]
            part = row.pool() if row.pool else Unit(width, row.width, row.kernel, row.stride, row.stride == 1)
            self.add_module(row.name, part)
            widths[row.name] = row.width or width
        self.sources = {row.name: row.source for row in rows}
        self.ends = [row.name for row in rows if row.name not in self.sources.values()]
        self.width = sum(widths[name] for name in self.ends)

    def forward(self, x: Tensor) -> Tensor:
        values = {"": x}
        for name, source in self.sources.items():
            values[name] = self.get_submodule(name)(values[source])
        return torch.cat([values[name] for name in self.ends], dim=1)


STEM: dict[str, Callable[[], nn.Module]] = {
    "Conv2d_1a_3x3": lambda: Unit(3, 32, 3, 2, False),
    "Conv2d_2a_3x3": lambda: Unit(32, 32, 3, 1, False),
    "Conv2d_2b_3x3": lambda: Unit(32, 64, 3, 1, True),
    "pool_2": shrink,
    "Conv2d_3b_1x1": lambda: Unit(64, 80, 1, 1, False),
    "Conv2d_4a_3x3": lambda: Unit(80, 192, 3, 1, False),
    "pool_4": shrink,
}

BLOCKS: dict[str, list[Row]] = {
    "Mixed_5b": block_a(32),
    "Mixed_5c": block_a(64),
    "Mixed_5d": block_a(64),
    "Mixed_6a": block_b(),
    "Mixed_6b": block_c(128),
    "Mixed_6c": block_c(160),
    "Mixed_6d": block_c(160),
    "Mixed_6e": block_c(192),
    "Mixed_7a": block_d(),
    "Mixed_7b": block_e(average),
    "Mixed_7c": block_e(maximum),  # the network's own quirk
}


class Inception(Frozen):
    """uint8 images -> pooled (N, 2048), logits (N, 1008), spatial (N, 2023)."""

    dim = 2048

    def __init__(self, convention: Convention = "adm"):
        super().__init__()
        self.name = "inception" if convention == "adm" else f"inception-{convention}"
        self.resize = f"{RESIZES[convention].words} to {SIDE}x{SIDE}"
        self.convention = convention
        for name, part in STEM.items():
            self.add_module(name, part())
        width = 192
        for name, rows in BLOCKS.items():
            block = Block(width, rows)
            self.add_module(name, block)
            width = block.width
        self.fc = nn.Linear(width, 1008)

    def read(self, pixels: Tensor) -> Features:
        # The layout that CPU convolutions are quickest with: 1.5 times as many images per second.
        resized = RESIZES[self.convention].call(pixels, SIDE)
        x = INPUTS[self.convention](resized).contiguous(memory_format=torch.channels_last)
        for name in (*STEM, *BLOCKS):
            x = self.get_submodule(name)(x)
            if name == "Mixed_6d":
                spatial = x[:, :7].permute(0, 2, 3, 1).flatten(1)  # its first 192 channels are branch1x1
        pooled = x.mean((2, 3))
        return Features(pooled, pooled @ self.fc.weight.T, spatial)


def load_inception(path: str | Path | None = None, convention: Convention = "adm") -> Inception:
    """The network with the weights of a file (.pth or .safetensors, in pytorch-fid's names), or the original's.

    Without a path the original file (96 MB) is fetched once from pytorch-fid's release into torch.hub's
    folder, and refused unless its SHA-256 is the known one. A file of one's own may hold any weights of
    the right names and shapes; its own hash is recorded. InputError in every other case.
    """
    if convention not in INPUTS:
        raise InputError(
            f"no convention {convention!r} of the Inception's input; use one of: {', '.join(INPUTS)}"
        )
    if path is None:
        path, digest = _original()
    else:
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such file of Inception weights; leave it out to fetch the original")
        digest = file_hash(path)
    with torch.device("meta"):
        network = Inception(convention)
    state = _read_weights(path)
    wrong = _difference(state, network.state_dict())
    if wrong:
        raise InputError(
            f"{path}: not the FID Inception in pytorch-fid's names: {wrong}; fetch it from {URL}"
        )
    # Batch norms count their steps, which nothing here reads and some files leave out.
    network.load_state_dict({name: value.float() for name, value in state.items()}, strict=False, assign=True)
    network.freeze(digest)
    return network


def _original() -> tuple[Path, str]:
    """The published file and its checked hash; fetched when it is not in torch.hub's folder."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(URL).name
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL, str(path), hash_prefix=SHA256)
        except (OSError, RuntimeError) as error:  # no network; another hash
            reason = str(error.reason if isinstance(error, urllib.error.URLError) else error)
            raise InputError(
                f"the Inception weights cannot be fetched ({reason.splitlines()[0]}); get {URL} where there "
                "is a network and give the file: `features` inception=FILE"
            ) from error
    digest = file_hash(path)
    if digest != SHA256:
        raise InputError(
            f"{path}: its SHA-256 is {digest}, not {SHA256} of the original; delete it to fetch it again, or "
            "give it by its path as weights of your own"
        )
    return path, digest


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return read_state(path)
    except InputError as error:
        raise InputError(f"{error}; give the .pth of {URL} or the same as .safetensors") from None


def _difference(state: dict[str, Tensor], expected: dict[str, Tensor]) -> str | None:
    """The first way in which a file's weights are not the expected ones, or None."""
    for name, value in expected.items():
        if name.endswith("num_batches_tracked"):
            continue
        found = state.get(name)
        if found is None:
            return f"{name} is missing"
        if found.shape != value.shape:
            return f"{name} is {tuple(found.shape)} instead of {tuple(value.shape)}"
    return next((f"{name} is not in the network" for name in state if name not in expected), None)
