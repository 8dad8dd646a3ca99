"""Pictures: every image is where it belongs, enlarged, with gaps."""

import numpy as np
import torch
from PIL import Image

from ditkit.pictures import class_rows, enlargement, grid, side_by_side
from ditkit.plots import loss_curve


def flat(*values):
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8)


def test_grid_places_enlarged_images_row_by_row():
    picture = np.asarray(grid(flat(10, 20, 30, 40, 50), 2, gap=2))
    side = 8 * enlargement(8)
    assert side == 64
    assert picture.shape == (3 * side + 4, 2 * side + 2, 3)
    assert [picture[row * 66 + 30, column * 66 + 30, 0] for row in range(3) for column in range(2)] == [
        10, 20, 30, 40, 50, 255,
    ]  # fmt: skip
    assert (picture[:, 64:66] == 255).all()


def test_grid_keeps_large_images_and_colour():
    image = torch.zeros(1, 3, 200, 100, dtype=torch.uint8)
    image[0, 2] = 255
    assert np.asarray(grid(image, 4)).tolist()[0][0] == [0, 0, 255]
    assert grid(image, 1, gap=0).size == (100, 200)


def test_side_by_side_has_titles_and_both_panels(tmp_path):
    side_by_side([("real", flat(10, 20)), ("generated", flat(200, 210))], ["0", "1"], tmp_path / "x.png")
    picture = np.asarray(Image.open(tmp_path / "x.png"))
    for value in (10, 20, 200, 210):
        assert (picture == value).all(2).sum() >= 64 * 64
    assert (picture[:40] < 100).any(), "a title is written above"


def test_class_rows():
    labels = torch.tensor([1, 0, 1, 0, 1, 0])
    rows = class_rows(flat(1, 2, 3, 4, 5, 6), labels, classes=2, columns=2)
    assert rows[:, 0, 0, 0].tolist() == [2, 4, 1, 3]


def test_a_loss_curve_of_one_point_shows_it(tmp_path):
    loss_curve([{"images": 300, "loss": 1.8}], tmp_path / "loss.png", "x")
    pixels = np.asarray(Image.open(tmp_path / "loss.png").convert("RGB")).astype(int)
    blue = (pixels[..., 2] - pixels[..., 0] > 60).nonzero()
    assert (np.abs(np.array(blue[0]) - pixels.shape[0] / 2) < 40).any()  # beside the legend's, which is above


def test_loss_curve_of_nothing_writes_nothing(tmp_path):
    loss_curve([{"images": 1, "loss": float("nan")}], tmp_path / "loss.png", "x")
    assert not list(tmp_path.iterdir())
    loss_curve([{"images": k, "loss": 1 / k} for k in range(1, 50)], tmp_path / "loss.png", "x")
    assert Image.open(tmp_path / "loss.png").size[0] > 500
