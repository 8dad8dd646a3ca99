"""Emoji with captions: the glyphs of an installed colour font, named and grouped by Unicode's emoji-test.txt.

About 3,700 pictures, each with a caption ("thumbs up: medium-dark skin tone") and one of nine groups as its
class; no download. What is held out for the test part are combinations, by a rule that no version of the font or
of the table moves, so that every colour, shape, tone, gesture and most expressions are seen in training:

- colour × {heart, circle, square}: the colour's place in COLOURS plus the shape's in SHAPES is 3 modulo 4
  (green and black heart, yellow and brown circle, orange and purple square);
- skin tone × gesture, the hands of one tone: code point of the hand plus the tone's place in TONES is 0 modulo 4;
- cat × expression: the cat's code point is 0 modulo 3 (smiling eyes, heart-eyes, pouting); human faces with
  the same expressions are in the training part.

Everything else is for training, and the test part holds nothing else. How a picture is made smaller: transforms.py.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from PIL import Image, ImageDraw, ImageFont, features

from ditkit.data.memory import Arrays
from ditkit.data.sources import Channels, Colour, DataSection, Size, Split
from ditkit.data.transforms import prepare
from ditkit.errors import InputError
from ditkit.lazy import torch
from ditkit.progress import progress_bar

if TYPE_CHECKING:
    from torch import Tensor

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")  # Debian's fonts-noto-color-emoji
TABLE = Path("/usr/share/unicode/emoji/emoji-test.txt")  # Debian's unicode-data
FONT_SIZE = 109  # the only size at which Noto's bitmaps, 136 × 128 pixels, can be opened
GROUPS = (
    "Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink", "Travel & Places", "Activities",
    "Objects", "Symbols", "Flags",
)  # fmt: skip
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white")
SHAPES = ("heart", "circle", "square")
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")

log = logging.getLogger(__name__)


class Emoji(NamedTuple):
    """A line of emoji-test.txt."""

    text: str  # one or more code points that make one glyph
    name: str
    group: str
    subgroup: str


class Cell(NamedTuple):
    """An emoji's place in a family of combinations."""

    family: Literal["colour", "tone", "cat"]
    row: str  # shape, gesture or "cat"
    column: str  # colour, skin tone or expression
    held_out: bool


def cell(emoji: Emoji) -> Cell | None:
    """The emoji's place in one of the three families, None for most. The rule is this module's docstring."""
    if match := re.fullmatch(rf"({'|'.join(COLOURS)})(?: large)? ({'|'.join(SHAPES)})", emoji.name):
        colour, shape = match.groups()
        return Cell("colour", shape, colour, (COLOURS.index(colour) + SHAPES.index(shape)) % 4 == 3)
    match = re.fullmatch(r"([^:]+): ([a-z-]+) skin tone", emoji.name)  # a handshake of two tones has a comma
    if match and emoji.subgroup.startswith("hand"):
        gesture, tone = match.groups()
        return Cell("tone", gesture, tone, (ord(emoji.text[0]) + TONES.index(tone)) % 4 == 0)
    if emoji.subgroup == "cat-face":
        return Cell("cat", "cat", emoji.name, ord(emoji.text[0]) % 3 == 0)
    return None


def read_table(path: Path) -> list[Emoji]:
    """The fully-qualified emoji of an emoji-test.txt (Unicode UTS #51), in its order.

    InputError, naming the Debian package and the field, when it is not there or something else.
    """
    remedy = "apt install unicode-data, or `data.table` FILE (Unicode's emoji-test.txt)"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); {remedy}") from None
    found, group, subgroup = [], "", ""
    for line in lines:
        if line.startswith("# group:"):
            group = line.split(":", 1)[1].strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.split(":", 1)[1].strip()
        elif match := re.fullmatch(r"([0-9A-F ]+?) *; fully-qualified +# \S+ E[\d.]+ (.+)", line):
            text = "".join(chr(int(code, 16)) for code in match[1].split())
            found.append(Emoji(text, match[2], group, subgroup))
    found = [emoji for emoji in found if emoji.group in GROUPS]
    if not found:
        raise InputError(f"{path} lists no emoji; {remedy}")
    return found


