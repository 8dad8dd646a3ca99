"""Grids of samples during training: the same seeds each time, so that progress can be seen."""

from pathlib import Path

from ditkit.pictures import contact_sheet, grid, save_picture
from ditkit.pipeline import Pipeline
from ditkit.scoring.samples import captioned

COLUMNS, MOST_CLASSES = 8, 10


def save_preview(pipeline: Pipeline, path: Path) -> None:
    """COLUMNS images, or one clip, of each of the first classes, a row per class, or of held-out captions, a row for each, by
    the recipe's own sampling."""
    classes = min(pipeline.classes, MOST_CLASSES)
    rows, clips = max(classes, 4), len(pipeline.recipe.data.shape) == 3
    columns = 1 if clips else COLUMNS
    if pipeline.recipe.text:
        few, _ = captioned(pipeline.recipe.data, rows)
        keys = ("text", "label") if classes else ("text",)
        cond = {key: [value for value in few[key] for _ in range(columns)] for key in keys}
    else:
        cond = {"label": [row % classes for row in range(rows) for _ in range(columns)]} if classes else {}
    images = pipeline.generate(cond, seeds=range(rows * columns), progress=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_picture(contact_sheet(images) if clips else grid(images, COLUMNS), path)
