"""The data set of clip art: names to captions, copies, families, the held-out part, what a picture is laid on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from needs import needs_clipart
from PIL import Image, ImageDraw
from pydantic import ValidationError

from ditkit.data import DATA, Clipart, load_all
from ditkit.data.clipart import (
    LARGEST,
    SIDE,
    SUBJECTS,
    different,
    families,
    find,
    held_out,
    look_alikes,
    stem,
)
from ditkit.data.clipart_names import caption, title
from ditkit.data.transforms import padded
from ditkit.errors import InputError


def picture(number: int, size: tuple[int, int] = (40, 40)) -> Image.Image:
    """Coloured squares of their own on transparency."""
    values = np.random.default_rng(number).integers(0, 256, (4, 4, 4), dtype=np.uint8)
    values[:, :, 3] = 255
    return Image.fromarray(values).resize(size, Image.Resampling.NEAREST)


@pytest.fixture
def root(tmp_path) -> Path:
    """Thirty different pictures, a copy, a link, one that shows nothing, one that is none, a star of many points, and
    what belongs to no subject."""
    folder = tmp_path / "png"
    words = [
        f"{first}{second}" for first in "abcde" for second in ("pple", "ear", "ook", "all", "ell", "ish")
    ]
    for number, word in enumerate(words):
        inside = folder / ("food/fruit" if number % 2 else "animals")
        inside.mkdir(parents=True, exist_ok=True)
        picture(number).save(inside / f"{word}_ganson.png")
    (folder / "tools").mkdir()
    picture(0).save(folder / "tools" / "copy.png", compress_level=0)
    (folder / "tools" / "link.png").symlink_to(folder / "animals" / "apple_ganson.png")
    Image.new("RGBA", (30, 30), (255, 255, 255, 200)).save(folder / "tools" / "nothing.png")
    (folder / "tools" / "broken.png").write_bytes(b"no picture")
    (folder / "tools" / "notes.txt").write_text("no picture")
    (folder / "shapes").mkdir()
    picture(98).save(folder / "shapes" / "star_21pt02step.png")
    (folder / "elsewhere").mkdir()
    picture(99).save(folder / "elsewhere" / "other.png")
    return folder


def clipart(root: Path, **settings) -> Clipart:
    return Clipart(root=root, cache=root.parent / "cache", **settings)


# names


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("animals/birds/owl_on_branch_ganson.png", "owl on branch, birds, animals"),
        ("plants/fiore_01.png", "fiore, plants"),
        ("tools/weapons/katana_dudziak_tomek_01.png", "katana, weapons, tools"),
        ("animals/mammals/orso_architetto_francesc_02.png", "orso, mammals, animals"),
        ("animals/dinosauro_architetto_fra_03.png", "dinosauro, animals"),
        ("computer/icons/hotel_icon_golf_course_g_01.png", "hotel icon golf course, icons, computer"),
        ("food/orange_jarno_vasamaa_01r.png", "orange, food"),
        ("food/milk_bw.png", "milk black and white, food"),
        ("food/mole.png", "mole, food"),
        ("buildings/homes/home15.png", "home, homes, buildings"),
        ("computer/70a029.png", "computer"),
        ("people/people_juliane_krug_05c.png", "people"),
        ("signs_and_symbols/RayonnementLaser.png", "rayonnement laser, signs and symbols"),
        ("shapes/stars/star_67pt15step.png", "star with 67 points step 15, stars, shapes"),
        ("recreation/games/cards/ornamental/ornamental_c_q.png", "ornamental queen of clubs, ornamental, cards, games, recreation"),
        ("recreation/games/cards/white/white_d_10.png", "white 10 of diamonds, white, cards, games, recreation"),
        ("recreation/games/cards/simple/simple_jk_r.png", "simple red joker, simple, cards, games, recreation"),
        ("recreation/music/simple_c_q.png", "simple c q, music, recreation"),
    ],
)  # fmt: skip
def test_captions_are_the_words_of_a_name_without_its_author_and_number(path, words):
    assert caption(path) == words


def test_variants_of_a_title_have_one_stem():
    assert stem("food/lemon_simple_bw.png") == stem("food/fruit/yellow_lemon_02.png") == "lemon"
    assert stem("shapes/stars/star_67pt15step.png") == stem("shapes/stars/star_11pt2step.png")
    assert stem("computer/70a029.png") == stem("computer/70a001.png") != stem("people/70a001.png")
    assert title("computer/70a029.png") == ""


# copies and families


def test_the_first_of_equal_pictures_is_kept_and_none_that_shows_nothing():
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 8, 8), dtype=np.uint8)
    images[3], images[4] = images[1], 255
    images[5] = np.where(np.arange(8) % 2, 255, 239)  # as faint as nothing
    assert different(images).tolist() == [True, True, True, False, False, False]


def test_pictures_that_look_alike_are_found_whatever_their_colour():
    images = (
        np.random.default_rng(0).integers(0, 256, (400, 3, 4, 4), dtype=np.uint8).repeat(16, 2).repeat(16, 3)
    )
    images[300] = images[7] // 2 + 60  # paler
    images[301] = np.tensordot([0.299, 0.587, 0.114], images[8], 1)  # grey
    images[302] = 255 - images[9]  # inverted: not alike
    images[20] = images[21] = 77  # flat: like nothing
    assert look_alikes(images).tolist() == [[7, 300], [8, 301]]


def test_a_family_is_joined_by_titles_and_by_looks():
    paths = ["a/cat_01.png", "a/dog.png", "b/cat_02.png", "b/fish.png", "b/blue_fish.png", "b/cow.png"]
    found = families(paths, np.array([[2, 3]]))
    assert found[0] == found[2] == found[3] == found[4]
    assert len(set(found.tolist())) == 3


def test_families_are_held_out_whole_and_large_ones_are_trained_on():
    paths = [f"a/{number}.png" for number in range(3000)]
    family = np.arange(3000) // 3
    out = held_out(paths, family)
    assert 0.12 < out.mean() < 0.18
    assert (out.reshape(-1, 3).any(1) == out.reshape(-1, 3).all(1)).all()
    assert not held_out(paths, np.arange(3000) // (LARGEST + 1)).any()
    order = np.random.default_rng(0).permutation(3000)
    again = held_out([paths[place] for place in order], family[order] + 5)
    assert (again == out[order]).all()
    fewer = held_out(paths[300:], family[300:])
    assert (fewer == out[300:]).all()


# pictures


def test_a_picture_is_whole_in_the_middle_of_the_background_without_its_margins():
    image = Image.new("RGBA", (300, 200), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((200, 20, 279, 59), fill=(250, 0, 0, 255))
    pixels = np.asarray(padded(image, 16, 3, "#0000ff"))
    assert (pixels[4:12] == (250, 0, 0)).all()
    assert (pixels[:4] == (0, 0, 255)).all()
    assert (pixels[12:] == (0, 0, 255)).all()
    assert padded(image, 16, 1, "white").mode == "L"


def test_transparency_shows_the_background_and_opaque_margins_stay():
    half = Image.new("RGBA", (8, 8), (200, 0, 0, 128))
    assert abs(np.asarray(padded(half, 8, 3, "white")).astype(int) - (227, 127, 127)).max() <= 1
    opaque = Image.new("RGB", (8, 4), "white")
    opaque.paste("black", (3, 1, 5, 3))
    assert (np.asarray(padded(opaque, 8, 1, "black"))[2:6, :3] == 255).all()
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.info["transparency"] = 0
    palette.putpixel((1, 1), 1)
    assert (np.asarray(padded(palette, 4, 3, "blue")) == (0, 255, 0)).all()
    assert (np.asarray(padded(Image.new("RGBA", (5, 3)), 4, 3, "blue")) == (0, 0, 255)).all()
    thin = padded(Image.new("RGB", (4000, 1), "black"), 8, 1, "white")
    assert (np.asarray(thin) == 0).sum() == 8


def test_both_parts_have_pictures_captions_and_subjects(root):
    config = clipart(root, size=32)
    train, test = config.open(), config.open("test")
    assert len(train) + len(test) == 30
    assert 1 <= len(test) <= 12
    assert train.names == SUBJECTS
    assert set(train.labels.tolist()) <= {SUBJECTS.index("animals"), SUBJECTS.index("food")}
    assert "aear, fruit, food" in train.captions + test.captions
    assert not set(train.captions) & set(test.captions)
    assert (train.images.shape[1:], train.images.dtype) == ((3, 32, 32), torch.uint8)
    for source in (train, test):
        for words, label in zip(source.captions, source.labels.tolist(), strict=True):
            assert words.endswith(SUBJECTS[label])
    assert train.broken == ("tools/broken.png",)
    assert len(train.lines) == 30
    assert train.lines == test.lines


def test_parts_are_the_same_at_every_size_and_on_every_background(root):
    plain = clipart(root).open("test")
    for settings in ({"size": 128}, {"size": 16}, {"channels": 1}, {"background": "navy"}, {"cache": "off"}):
        other = clipart(root, **settings) if "cache" not in settings else Clipart(root=root, cache="off")
        source = other.open("test")
        assert source.captions == plain.captions
        assert source.images.shape[1:] == (other.channels, other.size, other.size)
    assert torch.equal(source.images, plain.images)


def test_pictures_are_decoded_once(root, monkeypatch):
    config = clipart(root, size=24)
    first, _ = load_all(config)
    find.cache_clear()
    monkeypatch.setattr("ditkit.data.prepared._make", None)
    assert torch.equal(load_all(config)[0], first)


def test_a_missing_package_is_named_with_its_field(tmp_path):
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(
            InputError, match=r"apt-get install openclipart-png, or `data\.root` DIR"
        ) as caught:
            Clipart(root=folder).open()
        assert "\n" not in str(caught.value)
    with pytest.raises(ValidationError, match="unknown color"):
        Clipart(background="shiny")


def test_the_registry_knows_it():
    assert DATA["clipart"] == Clipart(size=64, channels=3, classes=22)


@pytest.mark.slow
@needs_clipart
def test_the_installed_pictures_have_parts_without_copies_or_near_copies():
    config = DATA["clipart"]
    train, test = config.open(), config.open("test")
    assert 5_400 < len(train) + len(test) < 5_600
    assert 0.09 < len(test) / (len(train) + len(test)) < 0.13
    assert set(train.labels.tolist()) == set(range(22))
    assert len(set(test.labels.tolist())) >= 18
    assert all(train.captions)
    images = torch.cat([train.images, test.images]).numpy()
    assert images.shape[2] == SIDE
    assert different(images).all()
    pairs = look_alikes(images) >= len(train)  # which of each pair are held out
    assert (pairs[:, 0] == pairs[:, 1]).all()
