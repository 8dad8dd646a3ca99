"""Moving digits: they go straight, bounce and overlap as they should, and a clip depends on its number only."""

import math

import numpy as np
import pytest
import torch
from conftest import write_idx
from pydantic import ValidationError

from ditkit.data import Digits, arrays
from ditkit.data.moving import MovingDigits, caption, centroid, draw_at, fold
from ditkit.errors import InputError

FAST = {"speed": (3.0, 5.0)}  # several bounces a clip


def test_fold_reflects_a_straight_line():
    line = torch.tensor([-1.5, 0.0, 1.0, 3.0, 4.0, 6.0, 7.0])
    assert fold(line, 3).tolist() == [1.5, 0.0, 1.0, 3.0, 2.0, 0.0, 1.0]


def test_a_glyph_at_whole_places_is_itself_and_between_them_the_mean_of_its_neighbours():
    glyph = torch.rand(1, 3, 3, generator=torch.Generator().manual_seed(0)) * 255
    whole, half = draw_at(glyph, torch.tensor([[[2.0, 4.0], [2.5, 4.0]]]), 8)[0]
    assert torch.equal(whole[2:5, 4:7], glyph[0])
    assert torch.allclose(whole.sum(), glyph.sum())
    assert torch.allclose(half[3:5, 4:7], (glyph[0, :2] + glyph[0, 1:]) / 2)
    assert torch.allclose(half[[2, 5], 4:7], glyph[0, [0, 2]] / 2)


def test_digits_are_seen_where_their_trajectory_says():
    source = MovingDigits(clips=20, **FAST).open()
    for k in range(20):
        seen = centroid(source.clip(k)[0])  # (F, 2)
        assert (seen - source.trajectory(k)[0]).abs().max() < 0.05, "pixels are rounded to whole levels"


def test_speed_is_constant_between_bounces_and_turns_at_them():
    config = MovingDigits(clips=50, frames=40, **FAST)
    source = config.open()
    room = config.size - config.glyph
    bounces = 0
    for k in range(50):
        steps = source.trajectory(k)[0].diff(dim=0)  # (F - 1, 2)
        corners = source.trajectory(k)[0] - centroid(source._glyphs[source._which[k]])
        assert corners.min() > -1e-3
        assert corners.max() < room + 1e-3
        for axis in range(2):
            full = steps[:, axis].abs().max()  # what no bounce has shortened
            whole = (steps[:, axis].abs() - full).abs() < 1e-3
            bounces += int((~whole).sum())
            turned = torch.diff(steps[:, axis][whole].sign()) != 0
            assert turned.sum() <= (~whole).sum()
        free = (steps.abs() - steps.abs().amax(0)).abs().amax(1) < 1e-3
        length = steps[free].norm(dim=1)
        assert torch.allclose(length, length[:1].expand_as(length), atol=1e-3)
        assert 3 - 1e-3 < length[0] < 5 + 1e-3
    assert bounces > 200


@pytest.mark.parametrize("digits", [1, 3])
def test_a_longer_clip_is_the_same_clip_going_on(digits):
    config = MovingDigits(clips=30, digits=digits, **FAST)
    short, long = config.open(), config.model_copy(update={"frames": 50, "clips": 90}).open()
    for k in (0, 7, 29):
        assert torch.equal(long.clip(k)[:, :16], short.clip(k))
        assert torch.equal(long.trajectory(k)[:, :16], short.trajectory(k))
    assert long.captions[:30] == short.captions


def test_clips_depend_on_number_and_part_only_and_draw_is_not_used():
    config = MovingDigits(clips=30)
    source, again = config.open(), config.open()
    assert torch.equal(source.clip(4), again.clip(4, np.random.default_rng(0)))
    assert not torch.equal(source.clip(4), source.clip(5))
    assert not torch.equal(source._start, config.open("test")._start[:30])
    apart = MovingDigits(clips=30, digits=2).open()
    assert torch.equal(apart.trajectory(4)[0], source.trajectory(4)[0])


