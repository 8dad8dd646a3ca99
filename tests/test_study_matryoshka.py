"""The study of several resolutions: what it compares, cells that need another's network, what it reports."""

import shutil
from base64 import b64decode
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CPU
from PIL import Image

from ditkit.backbones import DiTConfig, MatryoshkaConfig, OuterLevel
from ditkit.data.memory import Arrays
from ditkit.errors import InputError
from ditkit.pipeline import load
from ditkit.scoring.samples import captioned
from ditkit.studies import cells, matryoshka
from ditkit.studies.cells import Cell, Point, Trained, read_cells, run_cells


def test_what_is_compared():
    known = matryoshka.cells()
    added = {name: matryoshka._level_macs(cell.recipe) for name, cell in known.items()}
    assert sum(added["single"]) == pytest.approx(sum(added["three"]), rel=0.03)
    assert [len(added[name]) for name in ("low-M", "single", "two", "three")] == [1, 1, 2, 3]
    assert added["two"][0] == added["three"][0] == added["low-S"][0]
    for length in "SML":
        cell, low = known[f"progressive-{length}"], known[f"low-{length}"]
        assert cell.inner == Trained(f"low-{length}", low.recipe)
        assert low.recipe.train.images == matryoshka.LENGTHS[length]
        assert (low.recipe.data.size, low.recipe.backbone) == (16, cell.recipe.backbone.inner)
    for name in ("clean", "noised"):
        cell = known[f"cascade-{name}"]
        assert cell.lower.name == "low-M"
        assert 2 * cell.lower_noise == cell.recipe.transport.cascade
    (weights,) = {cell.recipe.transport.level_weights for cell in known.values()} - {()}
    assert sorted(weights) == list(weights)
    # the same budget, the same images, the same sampling for all
    scored = [cell for cell in known.values() if cell.points]
    assert len({cell.recipe.train for cell in scored}) == len({cell.points for cell in scored}) == 1


# --- cells that need another's network --------------------------------------------------------------


@pytest.fixture
def nested(small):
    """Digits of 8 pixels around digits of 4: trained at 4 before, above a known 4, and 4 alone."""
    inner = DiTConfig(width=24, depth=1, heads=2, patch=1)
    levels = (OuterLevel(widths=(32,), depth=(1,), patch=2),)
    budget = {"images": 96, "preview_images": 0, "validate_images": 0}
    whole = small.replace(
        name="whole",
        backbone=MatryoshkaConfig(inner=inner, levels=levels),
        transport={"variance": "fixed"},
        train=budget,
    )
    (stage,) = whole.replace(train={"stages": (64,)}).stages
    low = Trained("low", stage)
    points = (Point(images=96, sampler="euler", steps=2, n=20),)
    upper = whole.replace(transport={"cascade": 0.2})
    return {
        "low": Cell(stage, (), seen),
        "nested": Cell(whole, points, inner=low),
        "upper": Cell(upper, points, seen, lower=low, lower_noise=0.1),
    }


def seen(pipeline, **how):
    lower = how.get("lower")
    return {
        "images": pipeline.record["images"],
        "known": lower and [lower.record["images"], how["lower_noise"]],
    }


def test_cells_start_from_others_and_use_what_they_make(nested, tmp_path, monkeypatch):
    results, runs = tmp_path / "results", tmp_path / "runs"
    inside = {}

    def watched(recipe, out, **how):
        start = how.get("init_inner")
        inside[out.name] = start and (start.name, load(start, CPU).record["images"])
        return train(recipe, out, **how)

    train = cells.train
    monkeypatch.setattr(cells, "train", watched)
    run_cells(nested, results, runs, CPU)
    assert inside == {"low": None, "nested": ("low", 64), "upper": None}
    found = read_cells(nested, results)
    assert all(record["finished"] for record in found.values())
    assert found["low"]["measured"] == {"images": 64, "known": None}
    assert found["upper"]["measured"] == {"images": 96, "known": [64, 0.1]}
    assert not list((runs / "low" / "previews").iterdir())  # preview_images 0

    # Only its record is left: the network is made again for who needs it, for nobody else, and not once more.
    shutil.rmtree(runs / "low")
    shutil.rmtree(runs / "upper")
    before = (results / "low.json").read_text()
    run_cells(nested, results, runs, CPU)
    assert not (runs / "low").exists()
    (results / "upper.json").unlink()
    inside.clear()
    run_cells(nested, results, runs, CPU)
    assert list(inside) == ["low", "upper"]
    assert (results / "low.json").read_text() == before


def test_samples_can_take_the_captions_of_either_part():
    def data(held_out):
        def open_(split="train"):
            if split == "test" and not held_out:
                raise InputError("nothing is held out")
            captions = ["a cat", "a dog"] if split == "test" else ["a bee", "a cow", "a fox"]
            return Arrays(torch.zeros(len(captions), 1, 2, 2, dtype=torch.uint8), None, (), captions)

        return SimpleNamespace(kind="some", open=open_)

    assert captioned(data(True), 3) == ({"text": ["a cat", "a dog", "a cat"]}, "captions of held-out images")
    training = {"text": ["a bee", "a cow", "a fox"]}, "captions of training images"
    assert captioned(data(True), 3, "training") == training
    assert captioned(data(False), 3) == training
    keys = [Point(images=1, steps=2, captions=part).key for part in ("training", "held-out")]
    assert keys[0] == "1 images, ab2 2, guidance 1, n 1000, captions training"
    assert keys[0] != keys[1]


