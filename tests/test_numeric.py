"""Arrays of numbers as data: files of every kind, what their arrays mean, ranges, and runs from end to end."""

import json
import os
import pickle
import shutil
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CPU, SMALL
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from test_cli import ditkit, refused

import ditkit as library
from ditkit.cli import info
from ditkit.codecs import PyramidCodec
from ditkit.codecs.identity import Identity, as_uint8, from_bounds, to_bounds, to_uint8
from ditkit.data import ArrayFiles, Source, array_values, batches, load_all
from ditkit.data.array_files import find_arrays
from ditkit.data.array_values import to_signed
from ditkit.errors import InputError
from ditkit.pictures import CHANNELS, grid, visible
from ditkit.pipeline import load
from ditkit.recipes import recipe
from ditkit.scoring import rulers
from ditkit.scoring.likelihood import likelihoods
from ditkit.training import train

FIELDS = np.random.default_rng(0).uniform(-3, 5, (20, 2, 4, 6))  # float64 (N, C, H, W)
PIXELS = np.random.default_rng(1).integers(0, 256, (20, 3, 4, 6), dtype=np.uint8)


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


def opened(path: Path, **fields):
    return ArrayFiles(path=path, **{"range": (-3, 5), **fields}).open()


def denied(words: str, path: Path, split: str = "train", **fields) -> None:
    with pytest.raises(InputError, match=words) as caught:
        ArrayFiles(path=path, **fields).open(split)
    assert "\n" not in str(caught.value)


# ranges


def test_the_ends_of_a_range_become_minus_one_and_one():
    found = to_signed(np.array([-40.0, -10.0, 20.0, 50.0, 80.0]), (-40, 80))
    assert found.dtype == np.float32
    assert found.tolist() == [-1, -0.5, 0, 0.5, 1]
    whole = to_signed(np.array([-32768, 32767], dtype=np.int16), (-32768, 32767))
    assert whole.tolist() == [-1, 1]  # not wrapped in 16 bits


def test_ranges_are_undone_and_bounds_are_kept():
    values = torch.linspace(-1, 1, 101)
    for bounds in ((-40.0, 80.0), (273.15, 273.16), (0.0, 1e-30)):
        low, high = bounds
        numbers = to_bounds(values, bounds)
        assert numbers[0] == torch.tensor(low)
        assert numbers[-1] == torch.tensor(high)
        allowed = 4 * torch.finfo(torch.float32).eps * max(abs(low), abs(high)) / (high - low)
        assert (from_bounds(numbers, bounds) - values).abs().max() <= allowed + 1e-6
    assert to_bounds(torch.tensor([-1.5, 9.0]), (2.0, 3.0)).tolist() == [2.0, 3.0]


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", ">f4", "i2", ">i2", "u2", "i8", "?"])
def test_every_type_of_number_is_read_in_float64_and_mapped_once(tmp_path, kind):
    values = np.rint(FIELDS * 4).clip(-12, 20)
    bounds = (-12.0, 20.0)
    if kind in ("u2", "?"):
        values, bounds = np.abs(values) % (2 if kind == "?" else 9), (0.0, 1.0 if kind == "?" else 9.0)
    stored = values.astype(kind)
    source = opened(saved(tmp_path / "a.npy", stored), range=bounds)
    expected = (2 * (stored.astype(np.float64) - bounds[0]) / (bounds[1] - bounds[0]) - 1).astype(np.float32)
    found = source.read(range(20))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-7)


def test_8_bit_values_stay_pixels_unless_they_have_a_range(tmp_path):
    path = saved(tmp_path / "a.npy", PIXELS)
    section = ArrayFiles(path=path)
    images, labels = load_all(section)
    assert images.dtype == torch.uint8
    assert labels is None
    assert np.array_equal(images.numpy(), PIXELS)
    assert section.bounds is None
    assert torch.equal(
        opened(path, range=(0, 255)).read([3]), torch.from_numpy(to_signed(PIXELS[3:4], (0, 255)))
    )


