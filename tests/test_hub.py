"""The Hub: models by id and published ones, with huggingface_hub's functions replaced by ones that need no network."""

import json

import huggingface_hub
import pytest
import torch
from conftest import CPU

import ditkit
from ditkit.cli import main
from ditkit.errors import InputError
from ditkit.hub import is_id, publish
from ditkit.pipeline import load


class Published:
    """Stands for HfApi: records its arguments."""

    def __init__(self):
        self.calls = []

    def create_repo(self, model, exist_ok, private):
        self.calls.append((model, private))
        return f"https://huggingface.co/{model}"

    def upload_folder(self, repo_id, folder_path):
        from pathlib import Path

        self.files = {
            file.name: file.read_text()
            for file in Path(folder_path).iterdir()
            if file.suffix != ".safetensors"
        }


@pytest.fixture
def api(monkeypatch):
    published = Published()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: published)
    return published


def test_an_id_is_fetched_and_loaded(run, tmp_path, monkeypatch):
    folder = load(run, CPU).save(tmp_path / "snapshot")
    fetched = []
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda model, **how: fetched.append(model) or str(folder)
    )
    pipe = ditkit.load("someone/digits", CPU)
    assert fetched == ["someone/digits"]
    images = [p.generate({"label": [3]}, seeds=[0], steps=1) for p in (pipe, load(run, CPU))]
    assert torch.equal(*images)


def test_what_is_neither_here_nor_on_the_hub_is_one_line(monkeypatch):
    def nowhere(model, **how):
        raise OSError("no such model\nand much more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", nowhere)
    with pytest.raises(InputError, match=r"someone/nothing: neither a folder here .* \(no such model\)"):
        load("someone/nothing")


def test_a_published_model_has_a_card_with_its_protocol(run, api):
    pipe = load(run, CPU)
    address = pipe.push_to_hub("me/my-model", reports=[{"card": "FD 1.066 of 1,000 samples"}])
    assert address == "https://huggingface.co/me/my-model"
    assert api.calls == [("me/my-model", False)]
    assert set(api.files) == {"README.md", "recipe.json"}
    card = api.files["README.md"]
    assert "- FD 1.066 of 1,000 samples" in card
    assert "library_name: ditkit" in card
    written = json.loads(api.files["recipe.json"])
    del written["checksum"]
    assert json.loads(card.partition("```json\n")[2].partition("```")[0]) == written


def test_convert_publishes_with_the_scores_of_the_run(run, tmp_path, api, capsys):
    out = tmp_path / "copy"
    assert main(["eval", str(run), "--n", "20", "--steps", "1", "--out", str(run / "eval"), "--replace"]) == 0
    assert main(["convert", str(run), "--out", str(out), "--push", "me/digits", "--private"]) == 0
    assert api.calls == [("me/digits", True)]
    assert "20 samples (seeds 0 to 19" in (out / "README.md").read_text()
    assert "https://huggingface.co/me/digits" in capsys.readouterr().out
    before = len(api.calls)
    for wrong in (["--push", "digits"], ["--push", "me/digits", "--to", "official"]):
        assert main(["convert", str(run), "--out", str(out), *wrong]) == 2
        assert "ditkit: --push" in capsys.readouterr().err
    assert len(api.calls) == before


def test_refusals_of_the_hub_are_one_line(tmp_path, monkeypatch):
    class Refusing(Published):
        def create_repo(self, model, **how):
            raise OSError("401: not logged in")

    monkeypatch.setattr(huggingface_hub, "HfApi", Refusing)
    with pytest.raises(InputError, match=r"me/x: cannot be published .*hf auth login"):
        publish(tmp_path, "me/x")
    with pytest.raises(InputError, match="OWNER/NAME"):
        publish(tmp_path, "me")
    assert [is_id(name) for name in ("a/b", "/a/b", "a/b/c", "a", "a/b.c-d_e")] == [
        True,
        False,
        False,
        False,
        True,
    ]