def open_font(path: Path) -> ImageFont.FreeTypeFont:
    """The font at the size it has; InputError, naming the Debian package and the field, when it cannot be."""
    try:
        return ImageFont.truetype(path, FONT_SIZE)
    except OSError as error:
        raise InputError(
            f"{path} cannot be opened as a font ({error}); apt install fonts-noto-color-emoji, or `data.font` FILE"
        ) from None


def draw(font: ImageFont.FreeTypeFont, text: str, background: str) -> Image.Image:
    """One text centred on a square of the background, in the font's own colours: RGB, as wide as its longer side."""
    left, top, right, bottom = font.getbbox(text)
    width, height = int(right - left), int(bottom - top)
    side = max(width, height, 1)
    image = Image.new("RGB", (side, side), background)
    origin = ((side - width) // 2 - left, (side - height) // 2 - top)
    ImageDraw.Draw(image).text(origin, text, font=font, embedded_color=True, fill="black")
    return image


def draw_all(
    font: ImageFont.FreeTypeFont, texts: Sequence[str], background: str
) -> Iterator[Image.Image | None]:
    """`draw` of each text, None where the font draws its parts side by side or what stands for all it lacks."""
    absent = draw(font, "\U0010ffff", background)  # a code point that will never be assigned
    alone = lru_cache(maxsize=None)(font.getlength)
    for text in texts:
        image = draw(font, text, background) if font.getlength(text) <= 1.5 * alone(text[0]) else absent
        yield None if image == absent else image


@lru_cache(maxsize=4)
def render(
    font: Path, table: Path, size: int, channels: Literal[1, 3], background: str
) -> tuple[Tensor, tuple[Emoji, ...], tuple[str, ...]]:
    """(images uint8 (N, channels, size, size), their emoji, the names of those left out), made once a process.

    Each glyph is drawn at the font's size on the background and then made smaller with antialiasing. Those the
    font does not draw as one glyph are left out and counted in the log. InputError: see `read_table`, `open_font`;
    or none is drawn.
    """
    face, listed = open_font(font), read_table(table)
    images, drawn, absent = [], [], []
    with progress_bar(len(listed), "drawing emoji", "image", delay=1.0) as bar:
        pictures = draw_all(face, [emoji.text for emoji in listed], background)
        for emoji, picture in zip(listed, pictures, strict=True):
            if picture is None:
                absent.append(emoji.name)
            else:
                images.append(prepare(picture, size, channels))
                drawn.append(emoji)
            bar.update()
    if not drawn:
        raise InputError(
            f"{font} draws none of the {len(listed)} emoji; `data.font` names a colour-emoji font"
        )
    if absent:
        why = "" if features.check("raqm") else " (sequences need a Pillow with raqm)"
        shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        log.warning(
            f"{font}: left out {len(absent)} of {len(listed)} emoji, which it does not draw as one glyph{why}: {shown}"
        )
    return torch.stack(images), tuple(drawn), tuple(absent)


class EmojiData(DataSection):
    """About 3,700 captioned emoji in nine groups, drawn from an installed font; held out: combinations.

    Colour × {heart, circle, square}, skin tone × gesture and cat × expression: about a quarter of each. Which
    pictures there are depends on the versions of the font and of Unicode's table.
    """

    captioned: ClassVar[bool | None] = True
    kind: Literal["emoji"] = "emoji"
    size: Size = 64
    channels: Channels = 3
    classes: Literal[9] = 9
    """Fixed by the data: Unicode's groups."""
    font: Path = FONT
    """A colour-emoji font. Debian: fonts-noto-color-emoji."""
    table: Path = TABLE
    """Unicode's emoji-test.txt. Debian: unicode-data."""
    background: Colour = "white"
    """Colour behind the glyphs: a name or #rrggbb."""

    def open(self, split: Split = "train") -> Arrays:
        """The pictures of one part with groups and captions. InputError: see `render`."""
        images, drawn, absent = render(self.font, self.table, self.size, self.channels, self.background)
        places = [cell(emoji) for emoji in drawn]
        picks = [
            number
            for number, place in enumerate(places)
            if (place is not None and place.held_out) == (split == "test")
        ]
        labels = torch.tensor([GROUPS.index(drawn[number].group) for number in picks])
        source = Arrays(images[picks], labels, GROUPS, [drawn[number].name for number in picks])
        source.broken = absent
        return source
