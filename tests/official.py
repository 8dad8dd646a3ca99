"""The tiny DiT of the golden vectors: official names in official order, filled by formula.

The vectors were computed with the released code of DiT and SiT on this very model; only their
numbers stand in the tests.
"""

import torch

from ditkit.backbones import DiT, DiTConfig


def official_names(depth: int) -> list[tuple[str, str]]:
    """(official, ours), in the order of the official state dict, without its leading `pos_embed`."""
    names = [
        ("x_embedder.proj", "patches.proj"),
        ("t_embedder.mlp.0", "time.mlp.0"),
        ("t_embedder.mlp.2", "time.mlp.2"),
        ("y_embedder.embedding_table", "label"),
    ]
    for i in range(depth):
        names += [
            (f"blocks.{i}.attn.qkv", f"blocks.{i}.attention.qkv"),
            (f"blocks.{i}.attn.proj", f"blocks.{i}.attention.proj"),
            (f"blocks.{i}.mlp.fc1", f"blocks.{i}.mlp.0"),
            (f"blocks.{i}.mlp.fc2", f"blocks.{i}.mlp.2"),
            (f"blocks.{i}.adaLN_modulation.1", f"blocks.{i}.modulation.linear"),
        ]
    names += [
        ("final_layer.linear", "final.linear"),
        ("final_layer.adaLN_modulation.1", "final.modulation.linear"),
    ]
    full = []
    for official, ours in names:
        full.append((f"{official}.weight", f"{ours}.weight"))
        if ours != "label":
            full.append((f"{official}.bias", f"{ours}.bias"))
    return full


def tiny(time_scale: float = 1000.0, time_shift: float = -1.0) -> DiT:
    """Input 8, patch 2, 4 channels, width 48, depth 2, 4 heads, 10 classes, learned variance."""
    config = DiTConfig(width=48, depth=2, heads=4, patch=2, time_scale=time_scale, time_shift=time_shift)
    net = config.build(channels=4, classes=10, out_channels=8)
    parameters = dict(net.named_parameters())
    with torch.no_grad():
        for k, (_, ours) in enumerate(official_names(2), start=1):  # k = 0 is pos_embed
            j = torch.arange(parameters[ours].numel(), dtype=torch.float64)
            parameters[ours].copy_((0.05 * torch.sin(0.013 * j + 0.7 * k)).view_as(parameters[ours]))
    assert len(official_names(2)) == len(parameters)
    return net.eval()


def wave(function=torch.sin) -> torch.Tensor:
    """The golden input, (2, 4, 8, 8): sin(0.1 j), or the golden noise with cos."""
    return function(0.1 * torch.arange(2 * 4 * 8 * 8, dtype=torch.float64)).view(2, 4, 8, 8).float()


LABELS = {"label": torch.tensor([1, 10])}
