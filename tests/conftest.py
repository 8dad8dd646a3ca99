"""What several tests share: a recipe that trains in a second, and a run of it."""

import os
import tempfile

import pytest
import torch

from ditkit.recipe import Recipe
from ditkit.recipes import recipe
from ditkit.training import train

_cache = tempfile.TemporaryDirectory(prefix="ditkit-cache-")
os.environ["DITKIT_CACHE"] = _cache.name  # what tests prepare is not for the user's own cache

CPU = torch.device("cpu")

SMALL = {"backbone": {"width": 24, "depth": 2, "heads": 2}, "sample": {"steps": 2}}


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Batches this small gain nothing from a second thread, and lose much when its core is busy."""
    torch.set_num_threads(1)


@pytest.fixture
def small() -> Recipe:
    """`digits` with a network and a budget that train in about a second."""
    budget = {"images": 320, "batch": 32, "warmup_images": 64}
    every = {"log_images": 64, "checkpoint_images": 160, "preview_images": 320}
    return recipe("digits").replace(**SMALL, train=budget | every)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The folder of a finished small run."""
    out = tmp_path_factory.mktemp("runs") / "small"
    budget = {"images": 640, "batch": 32, "warmup_images": 0}
    every = {"log_images": 64, "checkpoint_images": 320, "preview_images": 640}
    train(recipe("digits").replace(**SMALL, train=budget | every), out, device=CPU, progress=False)
    return out
