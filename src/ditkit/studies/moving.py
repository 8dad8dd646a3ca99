"""Do digits keep their class and move in straight lines? A network of clips against one of single frames.

Moving digits, 16 frames of 32 x 32 pixels. The DiT of the recipe moving-digits, with attention factorised over space and
time (`clips`), and one of equal width and depth of single frames (`frames`), whose clips are as many frames of one
class, each drawn alone. Real clips say how strict the tests are.

A clip keeps its class when its frames' classifier reads every frame as that class. It moves straight when the
centres of brightness of all its frames are within 1.5 pixels of a straight line that is reflected at the borders only
(`moving.fold` with the clips' own room; start, velocity and the digit's own centre are fitted, the last where training
digits of the class have it), at a speed between half the slowest and twice the fastest that was trained. The Fréchet
distance is of the classifier's features, their mean over frames and the mean size of their change from frame to frame,
to training clips. Of given first frames the rest of real held-out clips is asked for: how far their centres are from
where the real digit went.

Command: ditkit study moving. Cost: an hour and three quarters of two CPU cores with AMX. What came out:
docs/results.md.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ditkit.data import Digits, MovingDigits, load_all
from ditkit.data.moving import centroid, fold
from ditkit.errors import InputError
from ditkit.evaluation import (
    FeatureNetwork,
    Features,
    Moments,
    bundled_classifier,
    frechet_distance,
    frechet_resamples,
)
from ditkit.pictures import side_by_side
from ditkit.pipeline import Pipeline
from ditkit.recipes import recipe
from ditkit.studies.cells import Cell, Results
from ditkit.studies.figures import as_text, from_text, solver_table

FRAMES = 960_000  # single ones
SAMPLES = 400
REFERENCE = 2_000  # training clips
GIVEN = 4  # first frames of held-out clips
RESIDUAL = 1.5  # pixels
SOLVERS = (("ab2", 25), ("ab2", 8), ("ab2", 10), ("ab2", 15), ("heun", 25))
"""Samplers and their steps; differences are to the first."""
SHOWN = 5
BATCH = 50


def cells() -> dict[str, Cell]:
    base = recipe("moving-digits").replace(train={"preview_images": 0, "validate_images": 0})
    frames = base.replace(
        data={"frames": 1},
        backbone={"attention": "joint"},
        transport={"known_frames": 0.0},
        train={"images": FRAMES, "batch": 64, "log_images": FRAMES // 20, "checkpoint_images": FRAMES // 4},
    )
    return {
        "clips": Cell(base.replace(name="moving-clips"), (), clips_by_solver),
        "frames": Cell(frames.replace(name="moving-frames"), (), clips),
    }


class Motion(NamedTuple):
    """The straight line, reflected at the borders, that is nearest to a clip's centres."""

    residual: Tensor
    """(N,): pixels of the frame that is furthest from it, on the worse axis."""
    speed: Tensor
    """(N,): pixels a frame."""


def fit_motion(centres: Tensor, room: float, fastest: float, lowest: Tensor, highest: Tensor) -> Motion:
    """Of centres (N, F, 2), of digits whose own centres are between `lowest` and `highest` (N, 2).

    For every start and velocity on a grid of each axis the digit's own centre is the middle of what is left, which makes
    the largest difference smallest, or the bound that is nearest to it. Without bounds a digit that turns anywhere would
    be one that turns at the border and has its own centre far outside of itself.
    """
    frames = torch.arange(centres.shape[1])
    velocities = torch.arange(-fastest, fastest + 1e-6, 0.05)
    starts = torch.arange(0, room + 1e-6, 0.25)
    lines = fold(starts[:, None, None] + velocities[:, None] * frames, room).flatten(0, 1)  # (S V, F)
    residuals, speeds = [], []
    for axis in range(2):
        left = centres[:, None, :, axis] - lines  # (N, S V, F)
        most, least = left.amax(2), left.amin(2)
        own = ((most + least) / 2).clamp(lowest[:, axis, None], highest[:, axis, None])
        best, place = torch.maximum(most - own, own - least).min(1)
        residuals.append(best)
        speeds.append(velocities[place % len(velocities)])
    return Motion(torch.stack(residuals).amax(0), torch.stack(speeds).norm(dim=0))


