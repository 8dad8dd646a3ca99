"""The bench verb: a complete record of finite numbers; no assertion on speed."""

import json
import math
import sys
from statistics import median
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import ditkit
from ditkit.backbones import DiTConfig, MatryoshkaConfig, OuterLevel
from ditkit.backbones.sections.dit import DIT_SIZES
from ditkit.benchmarks.latents import TINY, recipe_with
from ditkit.benchmarks.memory import memory_known
from ditkit.benchmarks.ours import ditkit_evaluation, ditkit_sampled
from ditkit.benchmarks.peers import Form, forms
from ditkit.benchmarks.products import products
from ditkit.benchmarks.running import Running, Work
from ditkit.benchmarks.suite import EVALUATION, STEP, cost_of
from ditkit.cli import main
from ditkit.costs import speed
from ditkit.errors import InputError
from ditkit.recipes import recipe
from ditkit.studies import STUDIES
from ditkit.studies.cells import Cell, Point


def test_record_and_table(tmp_path, capsys):
    threads, file = torch.get_num_threads(), tmp_path / "bench.json"
    flags = ["--small", "--rounds", "2", "--no-compile", "--threads", "1", "--batch", "4"]
    assert main(["bench", *flags, "--precision", "bf16", "--out", str(file)]) == 0
    assert torch.get_num_threads() == threads

    record = json.loads(file.read_text())
    rows = {(row["task"], row["name"]): row for row in record["rows"]}
    names = ("paper fp32", "paper bf16", "diffusers", "ditkit")
    assert list(rows) == [(task, name) for task in (STEP, EVALUATION) for name in names]
    assert [row["precision"] for row in record["rows"]] == ["fp32", "bf16", "bf16", "bf16"] * 2
    assert list(record["gemm"]) == ["fp32", "bf16"]
    for row in rows.values():
        assert list(row["against"]) == [*names[:3]]
        ratios = [value for found in row["against"].values() for value in found.values()]
        numbers = [row[key] for key in ("ms", "gflops", "share_of_gemm", "first_call_s")] + row["times_ms"]
        assert len(row["times_ms"]) == 2
        assert all(math.isfinite(number) and number > 0 for number in numbers + ratios)
        passes = 3 if row["task"] == STEP else 1  # forward passes whose products it has
        assert row["gflops"] * row["ms"] * 1e6 == pytest.approx(2 * passes * 4 * record["macs"])
        alone = record["gemm"][row["precision"]]["gflops"]
        assert row["share_of_gemm"] == pytest.approx(row["gflops"] / alone)
    for task in (STEP, EVALUATION):
        for name in names[:3]:
            assert rows[task, name]["against"][name] == {"ratio": 1, "ratio_by_round": 1}
    assert list(record["step_shares"]) == ["ditkit"]
    assert sum(record["step_shares"]["ditkit"].values()) == pytest.approx(1)
    assert record["parameters"]["paper"] == record["parameters"]["ditkit"] > 0
    assert record["machine"]["threads"] == 1
    if memory_known():
        assert list(record["memory"]) == [*names]
        assert [name for name, found in record["memory"].items() if found["predicted"]] == ["ditkit"]

    printed = capsys.readouterr().out
    for text in ("training step ", "guided evaluation ", "× paper fp32", "attention", torch.__version__):
        assert text in printed


def test_products_alone_are_those_of_the_blocks(monkeypatch):
    """All that a forward pass of DiT-S/2 multiplies but for attention, conditioning, and what is before and after its blocks."""
    width, depth, tokens = 384, 12, 256
    layers = depth * 12 * width**2 * tokens
    attention = depth * 2 * tokens**2 * width
    conditioning = depth * 6 * width**2
    assert products(DIT_SIZES["DiT-S/2"], 1, "fp32").flops == 2 * layers
    whole = cost_of(DIT_SIZES["DiT-S/2"]).macs
    assert 0 < whole - layers - attention - conditioning < 0.005 * whole
    assert products(TINY, 4, "bf16").flops == 4 * products(TINY, 1, "fp32").flops

    called = []
    monkeypatch.setattr("torch.nn.functional.linear", lambda *given: called.append([x.dtype for x in given]))
    products(TINY, 1, "bf16").run()
    assert called == [[torch.bfloat16] * 3] * 4 * TINY.depth


def test_forms_of_peers():
    def names(*given):
        return [form.name for form in forms(*given)]

    assert names(("diffusers", "paper"), "bf16", True) == [
        "paper fp32", "paper bf16", "diffusers", "diffusers, compiled", "ditkit", "ditkit, compiled",
    ]  # fmt: skip
    assert names(("paper",), "fp32", True) == ["paper fp32", "ditkit", "ditkit, compiled"]
    assert names((), "bf16", False) == ["ditkit"]


