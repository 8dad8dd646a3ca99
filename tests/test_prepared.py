"""Own images: prepared once and kept, a part of them held out, their names recorded and compared."""

import errno
import io
import json
import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditkit.cli.train import parse_train
from ditkit.config import write_section
from ditkit.data import Folder, VideoFolder, Webdataset, batches, center_crop, prepared, preparing
from ditkit.data.buckets import plan_for
from ditkit.data.decoding import own_limit
from ditkit.data.listing import Strings, natural
from ditkit.errors import InputError
from ditkit.recipe import Recipe
from ditkit.training import train
from ditkit.training.data import CHANGES, settled

CPU = torch.device("cpu")
MODES = ("RGB", "L", "RGBA", "LA", "P", "1", "CMYK")


def picture(number: int, size=(20, 14), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def save(path: Path, number: int, size=(20, 14), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(number, size, mode).save(path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twelve images of all kinds and sizes in three classes."""
    sizes = [(20, 14), (8, 8), (40, 9), (3, 30), (16, 16), (33, 64)]
    for number in range(12):
        mode = MODES[number % len(MODES)]
        ending = "tif" if mode == "CMYK" else "png"
        save(tmp_path / "own" / "abc"[number % 3] / f"{number}.{ending}", number, sizes[number % 6], mode)
    return tmp_path / "own"


def all_of(config: Folder, **options) -> list[torch.Tensor]:
    source = config.open()
    plan = None
    if config.aspect == "native":
        plan = plan_for(source, config, 4, lambda size: size[0] * size[1], 64 * 64)
    length = len(source)
    return [
        image
        for batch in batches(source, config, seed=0, start=0, stop=length, batch=5, plan=plan, **options)
        for image in batch.images
    ]


# what is kept


@pytest.mark.parametrize("aspect", ["square", "native"])
@pytest.mark.parametrize("channels", [1, 3])
def test_kept_pixels_are_those_of_decoding(folder, tmp_path, aspect, channels):
    config = Folder(path=folder, size=12, aspect=aspect, channels=channels, cache="off")
    decoded = all_of(config)
    for _ in ("made", "read"):
        kept = all_of(config.model_copy(update={"cache": tmp_path / "cache"}))
        assert len(kept) == len(decoded) == 12
        assert all(torch.equal(one, other) for one, other in zip(kept, decoded, strict=True))


def test_a_second_opening_decodes_nothing(folder, tmp_path, monkeypatch):
    config = Folder(path=folder, size=12, cache=tmp_path / "cache")
    first = all_of(config)
    monkeypatch.setattr(preparing, "examine", None)
    assert all(torch.equal(one, other) for one, other in zip(all_of(config), first, strict=True))


def test_what_decides_the_pixels_decides_the_folder(folder, tmp_path):
    cache = tmp_path / "cache"

    def folders(**changes) -> int:
        Folder(path=folder, cache=cache, **{"size": 12} | changes).open()
        return len([path for path in cache.iterdir() if path.is_dir()])

    assert folders() == 1
    assert folders(flip=True, classes=3) == 1
    assert [folders(size=8), folders(channels=1), folders(aspect="native"), folders(max_pixels=300)] == [
        2,
        3,
        4,
        5,
    ]
    changed = folder / "a" / "0.png"
    about = changed.stat()
    save(changed, 99)
    os.utime(changed, ns=(about.st_atime_ns, about.st_mtime_ns + 1_000_000))
    assert folders() == 6
    save(folder / "a" / "new.png", 1)
    assert folders() == 7


@pytest.mark.parametrize("count", [1, 3])
def test_several_processes_find_what_one_finds(tmp_path, monkeypatch, count):
    for number in range(150):
        save(tmp_path / "own" / f"{number}.png", number, (9, 8))
    (tmp_path / "own" / "70.png").write_bytes(b"no image")
    monkeypatch.setattr(preparing, "cores", lambda: count)
    for options in ({"cache": tmp_path / f"cache{count}"}, {"cache": "off"}):
        source = Folder(path=tmp_path / "own", size=8, **options).open()
        assert source.broken == ("70.png",)
        assert len(source) == 149
        expected = center_crop(picture(149, (9, 8)), 8)
        assert np.array_equal(source.read([148])[0], np.asarray(expected).transpose(2, 0, 1))


def test_an_interrupted_pass_goes_on_and_what_was_damaged_meanwhile_is_made_again(tmp_path, monkeypatch):
    for number in range(200):
        save(tmp_path / "own" / f"{number}.png", number, (8, 8))
    config = Folder(path=tmp_path / "own", size=8, cache=tmp_path / "cache")
    monkeypatch.setattr(preparing, "cores", lambda: 1)
    examine, looked = preparing.examine, []

    def stops(data, rule, decode):
        looked.append(data)
        if len(looked) > 140:
            raise KeyboardInterrupt
        return examine(data, rule, decode)

    monkeypatch.setattr(preparing, "examine", stops)
    with pytest.raises(KeyboardInterrupt):
        config.open()
    (unfinished,) = (tmp_path / "cache").glob("*.unfinished")
    pixels = unfinished / preparing.shard_name(1)
    pixels.write_bytes(pixels.read_bytes()[:-1] + b"?")
    looked.clear()
    monkeypatch.setattr(
        preparing, "examine", lambda *arguments: looked.append(arguments[0]) or examine(*arguments)
    )
    kept = all_of(config)
    assert len(looked) == 200 - 64  # the first file of pixels was whole, the second was not
    assert all(map(torch.equal, kept, all_of(config.model_copy(update={"cache": "off"}))))


def test_damage_is_seen_when_it_is_met(folder, tmp_path, caplog):
    config = Folder(path=folder, size=12, cache=tmp_path / "cache")
    source = config.open()
    (kept,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    pixels = kept / preparing.shard_name(0)
    whole = pixels.read_bytes()
    pixels.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match=f"image 11 are damaged; delete the folder {kept}"):
        config.open().read([11])
    assert len(source) == 12
    for name, content in {
        preparing.shard_name(0): whole[:-10],
        prepared.TABLE: b"",
        prepared.INDEX: b"{}",
    }.items():
        (kept / name).write_bytes(content)
        caplog.clear()
        assert len(all_of(config)) == 12
        assert "damaged" in caplog.text
        assert "made again" in caplog.text


def test_a_full_disk_ends_a_required_cache_and_not_an_optional_one(folder, tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "pixels")

    monkeypatch.setattr(preparing.np, "save", full)
    with pytest.raises(
        InputError, match=r"cannot be kept \(No space left .*another `data\.cache` DIR, or off"
    ):
        Folder(path=folder, size=12, cache=tmp_path / "cache").open()
    monkeypatch.setenv("DITKIT_CACHE", str(tmp_path / "auto"))
    assert len(all_of(Folder(path=folder, size=12), workers=0)) == 12
    assert "images are decoded as they are read" in caplog.text


def test_what_is_too_much_for_auto_is_decoded_as_it_is_read(folder, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setenv("DITKIT_CACHE", str(tmp_path / "auto"))
    monkeypatch.setattr(prepared, "AUTO_BYTES", 1000)
    source = Folder(path=folder, size=12).open()
    assert source.decodes
    assert "`data.cache` DIR keeps them" in caplog.text
    assert not list((tmp_path / "auto").rglob("pixels-*"))
    monkeypatch.setattr(preparing, "examine", None)  # but what was found out is kept
    assert len(all_of(Folder(path=folder, size=12), workers=2)) == 12


def test_room_is_made_by_removing_what_was_not_used_for_longest(folder, tmp_path, monkeypatch):
    for size in (8, 12):
        Folder(path=folder, size=size, cache=tmp_path).open()
    monkeypatch.setattr(prepared, "AUTO_BYTES", 10_000)
    old, new = sorted(tmp_path.glob(f"*/{prepared.INDEX}"), key=lambda index: index.stat().st_size)[:2]
    os.utime(old, (0, 0))
    prepared.make_room(tmp_path, 9_000)
    assert not old.exists()
    assert new.exists()  # it was used today


# what is in a folder


def test_endings_are_counted_and_content_decides_where_there_is_none(tmp_path, caplog):
    caplog.set_level("INFO")
    save(tmp_path / "a.png", 0)
    shutil.copy(tmp_path / "a.png", tmp_path / "none")
    (tmp_path / "README").write_text("no image")
    for name in ("x.heic", "y.HEIC", "z.jxl"):
        (tmp_path / name).write_bytes(b"?")
    (tmp_path / "metadata.jsonl").write_text("{}")
    source = Folder(path=tmp_path, size=8).open()
    assert len(source) == 2
    assert "4 files are no images by their endings: 2 .heic, 1 .jxl, 1 without" in caplog.text


def test_links_that_lead_back_are_followed_once(tmp_path):
    save(tmp_path / "own" / "a" / "0.png", 0)
    save(tmp_path / "elsewhere" / "1.png", 1)
    (tmp_path / "own" / "a" / "back").symlink_to(tmp_path / "own")
    (tmp_path / "own" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "own" / "c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "own" / "a" / "gone.png").symlink_to(tmp_path / "nowhere")
    source = Folder(path=tmp_path / "own", size=8).open()
    assert source.names == ("a", "b")
    assert len(source) == 2
    assert source.broken == ("a/gone.png",)


def test_the_order_is_natural_and_that_of_version_0_1_is_plain(tmp_path):
    for name in ("10", "9", "b", "a1"):
        for number in (2, 10):
            save(tmp_path / name / f"{number}.png", number)
    source = Folder(path=tmp_path, size=8).open()
    assert source.names == ("9", "10", "a1", "b")
    assert source.lines[0].endswith(" 9/2.png")
    assert Folder(path=tmp_path, size=8, order="plain").open().names == ("10", "9", "a1", "b")
    assert sorted(["x10", "x9", "x09", "10x", "9x"], key=natural) == ["9x", "10x", "x09", "x9", "x10"]


def test_names_composed_otherwise_are_one_class_and_empty_folders_are_named(tmp_path, caplog):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    save(tmp_path / composed / "0.png", 0)
    save(tmp_path / decomposed / "1.png", 1)
    (tmp_path / "empty").mkdir()
    source = Folder(path=tmp_path, size=8).open()
    assert source.names == (composed,)
    assert len(source) == 2
    assert "1 class folders hold no images and get no label: empty" in caplog.text


def test_names_that_are_not_utf_8_are_read(tmp_path):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        save(tmp_path / "x.png", 3).rename(tmp_path / name)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    source = Folder(path=tmp_path, size=8).open()
    assert len(source.read([0])[0]) == 3
    assert list(Strings([name, "ü", ""])) == [name, "ü", ""]
    assert Strings([name])[-1] == name


def test_images_larger_than_the_limit_are_named_and_pillow_has_its_own_limit_back(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    save(tmp_path / "large.png", 0, (30, 20))
    save(tmp_path / "small.png", 1, (10, 10))  # twice Pillow's limit
    source = Folder(path=tmp_path, size=8, max_pixels=500).open()
    assert source.broken == ("large.png",)
    assert "large.png (30 x 20 pixels, more than `data.max_pixels` 500)" in caplog.text
    with own_limit(), own_limit():
        assert Image.MAX_IMAGE_PIXELS is None
    assert Image.MAX_IMAGE_PIXELS == 50


def test_values_of_12_bits_in_16_are_reported(tmp_path, caplog):
    Image.fromarray(np.full((8, 8), 4000, np.uint16)).save(tmp_path / "dark.png")
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "light.png")
    Folder(path=tmp_path, size=8).open()
    assert "1 images of 16 bits use 12 of them and are nearly black, such as dark.png" in caplog.text


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [(400, 20, 16), (20, 900, 16), (3000, 33, 16), (1000, 7, 32), (7, 1000, 32), (999, 15, 4)],
)
def test_a_long_image_is_cut_first_and_looks_as_if_it_had_been_scaled_whole(width, height, size):
    image = picture(0, (width, height))
    halved = image
    while min(halved.size) >= 2 * size:
        halved = halved.resize((halved.width // 2, halved.height // 2), Image.Resampling.BOX)
    scale = size / min(halved.size)
    whole = halved.resize(
        (round(halved.width * scale), round(halved.height * scale)), Image.Resampling.BICUBIC
    )
    left, top = (whole.width - size) // 2, (whole.height - size) // 2
    expected = np.asarray(whole.crop((left, top, left + size, top + size))).astype(int)
    assert np.abs(np.asarray(center_crop(image, size)).astype(int) - expected).max() <= 1


def test_drafts_of_jpegs_are_near_what_decoding_whole_gives(tmp_path):
    y, x = np.mgrid[:256, :256]
    Image.fromarray(np.stack([x, y, (x + y) // 2], -1).astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    config = Folder(path=tmp_path, size=16, cache="off")
    exact, draft = (config.model_copy(update={"draft": draft}).open().read([0])[0] for draft in (False, True))
    assert (exact.int() - draft.int()).abs().max() <= 8
    source = config.model_copy(update={"draft": True}).open()
    assert (source.read([0])[0].int() - exact.int()).abs().max() <= 8


# the held-out part


def shard_of(folder: Path, path: Path) -> Path:
    import tarfile

    with tarfile.open(path, "w") as tar:
        for number, file in enumerate(sorted(folder.rglob("*.png"))):
            data = file.read_bytes()
            info = tarfile.TarInfo(f"{number:04d}.png")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("kind", ["folder", "webdataset"])
def test_copies_are_on_one_side_and_added_files_move_nothing(tmp_path, kind):
    own = tmp_path / "own"
    for number in range(60):
        save(own / f"{number}.png", number, (8, 8))
        shutil.copy(own / f"{number}.png", own / f"copy-{number}.png")

    def parts() -> tuple[list[bytes], list[bytes]]:
        if kind == "folder":
            config = Folder(path=own, size=8, held_out=0.25, cache=tmp_path / "cache")
        else:
            config = Webdataset(path=shard_of(own, tmp_path / "a.tar"), size=8, held_out=0.25, cache="off")
        return tuple(
            [bytes(source.read([k])[0].numpy()) for k in range(len(source))]
            for source in (config.open("train"), config.open("test"))
        )

    training, held_out = parts()
    assert len(training) + len(held_out) == 120
    assert 10 <= len(held_out) <= 50
    assert not set(training) & set(held_out)
    for number in range(60, 70):
        save(own / f"{number}.png", number, (8, 8))
    more, more_held_out = parts()
    assert set(training) <= set(more)
    assert set(held_out) <= set(more_held_out)


def test_a_part_that_would_be_empty_is_refused(tmp_path):
    save(tmp_path / "a.png", 0)
    with pytest.raises(InputError, match=r"no held-out part; `data\.held_out` 0\.02 keeps one"):
        Folder(path=tmp_path, size=8).open("test")
    for share, split in ((1e-9, "test"), (1 - 1e-9, "train")):
        with pytest.raises(InputError, match=r"part: `data\.held_out`"):
            Folder(path=tmp_path, size=8, held_out=share).open(split)


def test_movies_have_a_held_out_part_too(tmp_path):
    for number in range(12):
        clip = [picture(20 * number + frame, (8, 8)) for frame in range(3)]
        (tmp_path / "own").mkdir(exist_ok=True)
        clip[0].save(tmp_path / "own" / f"{number}.gif", save_all=True, append_images=clip[1:], duration=100)
    config = VideoFolder(path=tmp_path / "own", size=8, frames=2, held_out=0.3)
    training, held_out = config.open(), config.open("test")
    assert len(training) + len(held_out) == 12
    assert 0 < len(held_out) < 12
    assert training.lines == held_out.lines
    assert len(training.lines) == 12


# what a run records


@pytest.fixture
def own_run(folder, small, tmp_path):
    """A recipe on twelve images of three classes, and where it trains."""
    recipe = small.replace(
        data=Folder(path=folder, size=8, cache=tmp_path / "cache"),
        train={
            "images": 64,
            "log_images": 32,
            "checkpoint_images": 32,
            "preview_images": 0,
            "validate_images": 64,
        },
    )
    return recipe, tmp_path / "run"


def test_a_run_records_names_and_content_and_goes_on_with_the_same_images(own_run, folder):
    recipe, out = own_run
    train(recipe, out, device=CPU, progress=False)
    written = Recipe.read(out / "recipe.json").data
    assert written.names == ("a", "b", "c")
    assert (written.held_out, written.order) == (0.02, "natural")
    assert len(written.content) == 64
    for file in folder.rglob("*.*"):
        os.utime(file)  # as a copy on another machine has it
    train(recipe.replace(train={"images": 96}), out, device=CPU, progress=False)
    assert not (out / CHANGES).exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda own: (own / "b").rename(own / "bee"), "'b' is now 'bee'"),
        (lambda own: shutil.rmtree(own / "c"), "'c' gone"),
        (lambda own: save(own / "d" / "0.png", 5), "'d' new"),
        (lambda own: save(own / "a" / "0.png", 77), r"1 changed \(a/0.png\)"),
        (lambda own: (own / "a" / "0.png").unlink(), r"1 gone \(a/0.png\)"),
        (lambda own: save(own / "a" / "new.png", 5), r"1 added \(a/new.png\)"),
    ],
)  # fmt: skip
def test_what_has_changed_is_named_and_can_be_accepted(own_run, folder, change, words):
    recipe, out = own_run
    train(recipe, out, device=CPU, progress=False)
    change(folder)
    longer = recipe.replace(train={"images": 96})
    with pytest.raises(InputError, match=words) as refused:
        train(longer, out, device=CPU, progress=False)
    assert "\n" not in str(refused.value)
    accepting = longer.replace(data={"changed": "accept"})
    if "gone'" in words or words in ("'c' gone", "'d' new"):
        with pytest.raises(InputError, match="a network for 3 classes"):
            train(accepting, out, device=CPU, progress=False)
        return
    train(accepting, out, device=CPU, progress=False)
    (line,) = (out / CHANGES).read_text().splitlines()
    assert "changed since this run began" in json.loads(line)["changed"]
    train(longer.replace(train={"images": 128}), out, device=CPU, progress=False)


def test_a_run_of_version_0_1_goes_on_with_all_images_in_their_order(own_run, folder):
    recipe, out = own_run
    (folder / "b").rename(folder / "10")
    (folder / "c").rename(folder / "9")
    begun = settled(recipe.data, out / "recipe.json")
    assert (begun.held_out, begun.order) == (0.02, "natural")
    train(recipe.replace(data={"order": "plain", "held_out": 0.0}), out, device=CPU, progress=False)
    values = json.loads((out / "recipe.json").read_text())
    for name in ("order", "held_out", "names", "content", "changed", "cache", "max_pixels", "draft"):
        del values["data"][name]
    (out / "recipe.json").write_text(json.dumps(values))
    (out / "images.txt.gz").unlink()
    old = Recipe.read(out / "recipe.json").data
    assert (old.held_out, old.order, old.names) == (0.0, "plain", None)
    train(recipe.replace(train={"images": 96}), out, device=CPU, progress=False)
    now = Recipe.read(out / "recipe.json").data
    assert (now.held_out, now.order, now.names) == (0.0, "plain", ("10", "9", "a"))


def test_what_was_not_chosen_is_as_the_run_has_it_and_what_was_is_compared(own_run):
    recipe, out = own_run
    train(recipe.replace(data={"held_out": 0.1}), out, device=CPU, progress=False)
    train(recipe.replace(train={"images": 96}), out, device=CPU, progress=False)
    with pytest.raises(InputError, match=r"made with data.held_out 0.1, not 0.3"):
        train(recipe.replace(data={"held_out": 0.3}), out, device=CPU, progress=False)


def test_a_model_is_not_scored_against_other_classes(folder):
    with pytest.raises(InputError, match="other classes than were recorded: 'dog' is now 'c'"):
        Folder(path=folder, size=8, names=("a", "dog", "b")).open()


def test_flags_say_where_images_are_kept(tmp_path):
    for value, expected in (("off", "off"), (str(tmp_path), tmp_path)):
        recipe = parse_train(["fashion-sit", "--data", str(tmp_path), "--data.cache", value]).recipe
        assert recipe.data.cache == expected
        write_section(recipe, tmp_path / "recipe.json")
        assert Recipe.read(tmp_path / "recipe.json").data.cache == expected
