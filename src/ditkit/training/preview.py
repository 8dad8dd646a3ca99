"""Grids of samples during training: the same seeds each time, so that progress can be seen."""

from pathlib import Path

from ditkit.pictures import grid
from ditkit.pipeline import Pipeline

COLUMNS, MOST_CLASSES = 8, 10


def save_preview(pipeline: Pipeline, path: Path) -> None:
    """COLUMNS images of each of the first classes, a row per class, by the recipe's own sampling."""
    classes = min(pipeline.classes, MOST_CLASSES)
    rows = max(classes, 4)
    cond = {"label": [row % classes for row in range(rows) for _ in range(COLUMNS)]} if classes else {}
    images = pipeline.generate(cond, seeds=range(rows * COLUMNS), progress=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    grid(images, COLUMNS).save(path)
