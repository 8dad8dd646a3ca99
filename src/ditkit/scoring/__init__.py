"""Scoring: where data, pipelines and the evaluation's mathematics meet.

    ruler = rulers(["classifier"], DATA["digits"])           # networks, and the statistics of a reference
    samples = sampled(pipeline, 1000)                        # or files(...): images that come in batches
    report = evaluate(samples, ruler)

What is scored: `samples.py`; what it is measured with: `rulers.py`; how it is shown: `tables.py`.
"""

from ditkit.scoring.rulers import Ruler, rulers
from ditkit.scoring.samples import (
    Samples,
    balanced_labels,
    files,
    held_out,
    labels_of,
    random_labels,
    sampled,
    sampling_facts,
)
from ditkit.scoring.score import evaluate, measure, nearest_images, report_of
from ditkit.scoring.tables import card_line, software, table

__all__ = [
    "Ruler",
    "Samples",
    "balanced_labels",
    "card_line",
    "evaluate",
    "files",
    "held_out",
    "labels_of",
    "measure",
    "nearest_images",
    "random_labels",
    "report_of",
    "rulers",
    "sampled",
    "sampling_facts",
    "software",
    "table",
]
