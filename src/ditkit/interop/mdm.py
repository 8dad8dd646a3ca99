"""The released Matryoshka Diffusion files (apple/ml-mdm): their names <-> ours.

A file `vis_model*.pth` holds its weights as "state_dict". There the network of each level is wrapped in the next,
under `inner_unet.`; here outer levels stand side by side around the innermost network. Widths, depths, attention, text and conditions are read off
the shapes. What shapes do not say is that of the released networks: 8 heads, images of 64 pixels at the innermost
level, padding attended to, and normalised images in every level between the innermost and the highest.

Its 1 × 1 convolutions in attention are linear maps here, so their weights lose or gain two axes of one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditkit.backbones import Backbone, BackboneConfig, MatryoshkaConfig, MDMConfig, OuterLevel
from ditkit.backbones.sections.mdm import MDM_64
from ditkit.errors import InputError
from ditkit.files import save_torch
from ditkit.interop.imported import Imported, State, check_fit, imported_recipe, shape_of
from ditkit.layout import packing
from ditkit.recipe import Recipe
from ditkit.sampling.config import SamplingConfig
from ditkit.text import TextConfig
from ditkit.transports import Transport

WRAPPED = "inner_unet."
TIME, TEXT, STEM, IMAGE_SCALE = "temb_layer1", "lm_proj", "conv_in", "cond_layers.scale.0"
HEADS, SIZE = MDM_64.heads, 64  # of all released networks

ENCODER, LENGTH = "google/flan-t5-xl", 128  # whose longest captions they were trained with
RELEASED_SAMPLING = SamplingConfig(  # of the released demonstration
    sampler="ddim", respacing="mdm50", guidance=7.5, threshold="dynamic_if"
)

Nested = MDMConfig | MatryoshkaConfig

LEVEL = (
    (TIME, "time.0"),
    ("temb_layer2", "time.2"),
    (IMAGE_SCALE, "scale.embedding.0"),
    ("cond_layers.scale.1", "scale.embedding.2"),
    (STEM, "stem"),
    ("norm_out", "norm"),
    ("conv_out", "final"),
    ("in_adapter", "inward"),
    ("out_adapter", "outward"),
)
RESIDUAL = (
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("time_layer", "modulation"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("conv3", "shortcut"),
)
ATTENTION = (
    ("norm", "norm1"),
    ("qkv", "qkv"),
    ("norm_cond", "words.0"),
    ("kv_cond", "words.1"),
    ("proj_out", "proj"),
    ("ffn.0", "norm2"),
    ("ffn.1", "mlp.0"),
    ("ffn.3", "mlp.2"),
)
POINTWISE = (".qkv.weight", ".proj.weight", ".mlp.0.weight", ".mlp.2.weight")


def mdm_names(config: Nested) -> list[tuple[str, str]]:
    """(official, ours) of every parameter there can be; shortcuts, text and scale are not in every network.

    InputError for levels around another network than Matryoshka Diffusion's.
    """
    inner: BackboneConfig = config
    outer: tuple[OuterLevel, ...] = ()
    if isinstance(config, MatryoshkaConfig):
        inner, outer = config.inner, config.levels
    if not isinstance(inner, MDMConfig):
        raise InputError(f"a {inner.kind} with levels around it has no released names; an MDM has")
    innermost, root = len(outer), "inner." if outer else ""
    modules = []
    for i in range(innermost + 1):
        level: OuterLevel | MDMConfig = outer[i] if i < innermost else inner
        theirs, ours = WRAPPED * i, f"outer.{innermost - 1 - i}." if i < innermost else f"{root}level."
        modules += [(theirs + a, ours + b) for a, b in LEVEL]
        layers = level.attention if isinstance(level, MDMConfig) else (0,) * len(level.widths)
        for way, extra, order in (("down", 0, 1), ("up", 1, -1)):
            for j, (depth, attention) in enumerate(list(zip(level.depth, layers, strict=True))[::order]):
                stage = f"{theirs}{way}_blocks.{j}"
                for k in range(depth + extra):
                    modules += _step_names(stage, k, f"{ours}{way}.{j}.{k}", attention)
                modules.append((f"{stage}.resample", f"{ours}{way}samples.{j}"))
    theirs = WRAPPED * innermost
    for k in range(2):
        modules += _step_names(f"{theirs}mid_blocks.{k}", 0, f"{root}middle.{k}", 1 - k)
    modules += [(f"{theirs}{TEXT}", f"{root}text.tokens"), (f"{theirs}cond_emb", f"{root}text.vector")]
    return [(f"{a}.{parameter}", f"{b}.{parameter}") for a, b in modules for parameter in ("weight", "bias")]


def _step_names(stage: str, k: int, ours: str, layers: int) -> Iterator[tuple[str, str]]:
    """The modules of the k-th residual block of a stage, and of its attention."""
    for theirs, part in RESIDUAL:
        yield f"{stage}.resnets.{k}.{theirs}", f"{ours}.block.{part}"
    for layer in range(layers):
        for theirs, part in ATTENTION:
            yield f"{stage}.attn.{k * layers + layer}.{theirs}", f"{ours}.attention.{layer}.{part}"


def mdm_to_ours(state: State, config: Nested) -> dict[str, Tensor]:
    """An official state dict under our names."""
    return {
        ours: state[official].flatten(1) if ours.endswith(POINTWISE) else state[official]
        for official, ours in mdm_names(config)
        if official in state
    }


def mdm_to_official(state: State, config: Nested) -> dict[str, Tensor]:
    """Ours under the official names. A label's embedding, which the released networks have not, is left out."""
    return {
        official: state[ours][..., None, None] if ours.endswith(POINTWISE) else state[ours]
        for official, ours in mdm_names(config)
        if ours in state
    }


