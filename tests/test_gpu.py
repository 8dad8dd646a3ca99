"""The same on a GPU as on the CPU: networks, trainings of every kind, samples, what a run is resumed from.

`make gpu-check` runs them. Without a GPU they are skipped; DITKIT_TEST_DEVICE=cpu compares the CPU with itself, which
shows that the tests work.
"""

import json
import warnings

import pytest
import torch
from conftest import CPU, FOUR_STEPS, SMALL, assert_near
from needs import GPU, needs_gpu
from trainings import TRAININGS, batch_of, small

from ditkit.adapting import adapt
from ditkit.backbones import backbone, compile_blocks
from ditkit.checkpoint import checkpoints
from ditkit.data import batches
from ditkit.device import autocast, sent
from ditkit.kernels.attention import attend, reads_runs
from ditkit.nn.packing import owners, runs
from ditkit.pipeline import load
from ditkit.recipes import recipe
from ditkit.training import train
from ditkit.training.beginning import begin
from ditkit.training.footprint import planned_reader
from ditkit.training.log import Log, read_log
from ditkit.training.step import update

pytestmark = [pytest.mark.gpu, needs_gpu]
ON_GPU = GPU.type == "cuda"
STEPS = 4
MORE = {
    "adafactor": small(train={"optimizer": "adafactor", "lr": 1e-2}),
    "clipped": small(train={"clip": 0.1}),
    "some passes": small(train={"batch": 4, "micro_batch": 3}),
    "tf32": small(train={"precision": "tf32"}),
    "bf16": small(train={"precision": "bf16"}),
    "bf16, packed": TRAININGS["packed"].replace(train={"precision": "bf16"}),
}
SHARES = {"tf32": 1e-2, "bf16": 5e-2, "bf16, packed": 5e-2}
"""By which losses may differ; float32 by 1e-3, of which rounding in another order takes a hundredth."""


@pytest.fixture(autouse=True)
def float32_is_float32():
    autocast(GPU, "fp32")
    yield
    autocast(GPU, "fp32")


@pytest.fixture
def repeatable():
    """Kernels that give the same every time, where there are such."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        yield
        torch.use_deterministic_algorithms(False)


class Trained:
    """Some steps of training as the loop takes them."""

    def __init__(self, chosen, device):
        net = adapt(chosen.build_backbone(), chosen.train).to(device).train()
        codec, read = chosen.build_codec(device), planned_reader(chosen)
        self.state, self.shared = begin(chosen, net, codec, device, read)
        self.clip, batch = chosen.train.clip, batch_of(chosen, device)
        self.batch = batch.pin_memory() if device.type == "cuda" else batch

    def step(self):
        """Its loss and the gradient's norm, where they are."""
        terms = self.shared.backward(self.batch)
        self.state.advance(self.batch.total, terms, update(self.state.optimizer, self.clip))
        return torch.stack([self.state.terms["loss"], self.state.terms["grad_norm"]])


def losses(chosen, device):
    trained = Trained(chosen, device)
    return torch.stack([trained.step() for _ in range(STEPS)]).double().cpu(), trained


@pytest.mark.parametrize("name", [*TRAININGS, *MORE])
def test_trainings_go_as_on_the_cpu(name):
    """Losses and norms of some steps, and the average after them."""
    chosen = (TRAININGS | MORE)[name]
    here, there = (losses(chosen, device) for device in (CPU, GPU))
    share = SHARES.get(name, 1e-3)
    torch.testing.assert_close(there[0], here[0], rtol=share, atol=share * float(here[0].abs().max()))
    if name not in SHARES:
        # As a whole: where a gradient is 0 but for rounding, AdamW takes a step either way.
        ours, theirs = (
            torch.cat([p.detach().cpu().flatten() for p in t.state.average.net.parameters()])
            for _, t in (here, there)
        )
        assert (theirs - ours).norm() < 1e-3 * ours.norm()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("DiT", {"width": 48, "depth": 3, "heads": 4, "patch": 2}),
        (
            "DiT",
            {
                "width": 48,
                "depth": 3,
                "heads": 4,
                "patch": 2,
                "positions": "rotary",
                "conditioning": "in_context",
            },
        ),
        ("U-DiT", {"width": 16, "heads": 2, "depth": (1, 1, 1, 1, 1)}),
        ("UNet", {"width": 32}),
    ],
    ids=str,
)
def test_networks_give_what_they_give_on_the_cpu(name, fields):
    """Outputs and gradients of networks none of whose weights are zero."""
    net = backbone(name, classes=10, channels=4, **fields).train()
    stream = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=stream)
    x, t, label = torch.randn(3, 4, 16, 16, generator=stream), torch.tensor([0.1, 0.5, 0.9]), torch.arange(3)
    found = []
    for device in (CPU, GPU):
        net = net.to(device)
        net.zero_grad()
        out = net(x.to(device), t.to(device), {"label": label.to(device)})
        (out * x.to(device)[:, : out.shape[1]]).sum().backward()
        found.append(
            [out.detach().cpu(), *(p.grad.cpu().clone() for p in net.parameters() if p.grad is not None)]
        )
    for ours, theirs in zip(*found, strict=True):
        if ours.abs().max() > 0:
            assert_near(theirs, ours, 1e-3)


