"""The emoji data set: Unicode's table, what is held out, and what the installed font draws."""

from pathlib import Path

import numpy as np
import pytest
import torch
from needs import needs_font, needs_table
from PIL import Image, ImageFont, features
from pydantic import ValidationError

from ditkit.data import DATA, EmojiData, emoji, load_all
from ditkit.data.emoji import (
    FONT,
    FONT_SIZE,
    GROUPS,
    TABLE,
    TONES,
    Emoji,
    cell,
    draw,
    draw_all,
    open_font,
    read_table,
    render,
)
from ditkit.errors import InputError

LINES = """\
# group: Smileys & Emotion
# subgroup: face-smiling
1F600          ; fully-qualified     # 😀 E1.0 grinning face
263A FE0F      ; fully-qualified     # ☺️ E0.6 smiling face
263A           ; unqualified         # ☺ E0.6 smiling face
# subgroup: cat-face
1F63A          ; fully-qualified     # 😺 E0.6 grinning cat
1F63B          ; fully-qualified     # 😻 E0.6 smiling cat with heart-eyes
# subgroup: heart
2764 FE0F      ; fully-qualified     # ❤️ E0.6 red heart
1F49A          ; fully-qualified     # 💚 E0.6 green heart
# group: People & Body
# subgroup: hand-fingers-closed
1F44D 1F3FB    ; fully-qualified     # 👍🏻 E1.0 thumbs up: light skin tone
1F44D 1F3FE    ; fully-qualified     # 👍🏾 E1.0 thumbs up: medium-dark skin tone
# subgroup: person-role
1F469 1F3FE 200D 1F680 ; fully-qualified     # 👩🏾‍🚀 E4.0 woman astronaut: medium-dark skin tone
1F469 1F3FE 200D 1F680 FE0F ; minimally-qualified # 👩🏾‍🚀 E4.0 woman astronaut: medium-dark skin tone
# group: Component
# subgroup: skin-tone
1F3FB          ; fully-qualified     # 🏻 E1.0 light skin tone
# group: Flags
# subgroup: country-flag
1F1F3 1F1F4    ; fully-qualified     # 🇳🇴 E2.0 flag: Norway
"""


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "emoji-test.txt"
    path.write_text(LINES, encoding="utf-8")
    return path


def hand(code: int, name: str) -> Emoji:
    return Emoji(chr(code), name, "People & Body", "hand-fingers-closed")


# the table


def test_the_table_gives_fully_qualified_emoji_with_their_groups(table):
    found = read_table(table)
    assert [one.name for one in found[:4]] == ["grinning face", "smiling face", "grinning cat",
                                               "smiling cat with heart-eyes"]  # fmt: skip
    assert found[1].text == "\u263a\ufe0f"
    assert found[-2] == Emoji(
        "\U0001f469\U0001f3fe\u200d\U0001f680",
        "woman astronaut: medium-dark skin tone",
        "People & Body",
        "person-role",
    )
    assert (len(found), found[-1].name, found[-1].group) == (10, "flag: Norway", "Flags")


@needs_table
def test_unicodes_own_table_is_read_to_the_last_line():
    counted = next(line for line in TABLE.read_text().splitlines() if line.startswith("# fully-qualified :"))
    found = read_table(TABLE)
    assert len(found) == int(counted.split(":")[1])
    assert {one.group for one in found} == set(GROUPS)
    assert len({one.name for one in found}) == len(found)


# what is held out


def test_the_rule_of_the_held_out_combinations():
    colours = {
        name: cell(Emoji("x", name, "Symbols", "geometric"))
        for colour in emoji.COLOURS
        for shape in emoji.SHAPES
        for name in (f"{colour} {shape}", f"{colour} large {shape}")
    }
    assert {name for name, place in colours.items() if place.held_out and "large" not in name} == {
        "green heart", "black heart", "yellow circle", "brown circle", "orange square", "purple square",
    }  # fmt: skip
    assert colours["black large square"] == ("colour", "square", "black", False)
    assert cell(Emoji("x", "black medium square", "Symbols", "geometric")) is None
    assert cell(Emoji("x", "light blue heart", "Smileys & Emotion", "heart")) is None
    thumbs = [cell(hand(0x1F44D, f"thumbs up: {tone} skin tone")) for tone in TONES]  # 0x1F44D is 1 modulo 4
    assert [place.held_out for place in thumbs] == [False, False, False, True, False]
    assert thumbs[3] == ("tone", "thumbs up", "medium-dark", True)
    assert cell(hand(0x1F91D, "handshake: light skin tone, dark skin tone")) is None
    assert cell(hand(0x1F44D, "thumbs up")) is None
    assert (
        cell(Emoji("\U0001f647", "person bowing: dark skin tone", "People & Body", "person-gesture")) is None
    )


@needs_table
def test_a_quarter_is_held_out_and_every_row_and_column_is_still_seen():
    placed = [place for one in read_table(TABLE) if (place := cell(one))]
    for family, (least, most) in {"colour": (6, 6), "tone": (54, 56), "cat": (3, 3)}.items():
        mine = [place for place in placed if place.family == family]
        held_out = [place for place in mine if place.held_out]
        assert least <= len(held_out) <= most
        assert 0.2 < len(held_out) / len(mine) < 0.34
        seen = [place for place in mine if not place.held_out]
        assert {place.row for place in seen} == {place.row for place in mine}
        if family != "cat":
            assert {place.column for place in seen} == {place.column for place in mine}
    names = {
        one.name
        for one in read_table(TABLE)
        if (place := cell(one)) and place.family == "cat" and place.held_out
    }
    assert names == {"grinning cat with smiling eyes", "smiling cat with heart-eyes", "pouting cat"}