def test_values_without_a_range_or_out_of_it_are_refused_with_the_one_that_fits(tmp_path, monkeypatch):
    monkeypatch.setattr(array_values, "BLOCK", 1000)  # several blocks
    low, high = FIELDS.min(), FIELDS.max()
    path = saved(tmp_path / "a.npy", FIELDS)
    denied(
        rf"a\.npy holds float64 values from {low:g} to {high:g}; say which.* `data\.range` -2\.\d+ 4\.\d+$",
        path,
    )
    with pytest.raises(InputError) as caught:
        ArrayFiles(path=path).open()
    suggested = tuple(map(float, str(caught.value).split()[-2:]))
    assert suggested[0] <= low
    assert high <= suggested[1] <= high + 0.01
    assert len(ArrayFiles(path=path, range=suggested).open()) == 20
    outside = int((FIELDS > 4).sum())
    denied(
        rf"{outside} of 960 values, .* outside `data\.range` -3 4; give a wider one, such as",
        path,
        range=(-3, 4),
    )
    assert len(ArrayFiles(path=path, range=(-3, 4), check=False).open()) == 20
    holes = FIELDS.copy()
    holes[7, 0, 1, 1], holes[9, 1, 0, 0] = np.nan, np.inf
    for bounds in (None, (-3, 5)):
        denied(
            r"h\.npy: 2 values are not finite, the first in image 7",
            saved(tmp_path / "h.npy", holes),
            range=bounds,
        )
    denied(r"such as `data\.range` 273 273\.1$", saved(tmp_path / "c.npy", np.full((3, 4, 4), 273.0)))
    for wrong in ((1, 1), (2, 1), (0, float("inf")), (float("nan"), 1)):
        with pytest.raises(ValidationError, match=r"`data\.range`|finite number"):
            ArrayFiles(range=wrong)


def test_values_are_looked_through_once_while_the_file_stays_as_it_is(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.npy", FIELDS)
    opened(path)
    monkeypatch.setattr(array_values, "_blocks", None)
    opened(path)
    monkeypatch.undo()
    saved(path, np.concatenate([FIELDS, 2 * FIELDS]))
    denied(r"outside `data\.range`", path, range=(-3, 5))


# files


def write_all(folder: Path) -> dict[str, Path]:
    """The same array in every kind of file."""
    np.savez(folder / "stored.npz", x=FIELDS, y=np.arange(20))
    np.savez_compressed(folder / "packed.npz", x=FIELDS, y=np.arange(20))
    np.savez(folder / "columns.npz", x=np.asfortranarray(FIELDS), y=np.arange(20))
    save_file({"x": torch.from_numpy(FIELDS), "y": torch.arange(20)}, folder / "a.safetensors")
    saved(folder / "a.npy", FIELDS)
    saved(folder / "columns.npy", np.asfortranarray(FIELDS))
    return {path.name: path for path in folder.iterdir()}


KINDS = ["a.npy", "columns.npy", "stored.npz", "packed.npz", "columns.npz", "a.safetensors"]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_file_gives_the_same_images(tmp_path, name):
    path = write_all(tmp_path)[name]
    source = pickle.loads(pickle.dumps(opened(path)))
    assert isinstance(source, Source)
    for picks in ([3], [19, 0, 7, 7], range(5, 9), []):
        found = source.read(picks)
        assert found.shape == (len(picks), 2, 4, 6)
        assert np.array_equal(found.numpy(), to_signed(FIELDS[list(picks)], (-3, 5)))
    assert (source.labels is None) == (path.suffix == ".npy")
    if source.labels is not None:
        assert source.labels.tolist() == list(range(20))
        assert source.names == tuple(map(str, range(20)))


def test_what_is_not_compressed_is_mapped_and_handles_do_not_travel(tmp_path):
    paths = write_all(tmp_path)
    for name in KINDS:
        array = find_arrays(paths[name])[0]["x" if "npy" not in name else ""]
        array.rows([0])
        mapped = isinstance(getattr(array._rows, "__self__", None), np.memmap)
        assert mapped == (name not in ("packed.npz", "a.safetensors"))
        assert len(pickle.dumps(array)) < 1000


def test_bfloat16_is_read_as_float32(tmp_path):
    values = torch.from_numpy(FIELDS).bfloat16()
    save_file({"images": values}, tmp_path / "a.safetensors")
    expected = to_signed(values.float().numpy(), (-3, 5))
    assert np.array_equal(opened(tmp_path / "a.safetensors").read(range(20)).numpy(), expected)


def test_the_files_of_a_folder_follow_each_other_in_natural_order(tmp_path):
    for number in (10, 2, 1):
        saved(tmp_path / f"part{number}.npy", np.full((number, 4, 4), number, np.float32))
    np.savez(tmp_path / "z.npz", x=np.full((2, 4, 4), 20, np.float32))
    saved(tmp_path / ".hidden.npy", np.zeros(3))
    (tmp_path / "notes.txt").write_text("passed over")
    source = opened(tmp_path, range=(0, 100))
    found = ((source.read(range(len(source)))[:, 0, 0, 0] + 1) * 50).round().int().tolist()
    assert found == [1] + [2] * 2 + [10] * 10 + [20] * 2
    assert ((source.read([13, 0, 2])[:, 0, 0, 0] + 1) * 50).round().int().tolist() == [20, 1, 2]
    saved(tmp_path / "wide.npy", np.zeros((1, 4, 5), np.float32))
    denied(
        r"wide\.npy is float32 \(1, 4, 5\), .*part1\.npy is float32 \(1, 4, 4\); give arrays of one", tmp_path
    )


def test_nothing_pickled_is_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    bad = np.array([Evil()] * 3, dtype=object)
    np.save(tmp_path / "a.npy", bad, allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=bad, y=bad)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Evil()))
    for name in ("a.npy", "a.npz"):
        denied(
            "holds pickled objects, which are never read", tmp_path / name, array="x" if "z" in name else None
        )
    denied(r"b\.npy cannot be read", tmp_path / "b.npy")
    assert not (tmp_path / "executed").exists()