# --- the report -------------------------------------------------------------------------------------


def test_when_a_curve_is_down():
    curve = {1000: 80.0, 2000: 40.0, 4000: 20.0}  # FD · images = 80,000
    assert matryoshka.reached(curve, 20.0) == pytest.approx(4000)
    assert matryoshka.reached(curve, 64.0) == pytest.approx(1250)
    assert matryoshka.reached(curve, 90.0) == 1000
    assert matryoshka.reached(curve, 19.9) is None
    assert matryoshka.reached({1000: 80.0, 2000: 90.0, 4000: 22.5}, 45.0) == pytest.approx(2000 * 2**0.5)


class Recorder:
    """A pipeline of 16 pixels that draws white for seed 0, black else, and records what it was called with."""

    def __init__(self):
        captions = ["a hole", *reversed(matryoshka.CAPTIONS)]
        glyphs = torch.arange(9, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 16, 16) * 20
        source = Arrays(glyphs, None, (), captions)
        data = SimpleNamespace(open=lambda split: source, shape=(16, 16), aspect="square", channels=3)
        self.recipe = SimpleNamespace(data=data, train=SimpleNamespace(precision="fp32"))

    def generate(self, cond, *, seeds, **how):
        self.how = how
        assert len(cond["text"]) == len(seeds)
        white = torch.tensor(list(seeds)) == 0
        return (255 * white[:, None, None, None]).expand(-1, 3, 16, 16).to(torch.uint8)


def test_held_out_captions_are_drawn_below_their_glyphs():
    pipeline = Recorder()
    found = matryoshka.held_out(pipeline, lower="another", lower_noise=0.1)
    assert pipeline.how == {"precision": "fp32", "lower": "another", "lower_noise": 0.1}
    picture = np.array(Image.open(BytesIO(b64decode(found["held_out"]))))
    assert picture.shape == (32, 8 * 16, 3)
    middles = picture[8::16, 8::16, 0].tolist()
    assert middles[0] == pytest.approx([20 * k for k in range(8, 0, -1)], abs=2)
    assert middles[1] == pytest.approx([255] + [0] * 7, abs=2)


def made_up():
    """FD is 240,000 over the images seen, half of it where levels are nested; 100 images/s, 200 at 16 pixels."""
    found, picture = {}, matryoshka.held_out(Recorder())
    for name, cell in matryoshka.cells().items():
        scores = {
            point.key: {
                "images": point.images,
                "captions": point.captions,
                "frechet": 240_000 / point.images / (1 if name == "single" else 2),
                "retrieval": 0.25 if point.captions == "held-out" else 0.5,
            }
            for point in cell.points
        }
        found[name] = {
            "recipe": cell.recipe.model_dump(mode="json"),
            "scores": scores,
            "images_per_second": 100 if cell.points else 200,
            "measured": picture,
            "finished": True,
        }
    return found


def test_report(tmp_path):
    records = made_up()
    text = matryoshka.report(records, tmp_path)
    images = matryoshka.IMAGES
    minutes = images / 100 / 60
    assert f"| 50.0% | 25.0% | 100 | {minutes:.1f} |" in text
    assert f"| single | {images:,.0f} (1.00) | {minutes:.1f} (1.00) |" in text
    assert f"| three | {images / 2:,.0f} (0.50) | {minutes / 2:.1f} (0.50) |" in text
    # low-L's twice as many images at twice the speed are as long as the whole of single
    assert f"| progressive-L | {images / 2:,.0f} (0.50) | {1.5 * minutes:.1f} (1.50) |" in text
    assert f"| cascade-clean | {images / 2:,.0f} (0.50) | {minutes:.1f} (1.00) |" in text
    for picture in ("curves.png", "samples.png"):
        assert (tmp_path / picture).stat().st_size > 10_000
    # Without the record of what it started from there are no minutes of it.
    del records["low-L"]
    assert "progressive-L" not in matryoshka.report(records, tmp_path)
    assert matryoshka.report({}, tmp_path) == "No cell is finished yet."


def test_what_is_never_reached_is_reported(tmp_path):
    records = made_up()
    for row in records["weights"]["scores"].values():
        row["frechet"] *= 3
    text = matryoshka.report(records, tmp_path)
    assert f"| weights | not in {matryoshka.IMAGES:,} | |" in text
    for row in records["two"]["scores"].values():
        row["retrieval"] = 0.4
    (two,) = (
        line for line in matryoshka.report(records, tmp_path).splitlines() if line.startswith("| two | 4")
    )
    assert two.endswith(f"| not in {matryoshka.IMAGES:,} | |")
    del records["single"]
    assert "not in" not in matryoshka.report(records, tmp_path)
