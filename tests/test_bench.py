"""The bench verb: a complete record of finite numbers; no assertion on speed."""

import json
import math
import sys

import pytest
import torch
from PIL import Image

import ditkit
from ditkit.backbones import DiTConfig, MatryoshkaConfig, OuterLevel
from ditkit.benchmark import EVALUATION, STEP
from ditkit.cli import main
from ditkit.costs import speed
from ditkit.recipes import recipe


def test_record_and_table(tmp_path, capsys):
    threads, file = torch.get_num_threads(), tmp_path / "bench.json"
    flags = ["--small", "--rounds", "2", "--no-compile", "--threads", "1", "--batch", "4"]
    assert main(["bench", *flags, "--out", str(file)]) == 0
    assert torch.get_num_threads() == threads

    record = json.loads(file.read_text())
    rows = {(row["task"], row["name"]): row for row in record["rows"]}
    assert set(rows) == {(task, name) for task in (STEP, EVALUATION) for name in ("diffusers", "ditkit")}
    for row in rows.values():
        numbers = [row[key] for key in ("ms", "ratio", "ratio_by_round", "first_call_s")] + row["times_ms"]
        assert len(row["times_ms"]) == 2
        assert all(math.isfinite(number) and number > 0 for number in numbers)
    for task in (STEP, EVALUATION):
        assert rows[task, "diffusers"]["ratio"] == 1
    assert sum(record["step_shares"]["ditkit"].values()) == pytest.approx(1)
    assert min(record["parameters"].values()) > 0
    assert record["machine"]["threads"] == 1

    printed = capsys.readouterr().out
    for text in ("training step, ditkit", "guided evaluation, diffusers", "attention", torch.__version__):
        assert text in printed


def test_needs_diffusers(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert main(["bench", "--small", "--no-compile"]) == 2
    assert "pip install 'ditkit[latent]'" in capsys.readouterr().err


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
    monkeypatch.setattr("ditkit.benchmark.STATUS", tmp_path / "status")
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
