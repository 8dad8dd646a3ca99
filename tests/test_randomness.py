"""Randomness is a function of (seed, index, purpose): what differs, what is stable, how it is distributed."""

import itertools

import numpy as np
import pytest
import torch

from ditkit.errors import InputError
from ditkit.randomness import RowNoise, generator

PURPOSES = ("order", "augment", "codec", "train", "sample")


def test_streams_differ():
    """By seed, index and purpose, also where seed and index change places; far into the stream too."""
    keys = itertools.product((0, 1, 2, 2**32, 2**64 - 1), (0, 1, 2, 2**32, 2**64 - 1), PURPOSES)
    draws = {key: generator(*key).integers(0, 2**63, 2000) for key in keys}
    seen = np.concatenate(list(draws.values()))
    assert len(np.unique(seen)) == len(seen) == 125 * 2000


def test_a_stream_begins_again():
    assert np.array_equal(generator(3, 4, "train").random(5), generator(3, 4, "train").random(5))


def test_streams_are_stable():
    """Pinned: a change of these changes every run and every image."""
    assert generator(0, 0, "train").random(2).tolist() == [0.29882072308045304, 0.8611279061748518]
    normal = generator(7, 12, "sample").standard_normal(2, dtype=np.float32)
    assert normal.tolist() == pytest.approx([-0.5057985782623291, -2.9992258548736572], rel=1e-6)
    assert generator(2**64 - 1, 5, "order").permutation(8).tolist() == [7, 5, 1, 2, 4, 0, 3, 6]
    assert generator(1, 2, "augment").integers(0, 256, 4).tolist() == [154, 147, 68, 107]
    assert generator(1, 2, "codec").integers(0, 256, 4).tolist() == [232, 118, 98, 71]


@pytest.mark.parametrize(("seed", "index"), [(-1, 0), (0, -1), (2**64, 0), (0, 2**64)])
def test_keys_out_of_range(seed, index):
    with pytest.raises(InputError, match=f"seed {seed} and index {index} must"):
        generator(seed, index, "train")


def test_unknown_purpose():
    with pytest.raises(KeyError):
        generator(0, 0, "fun")


@pytest.mark.parametrize("purpose", ["train", "sample"])
def test_first_draws_of_many_streams_are_normal(purpose):
    """Across 20,000 indices, where images are compared: moments within four standard errors."""
    x = np.array([generator(0, n, purpose).standard_normal(4) for n in range(20_000)])
    n = len(x)
    assert np.abs(x.mean(0)).max() < 4 / n**0.5
    assert np.abs((x**2).mean(0) - 1).max() < 4 * (2 / n) ** 0.5
    assert np.abs((x**3).mean(0)).max() < 4 * (15 / n) ** 0.5
    assert np.abs((x**4).mean(0) - 3).max() < 4 * (96 / n) ** 0.5
    assert np.abs(np.corrcoef(x.T) - np.eye(4)).max() < 4 / n**0.5
    assert abs((x[1:] * x[:-1]).mean()) < 4 / (4 * n) ** 0.5  # neighbours


def test_row_noise_has_the_states_form():
    like = torch.empty(2, 3, 4, dtype=torch.float64)
    noise = RowNoise([0, 1])(like)
    assert noise.shape == like.shape
    assert noise.dtype == torch.float64
    expected = generator(1, 0, "sample").standard_normal((3, 4), dtype=np.float32)
    assert np.array_equal(noise[1].numpy(), expected.astype(np.float64))


def test_row_noise_goes_on():
    """Two calls draw what one longer call would have drawn."""
    parts = RowNoise([9])
    halves = [parts(torch.empty(1, 5)) for _ in range(2)]
    assert torch.cat(halves, 1).equal(RowNoise([9])(torch.empty(1, 10)))


def test_row_noise_counts_its_rows():
    with pytest.raises(ValueError, match="3 rows asked of noise made for 2 seeds"):
        RowNoise([0, 1])(torch.empty(3, 1))
