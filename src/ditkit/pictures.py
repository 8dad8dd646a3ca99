"""Pictures people look at: grids of images with gaps and titles. Curves: `plots.py`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ditkit.records import written_whole

CHANNELS = 8  # of images that have other than 1 or 3, at most so many are shown
INK, PAPER = (40, 40, 40), (255, 255, 255)


def save_picture(picture: Image.Image, path: Path, *, synced: bool = True) -> None:
    """The picture as a file, written whole; `synced` as there."""
    with written_whole(path, synced=synced) as place:
        picture.save(place)


def enlargement(side: int, target: int = 64) -> int:
    """The whole factor that brings small images to about `target` pixels."""
    return max(1, round(target / side))


def visible(images: Tensor) -> Tensor:
    """Images uint8 (N, C, H, W) as pictures (N, 1 or 3, H, W'): of other channels than 1 or 3 the first CHANNELS side by
    side, each grey, a white line between two."""
    if images.shape[1] in (1, 3):
        return images
    channels = images[:, :CHANNELS, None].unbind(1)  # (N, 1, H, W) each
    line = torch.full_like(channels[0][..., :1], 255)
    return torch.cat([part for channel in channels for part in (channel, line)][:-1], dim=-1)


def grid(images: Tensor, columns: int, *, gap: int = 2, scale: int | None = None) -> Image.Image:
    """uint8 (N, C, H, W) as rows of `columns` images, as `visible` shows them, enlarged without smoothing."""
    scale = scale or enlargement(images.shape[2])
    gap = (
        gap if images.shape[1] in (1, 3) else 3 * scale
    )  # wider than what is between the channels of one image
    images = visible(images.cpu()).expand(-1, 3, -1, -1)
    n, _, height, width = images.shape
    rows = -(-n // columns)
    cell_h, cell_w = height * scale + gap, width * scale + gap
    canvas = np.full((rows * cell_h - gap, columns * cell_w - gap, 3), 255, dtype=np.uint8)
    enlarged = images.repeat_interleave(scale, 2).repeat_interleave(scale, 3).permute(0, 2, 3, 1).numpy()
    for k, image in enumerate(enlarged):
        top, left = k // columns * cell_h, k % columns * cell_w
        canvas[top : top + height * scale, left : left + width * scale] = image
    return Image.fromarray(canvas)


def contact_sheet(clips: Tensor, shown: int = 16) -> Image.Image:
    """Clips uint8 (N, C, F, H, W), one a row, their frames from left to right: at most `shown`, evenly chosen."""
    length = clips.shape[2]
    picks = torch.linspace(0, length - 1, min(length, shown)).round().long()
    return grid(clips[:, :, picks].transpose(1, 2).flatten(0, 1), len(picks))


def pairs(images: Tensor, others: Tensor, columns: int) -> Image.Image:
    """Two sets uint8 (N, C, H, W) in one grid: each of the first with that of the second right below it."""
    scale = enlargement(images.shape[2])
    upper, lower = (part.repeat_interleave(scale, 2).repeat_interleave(scale, 3) for part in (images, others))
    line = torch.full_like(upper[:, :, :2], 255)
    return grid(torch.cat([upper, line, lower], dim=2), columns, gap=12, scale=1)


def side_by_side(panels: Sequence[tuple[str, Tensor]], row_titles: Sequence[str], path: Path) -> None:
    """Panels of (title, images (rows · columns, C, H, W)), next to each other, a title at every row."""
    font = ImageFont.load_default(15)
    pictures = [grid(images, len(images) // len(row_titles)) for _, images in panels]
    margin = 16 + max(int(font.getlength(title)) for title in row_titles)
    between, top = 32, 40
    height = top + pictures[0].height + 16
    width = margin + sum(picture.width for picture in pictures) + between * (len(pictures) - 1) + 16
    canvas = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    left = margin
    for (title, _), picture in zip(panels, pictures, strict=True):
        draw.text((left, 12), title, fill=INK, font=font)
        canvas.paste(picture, (left, top))
        left += picture.width + between
    row_height = (pictures[0].height + 2) / len(row_titles)
    for i, title in enumerate(row_titles):
        middle = top + row_height * (i + 0.5)
        draw.text((margin - 8, middle), title, fill=INK, font=font, anchor="rm")
    save_picture(canvas, path)


def class_rows(images: Tensor, labels: Tensor, classes: int, columns: int) -> Tensor:
    """The first `columns` images of each class, class after class: (classes · columns, C, H, W)."""
    picks = [torch.nonzero(labels == label).flatten()[:columns] for label in range(classes)]
    return images[torch.cat(picks)]