# the pictures


@needs_font
def test_both_parts_have_pictures_captions_and_groups(table):
    train, test = (EmojiData(table=table, size=32).open(split) for split in ("train", "test"))
    assert train.captions == [
        "grinning face", "smiling face", "grinning cat", "red heart", "thumbs up: light skin tone",
        "woman astronaut: medium-dark skin tone", "flag: Norway",
    ]  # fmt: skip
    assert test.captions == ["smiling cat with heart-eyes", "green heart", "thumbs up: medium-dark skin tone"]
    assert test.names == GROUPS
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 0, 0, 0, 1, 1, 8], [0, 0, 1])
    assert train.images.shape == (7, 3, 32, 32)
    assert train.images.dtype == torch.uint8
    red, green = train.images[3, :, 16, 16].tolist(), test.images[1, :, 16, 16].tolist()
    assert red[0] > 200 > 100 > max(red[1:])
    assert green[1] > max(green[0], green[2]) + 50
    skin, dark = train.images[4].float().mean((1, 2)), test.images[2].float().mean((1, 2))
    assert (skin > dark + 10).all()


@needs_font
def test_backgrounds_grey_and_sizes(table):
    config = EmojiData(table=table, size=24, background="#0080ff")
    images, _ = load_all(config)
    assert (images[:, :, 0, 0] == torch.tensor([0, 128, 255])).all()
    grey, _ = load_all(EmojiData(table=table, size=24, channels=1))
    assert grey.shape == (7, 1, 24, 24)
    assert (grey[:, 0, 0, 0] == 255).all()
    large, _ = load_all(EmojiData(table=table, size=136))
    small, _ = load_all(EmojiData(table=table, size=34))
    areas = torch.nn.functional.avg_pool2d(large.float(), 4)
    assert (small - areas).abs().mean() < 0.5  # antialiased: a small pixel is the mean of those it covers
    assert (small - large[:, :, ::4, ::4].float()).abs().mean() > 3


@needs_font
def test_a_glyph_stands_in_the_middle():
    ink = 255 - torch.from_numpy(np.array(draw(open_font(FONT), "🔴", "white"))).amin(2)
    rows, columns = (ink.amax(axis).nonzero() for axis in (1, 0))
    for places in (rows, columns):
        assert abs(places.min() - (ink.shape[0] - 1 - places.max())) <= 2


@needs_font
def test_what_the_font_cannot_draw_as_one_glyph_is_left_out_and_counted(table, caplog):
    wrong = (
        "1F600 200D 1F680 ; fully-qualified     # x E1.0 face rocket\n"
        "10FFFE ; fully-qualified     # x E1.0 nothing\n"
        "0061 ; fully-qualified     # x E1.0 letter\n"
    )
    table.write_text(LINES + wrong, encoding="utf-8")
    source = EmojiData(table=table, size=8).open()
    assert len(source) == 7
    assert source.broken == ("face rocket", "nothing", "letter")
    assert "left out 3 of 13 emoji" in caplog.text


@needs_font
def test_without_raqm_sequences_are_left_out(table, caplog, monkeypatch):
    basic = ImageFont.truetype(FONT, FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
    assert [image is None for image in draw_all(basic, ["😀", "🇳🇴", "👍🏾"], "white")] == [False, True, True]
    monkeypatch.setattr(emoji, "open_font", lambda path: basic)
    monkeypatch.setattr(features, "check", lambda name: False)
    EmojiData(table=table, size=9).open()
    assert "sequences need a Pillow with raqm" in caplog.text


@needs_font
def test_pictures_are_drawn_once_a_process_and_nobody_writes_into_them(table):
    options = (FONT, table, 16, 3, "white")
    assert render(*options) is render(*options)
    before = render(*options)[0].clone()
    EmojiData(table=table, size=16).open().images.zero_()
    assert torch.equal(render(*options)[0], before)


# bad input


def test_a_missing_font_or_table_names_the_package_and_the_field(tmp_path, table):
    with pytest.raises(
        InputError, match=r"no\.ttf .* apt install fonts-noto-color-emoji, or `data\.font` FILE"
    ):
        EmojiData(font=tmp_path / "no.ttf", table=table).open()
    with pytest.raises(InputError, match="cannot be opened as a font"):
        EmojiData(font=table, table=table).open()
    Image.new("RGB", (4, 4)).save(tmp_path / "image.png")
    (tmp_path / "other.txt").write_text(LINES.replace("fully", "half"))
    for name, words in {
        "no.txt": "cannot be read",
        "image.png": "cannot be read",
        "other.txt": "no emoji",
    }.items():
        with pytest.raises(
            InputError, match=rf"{words}.*apt install unicode-data, or `data\.table` FILE"
        ) as caught:
            read_table(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValidationError, match="unknown color"):
        EmojiData(background="shiny")


def test_the_registry_knows_it():
    assert DATA["emoji"] == EmojiData(size=64, channels=3, classes=9)
