"""The data set `clipart` at a glance: pictures of both parts with their captions, at even distances in its order.

python examples/clipart_sheet.py docs/images/clipart-data.png
"""

import sys
from pathlib import Path
from textwrap import wrap

from PIL import Image, ImageDraw, ImageFont

from ditkit.data import Arrays, Clipart
from ditkit.pictures import INK, PAPER

WIDE, HIGH, COLUMNS = 100, 100, 10
SMALL, TITLE = ImageFont.load_default(9), ImageFont.load_default(15)


def captioned(source: Arrays, count: int) -> Image.Image:
    """So many pictures of a source, their captions in two lines below each."""
    picks = [place * len(source) // count for place in range(count)]
    sheet = Image.new("RGB", (COLUMNS * WIDE, -(-count // COLUMNS) * HIGH), PAPER)
    ink = ImageDraw.Draw(sheet)
    for place, number in enumerate(picks):
        left, top = place % COLUMNS * WIDE, place // COLUMNS * HIGH
        image = source[number][0]
        sheet.paste(image, (left + (WIDE - image.width) // 2, top + 4))
        words = "\n".join(wrap(source.captions[number], 22, max_lines=2, placeholder="…"))
        ink.multiline_text(
            (left + WIDE // 2, top + 72), words, INK, SMALL, anchor="ma", align="center", spacing=1
        )
    return sheet


def main() -> None:
    above, below = captioned(Clipart().open("train"), 70), captioned(Clipart().open("test"), 40)
    sheet = Image.new("RGB", (above.width + 16, above.height + below.height + 64), PAPER)
    ink = ImageDraw.Draw(sheet)
    ink.text((8, 6), "training pictures with their captions", INK, TITLE)
    sheet.paste(above, (8, 28))
    ink.text((8, above.height + 36), "held out before training", INK, TITLE)
    sheet.paste(below, (8, above.height + 58))
    sheet.quantize(128).save(Path(sys.argv[1]), optimize=True)


if __name__ == "__main__":
    main()