@pytest.mark.skipif(not memory_known(), reason="a system that does not tell")
def test_a_process_of_its_own_knows_its_peak_and_what_failed():
    wide = TINY.model_copy(update={"width": 512})
    process = Running(Work(Form("paper", "fp32"), wide, 4, 1))
    try:
        parameters = process.parameters()
        process.step()
        process.step()
        peak = process.memory()
        assert (
            4 * 4 * parameters < peak < 40 * parameters
        )  # weights, two moments, an average; and what is being worked on
        process.evaluate()
        assert process.memory() == peak
        with pytest.raises(InputError, match="paper fp32: KeyError: 'nothing'"):
            process._answer("nothing")
    finally:
        process.close()


def test_a_process_that_fails_or_ends_says_so():
    process = Running(Work(Form("paper", "fp32"), TINY.model_copy(update={"patch": 7}), 4, 1))
    with pytest.raises(InputError, match=r"^paper fp32: "):
        process.step()
    process._process.kill()
    with pytest.raises(InputError, match="paper fp32: its process ended with status -9"):
        process.step()
    process.close()


def test_what_is_evaluated_is_what_a_pipeline_samples_with():
    recipe = recipe_with(TINY, 2, "bf16")
    frozen = recipe.build_backbone().eval().requires_grad_(False)
    made = ditkit_sampled(recipe, frozen)
    assert made.blocks[0].attention.qkv.weight.dtype == torch.bfloat16
    expected, found = ditkit_evaluation(recipe, frozen)(), ditkit_evaluation(recipe, made)()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert ditkit_sampled(recipe_with(TINY, 2, "fp32"), frozen) is frozen


def test_needs_diffusers(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert main(["bench", "--small", "--no-compile"]) == 2
    refused = capsys.readouterr().err
    assert "pip install 'ditkit[latent]'" in refused
    assert "--peers paper" in refused


def test_an_unknown_peer_is_refused(capsys):
    assert main(["bench", "--peers", "papre"]) == 2
    assert "paper" in capsys.readouterr().err


def test_out_without_folder_is_refused_before_measuring(capsys):
    assert main(["bench", "--small", "--no-compile", "--out", "no/such/folder/x.json"]) == 2
    assert "no/such/folder" in capsys.readouterr().err


def test_predicted_beside_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speed, "LARGE", speed.SMALL | {"images": 20})  # quick, and of no use
    threads, file = torch.get_num_threads(), tmp_path / "cost.json"
    assert main(["bench", "--cost", "--small", "--rounds", "2", "--batch", "2", "--out", str(file)]) == 0
    assert torch.get_num_threads() == threads

    record = json.loads(file.read_text())
    assert record["machine"]["threads"] == 1
    assert {row["precision"] for row in record["rows"]} >= {"fp32"}
    for row in record["rows"]:
        assert len(row["step_ms"]["times"]) == 2
        assert (
            row["memory"]["predicted"] > row["memory"]["predicted_allocated"] > row["memory"]["activations"]
        )
        for part in (row["memory"], row["step_ms"]):
            assert part["measured"] > 0
            assert part["error"] == pytest.approx(part["predicted"] / part["measured"] - 1)
    assert "predicted (measured)" in capsys.readouterr().out


def test_cost_needs_a_folder_and_a_system_that_tells(monkeypatch, capsys, tmp_path):
    assert main(["bench", "--cost", "--out", "no/such/folder/x.json"]) == 2
    assert "no/such/folder" in capsys.readouterr().err
    monkeypatch.setattr("ditkit.benchmarks.memory.STATUS", tmp_path / "status")
    assert main(["bench", "--cost", "--small"]) == 2
    assert "needs Linux" in capsys.readouterr().err


def test_statistics_are_timed_in_small(tmp_path, capsys):
    assert (
        main(["bench", "--statistics", "--n", "20", "--threads", "1", "--out", str(tmp_path / "s.json")]) == 0
    )
    record = json.loads((tmp_path / "s.json").read_text())
    assert record["n"] == 20
    assert {"precision and recall", "FID, 2,048 features"} < set(record["seconds"])
    assert "together" in capsys.readouterr().out


