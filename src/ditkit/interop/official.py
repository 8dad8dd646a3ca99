"""The released DiT's and SiT's files (facebookresearch/DiT, willisma/SiT): their names <-> ours.

A file is a bare state dict, or a training checkpoint with `ema`, `model`, `opt` and `args`. Both families
have one set of names and shapes; they differ in what the network reads and in what its output means:

    DiT  reads the index i, t = (i + 1)/1000; predicts noise and, in as many channels again, the variance
    SiT  reads its own time 1 - t; predicts data - noise, minus our velocity; channels beyond those of the
         state are computed and thrown away by its code

So a SiT's last layer changes sign, and its unused half is left out (zeros, when written). Reading the
file itself is tensors.py's affair, a U-DiT's names udit.py's.
"""

import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ditkit.backbones import Backbone, DiTConfig, MatryoshkaConfig, MDMConfig, UDiTConfig
from ditkit.backbones.sections.dit import DIT_SIZES, SIT_SIZES
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
from ditkit.interop.mdm import is_mdm, read_mdm, write_mdm
from ditkit.interop.official_names import (
    HIDDEN,
    LABELS,
    PATCHES,
    POSITIONS,
    depth_of,
    sit_head,
    sit_sign,
    to_official,
    to_ours,
)
from ditkit.interop.udit import is_udit, read_udit, write_udit
from ditkit.nn.embeddings import sincos_positions
from ditkit.recipe import Recipe
from ditkit.tensors import Placeholder, read_tensors
from ditkit.transports import Transport

log = logging.getLogger(__name__)

Kind = Literal["DiT", "SiT"]

HEADS = {config.width: config.heads for config in DIT_SIZES.values()}
CLOCKS: dict[str, tuple[float, float]] = {
    kind: (config.time_scale, config.time_shift)
    for kind, config in (("DiT", DIT_SIZES["DiT-XL/2"]), ("SiT", SIT_SIZES["SiT-XL/2"]))
}
DRIFT = 1e-4  # the released training averages the fixed positions too, which rounds them a little
AVERAGES, OTHERS = (
    ("ema", "ema_model", "model_ema"),
    ("model", "state_dict"),
)  # parts of a file that are weights
WRAPPERS = (
    "_orig_mod.",
    "_checkpoint_wrapped_module.",
    "_fsdp_wrapped_module.",
)  # of torch, anywhere in a name
IMAGE = 256  # pixels, where neither positions nor arguments say


# Reading


def read_official(path: Path, kind: Kind | None = None, heads: int | None = None) -> Imported:
    """The moving average of an official file, or what weights it has.

    Args:
        kind: DiT or SiT, where neither the file's name nor its training arguments say so.
        heads: attention heads, where the width is none of the released sizes: weights do not show them.

    Raises InputError: damaged, another architecture, names that do not fit, kind or heads unknown.
    """
    content = read_tensors(path)
    state = _weights(path, content)
    if is_udit(state):
        if kind is not None or heads is not None:
            raise InputError(f"{path}: a U-DiT, whose weights say all; leave out `kind` and `heads`")
        return read_udit(path, state, _arguments(content))
    if is_mdm(state):
        if kind is not None:
            raise InputError(f"{path}: a network of Matryoshka Diffusion; leave out `kind`")
        return read_mdm(path, state, **({} if heads is None else {"heads": heads}))
    lacking = [name for name in (PATCHES, LABELS, HIDDEN) if name not in state]
    if lacking:
        raise InputError(
            f"{path}: no DiT, SiT, U-DiT or MDM under the released names: {', '.join(lacking)} missing; it holds "
            f"{', '.join(list(state)[:3]) or 'nothing'}"
        )
    width, channels, patch, _ = shape_of(path, state, PATCHES, 4)
    classes = shape_of(path, state, LABELS, 2)[0] - 1  # the last row is "unknown"
    outputs = shape_of(path, state, "final_layer.linear.weight", 2)[0] // patch**2
    if POSITIONS not in state:
        state[POSITIONS] = _missing_positions(path, _arguments(content), width, patch)
    grid = math.isqrt(shape_of(path, state, POSITIONS, 3)[1])
    ratio = mlp_ratio(shape_of(path, state, HIDDEN, 2)[0], width)
    shape = {"width": width, "depth": depth_of(state), "patch": patch, "mlp_ratio": ratio}
    if classes < 1:
        raise InputError(
            f"{path}: a label table of {classes + 1} rows; at least a class and unknown are needed"
        )
    if outputs not in (channels, 2 * channels):
        raise InputError(
            f"{path}: {outputs} output channels for {channels} input channels; as many or twice as many are known"
        )
    any_heads = DiTConfig.checked({**shape, "heads": 1}, str(path))
    check_fit(path, state, to_official(empty_state(any_heads, channels, classes, outputs), grid))
    _check_positions(path, state[POSITIONS], grid)
    # Only now what the weights do not say: a file that does not fit needs no answers.
    arguments = _arguments(content)
    kind = kind or _kind(path, arguments)
    scale, shift = CLOCKS[kind]
    unstored = {"heads": heads or _heads(path, width), "time_scale": scale, "time_shift": shift}
    config = DiTConfig.checked({**shape, **unstored}, str(path))
    weights = to_ours(state)
    if kind == "DiT":
        transport = Transport(
            path="ddpm", predict="noise", variance="learned" if outputs > channels else "fixed"
        )
    else:
        transport = _sit_transport(path, arguments)
        weights = sit_head(weights, patch, channels, sit_sign(transport))
    recipe = imported_recipe(
        path.stem, config, transport, classes=classes, channels=channels, side=grid * patch
    )
    return Imported(recipe, weights, {"imported_as": kind})


