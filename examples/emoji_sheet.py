"""The data set `emoji` at a glance: a hundred of its pictures, and the combinations that are held out.

    python examples/emoji_sheet.py docs/images/emoji-data.png

The first panel is every 36th training picture with its caption. In the second a blue frame is a combination of
the test part; the rows show colours × shapes, cats, and the first gestures × skin tones.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont

from ditkit.data import EmojiData
from ditkit.data.emoji import COLOURS, FONT, SHAPES, TABLE, TONES, Emoji, cell, draw, open_font, read_table
from ditkit.pictures import INK, PAPER

SIDE, COLUMNS, GESTURES = 48, 10, 10
FRAME = (30, 90, 220)
SMALL, TITLE = ImageFont.load_default(9), ImageFont.load_default(15)


def captioned(size: int) -> Image.Image:
    """A hundred training pictures at even distances, their captions in two lines below each."""
    source = EmojiData(size=size).open()
    picks = range(0, len(source), -(-len(source) // 100))
    wide, high = 84, SIDE + 34
    sheet = Image.new("RGB", (COLUMNS * wide, -(-len(picks) // COLUMNS) * high), PAPER)
    ink = ImageDraw.Draw(sheet)
    for place, number in enumerate(picks):
        left, top = place % COLUMNS * wide, place // COLUMNS * high
        sheet.paste(source[number][0], (left + (wide - SIDE) // 2, top + 4))
        words = wrap(source.captions[number], 17, max_lines=2, placeholder="…")
        ink.multiline_text(
            (left + wide // 2, top + SIDE + 6),
            "\n".join(words),
            INK,
            SMALL,
            anchor="ma",
            align="center",
            spacing=1,
        )
    return sheet


def families(listed: Sequence[Emoji]) -> Image.Image:
    """The rows of the three families, what is held out in a frame."""
    placed = [(emoji, found) for emoji in listed if (found := cell(emoji))]
    by_place = {(found.row, found.column): (emoji, found) for emoji, found in placed}
    cats = [found.column for _, found in placed if found.family == "cat"]
    gestures = list(dict.fromkeys(found.row for _, found in placed if found.family == "tone"))[:GESTURES]
    rows = [(shape, [(shape, colour) for colour in COLOURS]) for shape in SHAPES]
    rows += [("cat", [("cat", name) for name in cats])]
    rows += [(tone, [(gesture, tone) for gesture in gestures]) for tone in TONES]
    step, margin = SIDE + 10, 110
    sheet = Image.new("RGB", (margin + step * max(len(keys) for _, keys in rows), step * len(rows)), PAPER)
    ink, font = ImageDraw.Draw(sheet), open_font(FONT)
    for row, (name, keys) in enumerate(rows):
        ink.text((margin - 10, step * row + step // 2), name, INK, TITLE, anchor="rm")
        for column, key in enumerate(keys):
            emoji, found = by_place[key]
            left, top = margin + step * column, step * row
            picture = draw(font, emoji.text, "white").resize((SIDE, SIDE))
            sheet.paste(picture, (left + 5, top + 5))
            if found.held_out:
                ink.rectangle((left + 1, top + 1, left + step - 3, top + step - 3), outline=FRAME, width=2)
    return sheet


def main() -> None:
    above, below = captioned(SIDE), families(read_table(TABLE))
    sheet = Image.new("RGB", (above.width + 16, above.height + below.height + 64), PAPER)
    ink = ImageDraw.Draw(sheet)
    ink.text((8, 6), "training pictures with their captions", INK, TITLE)
    sheet.paste(above, (8, 28))
    ink.text((8, above.height + 36), "framed: held out before training", INK, TITLE)
    sheet.paste(below, (8, above.height + 58))
    sheet.quantize(128).save(Path(sys.argv[1]), optimize=True)


if __name__ == "__main__":
    main()