def test_where_digits_overlap_the_brighter_pixel_is_seen():
    config = MovingDigits(clips=200, digits=2, frames=1)
    source = config.open()
    apart = 0
    for k in range(200):
        alone = (
            draw_at(source._glyphs[source._which[k]], source._corners(k), 32).round().byte()
        )  # (2, 1, H, W)
        assert torch.equal(source.clip(k)[0], torch.maximum(alone[0], alone[1]))
        apart += int((torch.minimum(alone[0], alone[1]) > 100).any())
    assert apart > 20, "many do overlap"


def test_shapes_labels_and_parts():
    config = MovingDigits(size=40, glyph=12, frames=5, channels=3, clips=3000)
    train, test = config.open(), config.open("test")
    assert (len(train), len(test)) == (3000, 300)
    assert len(MovingDigits(clips=10).open("test")) == 100
    clip = train.clip(0)
    assert (clip.dtype, clip.shape, config.shape) == (torch.uint8, (3, 5, 40, 40), (5, 40, 40))
    assert torch.equal(clip[0], clip[2])
    assert train.names == tuple("0123456789")
    assert (train.labels.dtype, train.labels.shape) == (torch.int64, (3000,))
    assert train.labels.bincount().min() > 200
    assert {"a zero", "an eight", "a nine"} <= {text.split(" moves")[0] for text in train.captions}
    several = MovingDigits(digits=2, clips=5).open()
    assert (several.labels, several.names) == (None, ())
    assert all(" and " in text and "moves" not in text for text in several.captions)


def test_test_digits_are_in_no_training_clip():
    config = MovingDigits(clips=4000)
    for split in ("train", "test"):
        source = config.open(split)
        pictures = Digits(size=16).open(split)
        assert torch.equal(source._glyphs, pictures.images[:, 0].float())
        assert torch.equal(source.labels, pictures.labels[source._which[:, 0]])
        assert len(source._which.unique()) > 0.5 * len(pictures)


@pytest.mark.parametrize("eighth", range(8))
def test_captions_say_the_direction(eighth):
    names = ["to the right", "down and to the right", "down", "down and to the left",
             "to the left", "up and to the left", "up", "up and to the right"]  # fmt: skip
    for turn in (-0.49, 0, 0.49):
        angle = (eighth + turn) * math.pi / 4  # from the right, downwards
        assert caption(["eight"], [[math.sin(angle), math.cos(angle)]]) == f"an eight moves {names[eighth]}"


def test_captions_are_true_of_the_first_step():
    source = MovingDigits(clips=300, **FAST).open()
    for k, text in enumerate(source.captions):
        path = source.trajectory(k)[0]
        down, right = (path[1] - path[0]).tolist()
        assert ("up" in text) <= (down < 0)
        assert ("down" in text) <= (down > 0)
        assert ("left" in text) <= (right < 0)
        assert ("right" in text) <= (right > 0)


def test_clothes_move_too(tmp_path, monkeypatch):
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", np.full((10, 28, 28), 200, np.uint8))
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", np.arange(10, dtype=np.uint8))
    monkeypatch.setattr(arrays, "DEBIAN", tmp_path)
    source = MovingDigits(glyphs="fashion-mnist", glyph=28, size=40, clips=40).open("test")
    assert source.names[0] == "T-shirt/top"
    assert any(text.startswith("an ankle boot moves") for text in source.captions)
    assert source.clip(0).shape == (1, 16, 40, 40)


def test_wrong_settings_are_refused():
    with pytest.raises(InputError, match=r"`data\.glyph` 32 has no room to move in `data\.size` 32"):
        MovingDigits(glyph=32).open()
    with pytest.raises(InputError, match=r"`data\.digits` 2 has 0 classes, but `data\.classes` is 10"):
        MovingDigits(digits=2, classes=10).open()
    for wrong in ({"speed": (2, 1)}, {"speed": (0, 1)}, {"digits": 4}, {"frames": 0}, {"flip": True}):
        with pytest.raises(ValidationError):
            MovingDigits(**wrong)
