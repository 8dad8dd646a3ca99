"""The power averages of a run as they were on the way, in 16 bits, to make averages of other widths from.

    averages/000000512000.safetensors   ema-1/blocks.0...., its metadata: images, the widths of ema-1, ema-2, ..., a hash

Numbers of 16 bits are float16: sums of averages have shares of both signs, which magnify rounding, and its eleven bits round
eight times less than bfloat16's eight. Weights are within its range; a tensor that is not stays as it is.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ditkit.errors import InputError
from ditkit.files import first_line, save_tensors, tensors_hash
from ditkit.records import parse_json

FOLDER = "averages"  # of a run


def part_name(place: int) -> str:
    """Of an average in files, by its place among a run's `train.averages`."""
    return f"ema-{place + 1}"


def halved(value: Tensor) -> Tensor:
    """In 16 bits, on the CPU; as it is where it does not fit."""
    half = value.detach().half()
    return (half if half.isfinite().all() else value.detach()).cpu()


def write_stored(
    run: Path, images: int, averages: Mapping[int, Mapping[str, Tensor]], widths: Mapping[int, float]
) -> Path:
    """Write the averages, by place, after so many images; the file. InputError where the disk does not take it."""
    tensors = {
        f"{part_name(place)}/{name}": value
        for place, some in averages.items()
        for name, value in some.items()
    }
    metadata = {
        "images": str(images),
        "widths": json.dumps({part_name(place): width for place, width in widths.items()}),
        "sha256": tensors_hash(tensors),
    }
    file = run / FOLDER / f"{images:012d}.safetensors"
    try:
        file.parent.mkdir(exist_ok=True)
        save_tensors(file, tensors, metadata)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{file}: cannot be written ({first_line(error)}); make room on the disk and give the same command again"
        ) from None
    return file


def stored_files(run: Path) -> dict[int, Path]:
    """A run's files, by images, ascending."""
    return {
        int(file.stem): file
        for file in sorted((run / FOLDER).glob("[0-9]*.safetensors"))
        if file.stem.isdecimal()
    }


def drop_after(run: Path, images: int) -> None:
    """Remove the files of more images: a run that goes on from before writes them again. InputError where one cannot be."""
    for count, file in stored_files(run).items():
        if count > images:
            try:
                file.unlink()
            except OSError as error:
                raise InputError(
                    f"{file}: cannot be removed ({error.strerror}), and the run goes on from before it; remove it by hand"
                ) from None


class Stored(Mapping[str, Tensor]):
    """The tensors of a file, each read when it is looked up."""

    def __init__(self, file: Path):
        """InputError where it is damaged."""
        self.file = file
        try:
            self._reader = safe_open(file, "pt")
            self._names = frozenset(self._reader.keys())
            metadata = self._reader.metadata() or {}
            self.images = int(metadata["images"])
            self.widths: dict[str, float] = _widths(parse_json(metadata["widths"]))
            sound = tensors_hash(self) == metadata["sha256"]
        except PermissionError as error:
            raise InputError(f"{file} cannot be read ({error.strerror})") from None
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(f"{file} is damaged ({first_line(error)}); remove it") from None
        if not sound:
            raise InputError(f"{file} is damaged: its tensors do not match their hash; remove it")

    def __getitem__(self, name: str) -> Tensor:
        return self._reader.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def of(self, part: str) -> set[str]:
        """The names of an average's tensors."""
        return {name.removeprefix(f"{part}/") for name in self if name.startswith(f"{part}/")}


def _widths(values: Any) -> dict[str, float]:
    """ValueError unless they are widths by name."""
    if not isinstance(values, dict) or not all(isinstance(width, float) for width in values.values()):
        raise ValueError("its metadata names no widths")
    return values


def combined(terms: Sequence[tuple[Stored, str, float]], name: str) -> Tensor:
    """The sum of one tensor of several averages, each a file, a part of it and its share; added in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for stored, part, share in terms:
        total = total + share * stored[f"{part}/{name}"].double()
    return total