def test_what_cannot_be_read_is_one_line(tmp_path):
    paths = write_all(tmp_path)
    for name in KINDS:
        content = paths[name].read_bytes()
        for damaged in (content[: len(content) // 2], content[:5], b""):
            path = tmp_path / f"cut-{name}"
            path.write_bytes(damaged)
            with pytest.raises(
                InputError, match=rf"cut-{name} .*cannot be read \(.*\); write it again"
            ) as caught:
                opened(path, check=False).read(range(20))
            assert "\n" not in str(caught.value)
    path = tmp_path / "open.npy"
    path.write_bytes(paths["a.npy"].read_bytes().replace(b")", b" ", 1))
    denied(r"open\.npy cannot be read", path)
    denied("which arrays", None)
    denied(r"gone\.npy is not there", tmp_path / "gone.npy")
    denied(
        r"a\.h5: arrays are read from \.npy, \.npz, \.safetensors",
        saved(tmp_path / "a.npy", FIELDS).rename(tmp_path / "a.h5"),
    )
    (tmp_path / "empty").mkdir()
    denied(r"empty holds no \.npy, \.npz, \.safetensors files", tmp_path / "empty")
    denied("has no held-out part; `data.test`", paths["stored.npz"], "test")


# what the arrays mean


def test_arrays_are_found_by_name_or_because_there_is_one(tmp_path):
    numbers = np.arange(20)

    def found(name: str | None = None, **arrays):
        np.savez(tmp_path / "a.npz", **arrays)
        source = opened(tmp_path / "a.npz", array=name)
        return source.labels is not None, np.array_equal(source.read([1])[0], to_signed(FIELDS[1], (-3, 5)))

    assert found(temperature=FIELDS) == (False, True)
    assert found(arr_0=FIELDS, arr_1=numbers) == (True, True)
    assert found(X=FIELDS, labels=numbers, other=FIELDS + 9) == (True, True)
    assert found(temperature=FIELDS, time=numbers, y=numbers) == (True, True)
    assert found("b", a=FIELDS + 9, b=FIELDS) == (False, True)
    assert found(images=FIELDS, arr_1=FIELDS) == (False, True)  # no labels
    there = r"a\.npz: .* `data\.array` is one of: a float64 \(20, 2, 4, 6\), b float64"
    np.savez(tmp_path / "a.npz", a=FIELDS, b=FIELDS)
    denied("which of its arrays are the images.*" + there.removeprefix(r"a\.npz: "), tmp_path / "a.npz")
    denied("no array 'c'; `data.array` is one of", tmp_path / "a.npz", array="c")
    denied("no array 'c'; `data.labels` is one of", tmp_path / "a.npz", array="a", labels="c", range=(-3, 5))
    np.savez(tmp_path / "a.npz", x=FIELDS, y=numbers, labels=numbers)
    denied("which are the labels", tmp_path / "a.npz", range=(-3, 5))
    assert opened(tmp_path / "a.npz", labels="y").labels.tolist() == list(range(20))


@pytest.mark.parametrize(
    ("shape", "chosen", "layout", "image"),
    [
        ((5, 8, 9), "auto", "nhw", (1, 8, 9)),
        ((5, 2, 8, 9), "auto", "nchw", (2, 8, 9)),
        ((5, 8, 9, 2), "auto", "nhwc", (2, 8, 9)),
        ((5, 8, 8, 8), "nhwc", "nhwc", (8, 8, 8)),
        ((5, 30, 8, 8), "nchw", "nchw", (30, 8, 8)),
        ((5, 8, 9, 8), "auto", None, None),
        ((5, 9, 8, 8), "auto", None, None),
        ((5, 8, 8), "nchw", None, None),
        ((5, 2, 8, 8), "nhw", None, None),
        ((5, 8), "auto", None, None),
        ((5, 1, 2, 8, 8), "auto", None, None),
        ((0, 8, 8), "auto", None, None),
    ],
)
def test_layouts_are_found_where_one_axis_is_shorter_than_both_others(tmp_path, shape, chosen, layout, image):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    section = ArrayFiles(path=saved(tmp_path / "a.npy", array), layout=chosen)
    if layout is None:
        denied(r"a\.npy is uint8 \(", section.path, layout=chosen)
        return
    resolved = section.resolved()
    assert (resolved.layout, resolved.channels, *resolved.shape) == (layout, *image)
    assert resolved.resolved() == resolved
    shown = np.moveaxis(array, -1, 1) if layout == "nhwc" else array.reshape(len(array), *image)
    assert np.array_equal(section.open().read([4, 1]).numpy(), shown[[4, 1]])
    assert np.array_equal(array_values.in_layout(shown, layout), array)


def test_sizes_are_checked_and_nothing_is_resized(tmp_path):
    path = saved(tmp_path / "a.npy", FIELDS)
    assert ArrayFiles(path=path, size=4, width=6, channels=2).resolved().shape == (4, 6)
    for wrong in ({"size": 6}, {"width": 4}, {"channels": 3}):
        denied(
            r"images of 4x6 with 2 channels \(nchw\), but `data\.(size|width|channels)` is \d", path, **wrong
        )
    assert ArrayFiles(path=path).resolved().scaled(1, 2) == {"size": 2, "width": 3}
    denied("give real and imaginary parts as two channels", saved(tmp_path / "c.npy", FIELDS * 1j))


def test_labels_come_from_the_file_or_an_npy_beside_it(tmp_path):
    path, numbers = saved(tmp_path / "a.npy", FIELDS), np.arange(20) % 3
    labels = str(saved(tmp_path / "labels.npy", numbers))
    source = opened(path, labels=labels, names=("ant", "bee", "cat"))
    assert (source.names, source.labels.tolist()) == (("ant", "bee", "cat"), numbers.tolist())
    assert opened(tmp_path, labels=labels).labels.tolist() == numbers.tolist()  # not one more file of images
    assert opened(path, labels=labels, classes=5, names=tuple("abcde")).names == tuple("abcde")
    assert opened(path, labels=labels, classes=5).names == ("0", "1", "2", "3", "4")
    assert opened(path, labels=labels, classes=0).labels is None
    bounds = {"range": (-3, 5)}
    denied("has 3 classes, but `data.classes` is 2", path, labels=labels, classes=2, **bounds)
    denied(
        "has labels up to 2, but `data.names` are 2; give 3", path, labels=labels, names=("a", "b"), **bounds
    )
    denied(r"`data\.names`: .*a\.npy has no labels; `data\.labels`", path, names=("a", "b"), **bounds)
    for wrong, words in {
        "short": (numbers[:4], "has 4 labels for 20 images"),
        "below": (numbers - 1, "holds the label -1; classes are numbered from 0"),
        "real": (numbers / 2, r"is float64 \(20\), not labels"),
        "table": (numbers[:, None], r"is int64 \(20, 1\), not labels"),
    }.items():
        denied(words[1], path, labels=str(saved(tmp_path / f"{wrong}.npy", words[0])), **bounds)
    folder = tmp_path / "folder"
    folder.mkdir()
    np.savez(folder / "1.npz", x=FIELDS, y=numbers)
    np.savez(folder / "2.npz", x=FIELDS)
    denied(r"2\.npz has no labels, .*1\.npz has; give all of them some", folder, **bounds)


def test_a_held_out_part_is_a_file_of_its_own_of_the_same_kind(tmp_path):
    path, numbers = saved(tmp_path / "a.npy", FIELDS), np.arange(20) % 3
    test = saved(tmp_path / "t.npy", FIELDS[:5])
    labels, others = (str(saved(tmp_path / f"{n}.npy", numbers[:n])) for n in (20, 5))
    section = ArrayFiles(path=path, test=test, range=(-3, 5), labels=labels, test_labels=others)
    assert len(section.training()) == 20
    assert section.open("test").labels.tolist() == numbers[:5].tolist()
    without = section.model_copy(update={"test_labels": None})
    with pytest.raises(InputError, match=r"`data\.test_labels` names those of the held-out part"):
        without.training()
    assert (
        len(ArrayFiles(path=tmp_path, test=test, labels=labels, test_labels=others, range=(-3, 5)).open())
        == 20
    )
    saved(test, FIELDS[:5, :, :, :4])
    with pytest.raises(InputError, match=r"t\.npy is .* but `data\.width` is 6"):
        section.resolved()
    saved(test, 9 * FIELDS[:5])
    with pytest.raises(InputError, match=r"t\.npy: \d+ of 240 values"):
        section.training()


# batches


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_hold_numbers_and_flips_whatever_the_workers(tmp_path, workers):
    section = ArrayFiles(path=saved(tmp_path / "a.npy", FIELDS), range=(-3, 5), flip=True).resolved()
    whole = torch.from_numpy(to_signed(FIELDS, (-3, 5)))
    seen, mirrored = [], 0
    for batch in batches(section.open(), section, seed=0, start=0, stop=40, batch=8, workers=workers):
        assert batch.images.dtype == torch.float32
        for image in batch.images:
            as_it_is = [place for place in range(20) if torch.equal(whole[place], image)]
            flipped = [place for place in range(20) if torch.equal(whole[place].flip(-1), image)]
            seen += as_it_is + flipped
            mirrored += len(flipped)
    assert sorted(seen) == sorted([*range(20), *range(20)])
    assert 5 < mirrored < 35


# codecs and pictures


def test_codecs_pass_numbers_through():
    values = torch.from_numpy(to_signed(FIELDS, (-3, 5)))
    codec = Identity(2)
    assert codec.encode(values) is values
    assert torch.equal(codec.values(codec.encode(values)), values)
    assert torch.equal(codec.decode(values), to_uint8(values))
    pyramid = PyramidCodec(Identity(2), (2, 1), (0.5, 2.0))
    state = pyramid.encode(values)
    assert torch.equal(pyramid.values(state), values)
    means = values.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2))
    torch.testing.assert_close(pyramid.values(state, 1), means)
    assert torch.equal(pyramid.decode(state, 1), to_uint8(pyramid.values(state, 1)))
    row = pyramid.side_by_side(state, numbers=True)
    assert torch.equal(row[..., 6:], values)
    assert torch.equal(to_uint8(row), pyramid.side_by_side(state))
    assert torch.equal(as_uint8(values), to_uint8(values))
    assert as_uint8(to_uint8(values)).dtype == torch.uint8


