"""Linear layers by how they start: DiT's initialisation (paper, section 4, and its released code)."""

from torch import nn


def dense(fan_in: int, fan_out: int) -> nn.Linear:
    """Xavier-uniform weight, zero bias."""
    layer = nn.Linear(fan_in, fan_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def zero_dense(fan_in: int, fan_out: int) -> nn.Linear:
    """All zero: what it adds is absent until it is learned."""
    layer = nn.Linear(fan_in, fan_out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def small_dense(fan_in: int, fan_out: int) -> nn.Linear:
    """N(0, 0.02²) weight, zero bias: the time embedding's layers."""
    layer = nn.Linear(fan_in, fan_out)
    nn.init.normal_(layer.weight, std=0.02)
    nn.init.zeros_(layer.bias)
    return layer
