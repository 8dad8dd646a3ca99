"""The studies of sizes and of moving digits: what they compare, what they measure with, what they report."""

import numpy as np
import pytest
import torch
from conftest import CPU

from ditkit.data.moving import MovingDigits, centroid, fold
from ditkit.evaluation import bundled_classifier
from ditkit.pipeline import Pipeline
from ditkit.recipes import recipe
from ditkit.studies import anysize, moving
from ditkit.studies.figures import as_text, from_text, solver_table
from ditkit.studies.moving import judged

DATA = MovingDigits(size=32, frames=16, classes=10)
ROOM, FASTEST = 16.0, 4.0


def path(start, velocity, frames=16, offset=(7.5, 7.5)):
    """Centres (1, F, 2) of a digit that starts there and bounces."""
    line = torch.tensor(start) + torch.arange(frames)[:, None] * torch.tensor(velocity)
    return (fold(line, ROOM) + torch.tensor(offset))[None]


def fit_motion(centres, room, fastest):
    """With the digit's own centre within a pixel of the middle of its 16."""
    return moving.fit_motion(centres, room, fastest, torch.full((1, 2), 6.5), torch.full((1, 2), 8.5))


# --- motion -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("velocity", [(1.0, 1.5), (-1.8, 0.3), (0.0, -1.2), (2.0, 0.0)])
def test_a_straight_line_that_bounces_is_found(velocity):
    motion = fit_motion(path((4.0, 11.0), velocity), ROOM, FASTEST)
    assert motion.residual.item() < 0.2  # starts lie a quarter of a pixel apart
    assert motion.speed.item() == pytest.approx(np.hypot(*velocity), abs=0.1)


def test_what_does_not_go_straight_is_far_from_every_line():
    turned = torch.cat([path((2.0, 2.0), (1.5, 0.0), 8), path((13.0, 2.0), (-1.5, 0.0), 8)], dim=1)
    early = turned - torch.tensor([4.0, 0.0])  # turns in the middle of the room, not at the border
    jump = path((4.0, 4.0), (0.5, 0.5))
    jump[:, 8:] += 5
    shaken = path((8.0, 8.0), (0.0, 0.0)) + 3 * torch.randn(
        1, 16, 2, generator=torch.Generator().manual_seed(0)
    )
    residuals = [fit_motion(centres, ROOM, 2.0).residual.item() for centres in (early, jump, shaken)]
    assert min(residuals) > moving.RESIDUAL


def test_what_stands_still_has_no_speed():
    assert fit_motion(path((8.0, 8.0), (0.0, 0.0)), ROOM, FASTEST).speed.item() < 0.05


@pytest.fixture(scope="module")
def ruler():
    return bundled_classifier("moving-digits", 32)


def clips(count, split="test"):
    source = DATA.open(split)
    return torch.stack([source.clip(k) for k in range(count)]), source.labels[:count]