def test_other_channels_are_shown_side_by_side():
    pixels = torch.from_numpy(PIXELS)
    assert visible(pixels) is pixels
    assert visible(pixels[:, :1]).shape == (20, 1, 4, 6)
    two = visible(pixels[:, :2])
    assert two.shape == (20, 1, 4, 13)
    assert torch.equal(two[:, 0, :, :6], pixels[:, 0])
    assert torch.equal(two[:, 0, :, 7:], pixels[:, 1])
    assert (two[..., 6] == 255).all()
    many = torch.zeros(1, CHANNELS + 3, 4, 6, dtype=torch.uint8)
    assert visible(many).shape == (1, 1, 4, 7 * CHANNELS - 1)
    assert grid(pixels[:4, :2], 2, scale=1).size == (2 * 13 + 3, 2 * 4 + 3)


def test_a_vae_reads_numbers_as_it_reads_the_pixels_they_are(tmp_path):
    pytest.importorskip("diffusers")
    from test_codecs import saved as autoencoder

    from ditkit.codecs import VaeConfig

    path = autoencoder(tmp_path, blocks=2, in_channels=2, out_channels=2)
    vae = VaeConfig(id=str(path)).build(2)
    pixels = torch.from_numpy(PIXELS[:, :2])
    numbers = torch.from_numpy(to_signed(PIXELS[:, :2], (0, 255)))
    torch.testing.assert_close(vae.moments(numbers), vae.moments(pixels), rtol=1e-5, atol=1e-5)
    state = vae.encode(numbers)
    assert torch.equal(vae.decode(state), to_uint8(vae.values(state)))
    wrong = VaeConfig(id=str(path)).build(5)
    with pytest.raises(InputError, match="is for images of 2 channel, these have 5"):
        wrong.moments(torch.zeros(1, 5, 4, 4))


