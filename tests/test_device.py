"""What float32 means on a GPU, and how GPUs are called."""

import pytest
import torch

from ditkit.costs.gpus import GPUS
from ditkit.device import autocast
from ditkit.training.planning import speed_of

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def as_before():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    yield
    matmul.allow_tf32, cudnn.allow_tf32 = before


def products():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(("precision", "rounded"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_products_of_float32_are_what_the_precision_says(precision, rounded, monkeypatch):
    """Of matrices and of convolutions alike, also after the forward pass, and on a CPU untouched."""
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = not rounded, True
    autocast(torch.device("cpu"), precision)
    assert products() == (not rounded, True)
    monkeypatch.setattr("torch.autocast", lambda *_, **__: None)
    autocast(CUDA, precision)
    assert products() == (rounded, rounded)


def test_plans_of_tf32():
    assert speed_of(GPUS["a100-80"], "tf32") == GPUS["a100-80"].tf32 > speed_of(GPUS["a100-80"], "fp32")
    assert speed_of(GPUS["v100"], "tf32") == GPUS["v100"].fp32
