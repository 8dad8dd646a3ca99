"""The released U-DiT's files (YuchuanTian/U-DiT): their names <-> ours.

All that a network is stands in its weights: width, depth of every stage, heads (the logit scales), classes and
channels. Known is the form of all released weights: token downsampling with its convolution and shortcut,
cosine attention, rotary positions, the MLP as it is trained.

Its 1 × 1 convolutions are linear maps here, so their weights lose or gain two axes of one.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditkit.backbones import Backbone, UDiTConfig
from ditkit.errors import InputError
from ditkit.files import save_torch
from ditkit.interop.imported import (
    LATENT_FACTOR,
    Imported,
    State,
    check_fit,
    empty_state,
    imported_recipe,
    mlp_ratio,
    shape_of,
)
from ditkit.recipe import Recipe
from ditkit.transports import Transport

LEVELS = ("encoder_level_1", "encoder_level_2", "latent", "decoder_level_2", "decoder_level_1")
# What stands between the levels in the released code's order, after the first, second, ... of them.
BETWEEN: tuple[list[tuple[str, str, bool]], ...] = (
    [("down1_2.body.0", "down.0", False)],
    [("down2_3.body.0", "down.1", False)],
    [("up3_2.body.0", "up.0", False), ("reduce_chan_level2", "join.0", True)],
    [("up2_1.body.0", "up.1", False), ("reduce_chan_level1", "join.1", True)],
    [],
)
PATCHES = "x_embedder.proj.weight"
LABELS = "y_embedder_1.embedding_table.weight"
FIRST = "encoder_level_1.0"
SCALES = f"{FIRST}.attn1.logit_scale"
HIDDEN = f"{FIRST}.mlp1.dwconv.0.weight"
LAST = "final_layer.out_proj.weight"
IMAGE = 256  # pixels, where no argument says otherwise
RELEASED = {
    name: UDiTConfig.model_fields[name].default
    for name in ("attention", "downsampler", "cosine", "rotary", "ffn", "time_scale", "time_shift")
}


def udit_names(depth: tuple[int, ...]) -> list[tuple[str, str]]:
    """(official, ours) of every parameter, in the order of the official state dict."""

    def both(official: str, ours: str) -> Iterator[tuple[str, str]]:
        for parameter in ("weight", "bias"):
            yield f"{official}.{parameter}", f"{ours}.{parameter}"

    names = [*both("x_embedder.proj", "stem")]
    for k in range(3):
        names += both(f"t_embedder_{k + 1}.mlp.0", f"time.{k}.mlp.0")
        names += both(f"t_embedder_{k + 1}.mlp.2", f"time.{k}.mlp.2")
        names.append((f"y_embedder_{k + 1}.embedding_table.weight", f"label.{k}.weight"))
    block = 0
    for level, count, between in zip(LEVELS, depth, BETWEEN, strict=True):
        for i in range(count):
            for half in (1, 2):
                names += _block_names(f"{level}.{i}", half, f"blocks.{block}")
                block += 1
        for official, ours, has_bias in between:
            names += both(official, ours) if has_bias else [(f"{official}.weight", f"{ours}.weight")]
    return [
        *names,
        *both("output", "smooth"),
        *both("final_layer.out_proj", "final"),
        *both("final_layer.adaLN_modulation.1", "modulation.linear"),
    ]


def _block_names(official: str, half: int, ours: str) -> list[tuple[str, str]]:
    attention, mlp = f"{official}.attn{half}", f"{official}.mlp{half}"
    modules = [
        (f"{attention}.to_qkv", "attention.qkv"),
        (f"{attention}.to_out", "attention.proj"),
        (f"{attention}.downsampler.layer", "attention.spread.conv"),
        (f"{mlp}.project_in.0", "mlp.into.first"),
        (f"{mlp}.project_in.1", "mlp.into.second"),
        (f"{mlp}.dwconv.0", "mlp.depthwise.five"),
        (f"{mlp}.dwconv.1", "mlp.depthwise.three"),
        (f"{mlp}.dwconv.2", "mlp.depthwise.one"),
        (f"{mlp}.project_out.0", "mlp.out.first"),
        (f"{mlp}.project_out.1", "mlp.out.second"),
        (f"{official}.adaLN_modulation{half}.1", "modulation.linear"),
    ]
    return [
        (f"{attention}.logit_scale", f"{ours}.attention.logit_scale"),
        *(
            (f"{theirs}.{parameter}", f"{ours}.{module}.{parameter}")
            for theirs, module in modules
            for parameter in ("weight", "bias")
        ),
    ]


def udit_to_ours(state: State) -> dict[str, Tensor]:
    """An official state dict under our names."""
    pointwise = ("to_out", "project_in", "project_out", "reduce_chan")
    found = {}
    for official, ours in udit_names(_depth(state)):
        value = state[official]
        linear = value.ndim == 4 and any(part in official for part in pointwise)
        found[ours] = value.flatten(1) if linear else value
    return found


def udit_to_official(state: State, depth: tuple[int, ...]) -> dict[str, Tensor]:
    """Ours under the official names, in their order."""
    convolved = ("attention.proj", "mlp.into", "mlp.out", "join")
    found = {}
    for official, ours in udit_names(depth):
        value = state[ours]
        pointwise = value.ndim == 2 and any(part in ours for part in convolved)
        found[official] = value[..., None, None] if pointwise else value
    return found


def is_udit(state: State) -> bool:
    return any(name.startswith(f"{LEVELS[0]}.") for name in state)


def _depth(state: State) -> tuple[int, ...]:
    """Blocks of each stage, from the official names; a stage that is missing has one, which then is missing."""
    parts = [name.split(".") for name in state]
    return tuple(max(1, len({p[1] for p in parts if p[0] == level and len(p) > 2})) for level in LEVELS)


def read_udit(path: Path, state: State, arguments: Mapping[str, Any]) -> Imported:
    """The network of a file's weights. InputError: names or shapes that do not fit.

    The training arguments, where a checkpoint has them, say for which images.
    """
    if f"{FIRST}.mlp1.project_in.weight" in state:
        raise InputError(
            f"{path}: these weights are fused, or of an MLP that is not re-parameterised; give the file they were "
            "fused from: released U-DiT weights are in the form for training"
        )
    lacking = [name for name in (PATCHES, LABELS, SCALES, HIDDEN, LAST) if name not in state]
    if lacking:
        raise InputError(f"{path}: no U-DiT of the released form: {', '.join(lacking)} missing")
    width, channels, _, _ = shape_of(path, state, PATCHES, 4)
    classes = shape_of(path, state, LABELS, 2)[0] - 1  # the last row is "unknown"
    outputs = shape_of(path, state, LAST, 4)[0]
    hidden = shape_of(path, state, HIDDEN, 4)[0]
    if classes < 1:
        raise InputError(
            f"{path}: a label table of {classes + 1} rows; at least a class and unknown are needed"
        )
    if outputs not in (channels, 2 * channels):
        raise InputError(
            f"{path}: {outputs} output channels for {channels} input channels; as many or twice as many are known"
        )
    values = {
        "width": width,
        "depth": _depth(state),
        "heads": shape_of(path, state, SCALES, 3)[0],
        "mlp_ratio": mlp_ratio(hidden, width),
    }
    config = UDiTConfig.checked(values, str(path))
    expected = empty_state(config, channels, classes, outputs)
    check_fit(path, state, udit_to_official(expected, config.depth))
    size = arguments.get("image_size")
    side = (size if isinstance(size, int) and size >= 64 else IMAGE) // LATENT_FACTOR
    transport = Transport(path="ddpm", predict="noise", variance="learned" if outputs > channels else "fixed")
    recipe = imported_recipe(path.stem, config, transport, classes=classes, channels=channels, side=side)
    return Imported(recipe, udit_to_ours(state), {"imported_as": "U-DiT"})


def write_udit(folder: Path, recipe: Recipe, net: Backbone, dtype: torch.dtype = torch.float32) -> Path:
    """Write `net` as a bare official state dict, FOLDER/NAME.pt; the file. InputError, before anything is
    written, for a network that the released code cannot be."""
    config, transport = recipe.backbone, recipe.transport
    assert isinstance(config, UDiTConfig)
    for name, value in RELEASED.items():
        if getattr(config, name) != value:
            raise InputError(
                f"{recipe.name}: backbone.{name} is {getattr(config, name)}; the released U-DiT's is {value}"
            )
    if not recipe.data.classes:
        raise InputError(f"{recipe.name}: the released networks have classes, this one has none")
    if (transport.path, transport.predict) != ("ddpm", "noise"):
        raise InputError(
            f"{recipe.name}: path {transport.path}, predicts {transport.predict}; the released U-DiT code knows "
            "ddpm and noise"
        )
    named = udit_to_official(net.state_dict(), config.depth)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{recipe.name if 'U-DiT' in recipe.name else f'U-DiT-{recipe.name}'}.pt"
    save_torch(file, {name: value.to(dtype).contiguous() for name, value in named.items()})
    return file