# runs


def waves(count: int, channels: int) -> np.ndarray:
    """Smooth fields (N, C, 8, 12), -40 to 80."""
    random = np.random.default_rng(channels)
    y, x = np.mgrid[:8, :12] / 12
    phase = random.uniform(0, 6, (count, channels, 1, 1))
    return (20 + 60 * np.sin(6 * x + 4 * y + phase)).astype(np.float32)


def small(path: Path, **data):
    budget = {
        "images": 320,
        "batch": 32,
        "warmup_images": 0,
        "schedule": "constant",
        "log_images": 64,
        "checkpoint_images": 160,
    }
    section = ArrayFiles(path=path, **{"range": (-40, 80), **data})
    shown = {"preview_images": 160, "validate_images": 160}
    return recipe("digits").with_data(section).replace(**SMALL, train=budget | shown)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """A run on labelled images of two channels."""
    folder = tmp_path_factory.mktemp("two")
    np.savez(folder / "waves.npz", x=waves(96, 2), y=np.arange(96) % 3)
    np.savez(folder / "test.npz", x=waves(12, 2)[::-1], y=np.arange(12) % 3)
    chosen = small(folder / "waves.npz", test=folder / "test.npz", flip=True)
    train(chosen, folder / "run", device=CPU, progress=False)
    return folder / "run"