@pytest.mark.parametrize("name", ["digits", "fashion"])
def test_samples_of_a_snapshot(name):
    """Pixels that differ by rounding at most."""
    made = [
        load(name, device).generate({"label": [3, 7, 1]}, seeds=[0, 1, 2], steps=8, guidance=1.5).int()
        for device in (CPU, GPU)
    ]
    assert (made[0] - made[1]).abs().max() <= 2
    assert (made[0] - made[1]).float().abs().mean() < 0.05


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_is_resumed_bit_for_bit(tmp_path, repeatable, precision):
    chosen = recipe("digits").replace(**SMALL, train=FOUR_STEPS | {"precision": precision})
    train(chosen, tmp_path / "whole", device=GPU, progress=False)
    train(chosen.replace(train={"images": 16}), tmp_path / "parts", device=GPU, progress=False)
    train(chosen, tmp_path / "parts", device=GPU, progress=False)
    hashes = []
    for run in ("whole", "parts"):
        state = json.loads((checkpoints(tmp_path / run / "checkpoints")[-1] / "state.json").read_text())
        hashes.append(state["sha256"])
    assert hashes[0] == hashes[1]
    rows = [[row["loss"] for row in read_log(tmp_path / run / "log.jsonl")] for run in ("whole", "parts")]
    assert rows[0] == rows[1]


def test_attention_in_runs_is_attention_with_a_mask():
    """Attention and its gradient in bf16: flash attention where the GPU has it."""
    lengths = [40, 100, 17, 64]
    owner = owners(lengths, GPU)
    mask = owner[:, :, None] == owner[:, None]
    begins = runs(lengths, GPU)
    stream = torch.Generator().manual_seed(0)
    parts = torch.randn(3, *mask.shape[:2], 2, 16, generator=stream).to(GPU)
    found = []
    for dtype, apart in ((torch.float32, None), (torch.bfloat16, begins)):
        q, k, v = leaves = [part.to(dtype).requires_grad_() for part in parts]
        out = attend(*(part.transpose(1, 2) for part in (q, k, v)), mask=None if apart else mask, runs=apart)
        out.float().square().sum().backward()
        found.append([out.detach().float(), *(leaf.grad.float() for leaf in leaves)])
    for exact, near in zip(*found, strict=True):
        assert (near - exact).norm() < 0.02 * exact.norm()


@pytest.mark.skipif(
    not ON_GPU or not reads_runs(GPU), reason="needs a GPU with flash attention (Ampere or later)"
)
@pytest.mark.parametrize("name", ["velocity", "rotary", "packed", "clips", "again", "lora"])
def test_flash_attention_is_reached(name):
    """In bf16 no other kernel is needed."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    trained = Trained(TRAININGS[name].replace(backbone={"width": 32}, train={"precision": "bf16"}), GPU)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]):
        trained.step()


@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA GPU")
@pytest.mark.parametrize("name", [name for name in (*TRAININGS, *MORE) if name != "adafactor"])
def test_a_step_waits_for_nothing(name, tmp_path):
    """The driver's own word on what `test_no_waiting.py` finds on a device that there is not."""
    trained, log = Trained((TRAININGS | MORE)[name], GPU), Log(tmp_path / "log.jsonl", 0, 0.0)
    trained.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trained.step()
        log.add(trained.state.terms, trained.state.taken)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trained.state.skipped.count == 0


@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA GPU")
def test_batches_are_pinned_and_the_optimiser_is_fused():
    chosen = small()
    source = chosen.data.open("train")
    (batch,) = batches(source, chosen.data, seed=0, start=0, stop=4, batch=4, pinned=True)
    assert batch.images.is_pinned()
    assert sent(batch.images, GPU).is_cuda
    trained = Trained(chosen, GPU)
    trained.step()
    assert trained.state.optimizer.defaults["fused"]
    assert all(value.is_cuda for state in trained.state.optimizer.state.values() for value in state.values())


def test_compiled_blocks_give_the_same():
    chosen = TRAININGS["velocity"]
    plain, compiled = (Trained(chosen, GPU) for _ in range(2))
    compile_blocks(compiled.state.net)
    for _ in range(3):
        ours, theirs = (trained.step().double().cpu() for trained in (plain, compiled))
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-3)
