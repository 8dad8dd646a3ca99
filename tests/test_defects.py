"""What catches the errors of damaged files lets mistakes of the package's own through, as defects with a traceback."""

import numpy as np
import pytest
import torch
from conftest import CPU
from PIL import Image

from ditkit.cli import main
from ditkit.cli.refusals import refusal
from ditkit.data import Folder, VideoFolder
from ditkit.data.array_files import list_arrays
from ditkit.errors import is_defect
from ditkit.evaluation.npz import npz_images
from ditkit.pipeline import load


@pytest.fixture
def images(tmp_path):
    for number in range(3):
        Image.new("L", (8, 8), 40 * number).save(tmp_path / f"{number}.png")
        Image.new("L", (8, 8)).save(
            tmp_path / f"{number}.gif", save_all=True, append_images=[Image.new("L", (8, 8), 90)]
        )
    return tmp_path


@pytest.mark.parametrize("where", ["ditkit.data.decoding.make_pixels", "ditkit.data.decoding.pixels_of"])
def test_a_mistake_in_what_makes_pixels_is_no_broken_image(images, monkeypatch, where):
    monkeypatch.setattr(where, None)  # calling it is a TypeError
    with pytest.raises(TypeError):
        Folder(path=images, size=8, channels=1, cache="off", held_out=0.0).open()


def test_a_mistake_in_what_reads_movies_is_no_broken_movie(images, monkeypatch):
    for file in images.glob("*.png"):
        file.unlink()
    config = VideoFolder(path=images, size=8, channels=1, frames=2, held_out=0.0)
    source = config.open()
    monkeypatch.setattr("ditkit.data.video.prepare", None)
    with pytest.raises(TypeError):
        source.clip(0, None)
    monkeypatch.setattr("ditkit.data.video.open_movie", None)
    with pytest.raises(TypeError):
        config.open()


def test_a_mistake_in_what_reads_arrays_is_no_damaged_file(tmp_path, monkeypatch):
    np.savez(tmp_path / "a.npz", arr_0=np.zeros((2, 8, 8, 1), np.uint8), labels=np.zeros(2, int))
    monkeypatch.setattr("ditkit.data.array_files._header", None)
    with pytest.raises(TypeError):
        list_arrays(tmp_path / "a.npz")
    monkeypatch.setattr("ditkit.evaluation.npz.progress_bar", None)
    with pytest.raises(TypeError):
        list(npz_images(tmp_path / "a.npz"))


@pytest.mark.parametrize("kind", [AttributeError, TypeError, KeyError, RuntimeError, ValueError])
def test_a_mistake_behind_a_lack_of_memory_is_none(kind):
    """An error while tidying up after a lack of memory is the lack's; a mistake of ours by itself never is."""
    assert refusal(kind("planted")) is None
    with pytest.raises(kind) as caught:
        raise kind("not enough")
    assert refusal(caught.value) is None


def test_weights_that_raise_something_else_are_no_misfit(monkeypatch):
    def fails(self, state):
        raise RuntimeError("planted")

    monkeypatch.setattr(torch.nn.Module, "load_state_dict", fails)
    with pytest.raises(RuntimeError, match="planted"):
        load("digits", CPU)


def test_a_mistake_shows_its_traceback(images, monkeypatch, tmp_path):
    monkeypatch.setattr("ditkit.data.decoding.make_pixels", None)
    flags = ["--data.size", "8", "--data.channels", "1", "--data.cache", "off", "--train.images", "32"]
    with pytest.raises(TypeError) as caught:
        main(
            [
                "train",
                "digits",
                "--data",
                str(images),
                *flags,
                "--out",
                str(tmp_path / "run"),
                "--device",
                "cpu",
            ]
        )
    assert is_defect(caught.value)