def test_a_run_records_what_its_files_are(two):
    data = json.loads((two / "recipe.json").read_text())["data"]
    expected = {"size": 8, "width": 12, "channels": 2, "layout": "nchw", "classes": 3, "range": [-40, 80]}
    assert {name: data[name] for name in expected} == expected
    assert (two / "validation.png").exists()
    assert len(list((two / "previews").glob("*.png"))) == 2
    _, line = islice(info._recipe(info.parse_info([str(two)])), 2)
    assert line == "  images      8 x 12, 2 channels, 3 classes, numbers from -40 to 80"


def test_stopped_and_resumed_equals_not_stopped(two, tmp_path):
    chosen = small(two.parent / "waves.npz", test=two.parent / "test.npz", flip=True)
    first = train(chosen.replace(train={"images": 160}), tmp_path / "run", device=CPU, progress=False)
    assert first.name == f"{160:012d}"
    last = train(chosen, tmp_path / "run", device=CPU, progress=False)
    for name in ("model.safetensors", "ema.safetensors"):
        assert (last / name).read_bytes() == (two / "checkpoints" / last.name / name).read_bytes()
    np.savez(tmp_path / "other.npz", x=waves(96, 2).transpose(0, 2, 3, 1))
    with pytest.raises(InputError, match=r"was made with data\.\w+ |the classes have changed"):
        train(small(tmp_path / "other.npz", flip=True), tmp_path / "run", device=CPU, progress=False)