def is_mdm(state: State) -> bool:
    return f"{TIME}.weight" in state


def read_mdm(path: Path, state: State, *, heads: int = HEADS, size: int = SIZE) -> Imported:
    """The network of the weights of a file, `state_dict` of what it holds, and how it is used.

    `heads` of its attention and the `size` of its smallest images in pixels are not in the weights. Noise is shifted
    by the ratio of sizes for two levels, by its square for more, as in the released configurations.

    Raises InputError: names or shapes that do not fit, or parts that the released networks do not have.
    """
    if not is_mdm(state):
        raise InputError(
            f"{path}: no Matryoshka Diffusion network of the released form: {TIME}.weight missing"
        )
    prefixes = [""]
    while any(name.startswith(prefixes[-1] + WRAPPED) for name in state):
        prefixes.append(prefixes[-1] + WRAPPED)
    innermost = prefixes[-1]
    if any(name.startswith(f"{innermost}lm_head.") for name in state):
        raise InputError(f"{path}: attention layers over the text (lm_head), which no released network has")
    channels = shape_of(path, state, f"{innermost}{STEM}.weight", 4)[1]
    words, text_dim = shape_of(path, state, f"{innermost}{TEXT}.weight", 2)
    inner = _level(path, state, innermost, size)
    inner |= {
        "kind": "MDM",
        "attention": _attention(state, innermost, inner["depth"]),
        "heads": heads,
        "condition_width": shape_of(path, state, f"{innermost}{TIME}.weight", 2)[0],
        "text_width": words,
    }
    levels: list[dict[str, Any]] = []
    for prefix in reversed(prefixes[:-1]):  # from the inside: sizes grow from there
        size *= 2 ** max(0, _count(state, f"{prefix}down_blocks.") - 1)
        levels.insert(0, _level(path, state, prefix, size) | {"normalised": prefix != ""})
    config: Nested
    if levels:
        config = MatryoshkaConfig.checked({"inner": inner, "levels": levels}, str(path))
    else:
        config = MDMConfig.checked(inner, str(path))
    with torch.device("meta"):
        packed = channels * sum(packing(config.ratios, config.frame_ratios))
        expected = config.build(channels=packed, classes=0, text_dim=text_dim).state_dict()
    check_fit(path, state, mdm_to_official(expected, config))
    shift = 2.0 if len(config.ratios) > 2 else 1.0
    recipe = imported_recipe(
        path.stem,
        config,
        Transport(path="cosine", predict="v", loss="noise", level_shift=shift),
        classes=0,
        channels=channels,
        side=size,
    )
    recipe = recipe.replace(
        text=TextConfig(id=ENCODER, dim=text_dim, null="empty", length=LENGTH), sample=RELEASED_SAMPLING
    )
    return Imported(recipe, mdm_to_ours(state, config), {"imported_as": "MDM"})


def write_mdm(folder: Path, recipe: Recipe, net: Backbone, dtype: torch.dtype) -> Path:
    """Write `net` as a released file, FOLDER/vis_model_NAME.pth; the file. InputError for a network with classes or
    without a text, and one that the released code cannot be."""
    config = recipe.backbone
    assert isinstance(config, MDMConfig | MatryoshkaConfig)
    if net.classes or not net.text_dim:
        raise InputError(
            f"{recipe.name}: the released MDM networks take a text and no class, this one is not so"
        )
    state = mdm_to_official(net.state_dict(), config)
    if isinstance(config, MatryoshkaConfig) and any(level.patch > 1 for level in config.levels):
        raise InputError(
            f"{recipe.name}: the released MDM networks have levels of patch 1, this one has larger ones"
        )
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"vis_model_{recipe.name}.pth"
    weights = {name: value.to(dtype).contiguous() for name, value in state.items()}
    save_torch(file, {"state_dict": weights})
    return file


def _level(path: Path, state: State, prefix: str, size: int) -> dict[str, Any]:
    """Widths and depths, of residual blocks on the way down, of the level for images of that size."""
    level: dict[str, Any] = {"widths": [], "depth": []}
    for i in range(_count(state, f"{prefix}down_blocks.")):
        stage = f"{prefix}down_blocks.{i}"
        level["widths"].append(shape_of(path, state, f"{stage}.resnets.0.conv1.weight", 4)[0])
        level["depth"].append(_count(state, f"{stage}.resnets."))
    return level | ({"scale": size} if f"{prefix}{IMAGE_SCALE}.weight" in state else {})


def _attention(state: State, prefix: str, depth: list[int]) -> list[int]:
    """Attention layers after each residual block of each resolution."""
    return [_count(state, f"{prefix}down_blocks.{i}.attn.") // count for i, count in enumerate(depth)]


def _count(state: State, prefix: str) -> int:
    """How many modules a list of them has, by its members' names."""
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})