def test_real_clips_pass_and_their_frames_in_another_order_do_not(ruler):
    movies, labels = clips(30)
    reference = moving.features(clips(200, "train")[0], ruler)
    real = judged(movies, labels, DATA, ruler, reference)
    assert real["frames"] > 0.9
    assert real["straight"] == 1
    assert real["both"] <= min(real["class"], real["straight"])
    mixed = movies[:, :, torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    shuffled = judged(mixed, labels, DATA, ruler, reference)
    assert shuffled["frames"] == pytest.approx(real["frames"])
    assert shuffled["straight"] < 0.1
    assert shuffled["frechet"] > real["frechet"]
    other = judged(movies, (labels + 1) % 10, DATA, ruler, reference)
    assert other["class"] < 0.1


def test_frames_drawn_alone_are_put_together_by_class(small):
    recipe = moving.cells()["frames"].recipe.replace(
        backbone={"width": 12, "depth": 2, "heads": 2}, sample={"steps": 1}
    )
    backbone = recipe.build_backbone().eval().requires_grad_(False)
    pipeline = Pipeline(recipe, backbone, recipe.build_codec(), CPU)
    made = moving.sampled(pipeline, torch.tensor([3, 5]), 4)
    assert made.shape == (2, 1, 4, 32, 32)
    alone = pipeline.generate({"label": [3] * 4 + [5] * 4}, seeds=range(8), precision="bf16")
    assert (made[1, :, 2].int() - alone[6, :, 0].int()).abs().max() <= 1


def test_solvers_are_compared_with_the_first(small, monkeypatch):
    for name, value in {
        "SAMPLES": 20,
        "REFERENCE": 40,
        "SOLVERS": (("ab2", 1), ("ab2", 1), ("euler", 2)),
    }.items():
        monkeypatch.setattr(moving, name, value)
    recipe = moving.cells()["clips"].recipe.replace(backbone={"width": 12, "depth": 2, "heads": 2})
    pipeline = Pipeline(
        recipe, recipe.build_backbone().eval().requires_grad_(False), recipe.build_codec(), CPU
    )
    first, same, other = moving.clips_by_solver(pipeline)["solvers"]
    assert same == first
    assert first["error"] == 0
    assert other["steps"] == 2
    assert 0 < other["frechet"] < float("inf")
    table = solver_table([first, same, other], "FD", ("class", "both"))
    assert "| +0.000 ± 0.000 |" in table[3]


def test_how_far_a_clip_that_goes_on_is_from_the_real_one():
    real, labels = clips(3)
    later = torch.roll(real, 3, dims=4)  # 3 pixels to the right, where there is room

    class Made:
        recipe = moving.cells()["clips"].recipe

        def generate(self, cond, *, seeds, start, **how):
            assert start.equal(real[:, :, : moving.GIVEN])
            assert len(seeds) == 3
            return later

    found = moving.going_on(Made(), real, labels)
    expected = (centroid(later[:, 0]) - centroid(real[:, 0])).norm(dim=-1)
    assert found == {"next": expected[:, 4].median().item(), "last": expected[:, -1].median().item()}


def test_samples_in_a_record_are_read_back():
    images = torch.randint(0, 256, (6, 1, 28, 28), dtype=torch.uint8)
    assert from_text(as_text(images, 3), 28).equal(images.expand(-1, 3, -1, -1))


def test_the_report_on_moving_digits(tmp_path):
    assert moving.report({}, tmp_path) == "No cell is finished yet."
    shares = {"frames": 0.9, "class": 0.8, "straight": 0.7, "both": 0.6, "residual": 0.51, "frechet": 12.3}
    results = {
        name: {
            "finished": True,
            "images_per_second": 20.2,
            "measured": {
                "samples": shares,
                "held_out": shares | {"frames": 0.98},
                "picture": as_text(torch.full((moving.SHOWN * 16, 1, 32, 32), 90, dtype=torch.uint8), 16),
            }
            | ({"going_on": {"next": 1.25, "last": 4.0}} if name == "clips" else {}),
        }
        for name in ("clips", "frames")
    }
    lines = moving.report(results, tmp_path).splitlines()
    assert lines[2] == "| clips | 90.0% | 80.0% | 70.0% | 60.0% | 0.51 | 12.30 | 1.2, 4.0 | 20 |"
    assert lines[4].startswith("| held-out clips | 98.0% |")
    assert (tmp_path / "samples.png").exists()


# --- sizes ------------------------------------------------------------------------------------------


def test_the_networks_of_sizes_differ_in_one_thing_each():
    known = {name: cell.recipe for name, cell in anysize.cells().items()}
    assert len({recipe.train.images for recipe in known.values()}) == 1
    assert known["packed"].train.packed
    assert known["sincos"].backbone.positions == "sincos"
    assert known["square"].data.aspect == "square"
    for name in ("packed", "sincos"):
        assert known[name].data == known["buckets"].data
    assert known["square"].backbone == known["packed"].backbone == known["buckets"].backbone


def test_an_image_is_framed_in_the_middle():
    image = torch.arange(1, 13, dtype=torch.uint8).view(1, 1, 4, 3)
    whole = anysize.framed(image)
    assert whole.shape == (1, 1, 28, 28)
    assert whole[:, :, 12:16, 12:15].equal(image)
    assert whole.sum() == image.sum()


def test_solvers_are_compared_on_the_same_seeds(monkeypatch):
    """One that is the first again has no difference, and no doubt about it."""
    monkeypatch.setattr(anysize, "SIZES", ("20x28", "28x20"))
    monkeypatch.setattr(anysize, "SOLVERS", (("ab2", 2), ("euler", 2), ("ab2", 2)))
    monkeypatch.setattr(anysize, "SAMPLES", 16)
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 10
    monkeypatch.setattr(  # no installed data is needed
        anysize,
        "load_size",
        lambda data, split, size, multiple: (
            torch.randint(256, (40, 1, *size), generator=draw, dtype=torch.uint8),
            labels,
        ),
    )
    known = recipe("anysize-fashion").replace(backbone={"width": 24, "depth": 1, "heads": 2})
    net = known.build_backbone()
    for parameter in net.parameters():  # a fresh network says 0 everywhere
        torch.nn.init.normal_(parameter, std=0.1, generator=draw)
    pipeline = Pipeline(known, net, known.build_codec(), CPU)
    first, other, again = anysize.by_size_and_solver(pipeline)["solvers"]
    assert again == first
    assert first["error"] == 0 < other["error"]
    assert other["frechet"] != first["frechet"]


def test_the_report_on_sizes(tmp_path):
    row = {"samples": {"n": 500, "frechet": 3.21, "accuracy": 0.912}, "reference": 1234}
    held_out = {"n": 77, "frechet": 1.5, "accuracy": 0.95}
    drawn = torch.full((len(anysize.SIZES) * anysize.SHOWN, 1, 28, 28), 50, dtype=torch.uint8)
    measured = {
        "sizes": {size: row | {"held_out": held_out} for size in anysize.SIZES},
        "picture": as_text(drawn, anysize.SHOWN),
    }
    results = {
        name: {"finished": name != "square", "images_per_second": 412.6, "measured": measured}
        for name in ("buckets", "square")
    }
    lines = anysize.report(results, tmp_path).splitlines()
    assert lines[2] == "| 16x28, not trained on | 1,234 | 3.21, 91.2% | 1.50, 95.0% (77) |"
    assert lines[-1] == "| images/s | | 413 | |"
    solvers = [
        {"sampler": "ab2", "steps": 10, "frechet": 4.0, "accuracy": 0.8, "error": 0.0},
        {"sampler": "heun", "steps": 25, "frechet": 4.5, "accuracy": 0.75, "error": 0.125},
    ]
    results["buckets"]["measured"] = measured | {"solvers": solvers}
    assert anysize.report(results, tmp_path).endswith("| heun, 25 | 4.50 | +0.500 ± 0.125 | 75.0% |")
    assert (tmp_path / "samples.png").exists()