def own_centres(data: MovingDigits) -> Tensor:
    """The least and greatest centres of brightness of the training digits of each class, in pixels: (classes, 2, 2)."""
    glyphs = Digits(size=data.glyph).open("train")
    assert glyphs.labels is not None
    centres = centroid(glyphs.images[:, 0])
    classes = [centres[glyphs.labels == label] for label in range(len(glyphs.names))]
    return torch.stack([torch.stack([of.amin(0), of.amax(0)]) for of in classes])


def clips(pipeline: Pipeline) -> dict[str, Any]:
    """What the samples of a network are, and real clips beside them."""
    data = recipe("moving-digits").data
    assert isinstance(data, MovingDigits)
    network = bundled_classifier(data.kind, data.size)
    if network is None:
        raise InputError("the classifier of moving-digits is not in this installation; install ditkit again")
    labels = torch.arange(SAMPLES) % 10
    made = sampled(pipeline, labels, data.frames)
    real, known = load_all(data, "train", REFERENCE)
    assert known is not None
    reference = features(real, network)
    test, theirs = load_all(data, "test", SAMPLES)
    assert theirs is not None
    found = {
        "samples": judged(made, labels, data, network, reference),
        "held_out": judged(test, theirs, data, network, reference),
    }
    if pipeline.transport.known_frames:
        found["going_on"] = going_on(pipeline, test, theirs)
    return found | {"picture": as_text(frames_of(made[:SHOWN]), data.frames)}


def clips_by_solver(pipeline: Pipeline) -> dict[str, Any]:
    """Likewise, and under "solvers" the samples of each of SOLVERS, with the paired difference to the first."""
    data = recipe("moving-digits").data
    assert isinstance(data, MovingDigits)
    network = bundled_classifier(data.kind, data.size)
    found = clips(pipeline)
    assert network is not None  # `clips` has seen to it
    reference = features(load_all(data, "train", REFERENCE)[0], network)
    labels, spreads, rows = torch.arange(SAMPLES) % 10, [], []
    for sampler, steps in SOLVERS:
        made = sampled(pipeline, labels, data.frames, sampler=sampler, steps=steps)
        spreads.append(frechet_resamples(feature_rows(made, network), reference))
        error = (spreads[-1] - spreads[0]).std().item()
        rows.append(
            {"sampler": sampler, "steps": steps, "error": error}
            | judged(made, labels, data, network, reference)
        )
    return found | {"solvers": rows}


def sampled(pipeline: Pipeline, labels: Tensor, frames: int, **solver: Any) -> Tensor:
    """Clips (N, C, F, H, W); of a network of single frames each drawn alone."""
    alone = frames // pipeline.recipe.data.shape[0]
    repeated = labels.repeat_interleave(alone)
    precision = pipeline.recipe.train.precision
    made = pipeline.generate(
        {"label": repeated}, seeds=range(len(repeated)), batch=BATCH, precision=precision, **solver
    )
    return made.unflatten(0, (-1, alone)).transpose(1, 2).flatten(2, 3)


def frames_of(movies: Tensor) -> Tensor:
    """The frames of clips (N, C, F, H, W), one after another: (N F, C, H, W)."""
    return movies.transpose(1, 2).flatten(0, 1)


def features(movies: Tensor, network: FeatureNetwork) -> Moments:
    """The moments of the features of clips (N, C, F, H, W)."""
    return Moments.of(feature_rows(movies, network))


def feature_rows(movies: Tensor, network: FeatureNetwork) -> Tensor:
    """The mean features of the frames of clips (N, C, F, H, W), and the mean size of their changes, (N, D)."""
    rows = []
    for part in movies.split(BATCH):
        read = network(frames_of(part)).pooled.unflatten(0, (len(part), -1))  # (B, F, D)
        rows.append(torch.cat([read.mean(1), read.diff(dim=1).abs().mean(1)], dim=1))
    return torch.cat(rows)


