"""Studies: cells are trained, scored and cached once; tables say what is missing."""

import json

import pytest
import torch
from conftest import CPU
from filelock import FileLock

from ditkit.cli import main
from ditkit.costs import recipe_cost
from ditkit.data import Digits
from ditkit.pipeline import Pipeline, load
from ditkit.sampling.config import SamplingRequest
from ditkit.studies import STUDIES, cells, modern, samplers, scaling, sit_ladder, udit, udit_ladder
from ditkit.studies.cells import Cell, Point, read_cells, run_cells


@pytest.mark.parametrize("name", STUDIES)
def test_every_cell_of_every_study_can_be_built(name):
    study = STUDIES[name]
    for name, cell in study.cells().items():
        assert "/" not in name
        assert recipe_cost(cell.recipe).macs > 0
        assert len({point.key for point in cell.points}) == len(cell.points)
        assert cell.points or cell.measure
        assert all(point.images <= cell.recipe.train.images for point in cell.points)
    assert study.__doc__.count("Command: ditkit study") == 1


def test_scaling_varies_depth_width_and_patch_from_3_to_300_million():
    recipes = {name: cell.recipe for name, cell in scaling.cells().items()}
    macs = {name: recipe_cost(recipe).macs / 1e6 for name, recipe in recipes.items()}
    dits = {name: recipe.backbone for name, recipe in recipes.items() if recipe.backbone.kind == "DiT"}
    assert len(dits) >= 8
    assert min(macs.values()) <= 3
    assert 280 < max(macs.values()) <= 300
    for field in ("depth", "width", "patch"):
        assert len({getattr(backbone, field) for backbone in dits.values()}) >= 3
    assert macs["UNet"] == pytest.approx(macs["S-2"], rel=0.01)
    seen = {recipe.train.model_copy(update={"compile": "off"}) for recipe in recipes.values()}
    assert len(seen) == 1, "every network is trained alike"
    assert list(macs.values()) == sorted(macs.values(), reverse=True)


@pytest.fixture
def tiny(small):
    points = [
        Point(images=images, sampler="euler", steps=steps, n=20)
        for images, steps in ((160, 2), (320, 2), (320, 3))
    ]
    return {"a": Cell(small, tuple(points)), "b": Cell(small.replace(train={"seed": 1}), (points[0],))}


def test_cells_are_cached_and_a_stopped_study_goes_on(tiny, tmp_path, monkeypatch):
    results, runs = tmp_path / "results", tmp_path / "runs"
    first = {"a": Cell(tiny["a"].recipe, tiny["a"].points[:1])}
    run_cells(first, results, runs, CPU)
    before = json.loads((results / "a.json").read_text())["scores"]
    partial = read_cells(tiny, results)
    assert list(partial) == ["a"]
    assert not partial["a"]["finished"]
    run_cells(tiny, results, runs, CPU)
    found = read_cells(tiny, results)
    assert [found[name]["finished"] for name in "ab"] == [True, True]
    assert [row["nfe"] for row in found["a"]["scores"].values()] == [2, 2, 3]
    for key, row in before.items():
        assert found["a"]["scores"][key] == row
    assert load(runs / "a", CPU).record["images"] == 320
    monkeypatch.setattr(cells, "train", None)
    run_cells(tiny, results, runs, CPU)  # nothing is left to be done


def test_processes_share_cells(tiny, tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "runs").mkdir()
    with FileLock(tmp_path / "runs" / "a.lock"):
        run_cells({"a": tiny["a"]}, tmp_path / "results", tmp_path / "runs", CPU)
    assert "a: another process is at it" in caplog.text
    assert read_cells(tiny, tmp_path / "results") == {}


def made_up(power=-0.5):
    """Records in which FD is a power of MACs, better by a factor for each doubling of steps."""
    found = {}
    for name, cell in scaling.cells().items():
        macs = recipe_cost(cell.recipe).macs
        scores = {
            point.key: {
                **point.model_dump(),
                "nfe": 2 * point.steps,
                "frechet": 1e4 * macs**power * (1e5 / point.images) * (1 + 1 / point.steps),
                "accuracy": 0.5,
            }
            for point in cell.points
        }
        found[name] = {
            "recipe": cell.recipe.model_dump(mode="json"),
            "scores": scores,
            "images_per_second": 9.0,
        }
    return found


