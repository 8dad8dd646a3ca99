"""What every source of training data keeps to, whatever it is made of."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditkit.data import (
    ArrayFiles,
    Arrays,
    DataSection,
    Digits,
    Draw,
    Folder,
    MovingDigits,
    Source,
    batches,
    plan_for,
)
from ditkit.data.latents import Latents


def digits(folder: Path) -> tuple[Source, DataSection]:
    return Digits().open("test"), Digits(flip=True)


def native(folder: Path) -> tuple[Source, DataSection]:
    config = Digits(size=6, aspect="native", flip=True)
    return config.open("test"), config


def files(folder: Path, **fields) -> tuple[Source, DataSection]:
    random = np.random.default_rng(0)
    for number, (width, height) in enumerate([(12, 8), (8, 12), (16, 16), (12, 8)]):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    config = Folder(path=folder, size=8, flip=True, held_out=0.0, **fields)
    return config.open(), config


def native_files(folder: Path) -> tuple[Source, DataSection]:
    return files(folder, aspect="native")


def undecoded(folder: Path) -> tuple[Source, DataSection]:
    return files(folder, aspect="native", cache="off", check=False)


def numbers(folder: Path) -> tuple[Source, DataSection]:
    np.save(folder / "a.npy", np.random.default_rng(0).random((9, 3, 4, 6), np.float32))
    config = ArrayFiles(path=folder / "a.npy", range=(0, 1), flip=True).resolved()
    return config.open(), config


def clips(folder: Path, **fields) -> tuple[Source, DataSection]:
    config = MovingDigits(size=12, glyph=8, frames=3, clips=6, **fields)
    return config.training(), config


def mixed(folder: Path) -> tuple[Source, DataSection]:
    return clips(folder, single_frames=0.5)


class MadeUp(Latents):
    """Moments that say which image they are of, negative where it is mirrored."""

    labels, shape, flips = torch.arange(5), (4, 2, 3), True

    def __len__(self) -> int:
        return 5

    def row(self, place: int, mirrored: bool) -> torch.Tensor:
        return torch.full(self.shape, 1.0 + place) * (-1 if mirrored else 1)

    def file(self, place: int) -> Path:
        return Path("made-up")


def latents(folder: Path) -> tuple[Source, DataSection]:
    return MadeUp(), Digits(flip=True)


KINDS = [digits, native, files, native_files, undecoded, numbers, clips, mixed, latents]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def opened(request, tmp_path) -> tuple[Source, DataSection]:
    make: Callable[[Path], tuple[Source, DataSection]] = request.param
    return make(tmp_path)


def test_everything_is_read_at_its_size(opened):
    source, _ = opened
    found = source.sizes(2)
    assert len(found) == len(source) > 3
    assert source.labels is None or len(source.labels) == len(source)
    assert source.captions is None or len(source.captions) == len(source)
    for place in (0, len(source) - 1):
        assert tuple(source.read([place], size=found[place]).shape[2:]) == tuple(found[place])
    nothing = source.read([], size=found[0])
    assert (len(nothing), tuple(nothing.shape[2:])) == (0, tuple(found[0]))
    assert nothing.dtype == source.read([0], size=found[0]).dtype


def test_many_are_each_by_itself_and_without_draws_always_the_same(opened):
    source, _ = opened
    found = source.sizes(2)
    places = [place for place in range(min(len(source), 20)) if found[place] == found[0]][::-1]
    together = source.read(places, size=found[0])
    one_by_one = torch.cat([source.read([place], size=found[0]) for place in places])
    assert together.equal(one_by_one)
    assert together.equal(source.read(places, size=found[0]))


def test_what_is_mirrored_is_drawn_by_the_number_alone(opened):
    source, _ = opened
    size = source.sizes(2)[0]
    drawn = [Draw(0, n, flip=True) for n in range(20)]
    mirrored = [draw.mirrored for draw in drawn]
    assert 0 < sum(mirrored) < 20
    assert not any(Draw(0, n, flip=False).mirrored for n in range(20))
    straight = source.read([0] * 20, [Draw(0, n, flip=False) for n in range(20)], size)
    found = source.read([0] * 20, drawn, size)
    for row, flip in enumerate(mirrored):
        other = -straight[row] if source.gives == "moments" else straight[row].flip(-1)
        assert found[row].equal(other if flip else straight[row])


def test_its_batches_have_the_name_of_what_it_gives(opened):
    source, config = opened
    plan = plan_for(source, config, 2, lambda size: 1, 4)
    for batch in batches(source, config, seed=0, start=0, stop=8, batch=0, plan=plan):
        content = {"images": batch.images, "moments": batch.moments}
        assert content.pop(source.gives) is not None
        assert [*content.values()] == [None]


class Stripes(Source):
    """A source of one's own: what it must have, and nothing else."""

    def __len__(self) -> int:
        return 7

    def sizes(self, multiple: int = 1) -> list[tuple[int, ...]]:
        return [(4, 4)] * 7

    def unmirrored(self, places, draws=None, size=None) -> torch.Tensor:
        columns = torch.arange(4, dtype=torch.uint8).expand(len(places), 1, 4, 4)
        return 10 * torch.tensor(places, dtype=torch.uint8).view(-1, 1, 1, 1) + columns


def test_a_source_of_ones_own_has_three_methods():
    config = Digits(size=4, flip=True)
    ours, theirs = (
        torch.cat(
            [
                batch.images
                for batch in batches(Stripes(), config, seed=0, start=3, stop=17, batch=5, workers=n)
            ]
        )
        for n in (0, 1)
    )
    assert ours.equal(theirs)
    assert {tuple(row) for row in (ours[:, 0, 0] % 10).tolist()} == {(0, 1, 2, 3), (3, 2, 1, 0)}


def test_images_in_memory_are_left_as_they_are():
    """Also where they are mirrored: what is read is a copy."""
    images = torch.arange(2 * 4, dtype=torch.uint8).view(2, 1, 2, 2)
    source = Arrays(images, None, ())
    source.read([0, 1] * 10, [Draw(0, n, flip=True) for n in range(20)])
    assert images.flatten().tolist() == list(range(8))
