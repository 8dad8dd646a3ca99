"""What several tests share: a recipe that trains in a second, and a run of it."""

import pytest
import torch

from ditkit.recipe import Recipe
from ditkit.recipes import recipe
from ditkit.training import train

CPU = torch.device("cpu")


@pytest.fixture
def small() -> Recipe:
    """`digits` with a network and a budget that train in about a second."""
    return recipe("digits").replace(
        backbone={"width": 24, "depth": 2, "heads": 2},
        train={
            "images": 320,
            "batch": 32,
            "warmup_images": 64,
            "log_images": 64,
            "checkpoint_images": 160,
            "preview_images": 320,
        },
        sample={"steps": 2},
    )


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The folder of a finished small run."""
    out = tmp_path_factory.mktemp("runs") / "small"
    base = recipe("digits").replace(
        backbone={"width": 24, "depth": 2, "heads": 2},
        train={
            "images": 640,
            "batch": 32,
            "warmup_images": 0,
            "checkpoint_images": 320,
            "preview_images": 640,
            "log_images": 64,
        },
        sample={"steps": 2},
    )
    train(base, out, device=CPU, progress=False)
    return out
