"""Scores as text: an aligned table, the line of a model card; and the versions that belong to both."""

import logging
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ditkit.evaluation import Report, Scores

log = logging.getLogger(__name__)

# What to call a distance in the features that gave it its name.
DISTANCES = {"inception": "FID", "dinov2": "FD-DINOv2", "clip": "CLIP-FID"}

Column = tuple[str, str, float]
COLUMNS: dict[str, Column] = {  # field of Scores -> title, format, factor
    "frechet": ("FD", ".3f", 1),
    "spatial_frechet": ("sFID", ".3f", 1),
    "inception_score": ("IS", ".2f", 1),
    "precision": ("precision", ".3f", 1),
    "recall": ("recall", ".3f", 1),
    "kernel": ("KID x1000", ".3f", 1000),
    "clip_score": ("CLIP", ".2f", 1),
    "authenticity": ("authentic", ".3f", 1),
    "retrieval": ("retrieval", ".1%", 1),
}

MEASURED = ("accuracy", "precision", "recall", "KID x1000")
"""What a comparison's table shows after the distance."""


def distance_name(features: str) -> str:
    """FID, FD-DINOv2, ... for a network's name; FD for a network that gave none its name."""
    return DISTANCES.get(features.split("-")[0], "FD")


def table(rows: Sequence[tuple[str, Report]]) -> str:
    """Reports of the same networks as aligned text, a block for each network; warnings below."""
    blocks = []
    for k, first in enumerate(rows[0][1].scores):
        scores = [(title, report.images, report.scores[k]) for title, report in rows]
        shown = [field for field in COLUMNS if any(getattr(row, field) is not None for _, _, row in scores)]
        titles = [COLUMNS[field][0] for field in shown]
        titles[0] = distance_name(first.features)
        if first.labels is not None:
            titles.append("accuracy")
        lines = [f"{'':24s}{'images':>8s}" + "".join(f"{title:>11s}" for title in titles)]
        for title, images, row in scores:
            cells = [_cell(getattr(row, field), *COLUMNS[field][1:]) for field in shown]
            if row.labels is not None:
                cells.append("" if row.labels.accuracy is None else f"{row.labels.accuracy:.1%}")
            lines.append(f"{title[-24:]:24s}{images:8d}" + "".join(f"{cell:>11s}" for cell in cells))
        count = "unknown" if first.reference_images is None else f"{first.reference_images:,}"
        lines.append(
            f"{first.features} {first.features_hash[:12]}, {first.dim} features, resize {first.resize}; "
            f"reference {first.reference} {first.reference_hash[:12]}, {count} images"
        )
        lines += [
            f"note: {warning}" for warning in dict.fromkeys(w for _, _, row in scores for w in row.warnings)
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table in Markdown."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def with_error(value: float | None, error: float | None, form: str, factor: float = 1, unit: str = "") -> str:
    """A value ± its error, where there is one, both times `factor`; "" where there is no value."""
    if value is None:
        return ""
    return f"{value * factor:{form}}{'' if error is None else f' ± {error * factor:{form}}'}{unit}"


def _cell(value: float | None, form: str, factor: float) -> str:
    return "" if value is None else f"{value * factor:{form}}"


def away(facts: Mapping[str, Any]) -> str:
    """What guidance leads away from, where that is not the whole network, in words that follow its strength."""
    return " away from its dense blocks" if facts.get("guidance_path") == "dense" else ""


def card_line(report: Report) -> str:
    """The result in one line with its protocol, for a model card or a paper's footnote."""
    facts = report.protocol
    parts = [_scores_line(scores) for scores in report.scores]
    made = f"{report.images:,} images"
    if "sampler" in facts:
        last = facts["first_seed"] + report.images - 1
        made = (
            f"{report.images:,} samples (seeds {facts['first_seed']} to {last}, labels {facts['labels']}), "
            f"{facts['sampler']}, {facts['nfe']} NFE, guidance {facts['guidance']:g}{away(facts)}, EMA, {facts['precision']}"
        )
    versions = f"ditkit {facts.get('ditkit')}" + (f" {facts['commit']}" if "commit" in facts else "")
    return f"{'; '.join(parts)}; {made}; {versions}, torch {facts.get('torch')}"


def _scores_line(scores: Scores) -> str:
    found = {distance_name(scores.features): f"{scores.frechet:.3f}"}
    if scores.labels is not None and scores.labels.accuracy is not None:
        found["class accuracy"] = f"{scores.labels.accuracy:.1%}"
    for field in list(COLUMNS)[1:]:
        title, form, factor = COLUMNS[field]
        if (value := getattr(scores, field)) is not None:
            found[title] = f"{value * factor:{form}}"
    values = ", ".join(f"{name} {value}" for name, value in found.items())
    return (
        f"{values} ({scores.features} {scores.features_hash[:12]} against {scores.reference} "
        f"{scores.reference_hash[:12]})"
    )


def software() -> dict[str, str]:
    """Versions, and the commit where ditkit runs from its own git checkout; a warning where git does not say it."""
    found = {"ditkit": version("ditkit"), "torch": torch.__version__}
    top = Path(__file__).parents[3]
    if (top / ".git").exists() and (
        top / "src" / "ditkit"
    ).is_dir():  # not a project that ditkit is installed in
        try:
            found["commit"] = _git("describe", "--always", "--dirty")
        except (OSError, subprocess.CalledProcessError) as error:
            reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[0]
            log.warning(
                f"{top}: git does not say which commit this is ({reason}); what is reported is without it"
            )
    return found


def _git(*arguments: str) -> str:
    """What git says of the folder of this file."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
