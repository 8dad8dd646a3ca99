"""Records and checkpoints: whole or named, whatever was done to the files."""

import json
import logging
import math
import os
import shutil

import pytest
import torch
from safetensors import safe_open

from ditkit.checkpoint import load_newest, save_checkpoint
from ditkit.errors import InputError
from ditkit.files import owned, save_tensors
from ditkit.recipe import Recipe
from ditkit.recipes import recipe
from ditkit.records import append_line, parse_json, read_json, read_lines, write_json
from ditkit.training import train
from ditkit.training.log import read_log

CPU = torch.device("cpu")
PARTS = ("model",)


@pytest.fixture
def folder(tmp_path):
    """Two checkpoints of one tensor."""
    for images in (8, 16):
        save_checkpoint(
            tmp_path,
            images,
            {"model": {"w": torch.full((3,), images / 8)}},
            {"seconds": 1.0, "skipped": 0},
            5,
        )
    return tmp_path


def test_the_same_tensors_and_metadata_are_the_same_bytes(tmp_path):
    """safetensors writes metadata in an order that changes from file to file."""
    metadata = {"record": '{"a": "é\n\u0001\x7f漢"}', "sha256": "0" * 64, "format": "pt", "b": "", "a": "\\/"}
    tensors = {"w": torch.arange(3.0), "v": torch.ones(2, 2, dtype=torch.int8)}
    made = []
    for k in range(12):
        file = tmp_path / f"{k}.safetensors"
        save_tensors(file, tensors, dict(sorted(metadata.items(), key=lambda item: hash((k, item)))))
        made.append(file.read_bytes())
    assert len(set(made)) == 1
    with safe_open(file, "pt") as found:
        assert found.metadata() == metadata
        assert all(found.get_tensor(name).equal(value) for name, value in tensors.items())


def test_json_has_no_nan_and_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "report.json"
    write_json(file, {"a": math.nan, "b": [1.5, math.inf], "c": {"d": -math.inf}})
    assert json.loads(file.read_text(), parse_constant=pytest.fail) == {
        "a": None,
        "b": [1.5, None],
        "c": {"d": None},
    }

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(file, {"a": 2})
    assert read_json(file)["c"] == {"d": None}


@pytest.mark.parametrize(
    "content",
    [b"", b"[1]", b"\xff\xfe", b"{", b"null", b"[" * 100_000, b'{"a": ' * 50_000 + b"1" + b"}" * 50_000],
)
def test_what_is_no_record_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(InputError, match=r"x\.json: cannot be read") as caught:
        read_json(tmp_path / "x.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage",
    [
        b'{"images": 3, "lo',
        b"\0" * 40,
        b'{"images": 3}',
        b"\xff\n",
        b"[1]\n",
        b'{"loss": 1}\n',
        b"\0\0\n{}\n",
    ],
)
def test_a_log_is_read_up_to_the_line_that_is_damaged(tmp_path, caplog, damage):
    file = tmp_path / "log.jsonl"
    for images in (1, 2):
        append_line(file, {"images": images, "loss": math.nan})
    file.write_bytes(file.read_bytes() + damage)
    rows = read_log(file)
    assert [row["images"] for row in rows] == [1, 2]
    assert math.isnan(rows[0]["loss"])
    assert "left out" in caplog.text


def test_a_line_that_the_disk_does_not_take_leaves_nothing_and_stops_nothing(tmp_path, caplog):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    append_line(tmp_path / "log.jsonl", {"images": 1})
    assert "could not be written" in caplog.text


def test_a_run_whose_logs_were_cut_goes_on_and_ends_the_same(small, tmp_path):
    half = small.replace(train={"images": 160})
    for name in ("whole", "cut"):
        train(half, tmp_path / name, device=CPU, progress=False)
    for name in ("log.jsonl", "validation.jsonl"):
        file = tmp_path / "cut" / name
        file.write_bytes(file.read_bytes()[:-7])
    for name in ("whole", "cut"):
        train(small, tmp_path / name, device=CPU, progress=False)
    whole, cut = (load_newest(tmp_path / name / "checkpoints", ("model",)) for name in ("whole", "cut"))
    assert all(torch.equal(value, cut[1]["model"][name]) for name, value in whole[1]["model"].items())
    assert read_lines(tmp_path / "cut" / "log.jsonl")[-1]["images"] == 320


@pytest.mark.parametrize(
    "change",
    [
        lambda state: [],
        lambda state: {},
        lambda state: state | {"images": 1_000_000_000},
        lambda state: state | {"images": 16.0},
        lambda state: state | {"sha256": []},
        lambda state: state | {"sha256": {}},
        lambda state: state | {"seconds": "long"},
        lambda state: state | {"skipped": 3},
        lambda state: {name: value for name, value in state.items() if name != "images"},
    ],
)  # fmt: skip
def test_a_state_that_is_damaged_gives_way_to_the_one_before(folder, change, caplog):
    file = folder / "000000000016" / "state.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    state, parts = load_newest(folder, PARTS)
    assert (state["images"], parts["model"]["w"].tolist()) == (8, [1.0] * 3)
    assert "damaged" in caplog.text or "cannot be read" in caplog.text


