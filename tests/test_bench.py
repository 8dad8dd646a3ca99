"""The bench verb: a complete record of finite numbers; no assertion on speed."""

import json
import math
import sys

import pytest
import torch

from ditkit.benchmark import EVALUATION, STEP
from ditkit.cli import main


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