def test_a_file_that_has_changed_is_seen_on_resume(tmp_path):
    def go_on(**data) -> None:
        chosen = small(tmp_path / "a.npz", names=("ant", "bee", "cat"), **data)
        train(chosen.replace(train={"images": 64}), tmp_path / "run", device=CPU, progress=False)

    fields, labels = waves(32, 2), np.arange(32) % 3
    np.savez(tmp_path / "a.npz", x=fields, y=labels)
    go_on()
    data = json.loads((tmp_path / "run" / "recipe.json").read_text())["data"]
    assert data["names"] == ["ant", "bee", "cat"]
    go_on()
    np.savez(tmp_path / "a.npz", x=fields[::-1], y=labels)
    with pytest.raises(
        InputError, match=r"1 changed \(a\.npz\); put them back, or give `data\.changed` accept"
    ):
        go_on()
    go_on(changed="accept")


def test_samples_are_numbers_in_the_range_and_pictures_of_them(two):
    pipeline = load(two)
    cond = {"label": [0, 1, 2]}
    numbers = pipeline.generate(cond, seeds=[4, 5, 6], numbers=True)
    pictures = pipeline.generate(cond, seeds=[4, 5, 6])
    assert (numbers.dtype, numbers.shape) == (torch.float32, (3, 2, 8, 12))
    assert numbers.min() >= -40
    assert numbers.max() <= 80
    assert len(numbers.unique()) > 256
    assert pictures.dtype == torch.uint8
    assert torch.equal(to_uint8(from_bounds(numbers, (-40, 80))), pictures)
    pixels = load("digits")  # of 8-bit data
    numbers = pixels.generate({"label": [3]}, seeds=[0], numbers=True, steps=2)
    pictures = pixels.generate({"label": [3]}, seeds=[0], steps=2)
    assert ((numbers + 0.5).floor().clamp(max=255) - pictures).abs().max() <= 1


def test_sample_writes_numbers_convert_keeps_them(two, tmp_path, capsys):
    status, out, _ = ditkit(capsys, "sample", two, "--n", 6, "--npz", "--png", "--out", tmp_path / "s")
    assert status == 0
    assert "pictures show 2 channels side by side, each grey" in out
    assert "-40 as 0 and 80 as 255; --npz writes the numbers" in out
    with np.load(tmp_path / "s" / "samples.npz") as file:
        fields, labels = file["arr_0"], file["labels"]
    assert (fields.dtype, fields.shape, labels.tolist()) == (np.float32, (6, 2, 8, 12), [0, 1, 2, 0, 1, 2])
    with Image.open(tmp_path / "s" / "images" / "000000-class0.png") as image:
        assert image.size == (25, 8)
        left = np.asarray(image)[:, :12]
    assert np.array_equal(left, to_uint8(from_bounds(torch.from_numpy(fields[0, 0]), (-40, 80))).numpy())
    ditkit(capsys, "convert", two, "--out", tmp_path / "snapshot")
    shutil.copytree(tmp_path / "snapshot", tmp_path / "elsewhere")
    assert "numbers from -40 to 80" in (tmp_path / "elsewhere" / "README.md").read_text()
    ditkit(capsys, "sample", tmp_path / "elsewhere", "--n", 6, "--npz", "--out", tmp_path / "t")
    with np.load(tmp_path / "t" / "samples.npz") as file:
        assert np.array_equal(file["arr_0"], fields)
    again = ArrayFiles(path=tmp_path / "s" / "samples.npz", range=(-40, 80)).open()
    np.testing.assert_allclose(to_bounds(again.read(range(6)), (-40, 80)).numpy(), fields, rtol=0, atol=1e-5)


