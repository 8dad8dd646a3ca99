"""`ditkit compare` of trainings that differ in their seed: which they are, and the table that sums them up."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ditkit.errors import InputError
from ditkit.pipeline import Pipeline
from ditkit.scoring.siblings import Group
from ditkit.scoring.tables import COLUMNS, MEASURED, distance_name, markdown_table, with_error
from ditkit.training.siblings import check_siblings, same_training, sibling_runs


def expanded(names: Sequence[str]) -> dict[str, str | None]:
    """Every run that is named, with the folder of siblings that it comes from; InputError where such a folder has runs of
    several recipes."""
    found: dict[str, str | None] = {}
    for name in names:
        runs = sibling_runs(Path(name))
        if not runs:
            found.setdefault(name, None)
            continue
        check_siblings(Path(name))
        found |= {str(run): name for run in runs}
    return found


def titles_of(folders: Mapping[str, str | None]) -> dict[str, str]:
    """What each run is called: its last folder, of siblings with the one above it, or its whole path where that would be
    ambiguous."""
    last = {
        name: Path(name).name if folder is None else f"{Path(folder).resolve().name}/{Path(name).name}"
        for name, folder in folders.items()
    }
    return last if len(set(last.values())) == len(last) else {name: name for name in folders}


def groups_by_title(
    models: Mapping[str, Pipeline], folders: Mapping[str, str | None], titles: Mapping[str, str]
) -> dict[str, str]:
    """Title -> the name of its group, for models that differ from others in train.seed only and have seen as many images.
    InputError where a folder's siblings have not seen as many."""
    alike: dict[str, list[str]] = {}
    for name, pipeline in models.items():
        key = json.dumps([same_training(pipeline.recipe), pipeline.record.get("images")], sort_keys=True)
        alike.setdefault(key, []).append(name)
    for folder in dict.fromkeys(filter(None, folders.values())):
        _check_images(folder, {name: models[name] for name in models if folders[name] == folder})
    found: dict[str, str] = {}
    for names in alike.values():
        seeds = [models[name].recipe.train.seed for name in names]
        if len(names) > 1 and len(set(seeds)) == len(seeds):
            title = _group_title(names, folders, titles)
            found |= {titles[name]: title for name in names}
    return found


def _check_images(folder: str, models: Mapping[str, Pipeline]) -> None:
    seen = {name: pipeline.record.get("images") for name, pipeline in models.items()}
    if len(set(seen.values())) > 1:
        counts = ", ".join(f"{Path(name).name} {images:,}" for name, images in seen.items())
        raise InputError(
            f"{folder}: its runs have not seen as many images ({counts}); train them to their end, or name the runs to compare "
            "one by one"
        )


def _group_title(names: Sequence[str], folders: Mapping[str, str | None], titles: Mapping[str, str]) -> str:
    """The name of the folder; for runs that were named one by one all their titles."""
    whole = {folders[name] for name in names}
    folder = whole.pop() if len(whole) == 1 else None
    return (
        ", ".join(titles[name] for name in names) if folder is None else titles[names[0]].rpartition("/")[0]
    )


def group_table(groups: Sequence[Group]) -> str:
    """Means and standard deviations over trainings as a table in Markdown."""
    distance = distance_name(groups[0].rows[0].scores.features)
    head = ["model", "trainings", "sampler, NFE", "guidance", distance, *MEASURED]
    return "\n".join(
        [
            *markdown_table(head, [_cells(group) for group in groups]),
            "",
            "Means over trainings that differ in their seed only; ± is the standard deviation over trainings. Below each "
            "training by itself.",
        ]
    )


def _cells(group: Group) -> list[str]:
    cell, scores = group.rows[0].cell, group.scores

    def score(name: str, *form: Any) -> str:
        spread = scores.get(name)
        return "" if spread is None else with_error(spread.mean, spread.deviation, *form)

    return [
        group.model,
        str(len(group.rows)),
        f"{cell.report.protocol['sampler']}, {group.evaluations:g}",
        f"{cell.guidance:g}",
        score("frechet", ".3f"),
        score("accuracy", ".1f", 100, " %"),
        *(score(name, *COLUMNS[name][1:]) for name in ("precision", "recall", "kernel")),
    ]


def group_record(group: Group) -> dict[str, Any]:
    """The same for compare.json."""
    cell = group.rows[0].cell
    return {
        "model": group.model,
        "trainings": [row.cell.model for row in group.rows],
        "features": group.rows[0].scores.features,
        "guidance": cell.guidance,
        "sampler": cell.report.protocol["sampler"],
        "nfe": group.evaluations,
        "scores": {
            name: {"mean": spread.mean, "standard_deviation": spread.deviation}
            for name, spread in group.scores.items()
        },
    }