def judged(
    movies: Tensor, labels: Tensor, data: MovingDigits, network: FeatureNetwork, reference: Moments
) -> dict[str, float]:
    """Shares of the clips that pass, and their Fréchet distance."""
    found = [classes_read(network(part)) for part in frames_of(movies).split(500)]
    right = (torch.cat(found).unflatten(0, (len(movies), -1)) == labels[:, None]).float()
    slowest, fastest = data.speed
    own = own_centres(data)[labels]  # (N, 2, 2)
    motion = fit_motion(centroid(movies[:, 0]), data.size - data.glyph, 2 * fastest, *own.unbind(1))
    straight = (
        (motion.residual < RESIDUAL) & (motion.speed > slowest / 2) & (motion.speed < 2 * fastest)
    ).float()
    kept = right.amin(1)
    return {
        "n": len(movies),
        "frames": right.mean().item(),
        "class": kept.mean().item(),
        "straight": straight.mean().item(),
        "both": (kept * straight).mean().item(),
        "residual": motion.residual.median().item(),
        "frechet": frechet_distance(features(movies, network), reference),
    }


def classes_read(found: Features) -> Tensor:
    """(N,)"""
    assert found.logits is not None  # it is a classifier
    return found.logits.argmax(1)


def going_on(pipeline: Pipeline, real: Tensor, labels: Tensor) -> dict[str, float]:
    """Pixels between the centres of real clips and of those that go on from their first GIVEN frames, by the median
    clip, in the next frame and in the last."""
    made = pipeline.generate(
        {"label": labels},
        seeds=range(len(real)),
        start=real[:, :, :GIVEN],
        batch=BATCH,
        precision=pipeline.recipe.train.precision,
    )
    apart = (centroid(made[:, 0]) - centroid(real[:, 0])).norm(dim=-1)  # (N, F)
    return {"next": apart[:, GIVEN].median().item(), "last": apart[:, -1].median().item()}


def report(results: Results, out: Path) -> str:
    """The table as Markdown; draws samples.png into `out`."""
    done = {name: results[name] for name in cells() if name in results and results[name]["finished"]}
    if not done:
        return "No cell is finished yet."
    lines = [
        "| | frames read right | class kept | straight | both | median residual, px | Fréchet distance | going on, px: next, last "
        "| clips/s |",
        "|" + "---|" * 9,
    ]
    for name, record in done.items():
        measured = record["measured"]
        lines.append(_row(name, measured["samples"], measured.get("going_on"), record["images_per_second"]))
    lines.append(_row("held-out clips", next(iter(done.values()))["measured"]["held_out"]))
    _draw({name: record["measured"]["picture"] for name, record in done.items()}, out / "samples.png")
    for record in done.values():
        lines += solver_table(record["measured"].get("solvers", []), "FD", ("class", "straight", "both"))
    return "\n".join(lines)


def _draw(pictures: dict[str, str], path: Path) -> None:
    """Clips of each network below each other, held-out ones above: a row for each clip, its frames from left to right."""
    data = recipe("moving-digits").data
    real, labels = load_all(data, "test", SAMPLES)
    assert labels is not None
    first = [int((labels == label).nonzero()[0]) for label in range(SHOWN)]
    images = [frames_of(real[first]).expand(-1, 3, -1, -1)]
    titles = [f"real {label}" for label in range(SHOWN)]
    for name, picture in pictures.items():
        images.append(from_text(picture, data.size))
        titles += [f"{name} {label}" for label in range(SHOWN)]
    side_by_side([("the class asked for, and 16 frames from left to right", torch.cat(images))], titles, path)


def _row(
    name: str, found: dict[str, float], on: dict[str, float] | None = None, rate: float | None = None
) -> str:
    shares = " | ".join(f"{found[key]:.1%}" for key in ("frames", "class", "straight", "both"))
    further = f"{on['next']:.1f}, {on['last']:.1f}" if on else ""
    speed = "" if rate is None else f"{rate:.0f}"
    return f"| {name} | {shares} | {found['residual']:.2f} | {found['frechet']:.2f} | {further} | {speed} |"