def test_five_channels_last_from_end_to_end(tmp_path, capsys):
    np.save(tmp_path / "a.npy", waves(64, 5).transpose(0, 2, 3, 1))
    flags = ["--data", "arrays", "--data.path", tmp_path / "a.npy", "--data.range", -40, 80]
    tiny = ["--backbone.width", 24, "--backbone.depth", 2, "--backbone.heads", 2, "--sample.steps", 2,
            "--train.images", 96, "--train.batch", 32, "--train.preview-images", 0]  # fmt: skip
    run = tmp_path / "run"
    assert ditkit(capsys, "train", "digits", *flags, *tiny, "--out", run)[0] == 0
    ditkit(capsys, "convert", run, "--out", tmp_path / "snapshot")
    status, out, _ = ditkit(
        capsys, "sample", tmp_path / "snapshot", "--n", 3, "--npz", "--out", tmp_path / "s"
    )
    assert status == 0
    assert "pictures show 5 channels" in out
    with np.load(tmp_path / "s" / "samples.npz") as file:
        assert file["arr_0"].shape == (3, 8, 12, 5)  # as the data
    assert "reads pictures of 1 or 3 channels, data arrays has 5" in refused(
        capsys, "eval", run, "--features", "efficientnet-112"
    )
    assert "holds float32 values from" in refused(capsys, "train", "digits", *flags[:4], *tiny, "--out", run)
    assert "--data.aspect" in refused(capsys, "train", "digits", *flags, "--data.aspect", "native")
    assert "which arrays" in refused(capsys, "train", "digits", "--data", "arrays", *tiny)
    assert "not resized" in refused(
        capsys, "train", "digits", *flags, "--backbone", "Matryoshka", "--train.stages", 32
    )


def test_samples_of_pixels_are_data_again(run, tmp_path, capsys):
    ditkit(capsys, "sample", run, "--n", 20, "--npz", "--out", tmp_path)
    section = ArrayFiles(path=tmp_path / "samples.npz").resolved()
    assert (section.channels, section.shape, section.layout) == (1, (8, 8), "nhwc")
    images, labels = load_all(section)
    expected = load(run).generate({"label": torch.arange(20) % 10}, seeds=range(20), batch=100)
    assert torch.equal(images, expected)
    assert labels.tolist() == [*range(10), *range(10)]


def test_what_counts_levels_of_8_bits_is_refused_and_pictures_are_scored(two, tmp_path):
    pipeline = load(two)
    with pytest.raises(
        InputError, match="its data is numbers from -40 to 80; bits per dimension count the 256 levels"
    ):
        likelihoods(pipeline, 4)
    with pytest.raises(InputError, match=r"inception reads pictures of 1 or 3 channels, data arrays has 2"):
        rulers(["inception"], pipeline.recipe.data)


def test_a_classifier_of_its_own_scores_numbers_of_any_channels(two, tmp_path, capsys):
    file = tmp_path / "c.safetensors"
    flags = ["--data.path", two.parent / "waves.npz", "--data.range", -40, 80]
    assert ditkit(capsys, "classifier", "arrays", *flags, "--epochs", 1, "--out", file)[0] == 0
    status, out, _ = ditkit(
        capsys, "eval", two, "--features", f"classifier={file}", "--n", 12, "--out", tmp_path / "eval"
    )
    assert status == 0
    assert "authentic" in out
    assert (tmp_path / "eval" / "nearest.png").exists()


def test_lower_levels_are_smaller_arrays(two):
    nested = load(two).recipe.with_backbone(library.backbones.BACKBONES["Matryoshka"])
    part = nested.lowest(1)
    ratio = nested.backbone.ratios[0]
    assert part.data.shape == (8 // ratio, 12 // ratio)