def test_scaling_reports_what_is_in_the_records(tmp_path):
    records = made_up()
    out = tmp_path / "study"
    (out / "cells").mkdir(parents=True)
    for name, record in records.items():
        (out / "cells" / f"{name}.json").write_text(json.dumps(record))
    text = scaling.report(read_cells(scaling.cells(), out / "cells"), out)
    assert "| M/2 | " in text
    assert "Spearman -1.00" in text
    assert "with log FD -1.00" in text
    for figure in ("macs", "training", "sampling"):
        assert (out / f"{figure}.png").stat().st_size > 10_000


def test_study_draws_partial_tables_and_says_so(tmp_path, capsys):
    records = made_up()
    (tmp_path / "cells").mkdir()
    for name in ("S-4", "XS-7"):
        (tmp_path / "cells" / f"{name}.json").write_text(json.dumps(records[name]))
    records["L-7"]["scores"].popitem()
    (tmp_path / "cells" / "L-7.json").write_text(json.dumps(records["L-7"]))
    assert main(["study", "scaling", "--draw", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "PARTIAL: 2 of 12 cells are finished." in out
    assert "| S/4 |" in out
    assert "| L/7 |" not in out
    assert (tmp_path / "table.md").read_text().startswith("PARTIAL")


def test_study_runs_chosen_cells_from_the_command_line(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(scaling, "cells", lambda: tiny)
    monkeypatch.setattr(scaling, "report", lambda results, out: f"{sorted(results)}")
    where = ["--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs"), "--device", "cpu"]
    assert main(["study", "scaling", "--cells", "b", "--no-compile", *where]) == 0
    out = capsys.readouterr().out
    assert "PARTIAL: 1 of 2 cells" in out
    assert "['b']" in out


def test_points_say_how_to_sample_and_are_unguided_unless_they_say(tiny):
    point = Point(images=320, sampler="euler_maruyama", steps=4, diffusion="sbdm")
    assert point.how == {"sampler": "euler_maruyama", "steps": 4, "diffusion": "sbdm", "guidance": 1.0}
    assert point.key == "320 images, euler_maruyama 4, guidance 1, n 1000, diffusion sbdm"
    assert Point(images=320, sampler="dopri5", tolerance=0.1).how.keys() == {
        "sampler",
        "tolerance",
        "guidance",
    }
    with pytest.raises(ValueError, match="sampler heun has no such choice"):
        Point(images=320, sampler="heun", steps=4, diffusion="sbdm")


def test_cells_record_the_choices_and_what_an_adaptive_solver_took(tiny, tmp_path):
    points = (
        Point(images=160, sampler="dopri5", tolerance=0.1, n=20),
        Point(images=160, sampler="euler_maruyama", steps=3, diffusion="sbdm", last_step="tweedie", n=20),
    )
    cells = {"a": Cell(tiny["a"].recipe, points)}
    run_cells(cells, tmp_path / "results", tmp_path / "runs", CPU)
    adaptive, stochastic = read_cells(cells, tmp_path / "results")["a"]["scores"].values()
    assert 6 <= adaptive["nfe"] < 500
    assert (stochastic["nfe"], stochastic["last_step"]) == (3, "tweedie")


def test_what_is_measured_of_a_network_is_measured_once(tiny, tmp_path, monkeypatch):
    measured = []

    def measure(pipeline):
        measured.append(pipeline.record["images"])
        return {"seen": pipeline.record["images"]}

    recipe = tiny["a"].recipe.replace(train={"images": 320})
    half = {"a": Cell(recipe, tiny["a"].points[:1], measure)}
    run_cells(half, tmp_path / "results", tmp_path / "runs", CPU)
    assert measured == [320]  # the whole training, though the only point is before its end
    run_cells(half, tmp_path / "results", tmp_path / "runs", CPU)
    found = read_cells(half, tmp_path / "results")["a"]
    assert measured == [320]
    assert (found["measured"], found["finished"]) == ({"seen": 320}, True)


def made_up_samplers():
    """Records in which a sampler is the worse the later its name comes, and all gain from evaluations."""
    found = {}
    for name, cell in samplers.cells().items():
        scores = {}
        for point in cell.points:
            chosen = cell.recipe.sample.override(SamplingRequest.of(point.how))
            nfe = chosen.nfe(chosen.times(cell.recipe.transport), cell.recipe.transport) or 71.3
            distance = 3 + 20 / nfe + ord(point.sampler[0]) / 100 + (point.guidance != 1) - bool(point.grid)
            scores[point.key] = {"images": 1, "n": 9, **point.how, "nfe": nfe, "frechet": distance}
        found[name] = {"scores": scores, "finished": True}
    return found


def test_samplers_reports_every_score_and_draws(tmp_path):
    text = samplers.report(made_up_samplers(), tmp_path)
    heun = "| heun | 9.04 | 6.04 | 5.04 | 4.44 | 4.24 | 4.12 | 6.04 |"  # 4 evaluations for 5
    assert heun in text.partition("**fashion-dit**")[0]
    assert "| ab2 | **7.97** | **5.97** | **4.97** | **4.37** | **4.17** |  | **5.97** |" in text
    assert "dopri5 to 0.001: 4.28 with 71.3 evaluations" in text
    assert "| heun | 6.04 | 5.04 | 5.04 | 5.04 |" in text
    assert "| ab2 | **5.97** | **4.97** | **4.97** | **4.97** |" in text
    assert "The lowest of all is euler_maruyama's 4.09 with 250 evaluations." in text
    assert "within 5% of it are ab2's 100 (4.17)" in text
    assert (tmp_path / "samplers.png").stat().st_size > 10_000
    # what is missing is left empty
    partial = made_up_samplers()
    del partial["fashion-dit"]
    lost = next(key for key in partial["fashion-sit"]["scores"] if "heun 10, guidance 1," in key)
    del partial["fashion-sit"]["scores"][lost]
    assert "| heun | 9.04 | 6.04 |  | 4.44 |" in samplers.report(partial, tmp_path)


def test_samplers_spends_the_budget_and_no_more():
    for name, cell in samplers.cells().items():
        for point in cell.points:
            chosen = cell.recipe.sample.override(SamplingRequest.of(point.how))
            nfe = chosen.nfe(chosen.times(cell.recipe.transport), cell.recipe.transport)
            assert nfe is None or nfe in (*samplers.BUDGETS, 4, 9, 19, 49, 99), (name, point.key)


def made_up_ladder():
    found = {}
    for name, cell in sit_ladder.cells().items():
        model, _, seed = name.rpartition("-")
        base = 10 + list(sit_ladder.MODELS).index(model) + int(seed)
        found[name] = {
            "scores": {
                point.key: {**point.how, "frechet": base + 0.1 * k} for k, point in enumerate(cell.points)
            },
            "finished": True,
        }
    return found


def test_sit_ladder_reports_means_beside_the_papers(tmp_path):
    text = sit_ladder.report(made_up_ladder(), tmp_path)
    assert "| ddpm-noise, ODE | 10.00, 11.00 | 10.50 | 44.2 |" in text
    assert "| linear-velocity, SDE, w^KL | 14.10, 15.10 | 14.60 | 33.6 |" in text
    assert "| linear-velocity, SDE, tuned: w^KL | 14.10, 15.10 | 14.60 | 33.0 |" in text
    assert "| linear-score | 16.00 | **16.10** (41.0) | 16.20 (35.3) | 16.30 (34.4) | 16.40 (34.9) |" in text
    assert "linear-score, ODE" not in text
    assert (tmp_path / "ladder.png").stat().st_size > 10_000


# --- U-DiT ------------------------------------------------------------------------------------------


def test_udit_and_dit_have_equal_macs_and_the_small_one_a_sixth():
    macs = {
        name: recipe_cost(cell.recipe, fused=True).macs
        for name, cell in udit.cells().items()
        if name.endswith("-0")
    }
    assert 0.9 < macs["U-DiT-0"] / macs["DiT-0"] <= 1
    assert macs["DiT-sixfold-0"] / macs["U-DiT-sixth-0"] == pytest.approx(6, rel=0.03)


def test_the_ladder_changes_one_thing_a_step():
    configs = {name: rung.backbone.model_dump() for name, rung in udit_ladder.RUNGS.items()}
    for before, after in (
        ("full", "key-value"),
        ("key-value", "token"),
        ("token", "cosine"),
        ("cosine", "rotary"),
        ("rotary", "depthwise"),
        ("depthwise", "reparameterised"),
        ("token", "no-convolution"),
        ("token", "no-shortcut"),
    ):
        assert len(configs[before].items() - configs[after].items()) == 1
    macs = {name: recipe_cost(cell.recipe, fused=True).macs for name, cell in udit_ladder.cells().items()}
    assert macs["dit"] == pytest.approx(macs["full"], rel=0.02)  # as the paper's
    assert macs["slim"] == pytest.approx(macs["token"], rel=0.1)
    assert macs["token"] < 0.72 * macs["full"]


def test_bands_of_waves():
    """cos(2 pi f x): all of its power in the band of f, up and down alike."""
    place = torch.arange(16.0)
    for cycles, band in ((1, 1), (3, 3), (7, 7), (8, 7)):
        wave = (2 * torch.pi * cycles / 16 * place).cos()
        for maps in (wave[:, None].expand(16, 16), wave.expand(16, 16)):
            shares = udit_ladder._bands(5 + maps[None, :, :, None])
            assert shares[band] == pytest.approx(1, abs=1e-5)


def test_spectra_of_an_untrained_network(tmp_path):
    recipe = udit_ladder.cells()["token"].recipe.model_copy(update={"data": Digits(size=udit_ladder.SIZE)})
    pipeline = Pipeline(recipe, recipe.build_backbone().eval(), recipe.build_codec(), CPU)
    found = udit_ladder.spectra(pipeline)
    assert list(found) == ["0.1", "0.5", "0.9"]
    for parts in found.values():
        assert parts.keys() == {"tokens", "spread"}
        for shares in parts.values():
            assert sum(shares) == pytest.approx(1, abs=1e-4)
    high = [sum(found[time]["tokens"][4:]) for time in ("0.1", "0.9")]
    assert high[0] < high[1]  # noise is white, images are not


def made_up_cells(study):
    """Records of a study whose scores count up."""
    found = {}
    for number, (name, cell) in enumerate(study.cells().items()):
        scores = {
            point.key: {
                "images": point.images,
                **point.how,
                "frechet": 10 + number + 0.1 * k,
                "accuracy": 0.5,
            }
            for k, point in enumerate(cell.points)
        }
        found[name] = {
            "recipe": cell.recipe.model_dump(mode="json"),
            "scores": scores,
            "images_per_second": 9.0,
            "finished": True,
            "measured": {f"{t:g}": {"tokens": [0.125] * 8, "spread": [0.125] * 8} for t in udit_ladder.TIMES},
        }
    return found


def test_udit_reports(tmp_path):
    text = udit.report(made_up_cells(udit), tmp_path)
    assert "| 10.00 | 10.10 | 10.20 | 50.0% | 10.30 | 50.0% | 9 | U-DiT-S 31.51 |" in text
    assert (tmp_path / "frechet.png").stat().st_size > 10_000


def test_udit_ladder_reports(tmp_path):
    records = made_up_cells(udit_ladder)
    text = udit_ladder.report(records, tmp_path)
    assert "| 15.00 | 50.0% | 15.10 | 9 | 86.96 |" in text
    assert "| DiT-UNet: what attention reads | 50.0% | 50.0% | 50.0% |" in text
    del records["full"]
    assert "DiT-UNet: what" not in udit_ladder.report(records, tmp_path)
    for picture in ("ladder.png", "spectrum.png"):
        assert (tmp_path / picture).stat().st_size > 10_000


def test_every_ingredient_changes_the_base():
    """In what it names and nothing else."""
    ours = modern.base()
    for name, some in modern.INGREDIENTS.items():
        changed = modern.cells()[name].recipe
        assert changed != ours.replace(name=changed.name)
        for section in {"backbone", "transport", "train", "data", "sample"} - set(some.change):
            assert getattr(changed, section) == getattr(ours, section)


def test_modern_reports(tmp_path):
    """A difference below twice the seeds' spread is none; steps are those that were measured."""
    records = made_up_cells(modern)
    for seed, value in zip(modern.SEEDS, (5.0, 5.2, 4.8), strict=True):  # twice the spread: 0.4
        for row in records[f"base-{seed}"]["scores"].values():
            row["frechet"] = value
    for name, value in (("rotary", 5.3), ("muon", 4.0)):
        for row in records[name]["scores"].values():
            row["frechet"] = value
    (tmp_path / "steps.json").write_text(json.dumps({"rows": [{"cell": "muon", "cost": 1.25}]}))
    text = modern.report(records, tmp_path)
    assert "Ours (3 seeds): FD 5.00, at guidance 1.5 5.00; differences below 0.40 and 0.40" in text
    assert "| rotary positions | 5.30 | none | 5.30 | none | 50.0% | not measured |" in text
    assert "half the rate | 4.00 | -1.00 | 4.00 | -1.00 | 50.0% | 1.25 |" in text
    assert text.count("**") == 2  # the best of the paper's settings
    assert (tmp_path / "ingredients.png").stat().st_size > 10_000
    alone = {name: records[name] for name in ("base-0", "rotary")}
    assert "(1 seed)" in modern.report(alone, tmp_path)