def test_checkpoints_of_version_0_1_have_no_checksum_and_are_read(folder):
    file = folder / "000000000016" / "state.json"
    values = json.loads(file.read_text())
    del values["checksum"]
    file.write_text(json.dumps(values))
    assert load_newest(folder, PARTS)[0]["images"] == 16


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_what_may_not_be_read_is_not_called_damaged(folder):
    (folder / "000000000016" / "model.safetensors").chmod(0)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
        load_newest(folder, PARTS)


def test_what_may_not_be_read_is_named(folder, monkeypatch):
    def denied(file):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("ditkit.checkpoint.file_hash", denied)
    with pytest.raises(InputError, match=r"model\.safetensors cannot be read \(Permission denied\)"):
        load_newest(folder, PARTS)


@pytest.mark.skipif(os.name == "nt", reason="modes of files are POSIX's")
def test_files_have_the_mode_that_the_umask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        save_tensors(tmp_path / "a.safetensors", {"w": torch.zeros(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == 0o640


def test_a_checkpoint_that_cannot_be_removed_is_a_warning(folder, monkeypatch, caplog):
    def busy(path, **_):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(shutil, "rmtree", busy)
    save_checkpoint(folder, 24, {"model": {"w": torch.zeros(3)}}, {}, keep=1)
    assert "cannot be removed (Device or resource busy)" in caplog.text
    assert load_newest(folder, PARTS)[0]["images"] == 24


def test_a_loaded_checkpoint_holds_no_file_open(folder):
    _, parts = load_newest(folder, PARTS)
    shutil.rmtree(folder / "000000000016")
    (folder / "000000000008" / "model.safetensors").write_bytes(b"")
    assert parts["model"]["w"].tolist() == [2.0] * 3


def test_logs_are_quiet_where_nothing_is_wrong(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    append_line(tmp_path / "log.jsonl", {"images": 1, "loss": 0.5})
    assert read_log(tmp_path / "log.jsonl") == [{"images": 1, "loss": 0.5}]
    assert read_lines(tmp_path / "none.jsonl") == []
    assert caplog.text == ""


def test_two_trainings_in_one_folder_are_one_and_a_line(small, tmp_path):
    other = small.replace(train={"lr": 1e-4})
    with owned(tmp_path / "run"):
        for recipe in (small, other):
            with pytest.raises(
                InputError, match=r"run: another process is writing into this folder; .*another `out`"
            ):
                train(recipe, tmp_path / "run", device=CPU, progress=False)
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    train(small.replace(train={"images": 64}), tmp_path / "run", device=CPU, progress=False)
    with owned(tmp_path / "run"):  # it was let go
        pass


def test_a_recipe_that_was_changed_is_reported_and_taken(tmp_path, caplog):
    recipe("digits").write(tmp_path / "recipe.json")
    assert Recipe.read(tmp_path / "recipe.json") == recipe("digits")
    assert not caplog.messages
    values = json.loads((tmp_path / "recipe.json").read_text(encoding="utf-8"))
    values["sample"]["guidance"] = 2.0
    (tmp_path / "recipe.json").write_text(json.dumps(values), encoding="utf-8")
    assert Recipe.read(tmp_path / "recipe.json").sample.guidance == 2
    assert "recipe.json was changed after it was written" in caplog.text
    caplog.clear()
    del values["checksum"]
    (tmp_path / "recipe.json").write_text(json.dumps(values), encoding="utf-8")
    Recipe.read(tmp_path / "recipe.json")
    assert not caplog.messages


@pytest.mark.parametrize("kind", [["DiT"], {}, None, 3, True])
@pytest.mark.parametrize("section", ["backbone", "data", "codec"])
def test_a_kind_of_another_type_is_an_unknown_kind(tmp_path, section, kind):
    recipe("digits").write(tmp_path / "recipe.json")
    values = json.loads((tmp_path / "recipe.json").read_text(encoding="utf-8"))
    values[section]["kind"] = kind
    (tmp_path / "recipe.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(InputError, match=rf"recipe\.json: {section}: unknown .*there are ") as caught:
        Recipe.read(tmp_path / "recipe.json")
    assert "\n" not in str(caught.value)


def test_json_that_is_nested_too_deep_is_a_value_error():
    with pytest.raises(ValueError, match="nested too deep"):
        parse_json(b"[" * 100_000 + b"]" * 100_000)
    with pytest.raises(ValueError, match="utf-8"):
        parse_json(b'"\xff"')
    assert parse_json('{"a": [1]}') == {"a": [1]}
