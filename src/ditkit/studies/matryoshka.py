"""One image at several resolutions, denoised together: what it gains over one resolution, and over a cascade.

Emoji of 64 x 64 pixels and their captions. Equal multiply-adds in one DiT (`single`) and in a DiT for 16 x 16 pixels
with levels for 32 and 64 around it (`three`); with one level for 64 (`two`); with weights of the losses, the lowest's
largest (`weights`); started from low resolution alone, trained for three lengths (`progressive-S, -M, -L` from
`low-S, -M, -L`); and two models, one for 64 pixels that starts from the samples of low-M, clean or noised
(`cascade-clean, -noised`). All see as many images of 64 pixels and are scored while they train.

The paper (Gu et al., "Matryoshka Diffusion Models", ICLR 2024) trains on ImageNet and CC12M: nesting reaches what a
single resolution does in a fraction of the steps, longer low-resolution stages lower the final FID, cascades trail.

Each level has the noise at which its averages over squares are as noisy as the lowest level: the deviation grows with
the ratio of the sides (p = 2; the mean of r x r pixels divides it by r). FD is of captions of training images, which
the reference are; the 64 held-out ones are hands for the most part, so far from it even when they are right. Minutes
are of training, without compilation, of one thread.

Command: ditkit study matryoshka. Cost: about two hours of two CPU cores with AMX, one thread and one process each.
What came out: docs/results.md.
"""

import math
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ditkit.backbones import DiTConfig, MatryoshkaConfig, OuterLevel
from ditkit.costs import recipe_cost
from ditkit.data.sources import stack
from ditkit.pictures import grid, side_by_side
from ditkit.pipeline import Pipeline
from ditkit.plots import logarithmic, save_figure
from ditkit.recipe import Recipe
from ditkit.recipes import recipe
from ditkit.studies.cells import Cell, Point, Results, Trained

