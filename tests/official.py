"""The tiny DiT of the golden vectors: official names in official order, filled by formula.

The vectors were computed with the released code of DiT and SiT on this very model; only their
numbers stand in the tests.
"""

import torch

from ditkit.backbones import DiT, DiTConfig
from ditkit.interop.official_names import official_names
from ditkit.nn.embeddings import sincos_positions


def fill(k: int, shape: torch.Size) -> torch.Tensor:
    """The values of tensor k of the official state dict."""
    j = torch.arange(shape.numel(), dtype=torch.float64)
    return (0.05 * torch.sin(0.013 * j + 0.7 * k)).view(shape).float()


def tiny(time_scale: float = 1000.0, time_shift: float = -1.0) -> DiT:
    """Input 8, patch 2, 4 channels, width 48, depth 2, 4 heads, 10 classes, learned variance."""
    config = DiTConfig(width=48, depth=2, heads=4, patch=2, time_scale=time_scale, time_shift=time_shift)
    net = config.build(channels=4, classes=10, out_channels=8)
    shapes = {ours: value.shape for ours, value in net.state_dict().items()}
    names = enumerate(official_names(2), start=1)  # k = 0 is pos_embed
    net.load_state_dict({ours: fill(k, shapes[ours]) for k, (_, ours) in names})
    return net.eval()


def tiny_official() -> dict[str, torch.Tensor]:
    """The same as an official state dict, in its order."""
    ours = tiny().state_dict()
    state = {official: ours[name] for official, name in official_names(2)}
    return {"pos_embed": sincos_positions(4, 4, 48)[None], **state}


def wave(function=torch.sin) -> torch.Tensor:
    """The golden input, (2, 4, 8, 8): sin(0.1 j), or the golden noise with cos."""
    return function(0.1 * torch.arange(2 * 4 * 8 * 8, dtype=torch.float64)).view(2, 4, 8, 8).float()


LABELS = {"label": torch.tensor([1, 10])}
