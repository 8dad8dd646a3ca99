"""What several tests share: a recipe that trains in a second, and a run of it; no network; what was skipped."""

import gzip
import os
import random
import tempfile
from collections import Counter
from pathlib import Path

import no_network
import pytest

# Before anything that reads them is imported, here and in the processes that tests start.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
REACHED = Path(tempfile.mkstemp(prefix="ditkit-network-")[1])
no_network.forbid_everywhere(REACHED)
CACHE = tempfile.TemporaryDirectory(prefix="ditkit-cache-")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or products on a GPU may differ from run to run
os.environ["DITKIT_CACHE"] = CACHE.name  # what tests prepare is not for the user's own cache

import numpy as np
import torch

from ditkit.recipe import Recipe
from ditkit.recipes import recipe
from ditkit.training import train

CPU = torch.device("cpu")

FOUR_STEPS = {
    "images": 32,
    "batch": 8,
    "schedule": "constant",
    "log_images": 8,
    "checkpoint_images": 16,
    "preview_images": 0,
    "validate_images": 0,
    "compile": "off",
}
"""A training of four steps, which a shorter one is the first half of."""

SMALL = {
    "backbone": {"width": 24, "depth": 2, "heads": 2},
    "sample": {"sampler": "heun", "steps": 2, "guidance": 1.5},
}


def assert_near(found, expected, share=1e-4):
    """The same but for the rounding of float32 in a deep network: to `share` of the largest value. One image in
    batches of two sizes, or with other kernels, is rounded otherwise, and every layer passes that on."""
    atol = share * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def write_idx(path: Path, values: np.ndarray, cut: int = 0) -> None:
    """uint8 values as Fashion-MNIST's files hold them, less the last `cut` bytes."""
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    path.write_bytes(gzip.compress((header + values.tobytes())[: -cut or None]))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Batches this small gain nothing from a second thread, and lose much when its core is busy. `make test-isa` asks
    for two: other sums are rounded otherwise."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory):
    """What a command writes where it is started does not land in the repository."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("elsewhere"))
    yield
    os.chdir(before)


@pytest.fixture(autouse=True)
def seeded():
    """What a test draws without a generator of its own does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_network_was_reached():
    """What was refused in another thread or process, or was caught, fails its test, too."""
    yield
    if lines := REACHED.read_text(encoding="utf-8"):
        REACHED.write_text("", encoding="utf-8")
        pytest.fail(f"a test uses no network, only this machine; this one {', '.join(lines.splitlines())}")


def pytest_unconfigure():
    REACHED.unlink(missing_ok=True)


def pytest_terminal_summary(terminalreporter):
    """What this machine lacks, and how many tests that left out."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")


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


def pytest_configure(config):
    """DITKIT_TEST_ORDER: a number, or "random" for one that is printed; the tests run in an order drawn from it."""
    order = os.environ.get("DITKIT_TEST_ORDER")
    if order and not hasattr(config, "workerinput"):
        os.environ["DITKIT_TEST_ORDER"] = str(random.randrange(10**6)) if order == "random" else order


def pytest_report_header():
    order = os.environ.get("DITKIT_TEST_ORDER")
    return f"order of the tests: DITKIT_TEST_ORDER={order}" if order else None


def pytest_collection_modifyitems(items):
    if order := os.environ.get("DITKIT_TEST_ORDER"):
        random.Random(int(order)).shuffle(items)
