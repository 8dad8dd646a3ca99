"""The names and shapes of the released DiT's and SiT's weights <-> ours."""

import torch
from torch import Tensor

from ditkit.interop.imported import State, with_parameters
from ditkit.nn.embeddings import sincos_positions
from ditkit.transports import Transport

POSITIONS = "pos_embed"
PATCHES = "x_embedder.proj.weight"
LABELS = "y_embedder.embedding_table.weight"
HIDDEN = "blocks.0.mlp.fc1.weight"
LAST = ("final.linear.weight", "final.linear.bias")


def official_names(depth: int) -> list[tuple[str, str]]:
    """(official, ours), in the order of the official state dict, without its leading `pos_embed`."""
    modules = [
        ("x_embedder.proj", "patches.proj"),
        ("t_embedder.mlp.0", "time.mlp.0"),
        ("t_embedder.mlp.2", "time.mlp.2"),
        ("y_embedder.embedding_table", "label"),
    ]
    for i in range(depth):
        modules += [
            (f"blocks.{i}.attn.qkv", f"blocks.{i}.attention.qkv"),
            (f"blocks.{i}.attn.proj", f"blocks.{i}.attention.proj"),
            (f"blocks.{i}.mlp.fc1", f"blocks.{i}.mlp.0"),
            (f"blocks.{i}.mlp.fc2", f"blocks.{i}.mlp.2"),
            (f"blocks.{i}.adaLN_modulation.1", f"blocks.{i}.modulation.linear"),
        ]
    modules += [
        ("final_layer.linear", "final.linear"),
        ("final_layer.adaLN_modulation.1", "final.modulation.linear"),
    ]
    return with_parameters(modules)


def depth_of(state: State) -> int:
    """Number of blocks, from the names of either side."""
    return len({name.split(".")[1] for name in state if name.startswith("blocks.")})


def to_ours(state: State) -> dict[str, Tensor]:
    """A DiT's official state dict under our names; the positions, which are computed, are left out."""
    return {ours: state[official] for official, ours in official_names(depth_of(state))}


def to_official(state: State, grid: int) -> dict[str, Tensor]:
    """Ours under the official names, in their order, with the positions of grid × grid tokens."""
    positions = sincos_positions(grid, grid, state["patches.proj.bias"].shape[0])[None]
    names = official_names(depth_of(state))
    return {POSITIONS: positions, **{official: state[ours] for official, ours in names}}


def sit_head(state: State, patch: int, channels: int, sign: int) -> dict[str, Tensor]:
    """The last layer with that sign and that many output channels: cut, or filled up with zeros."""
    changed = dict(state)
    for name in LAST:
        rows = sign * state[name].unflatten(0, (patch * patch, -1))[:, :channels]  # (p², C, ...)
        missing = rows.new_zeros(rows.shape[0], channels - rows.shape[1], *rows.shape[2:])
        changed[name] = torch.cat([rows, missing], dim=1).flatten(0, 1)
    return changed


def sit_sign(transport: Transport) -> int:
    """SiT's time runs the other way, which turns a velocity around; noise and score are what they are."""
    return -1 if transport.predict == "velocity" else 1