def _weights(path: Path, content: Any) -> dict[str, Tensor]:
    """Named tensors in float32: of a part of the file that holds a moving average, else of one that holds weights, else
    of the file itself. What wrappers put into names is removed."""
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds {_described(content)}, not named tensors")
    parts = (content[part] for part in (*AVERAGES, *OTHERS) if isinstance(content.get(part), dict))
    chosen = next(parts, content)
    state = {}
    for name, value in chosen.items():
        plain = str(name)
        for wrapper in WRAPPERS:
            plain = plain.replace(wrapper, "")
        if not isinstance(value, Tensor):
            raise InputError(
                f"{path}: among the weights, {name} is {_described(value)}, not a tensor; refused"
            )
        state[re.sub(r"^(module\.)+", "", plain)] = value.float()
    for prefix in (*AVERAGES, *OTHERS):  # of a module that holds the network and its average
        inside = {
            name.removeprefix(f"{prefix}.").removeprefix("module."): value
            for name, value in state.items()
            if name.startswith(f"{prefix}.")
        }
        if inside:
            return inside
    return state


def _missing_positions(path: Path, arguments: Mapping[str, Any], width: int, patch: int) -> Tensor:
    """The table of positions (1, tokens, width), which is computed, for the images that the arguments name."""
    size = arguments.get("image_size")
    grid = (size if isinstance(size, int) and size >= 64 else IMAGE) // LATENT_FACTOR // patch
    log.info(f"{path}: no {POSITIONS}, which is computed: for {grid} x {grid} tokens")
    return sincos_positions(grid, grid, width)[None]


def _described(value: Any) -> str:
    return (
        f"a placeholder of {value.origin}" if isinstance(value, Placeholder) else f"a {type(value).__name__}"
    )


def _arguments(content: dict) -> Mapping[str, Any]:
    """The plain values of the training script's arguments, where a checkpoint carries them."""
    arguments = content.get("args")
    values = arguments.state if isinstance(arguments, Placeholder) else arguments
    return values if isinstance(values, dict) else {}


def _kind(path: Path, arguments: Mapping[str, Any]) -> Kind:
    for name in (path.name, str(arguments.get("model", ""))):
        if ("DiT" in name) != ("SiT" in name):
            return "DiT" if "DiT" in name else "SiT"
    raise InputError(
        f"{path}: DiT or SiT? Their weights look alike and the file's name does not say; "
        "give `kind` DiT or SiT"
    )


