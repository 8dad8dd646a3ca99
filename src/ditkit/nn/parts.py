"""What blocks are made of besides their conditioning: choices that sections and networks share."""

from typing import Literal, NamedTuple

Norm = Literal["layer", "rms"]
MlpKind = Literal["gelu", "swiglu", "depthwise"]


class Parts(NamedTuple):
    """How the norms, the attention and the MLP of a block are made; by default as in the papers of DiT and SiT."""

    norm: Norm = "layer"
    qk_norm: bool = False
    mlp: MlpKind = "gelu"
    values: Literal["own", "first", "mixed"] = "own"
    """Whose values attention has: the block's own; its own, which are kept for later blocks; or a mix of its own and those that
    were kept."""


PLAIN = Parts()