def test_backbones_against_each_other(tmp_path, capsys):
    out = tmp_path / "backbones.json"
    flags = ["--backbones", "U-DiT", "UNet", "--batch", "1", "--rounds", "2", "--no-train", "--out", str(out)]
    assert main(["bench", *flags]) == 0
    record = json.loads(out.read_text())
    first, last = record["rows"]
    assert [first["task"], last["task"]] == ["evaluation"] * 2
    assert first["macs"] == ditkit.cost("U-DiT", 256, fused=True).macs
    assert first["macs_ratio"] == pytest.approx(first["macs"] / last["macs"])
    pairs = zip(first["times_ms"], last["times_ms"], strict=True)
    assert first["time_ratio"] == pytest.approx(sum(a / b for a, b in pairs) / 2)  # the median of two
    assert first["excess"] == pytest.approx(first["time_ratio"] / first["macs_ratio"])
    assert last["excess"] == 1
    assert sum(record["shares"]["evaluation, UNet"].values()) == pytest.approx(1)
    assert "time/MACs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["DiT", "nope"], "'nope' is no network of 32 x 32 x 4 latents"),
        (["DiT", "MDM-256"], "'MDM-256' is no network"),
        (["DiT"], "two different names"),
    ],
)
def test_backbones_that_cannot_be_compared(names, message, capsys):
    assert main(["bench", "--backbones", *names]) == 2
    assert message in capsys.readouterr().err


def test_levels_of_a_recipe(tmp_path, capsys, monkeypatch):
    """A row for the lowest level, one more for each around it, and the network inside by itself."""
    level = OuterLevel(widths=(32,), depth=(1,), patch=2)
    inner = DiTConfig(width=16, depth=1, heads=2, patch=2, text="cross_attention")
    small = recipe("emoji-matryoshka").replace(
        data={"size": 16}, text={"length": 2}, backbone=MatryoshkaConfig(inner=inner, levels=(level, level))
    )
    monkeypatch.setattr("ditkit.cli.bench_levels.named_recipe", lambda name: small)
    file = tmp_path / "levels.json"
    assert main(["bench", "--levels", "small", "--batch", "2", "--rounds", "1", "--out", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert list(rows) == ["4 pixels", "4 to 8 pixels", "4 to 16 pixels", "16 pixels alone"]
    nested = list(rows.values())[:3]
    for key in ("parameters", "macs", "memory_predicted"):
        values = [row[key] for row in nested]
        assert values == sorted(set(values))
    alone = rows["16 pixels alone"]
    assert alone["parameters"] == nested[0]["parameters"]
    assert alone["macs"] > 10 * nested[0]["macs"]  # 64 tokens for 4
    for row in rows.values():
        assert row["memory"] > 0
        assert len(row["training step"]["times_ms"]) == 1
    assert "4 to 16 pixels" in capsys.readouterr().out


def test_levels_of_a_recipe_of_one_resolution(capsys):
    assert main(["bench", "--levels", "digits"]) == 2
    assert "--levels digits: a recipe of one resolution" in capsys.readouterr().err


def test_a_folder_of_images(tmp_path, capsys):
    for number in range(5):
        Image.new("RGBA", (40, 30), (number, 0, 0, 128)).save(tmp_path / f"{number}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    file = tmp_path / "bench.json"
    flags = ["--size", "8", "--recipe", "digits", "--rounds", "2", "--sample", "4"]
    assert main(["bench", "--data", str(tmp_path), *flags, "--out", str(file)]) == 0
    record = json.loads(file.read_text())
    assert (record["sample"], record["data"]["images"]) == (4, 6)
    names = (
        "decoding_per_core",
        "decoding_all_cores",
        "pass",
        "reading_per_core",
        "first_start_s",
        "second_start_s",
    )
    assert all(math.isfinite(record[name]) and record[name] > 0 for name in names)
    printed = capsys.readouterr().out
    assert "bare decoding by Pillow" in printed
    assert main(["bench", "--data", "no/such/folder"]) == 2
    assert "no/such/folder: not a folder of images" in capsys.readouterr().err


def test_a_step_of_each_of_a_study_s_recipes(tmp_path, capsys, monkeypatch):
    """An image's time in terms of the first cell's."""
    small = recipe("digits").replace(backbone={"width": 16, "depth": 1, "heads": 1}, train={"batch": 4})
    cells = {
        "base": Cell(small, (Point(images=4),)),
        "twice": Cell(small.replace(train={"batch": 8}), (Point(images=8),)),
    }
    monkeypatch.setitem(STUDIES, "mine", SimpleNamespace(cells=lambda: cells))
    main(["bench", "--study", "mine", "--rounds", "2", "--out", str(tmp_path / "steps.json")])
    rows = json.loads((tmp_path / "steps.json").read_text())["rows"]
    assert [(row["cell"], row["batch"], len(row["times_ms"])) for row in rows] == [
        ("base", 4, 2),
        ("twice", 8, 2),
    ]
    assert rows[0]["cost"] == 1
    ratios = [twice / base / 2 for base, twice in zip(rows[0]["times_ms"], rows[1]["times_ms"], strict=True)]
    assert rows[1]["cost"] == pytest.approx(median(ratios))
    assert "cost of an image" in capsys.readouterr().out
    assert main(["bench", "--study", "mine", "--cells", "other"]) == 2
    assert "--cells other: no such cell; the study has base, twice" in capsys.readouterr().err
