"""What float32 means on a GPU, and how GPUs are called."""

import pytest
import torch

from ditkit.costs.gpus import GPUS
from ditkit.device import STAGED, autocast, sent

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


class Elsewhere:
    """A tensor of a machine with a GPU."""

    dtype = torch.float32

    def __init__(self, nbytes, pinned=False, device="cpu"):
        self.nbytes, self.pinned, self.device = nbytes, pinned, torch.device(device)

    def is_pinned(self):
        return self.pinned

    def pin_memory(self):
        return Elsewhere(self.nbytes, True)

    def to(self, device, dtype, non_blocking):
        return self.pinned, non_blocking


@pytest.mark.parametrize(
    ("tensor", "device", "expected"),
    [
        (Elsewhere(STAGED + 1), CUDA, (True, True)),
        (Elsewhere(STAGED), CUDA, (False, True)),
        (Elsewhere(STAGED + 1, True), CUDA, (True, True)),
        (Elsewhere(STAGED + 1, device="cuda"), CUDA, (False, True)),
        (Elsewhere(STAGED + 1), torch.device("cpu"), (False, False)),
    ],
)
def test_what_is_sent_to_a_gpu_is_sent_from_pinned_memory(tensor, device, expected):
    assert sent(tensor, device) == expected


def test_plans_of_tf32():
    assert GPUS["a100-80"].products("tf32") == GPUS["a100-80"].tf32 > GPUS["a100-80"].products("fp32")
    assert GPUS["v100"].products("tf32") == GPUS["v100"].fp32