SIZE = 64
IMAGES = 90_000
BUDGETS = (IMAGES // 3, 2 * IMAGES // 3, IMAGES)  # images of 64 pixels at which all are scored
LENGTHS = {"S": IMAGES // 2, "M": IMAGES, "L": 2 * IMAGES}  # images of 16 pixels before them
FEATURES = "efficientnet-112"
BATCH = 64  # samples at once
SAMPLES, HELD_OUT = 6 * BATCH, 2 * BATCH  # a point; and, at the end, of held-out captions
LOWER_NOISE = {
    "clean": (0.0, 0.0),
    "noised": (0.3, 0.15),
}  # most in training, and in sampling: the mean of the former
CAPTIONS = (
    "green heart", "yellow circle", "purple square", "smiling cat with heart-eyes",
    "waving hand: medium-light skin tone", "victory hand: dark skin tone", "thumbs up: medium-dark skin tone",
    "raised fist: medium skin tone",
)  # fmt: skip
"""Held out."""

INNER = DiTConfig(width=128, depth=6, heads=4, patch=2, label=False, text="cross_attention", text_pooled=True)
HALVED = OuterLevel(widths=(32,), depth=(1,), patch=2)  # as narrow as there are
NETWORKS = {
    "single": INNER.model_copy(update={"width": 96, "depth": 5, "heads": 3, "patch": 4, "mlp_ratio": 3.75}),
    "two": MatryoshkaConfig(inner=INNER, levels=(OuterLevel(widths=(64,), depth=(1,), patch=4),)),
    "three": MatryoshkaConfig(inner=INNER, levels=(HALVED, HALVED)),
}


def cells() -> dict[str, Cell]:
    """What others start from first, then the slowest, so that processes that share them end together."""
    base = recipe("emoji-t2i").replace(
        data={"size": SIZE},
        transport={"level_shift": 2.0},
        train={
            "images": IMAGES,
            "batch": 16,
            "warmup_images": 2_000,
            "schedule": "constant",
            "log_images": IMAGES // 12,
            "checkpoint_images": IMAGES,
            "preview_images": 0,
            "validate_images": 0,
        },
        sample={"sampler": "ab2", "steps": 16, "guidance": 2.0},
    )
    nets = {
        name: base.replace(name=f"matryoshka-{name}", backbone=backbone)
        for name, backbone in NETWORKS.items()
    }
    low = {}
    for length, images in LENGTHS.items():
        (stage,) = nets["three"].replace(train={"stages": (images,)}).stages
        low[length] = Trained(f"low-{length}", stage.replace(name=f"matryoshka-low-{length}"))
    found = {trained.name: Cell(trained.recipe, (), held_out) for trained in reversed(low.values())}
    found["single"] = _cell(nets["single"])
    for length, trained in low.items():
        stage = nets["three"].replace(name=f"matryoshka-progressive-{length}")
        found[f"progressive-{length}"] = _cell(stage)._replace(inner=trained)
    found["three"] = _cell(nets["three"])
    weights = {"level_weights": (1.0, 2.0, 4.0)}
    found["weights"] = _cell(nets["three"].replace(name="matryoshka-weights", transport=weights))
    for name, (most, noise) in LOWER_NOISE.items():
        upper = nets["two"].replace(name=f"matryoshka-cascade-{name}", transport={"cascade": most})
        found[f"cascade-{name}"] = _cell(upper)._replace(lower=low["M"], lower_noise=noise)
    found["two"] = _cell(nets["two"])
    return found


def _cell(known: Recipe) -> Cell:
    how = known.sample.model_dump(include={"sampler", "steps", "guidance"})
    points = [Point(images=images, n=SAMPLES, captions="training", **how) for images in BUDGETS]
    points.append(Point(images=IMAGES, n=HELD_OUT, captions="held-out", **how))
    return Cell(known, tuple(points), held_out, FEATURES)


def held_out(pipeline: Pipeline, **how: Any) -> dict[str, Any]:
    """What it makes of CAPTIONS below the glyphs that have them, as a picture."""
    source = pipeline.recipe.data.open("test")
    assert source.captions
    glyphs = stack(source, [source.captions.index(caption) for caption in CAPTIONS])
    captions = CAPTIONS * (
        BATCH // len(CAPTIONS)
    )  # as many as the points' batches have, for which it is compiled
    precision = pipeline.recipe.train.precision
    made = pipeline.generate({"text": captions}, seeds=range(len(captions)), precision=precision, **how)
    picture = BytesIO()
    strips = grid(torch.cat([glyphs, made[: len(CAPTIONS)]]), len(CAPTIONS), gap=0, scale=1)
    strips.save(picture, "JPEG", quality=92, subsampling=0)
    return {"held_out": b64encode(picture.getvalue()).decode()}


class Row(NamedTuple):
    """A finished cell."""

    name: str
    params: int
    macs: tuple[int, ...]
    """What each level adds, the lowest first."""
    frechet: Mapping[int, float]
    """By training images of 64 pixels; of captions of training images."""
    retrieval: Mapping[int, float]
    """Share of samples whose own caption is the nearest of 20."""
    held_out: float
    """The same at the end, of held-out captions."""
    images_per_second: float
    before: float
    """Minutes of training at low resolution before."""

    def minutes(self, images: float) -> float:
        return self.before + images / self.images_per_second / 60


def report(results: Results, out: Path) -> str:
    """The tables as Markdown; draws curves.png and samples.png into `out`."""
    rows = list(_rows(results))
    if not rows:
        return "No cell is finished yet."
    _curves(rows, out / "curves.png")
    _samples(results, out / "samples.png")
    whole = sum(_level_macs(cells()["three"].recipe))
    lines = [
        "| network | MMACs of 16 + 32 + 64 pixels | MMACs, to three's | parameters, M | "
        + " | ".join(f"FD, {images / 1000:g}k images" for images in BUDGETS)
        + " | caption retrieval | of held-out captions | images/s | minutes, with those before |",
        "|" + "---|" * (8 + len(BUDGETS)),
    ]
    for row in rows:
        added = " + ".join(f"{macs / 1e6:.0f}" for macs in row.macs)
        distances = " | ".join(f"{row.frechet[images]:.2f}" for images in BUDGETS)
        lines.append(
            f"| {row.name} | {added} | {sum(row.macs) / 1e6:.1f}, {sum(row.macs) / whole:.2f} | {row.params / 1e6:.2f} | "
            f"{distances} | {row.retrieval[BUDGETS[-1]]:.1%} | {row.held_out:.1%} | {row.images_per_second:.0f} | "
            f"{row.minutes(BUDGETS[-1]):.1f} |"
        )
    return "\n".join([*lines, *_against_single(rows)])


def _against_single(rows: list[Row]) -> Iterator[str]:
    """How soon each is as good as the single resolution is in the end."""
    single = next((row for row in rows if row.name == "single"), None)
    if single is None:
        return
    distance, share = single.frechet[BUDGETS[-1]], single.retrieval[BUDGETS[-1]]
    yield f"\nUntil the FD of single's end, {distance:.2f}, or its caption retrieval, {share:.1%} (share of its images and minutes):\n"
    yield "| network | images, by FD | minutes, with those before | images, by retrieval | minutes, with those before |"
    yield "|---|---|---|---|---|"
    for row in rows:
        missing = {images: 1 - found for images, found in row.retrieval.items()}
        by_distance = _when(row, single, reached(row.frechet, distance))
        by_retrieval = _when(row, single, reached(missing, 1 - share))
        yield f"| {row.name} | {by_distance} | {by_retrieval} |"


def _when(row: Row, single: Row, images: float | None) -> str:
    """Those images and the minutes that they took, each with its share of the single resolution's."""
    if images is None:
        return f"not in {BUDGETS[-1]:,} |"
    minutes = row.minutes(images)
    first = "at most " if images == BUDGETS[0] else ""
    shares = images / BUDGETS[-1], minutes / single.minutes(BUDGETS[-1])
    return f"{first}{images:,.0f} ({shares[0]:.2f}) | {first}{minutes:.1f} ({shares[1]:.2f})"


def reached(curve: Mapping[int, float], goal: float) -> float | None:
    """Images at which a falling curve, straight between its points in both logarithms, first comes down to `goal`; those
    of the first point where it is there from the start, None where it never is."""
    points = sorted(curve.items())
    if points[0][1] <= goal:
        return points[0][0]
    for (images, before), (later, after) in pairwise(points):
        if after <= goal:
            return images * (later / images) ** (math.log(before / goal) / math.log(before / after))
    return None


def _rows(results: Results) -> Iterator[Row]:
    for name, cell in cells().items():
        record = results.get(name)
        earlier = cell.inner or cell.lower
        first = results.get(earlier.name) if earlier else None
        if not cell.points or not record or not record["finished"] or (earlier and not first):
            continue
        known = Recipe.recorded(record["recipe"], name)
        curve = [row for row in record["scores"].values() if row["captions"] == "training"]
        (unseen,) = (row for row in record["scores"].values() if row["captions"] == "held-out")
        yield Row(
            name=name,
            params=recipe_cost(known).params,
            macs=_level_macs(known),
            frechet={row["images"]: row["frechet"] for row in curve},
            retrieval={row["images"]: row["retrieval"] for row in curve},
            held_out=unseen["retrieval"],
            images_per_second=record["images_per_second"],
            before=earlier.recipe.train.images / first["images_per_second"] / 60
            if earlier and first
            else 0.0,
        )


def _level_macs(known: Recipe) -> tuple[int, ...]:
    """What each level adds to those below it, the lowest first."""
    counts = range(1, len(known.backbone.ratios) + 1)
    sums = [0, *(recipe_cost(known.lowest(count)).macs for count in counts)]
    return tuple(after - before for before, after in pairwise(sums))


def _curves(rows: list[Row], path: Path) -> None:
    figure = Figure(figsize=(15, 5.5), layout="constrained")
    by_images, by_minutes, found = figure.subplots(1, 3)
    for number, row in enumerate(rows):
        images = np.array(BUDGETS)
        style: dict[str, Any] = {"color": f"C{number}", "marker": "o", "label": row.name}
        style["linestyle"] = "--" if row.name.startswith("cascade") else "-"
        distances = [row.frechet[n] for n in BUDGETS]
        by_images.plot(images / 1000, distances, **style)
        by_minutes.plot([row.minutes(n) for n in BUDGETS], distances, **style)
        found.plot(images / 1000, [row.retrieval[n] for n in BUDGETS], **style)
    seen = f"thousand images of {SIZE} pixels"
    by_images.set(xlabel=seen, ylabel="Fréchet distance")
    by_minutes.set(
        xlabel="minutes of training, those at 16 pixels before included", ylabel="Fréchet distance"
    )
    found.set(xlabel=seen, ylabel="caption retrieval among 20")
    for axes in (by_images, by_minutes):
        logarithmic(axes)
    for axes in (by_images, by_minutes, found):
        axes.grid(alpha=0.3)
    handles, labels = by_images.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(rows))
    save_figure(figure, path)


def _samples(results: Results, path: Path) -> None:
    """A row for each network, the glyphs themselves above; those of 16 pixels enlarged."""
    titles: list[str] = []
    images: list[Tensor] = []
    for name in cells():
        record = results.get(name)
        if record and "measured" in record:
            stored = Image.open(BytesIO(b64decode(record["measured"]["held_out"])))
            picture = stored.resize((SIZE * len(CAPTIONS), 2 * SIZE), Image.Resampling.NEAREST)
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
            glyphs, made = pixels.unflatten(1, (2, SIZE)).unflatten(3, (-1, SIZE)).permute(1, 3, 0, 2, 4)
            titles.append(name)
            images.append(made)
    if images:
        side_by_side([("", torch.cat([glyphs, *images]))], ["glyph", *titles], path)