def _heads(path: Path, width: int) -> int:
    if width not in HEADS:
        raise InputError(
            f"{path}: how many attention heads? Weights of width {width}, which is no released size, do not "
            "show it; give `heads` N"
        )
    return HEADS[width]


def _check_positions(path: Path, found: Tensor, grid: int) -> None:
    expected = sincos_positions(grid, grid, found.shape[-1])
    error = (found[0] - expected).abs().max().item()
    exact = (kind for kind in (torch.bfloat16, torch.float16) if torch.equal(found.to(kind).float(), found))
    half = next(exact, None)  # in which precision the file was written; a table of 0 and 1 is exact in each
    if not error < DRIFT + (torch.finfo(half).eps if half else 0):
        raise InputError(
            f"{path}: {POSITIONS} is not the fixed sin-cos table (it differs by {error:.3g}); "
            "learned positions are not known here"
        )


def _sit_transport(path: Path, arguments: Mapping[str, Any]) -> Transport:
    """As the training arguments say; the released weights, which carry none, are Linear and velocity."""
    predict = str(arguments.get("prediction", "velocity"))
    values = {"path": str(arguments.get("path_type", "Linear")).lower(), "predict": predict}
    if predict != "velocity":  # whose loss their code does not weight, whatever its arguments say
        values["weighting"] = str(arguments.get("loss_weight")).lower()
    return Transport.recorded(values, f"{path}: its training arguments")


# Writing


def write_official(folder: Path, recipe: Recipe, net: Backbone, dtype: torch.dtype = torch.float32) -> Path:
    """Write `net` as a bare official state dict, FOLDER/NAME.pt; the file.

    InputError, before anything is written, for a network that the released code cannot be.
    """
    if isinstance(recipe.backbone, UDiTConfig):
        return write_udit(folder, recipe, net, dtype)
    if isinstance(recipe.backbone, MDMConfig | MatryoshkaConfig):
        return write_mdm(folder, recipe, net, dtype)
    kind = official_kind(recipe)
    config = recipe.backbone
    assert isinstance(config, DiTConfig)  # official_kind has seen to it
    channels, side, _ = recipe.build_codec().layout(*recipe.data.shape).shape
    state: State = net.state_dict()
    if kind == "SiT":
        state = sit_head(state, config.patch, 2 * channels, sit_sign(recipe.transport))
    if config.time_period != DIT_SIZES["DiT-XL/2"].time_period:
        log.warning(f"{folder}: this network reads diffusers' clock; the released code's output will differ")
    named = to_official(state, side // config.patch)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{recipe.name if kind in recipe.name else f'{kind}-{recipe.name}'}.pt"
    save_torch(file, {name: value.to(dtype).contiguous() for name, value in named.items()})
    return file


def official_kind(recipe: Recipe) -> Kind:
    """Which released network a recipe's is; InputError when it is neither."""
    config, transport = recipe.backbone, recipe.transport
    if not isinstance(config, DiTConfig) or config.conditioning != "adaln_zero":
        raise InputError(f"{recipe.name}: only a DiT with adaLN-Zero has released names, not this backbone")
    if config.tubelet or config.positions != "sincos" or config.size_embedding:
        raise InputError(
            f"{recipe.name}: the released networks are of images, with added positions and without a size embedding"
        )
    for field, value in config.ingredients.items():
        raise InputError(f"{recipe.name}: no block of the released networks has backbone.{field} {value}")
    if not recipe.data.classes:
        raise InputError(f"{recipe.name}: the released networks have classes, this one has none")
    clock = (config.time_scale, config.time_shift)
    if clock == CLOCKS["DiT"] and (transport.path, transport.predict) == ("ddpm", "noise"):
        return "DiT"
    if (
        clock == CLOCKS["SiT"]
        and transport.path != "ddpm"
        and transport.predict in ("velocity", "noise", "score")
    ):
        return "SiT"
    raise InputError(
        f"{recipe.name}: reads the time {clock[0]:g} t + {clock[1]:g}, path {transport.path}, predicts "
        f"{transport.predict}; the released codes know 1000 t - 1 with ddpm and noise (DiT), and 1 - t with "
        "linear, gvp or vp and velocity, noise or score (SiT)"
    )
