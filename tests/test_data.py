"""Behaviour of ditkit.data: transforms against values worked out by hand, sources, order, resumption."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_idx
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from ditkit.data import (
    DATA,
    DataConfig,
    Digits,
    FashionMNIST,
    Folder,
    Hub,
    Stream,
    Webdataset,
    arrays,
    batches,
    center_crop,
    load_all,
    to_array,
    to_mode,
)
from ditkit.data.sources import upgraded
from ditkit.errors import InputError


def save(path: Path, color=(200, 10, 30), size=(12, 12)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)
    return path


def through_file(image: Image.Image, kind: str, **options) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


def listing(source) -> list[tuple[int | None, int]]:
    """(label, red value of the first pixel) of every image: enough to recognise them."""
    return [(label, image.getpixel((0, 0))[0]) for image, label in (source[i] for i in range(len(source)))]


# transforms


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(256, 256, 64), (500, 333, 64), (333, 500, 64), (129, 64, 64), (127, 300, 64), (40, 30, 64),
     (2000, 70, 32), (9, 300, 16), (64, 64, 64)],
)  # fmt: skip
def test_crop_sees_the_central_square_of_the_original(width, height, size):
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    ramps = np.stack([x, y, np.zeros_like(x)], -1).round().astype(np.uint8)
    cropped = np.asarray(center_crop(Image.fromarray(ramps), size)).astype(float)
    assert cropped.shape == (size, size, 3)
    for channel, (side, other) in enumerate([(width, height), (height, width)]):
        covered = min(side, other) / side  # the share of this axis that stays visible
        centres = 0.5 + covered * ((np.arange(size) + 0.5) / size - 0.5)
        expected = ((centres * side - 0.5) / (side - 1)).clip(0, 1) * 255
        shown = cropped[..., channel].mean(axis=channel)
        pixel = 255 * covered / size  # floored halves and offsets may shift the view by a pixel
        assert np.abs(shown - expected)[2:-2].max() <= 1.5 * pixel + 1


def test_crop_halves_by_box_until_below_twice_the_size():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)
    blocks = pixels.reshape(4, 4, 4, 4).astype(float).mean(axis=(1, 3))  # 16 -> 8 -> 4, no bicubic step left
    image = Image.fromarray(pixels)
    assert np.abs(np.asarray(center_crop(image, 4)) - blocks).max() < 2  # Pillow rounds four times
    assert np.abs(np.asarray(image.resize((4, 4), Image.Resampling.BICUBIC)) - blocks).max() > 10


def test_crop_offsets_are_floored():
    wide = Image.fromarray(np.arange(7, dtype=np.uint8)[None].repeat(4, 0))
    assert np.asarray(center_crop(wide, 4))[0].tolist() == [1, 2, 3, 4]  # (7 - 4) // 2 = 1


def test_crop_leaves_an_image_of_the_right_size_alone():
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(center_crop(Image.fromarray(pixels), 32)), pixels)


def constant(array, kind="PNG") -> Image.Image:
    return through_file(Image.fromarray(array), kind)


def palette(transparent: bool) -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    return through_file(image, "PNG", **({"transparency": 1} if transparent else {}))


STRANGE = {
    "16 bit": (lambda: constant(np.full((4, 4), 32896, np.uint16)), (128, 128, 128)),
    "16 bit, light": (lambda: constant(np.full((4, 4), 51400, np.uint16)), (200, 200, 200)),
    "16 bit, white": (lambda: constant(np.full((4, 4), 65535, np.uint16)), (255, 255, 255)),
    "16 bit, big-endian": (lambda: Image.frombytes("I;16B", (4, 4), b"\x80\x80" * 16), (128, 128, 128)),
    "16 bit as I": (lambda: Image.fromarray(np.full((4, 4), 32896, np.int32)), (128, 128, 128)),
    "CMYK": (lambda: through_file(Image.new("CMYK", (4, 4), (255, 0, 0, 0)), "TIFF"), (0, 255, 255)),
    "palette": (lambda: palette(False), (10, 20, 30)),
    "transparent palette": (lambda: palette(True), (255, 255, 255)),
    "1 bit": (lambda: through_file(Image.new("1", (4, 4), 1), "PNG"), (255, 255, 255)),
    "LA": (lambda: through_file(Image.new("LA", (4, 4), (0, 51)), "PNG"), (204, 204, 204)),
    "RGBA": (lambda: through_file(Image.new("RGBA", (4, 4), (255, 0, 0, 51)), "PNG"), (255, 204, 204)),
    "RGB with a transparent colour": (
        lambda: through_file(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
        (255, 255, 255),
    ),
    "grey": (lambda: Image.new("L", (4, 4), 77), (77, 77, 77)),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_every_kind_of_image_becomes_8_bit(kind):
    make, (red, green, blue) = STRANGE[kind]
    color, grey = to_mode(make(), 3), to_mode(make(), 1)
    assert (color.mode, grey.mode) == ("RGB", "L")
    assert color.getpixel((1, 1)) == (red, green, blue)
    assert abs(grey.getpixel((1, 1)) - (0.299 * red + 0.587 * green + 0.114 * blue)) <= 1
    assert to_array(color).shape == (3, 4, 4)
    assert to_array(grey).shape == (1, 4, 4)


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (20, 10), "black")
    image.paste((255, 255, 255), (0, 0, 10, 10))  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise for display: left goes to the top
    turned = to_mode(through_file(image, "PNG", exif=exif), 1)
    assert turned.size == (10, 20)
    assert turned.getpixel((5, 2)) == 255
    assert turned.getpixel((5, 17)) == 0


def test_floating_point_pixels_are_refused():
    with pytest.raises(ValueError, match="no known range"):
        to_mode(Image.new("F", (4, 4), 0.5), 3)


# folders


def test_folder_is_scanned_in_sorted_order_and_deeper_levels_belong_to_their_class(tmp_path):
    save(tmp_path / "train" / "b.png", (20, 0, 0))
    save(tmp_path / "train" / "a.png", (10, 0, 0))
    save(tmp_path / "test" / "deep" / "er" / "c.PNG", (30, 0, 0))
    save(tmp_path / "dog" / "d.png", (40, 0, 0))
    save(tmp_path / ".hidden" / "e.png")
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    (tmp_path / "empty").mkdir()
    source = Folder(path=tmp_path, classes=3).open()
    assert source.names == ("dog", "test", "train")
    assert listing(source) == [(0, 40), (1, 30), (2, 10), (2, 20)]
    assert source.labels.tolist() == [0, 1, 2, 2]
    assert source.broken == ()


def test_folder_without_sub_folders_is_unlabelled(tmp_path):
    save(tmp_path / "b.png", (2, 0, 0))
    save(tmp_path / "a.png", (1, 0, 0))
    config = Folder(path=tmp_path, size=8, classes=0)
    source = config.open()
    assert source.names == ()
    assert listing(source) == [(None, 1), (None, 2)]
    assert next(batches(source, config, seed=0, start=0, stop=2, batch=2)).label is None
    images, labels = load_all(config)
    assert labels is None
    assert images[:, 0, 0, 0].tolist() == [1, 2]


def break_three(folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG")
    (folder / "cut.jpg").write_bytes(buffer.getvalue()[:1500])
    (folder / "nothing.png").write_bytes(b"")
    (folder / "text.png").write_text("hello")


def test_broken_images_are_left_out_counted_and_named(tmp_path, caplog):
    save(tmp_path / "x" / "good.png", (5, 0, 0))
    save(tmp_path / "y" / "good.png", (6, 0, 0))
    break_three(tmp_path / "x")
    source = Folder(path=tmp_path).open()
    assert source.broken == ("x/cut.jpg", "x/nothing.png", "x/text.png")
    assert listing(source) == [(0, 5), (1, 6)]
    assert "3 of 5" in caplog.text
    assert "x/cut.jpg" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_unchecked_broken_image_is_named_when_met(tmp_path, workers):
    save(tmp_path / "x" / "good.png")
    break_three(tmp_path / "x")
    config = Folder(path=tmp_path, size=8, check=False, cache="off")
    source = config.open()
    assert len(source) == 4
    with pytest.raises(
        InputError, match=r"^x/\w+\.\w+ in .* cannot be decoded .*`data\.check` leaves[^\n]*$"
    ):
        list(batches(source, config, seed=0, start=0, stop=4, batch=1, workers=workers))


def test_folder_errors_name_the_remedy(tmp_path):
    empty, mixed, broken = tmp_path / "empty", tmp_path / "mixed", tmp_path / "broken"
    empty.mkdir()
    save(mixed / "a.png")
    save(mixed / "class" / "b.png")
    broken.mkdir()
    break_three(broken)
    for path, words in {
        None: "`data.path` DIR",
        tmp_path / "missing": "is not a folder",
        empty: "holds no images",
        mixed: "beside class folders",
        broken: "none of the 3 images can be decoded .*; give images that Pillow reads",
    }.items():
        with pytest.raises(InputError, match=words):
            Folder(path=path).open()
    save(mixed / "class" / "b.png")
    (mixed / "a.png").unlink()
    with pytest.raises(InputError, match="no held-out part"):
        Folder(path=mixed).open("test")
    with pytest.raises(InputError, match=r"has 1 classes, but `data\.classes` is 7"):
        Folder(path=mixed, classes=7).open()


# arrays


def test_digits_split_is_stratified_and_disjoint():
    train, test = Digits().open("train"), Digits().open("test")
    assert (len(train), len(test)) == (1442, 355)
    share = torch.bincount(test.labels) / (torch.bincount(test.labels) + torch.bincount(train.labels))
    assert share.min() > 0.19
    assert share.max() <= 0.2
    from sklearn.datasets import load_digits

    everything = sorted(image.tobytes() for image in load_digits().images.round().astype(np.uint8))
    parts = torch.cat([train.images, test.images])[:, 0]
    assert (
        sorted((image.double() * 16 / 255).round().byte().numpy().tobytes() for image in parts) == everything
    )
    assert parts.max() == 255


def test_digits_at_another_size_and_in_colour():
    source = Digits(size=16, channels=3).open("test")
    assert source.images.shape == (355, 3, 16, 16)
    assert torch.equal(source.images[:, 0], source.images[:, 2])
    image, label = source[3]
    assert (image.mode, image.size, label) == ("RGB", (16, 16), int(source.labels[3]))
    small = Image.fromarray(Digits().open("test").images[3, 0].numpy())
    assert torch.equal(to_array(center_crop(small, 16))[0], source.images[3, 0])


@pytest.fixture
def clothes(tmp_path) -> Path:
    random = np.random.default_rng(0)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", random.integers(0, 256, (6, 28, 28), dtype=np.uint8))
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.array([0, 1, 2, 9, 4, 5], np.uint8))
    return tmp_path


def test_idx_files_are_read(clothes):
    source = FashionMNIST(root=clothes).open()
    assert source.images.shape == (6, 1, 28, 28)
    assert torch.equal(
        source.images[:, 0], torch.from_numpy(arrays.read_idx(clothes / "train-images-idx3-ubyte.gz", 3))
    )
    assert source.names[int(source.labels[3])] == "Ankle boot"
    with pytest.raises(InputError, match=r"t10k-images-idx3-ubyte\.gz is not there"):
        FashionMNIST(root=clothes).open("test")


def test_damaged_idx_files_are_named(clothes):
    images = clothes / "train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    for damage, words in {
        whole[:500]: "is damaged",
        b"hello": "is damaged",
        gzip.compress(b"\0\0\x08\x03"): "is not an idx file",
        (clothes / "train-labels-idx1-ubyte.gz").read_bytes(): "is not an idx file",
    }.items():
        images.write_bytes(damage)
        with pytest.raises(InputError, match=f"{images.name} {words}"):
            FashionMNIST(root=clothes).open()
    write_idx(images, np.zeros((6, 28, 28), np.uint8), cut=28)
    with pytest.raises(InputError, match=f"{images.name} holds 4676 values, but its header says 4704"):
        FashionMNIST(root=clothes).open()
    write_idx(images, np.zeros((5, 28, 28), np.uint8))
    with pytest.raises(InputError, match="do not belong together"):
        FashionMNIST(root=clothes).open()


def test_fashion_mnist_nowhere_to_be_had_says_how_to_get_it(monkeypatch, tmp_path):
    def unreachable(*args, **options):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(arrays, "DEBIAN", tmp_path / "absent")
    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(InputError, match=r"apt install dataset-fashion-mnist, or `data\.root` DIR"):
        FashionMNIST().open()
    with pytest.raises(InputError, match=r"someone/pictures cannot be fetched .* local folder of parquet"):
        Hub(id="someone/pictures").open()


def test_fashion_mnist_comes_from_the_hub_where_it_is_not_installed(monkeypatch, tmp_path):
    import datasets

    pictures = [Image.new("L", (28, 28), 50 * number) for number in range(3)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    table = datasets.Dataset.from_dict({"image": pictures, "label": [9, 0, 4]}, features=features)
    monkeypatch.setattr(arrays, "DEBIAN", tmp_path / "absent")
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **options: table)
    source = FashionMNIST(channels=3).open("test")
    assert source.images.shape == (3, 3, 28, 28)
    assert source.images[:, 2, 0, 0].tolist() == [0, 50, 100]
    assert source.labels.tolist() == [9, 0, 4]
    assert source.names[9] == "Ankle boot"


# hub


@pytest.fixture
def parquet(tmp_path, monkeypatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    png = save(tmp_path / "one.png", (9, 0, 0)).read_bytes()
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "animal": datasets.ClassLabel(names=["cat", "dog"]),
            "year": datasets.Value("int64"),
        }
    )
    columns = {
        "picture": [{"bytes": data, "path": None} for data in (png, png[:40], png)] + [None],
        "animal": [1, 0, 0, 1],
        "year": [2001, 1999, 2001, 2005],
    }
    (tmp_path / "pets").mkdir()
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "pets" / "train.parquet")
    return tmp_path / "pets"


def test_hub_finds_columns_and_leaves_out_broken_rows(parquet):
    source = Hub(id=str(parquet)).open()
    assert source.names == ("cat", "dog")
    assert source.broken == ("row 1", "row 3")
    assert listing(source) == [(1, 9), (0, 9)]
    years = Hub(id=str(parquet), label_column="year", check=False, cache="off").open()
    assert years.names == ("1999", "2001", "2005")
    assert years.labels.tolist() == [1, 0, 1, 2]


def test_hub_errors_name_the_remedy(parquet):
    with pytest.raises(InputError, match=r"no held-out part: .*`data\.test_split`"):
        Hub(id=str(parquet)).open("test")
    with pytest.raises(InputError, match=r"`data\.image_column` is one of: picture, animal, year"):
        Hub(id=str(parquet), image_column="photo").open()
    with pytest.raises(InputError, match=r"has 2 classes, but `data\.classes` is 3"):
        Hub(id=str(parquet), classes=3).open()
    with pytest.raises(InputError, match=r"`data\.id`"):
        Hub().open()
    (parquet / f"{parquet.name}.py").write_text("raise SystemExit\n")
    with pytest.raises(InputError, match=r"scripts are no longer supported.*`data\.id` DIR"):
        Hub(id=str(parquet)).open()


# captions


def write_rows(folder: Path, *rows: dict) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")


def test_captions_of_a_metadata_file_go_with_their_images_and_classes(tmp_path):
    for number, name in enumerate(["a/1.png", "a/2.png", "b/3.png"]):
        save(tmp_path / name, (number, 0, 0))
    write_rows(
        tmp_path,
        {"file_name": "b/3.png", "text": " zwölf Äpfel\n", "id": 3},
        {"file_name": "./a/1.png", "text": "one"},
        {"file_name": "a/2.png", "text": "two"},
    )
    source = Folder(path=tmp_path, caption_column="text").open()
    assert source.captions == ["one", "two", "zwölf Äpfel"]
    assert source.labels.tolist() == [0, 0, 1]
    assert Folder(path=tmp_path).open().captions is None


def test_text_files_beside_images_are_captions_and_what_has_none_is_left_out(tmp_path, caplog):
    for number in range(5):
        save(tmp_path / f"{number}.png", (number, 0, 0))
    (tmp_path / "0.txt").write_bytes(b"\xef\xbb\xbfa caf\xc3\xa9\r\n")
    (tmp_path / "1.txt").write_bytes(b"caf\xe9")  # Latin-1
    (tmp_path / "2.txt").write_text(" \n")
    (tmp_path / "4.txt").write_text("the fourth")
    source = Folder(path=tmp_path, caption_column="txt", check=False).open()
    assert source.captions == ["a café", "the fourth"]
    assert listing(source) == [(None, 0), (None, 4)]
    assert source.broken == ("1.png", "2.png", "3.png")
    assert "left out 3 of 5 images, whose caption is missing, empty or not UTF-8: 1.png" in caplog.text


def test_broken_images_and_missing_captions_are_counted_apart(tmp_path, caplog):
    save(tmp_path / "good.png")
    save(tmp_path / "silent.png")
    break_three(tmp_path)
    for name in ("good", "cut", "nothing", "text"):
        (tmp_path / f"{name}.txt").write_text(name)
    source = Folder(path=tmp_path, caption_column="txt").open()
    assert source.captions == ["good"]
    assert source.broken == ("silent.png", "cut.jpg", "nothing.png", "text.png")
    assert "left out 1 of 5 images, whose caption" in caplog.text
    assert "left out 3 of 4 images, which cannot be decoded" in caplog.text


def test_wrong_caption_files_are_named_with_the_remedy(tmp_path):
    save(tmp_path / "a.png")
    lines = tmp_path / "metadata.jsonl"

    def refused(words: str, column: str = "text") -> None:
        with pytest.raises(InputError, match=words) as caught:
            Folder(path=tmp_path, caption_column=column).open()
        assert "\n" not in str(caught.value)

    refused(r"metadata\.jsonl is not there, nor .*; `data\.caption_column` txt")
    refused(
        r"none of the 1 images has a caption in UTF-8 \(a\.png, .*another `data\.caption_column`",
        column="txt",
    )
    write_rows(tmp_path, {"file_name": "a.png", "title": "x"})
    refused(r"no column 'text'; `data\.caption_column` is one of: title, txt")
    write_rows(tmp_path, {"file_name": "a.png", "text": ["x", "y"]})
    refused(r"1 of 1 rows cannot be used, line 1 \('text' is not one text, \['x', 'y'\]\); correct the file")
    write_rows(tmp_path, {"file_name": "gone.png", "text": "y"})
    refused(r"names 1 files, none of which is in the folder \(gone\.png, \.\.\.\); file_name is relative to")
    write_rows(tmp_path, {"file_name": "a.png", "text": "x"}, {"file_name": "./a.png", "text": "y"})
    refused(r"2 of 2 rows cannot be used, line 1 \(a\.png in 2 rows; an image has one caption\), line 2")
    lines.write_bytes(b'\n{"file_name": "a.png", "text": "caf\xe9"}\n')
    refused(r"line 2 \(not UTF-8\)")
    for wrong in ("{", '{"text": "x"}', "[1]", '{"file_name": 3}'):
        lines.write_text(wrong)
        refused(r"line 1 \(not a JSON object with a file_name\)")
    write_rows(tmp_path, {"file_name": "a.png", "text": None})
    save(tmp_path / "b.png")
    refused("none of the 2 images has a caption in UTF-8")
    for content in (b" \n", b"caf\xe9"):
        (tmp_path / "a.txt").write_bytes(content)
        refused("none of the 2 images has a caption in UTF-8", column="txt")


def test_hub_reads_a_column_of_captions(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    png = save(tmp_path / "one.png", (9, 0, 0)).read_bytes()
    features = datasets.Features({"image": datasets.Image(), "words": datasets.Value("string")})
    columns = {"image": [{"bytes": png, "path": None}] * 4, "words": ["a", None, "  ", "d "]}
    (tmp_path / "set").mkdir()
    table = datasets.Dataset.from_dict(columns, features=features).add_column("many", [["x"]] * 4)
    table.to_parquet(tmp_path / "set" / "train.parquet")
    source = Hub(id=str(tmp_path / "set"), caption_column="words").open()
    assert source.captions == ["a", "d"]
    assert source.broken == ("row 1", "row 2")
    assert Hub(id=str(tmp_path / "set")).open().captions is None
    with pytest.raises(InputError, match=r"`data\.caption_column` is one of: image, words, many"):
        Hub(id=str(tmp_path / "set"), caption_column="text").open()
    with pytest.raises(InputError, match=r"'many' is not one text in 4 of 4 places, row 0 \(\['x'\]\)"):
        Hub(id=str(tmp_path / "set"), caption_column="many").open()


# shards


def write_shard(path: Path, members: dict[str, bytes | str], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            content = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def picture(red: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (red, 0, 0)).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


def test_shards_are_numbered_by_name_and_member_and_give_labels_and_captions(tmp_path):
    write_shard(tmp_path / "1.tar", {"x/9.webp": picture(30, "WEBP"), "x/9.cls": "0", "x/9.txt": "nine"})
    write_shard(
        tmp_path / "0.tar",
        {"README": "no sample", "b.txt": "bee", "b.cls": " 2\n", "b.PNG": picture(10), "a.png": picture(20),
         "a.cls": "0", "a.txt": "ay", "c.txt": "no image", "a.seg.png": picture(99)},
    )  # fmt: skip
    source = Webdataset(path=tmp_path, classes=3).open()
    assert listing(source) == [(2, 10), (0, 20), (0, 30)]
    assert source.captions == ["bee", "ay", "nine"]
    assert source.names == ("0", "1", "2")
    assert listing(Webdataset(path=tmp_path / "1.tar").open()) == [(0, 30)]


def test_shards_take_labels_and_captions_from_json(tmp_path):
    def sample(number: int, **fields) -> dict:
        return {f"{number}.png": picture(number), f"{number}.json": json.dumps(fields)}

    members = sample(0, kind="cat", words="ä cat") | sample(1, kind="ant", words="") | sample(2, kind="cat")
    shard = write_shard(tmp_path / "a.tar", members | sample(3, kind="ant", words="an ant"))
    source = Webdataset(path=shard, label_column="kind", caption_column="words").open()
    assert source.names == ("ant", "cat")
    assert listing(source) == [(1, 0), (0, 3)]
    assert source.captions == ["ä cat", "an ant"]
    assert source.broken == ("1.png of a.tar", "2.png of a.tar")
    plain = Webdataset(path=shard).open()
    assert (plain.labels, plain.captions, len(plain)) == (None, None, 4)


def test_shards_leave_out_broken_images_and_name_wrong_files(tmp_path):
    good, bad = {"a.png": picture(1), "a.txt": "a"}, {"b.png": picture(2)[:40], "b.txt": "b"}
    shard = write_shard(tmp_path / "a.tar", good | bad)
    source = Webdataset(path=shard).open()
    assert (source.broken, source.captions) == (("b.png of a.tar",), ["a"])
    for options, words in {
        ("label_column", "kind"): r"a\.png of a\.tar: 'kind' is not a label \(None\)",
        ("caption_column", "words"): r"no 'words'; `data\.caption_column`",
        ("classes", 2): r"has 0 classes, but `data\.classes` is 2",
    }.items():
        with pytest.raises(InputError, match=words):
            Webdataset(path=shard, **dict([options])).open()
    for members, words in {
        (("a.png", picture(1)), ("a.cls", "x")): r"'cls' is not a label \('x'\)",
        (("a.png", picture(1)), ("a.cls", "9" * 5000)): r"a\.png of b\.tar: class 999999999999, but classes",
        (("a.png", picture(1)), ("a.cls", "1000000")): r"class 1000000, but .* at most 999,999",
        (("a.png", picture(1)), ("a.json", "{")): r"its \.json is not a JSON object",
        (("a.txt", "words only"),): "holds no images",
    }.items():
        with pytest.raises(InputError, match=words):
            Webdataset(path=write_shard(tmp_path / "b.tar", dict(members)), caption_column="words").open()
    whole = shard.read_bytes()
    joined = whole + whole
    for length in (1, 511, 512, 600, 1024, 2048, len(good["a.png"]) + 512, 4 * 1024, 4 * 1024 + 100):
        shard.write_bytes(whole[:length])
        with pytest.raises(
            InputError, match=r"a\.tar cannot be read as an uncompressed tar .* fetch it again"
        ):
            Webdataset(path=shard).open()
    shard.write_bytes(joined)
    with pytest.raises(InputError, match="neither a member nor the archive's end"):
        Webdataset(path=shard).open()
    with pytest.raises(InputError, match=r"cannot be read as an uncompressed tar"):
        Webdataset(path=write_shard(tmp_path / "a.tar", good, "w:gz")).open()
    for path, words in {None: "which shards", tmp_path / "gone": r"no \.tar file"}.items():
        with pytest.raises(InputError, match=words):
            Webdataset(path=path).open()
    with pytest.raises(InputError, match="no held-out part"):
        Webdataset(path=tmp_path).open("test")


# order and batches


@pytest.fixture(params=["arrays", "folder"])
def data(request, tmp_path):
    """The same twenty images twice: in memory, and decoded one by one."""
    if request.param == "arrays":
        config = Digits(flip=True)
        source = config.open("test")
        source.images, source.labels = source.images[:20], source.labels[:20]
    else:
        config = Folder(path=tmp_path, size=8, flip=True)
        random = np.random.default_rng(0)
        for number in range(20):
            path = save(tmp_path / str(number % 3) / f"{number:02}.png")
            Image.fromarray(random.integers(0, 256, (10, 8, 3), dtype=np.uint8)).save(path)
        source = config.open()
    return source, config


def run(data, *, seed=0, start=0, stop=50, batch=8, **options):
    """All of `batches` joined: images, label, index."""
    parts = list(batches(*data, seed=seed, start=start, stop=stop, batch=batch, **options))
    return [
        torch.cat(field)
        for field in zip(*((part.images, part.label, part.index) for part in parts), strict=True)
    ]


def test_every_epoch_is_its_own_permutation(data):
    stream = Stream(*data, seed=3)
    epochs = [[stream.position(n) for n in range(start, start + 20)] for start in (0, 20, 40)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    other = Stream(*data, seed=4)
    assert [other.position(n) for n in range(20)] != epochs[0]


def test_batches_are_right_whatever_their_size_the_start_the_ranks_and_the_workers(data):
    images, label, index = run(data)
    assert images.dtype == torch.uint8
    assert label.dtype == index.dtype == torch.int64
    assert index.tolist() == list(range(50))
    whole = run(data, batch=50)
    tail = run(data, start=13, batch=5)
    apart = run(data, workers=2)
    ranks = [run(data, rank=rank, world=2, batch=4) for rank in range(2)]
    for field, expected in enumerate((images, label, index)):
        assert torch.equal(whole[field], expected)
        assert torch.equal(tail[field], expected[13:])
        assert torch.equal(apart[field], expected)
        assert torch.equal(ranks[0][field], expected[0::2])
        assert torch.equal(ranks[1][field], expected[1::2])


def test_the_last_batch_is_shorter_rather_than_dropped(data):
    assert [len(batch.images) for batch in batches(*data, seed=0, start=2, stop=25, batch=10)] == [10, 10, 3]


def test_images_are_the_sources_own_and_about_half_are_mirrored(data):
    source, config = data
    plain = run((source, config.model_copy(update={"flip": False})), stop=200)
    images, label, _ = run(data, stop=200)
    stream = Stream(source, config, 0)
    mirrored = torch.tensor([stream.draw(n).mirrored for n in range(200)])
    assert 70 < mirrored.sum() < 130
    assert torch.equal(images[~mirrored], plain[0][~mirrored])
    assert torch.equal(images[mirrored], plain[0][mirrored].flip(-1))
    positions = [stream.position(n) for n in range(200)]
    assert torch.equal(label, source.labels[positions])
    assert torch.equal(plain[0][7], to_array(center_crop(source[positions[7]][0], 8)))
    assert torch.equal(run(data, stop=200)[0], images)


@pytest.mark.parametrize("workers", [0, 1])
def test_captions_travel_with_their_images_wherever_a_run_starts(tmp_path, workers):
    members = {f"{n}.png": picture(n) for n in range(7)} | {f"{n}.txt": f"number {n}" for n in range(7)}
    config = Webdataset(path=write_shard(tmp_path / "a.tar", members), size=8)
    source = config.open()
    seen = []
    for start, stop in ((0, 9), (9, 20)):
        for batch in batches(source, config, seed=5, start=start, stop=stop, batch=4, workers=workers):
            assert batch.caption == tuple(f"number {red}" for red in batch.images[:, 0, 0, 0].tolist())
            seen += batch.caption
    stream = Stream(source, config, 5)
    assert seen == [f"number {stream.position(n)}" for n in range(20)]


def test_batches_leave_the_global_random_state_and_the_source_alone(data):
    before, state = load_all(data[1])[0], torch.get_rng_state()
    run(data)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(load_all(data[1])[0], before)


def test_load_all_with_a_limit_keeps_every_class(tmp_path):
    for label in range(3):
        for number in range(4):
            save(tmp_path / str(label) / f"{number}.png", (label * 10 + number, 0, 0))
    images, labels = load_all(Folder(path=tmp_path, size=4), limit=6)
    assert images[:, 0, 0, 0].tolist() == [0, 2, 10, 12, 20, 22]
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert len(load_all(Folder(path=tmp_path, size=4), limit=100)[0]) == 12


# settings


@pytest.mark.parametrize("name", DATA)
def test_sections_survive_json_and_know_their_name(name):
    section = DATA[name]
    assert section.kind == name
    assert TypeAdapter(DataConfig).validate_python(json.loads(section.model_dump_json())) == section
    described = type(section).model_fields
    assert all(described[field].description for field in described if field != "kind")


def test_a_kind_that_is_no_name_is_left_to_the_check():
    for kind in ({}, [], None, 3):
        assert upgraded({"kind": kind}) == {"kind": kind}


def test_wrong_settings_are_refused():
    for wrong in ({"size": 0}, {"channels": 2}, {"classes": 9}, {"colour": 3}):
        with pytest.raises(ValidationError):
            Digits(**wrong)
