"""diffusers' `DiTTransformer2DModel` folders <-> ours, without diffusers: config.json and safetensors.

diffusers keeps the queries, keys and values apart, and a copy of the embeddings of time and label in
every block, of which a conversion's are all equal. And it reads another clock: the frequencies of its
time embedding are 10000^(-i/127), i = 0 .. 127, where the released DiT has 10000^(-i/128)
(`downscale_freq_shift=1`), also for the released weights it carries. Here a folder means what diffusers
makes of it, so that both give the same output; `kind="DiT"` reads the released clock instead.
"""

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from ditkit.backbones import Backbone, DiTConfig
from ditkit.codecs import CodecConfig, VaeConfig
from ditkit.config import Section
from ditkit.errors import InputError
from ditkit.files import save_tensors
from ditkit.interop.imported import (
    Imported,
    State,
    check_fit,
    empty_state,
    imported_recipe,
    with_parameters,
)
from ditkit.interop.official import Kind, official_kind
from ditkit.recipe import Recipe
from ditkit.records import parse_json, write_json
from ditkit.tensors import read_state
from ditkit.transports import Transport

log = logging.getLogger(__name__)

CLASS = "DiTTransformer2DModel"
# Of the time embedding: diffusers has i/127 in the exponent of its frequencies where the released code has i/128.
RELEASED_PERIOD = DiTConfig().time_period
PERIOD = RELEASED_PERIOD ** (128 / 127)
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
Count = Annotated[int, Field(ge=1)]


class NetworkConfig(Section):
    """The fields of diffusers' config.json that decide what is computed, with diffusers' defaults."""

    model_config = ConfigDict(extra="ignore")

    num_attention_heads: Count = 16
    attention_head_dim: Count = 72
    in_channels: Count = 4
    out_channels: Count | None = None
    num_layers: Count = 28
    sample_size: Count = 32
    patch_size: Count = 2
    num_embeds_ada_norm: Count = 1000
    attention_bias: Literal[True] = True
    activation_fn: Literal["gelu-approximate"] = "gelu-approximate"
    norm_type: Literal["ada_norm_zero"] = "ada_norm_zero"
    norm_elementwise_affine: Literal[False] = False
    norm_eps: Annotated[float, Field(gt=0, le=1e-5)] = 1e-5
    """Of one norm of each block. Differs: ours is 1e-6 like the released DiT's, for a change of 1e-6 here."""


class SchedulerConfig(Section):
    """What a pipeline's scheduler must be: DiT's 1,000 linear betas and noise prediction."""

    model_config = ConfigDict(extra="ignore")

    num_train_timesteps: Literal[1000] = 1000
    beta_schedule: Literal["linear"] = "linear"
    beta_start: Annotated[float, Field(ge=1e-4, le=1e-4)] = 1e-4
    beta_end: Annotated[float, Field(ge=0.02, le=0.02)] = 0.02
    prediction_type: Literal["epsilon"] = "epsilon"


# Names


def _shared(block: int) -> list[tuple[str, str]]:
    """Parameters of which every block of diffusers has a copy."""
    root = f"transformer_blocks.{block}.norm1.emb"
    return with_parameters(
        [
            (f"{root}.timestep_embedder.linear_1", "time.mlp.0"),
            (f"{root}.timestep_embedder.linear_2", "time.mlp.2"),
            (f"{root}.class_embedder.embedding_table", "label"),
        ]
    )


def _single(depth: int) -> list[tuple[str, str]]:
    """Parameters that are one to one."""
    modules = [("pos_embed.proj", "patches.proj")]
    for i in range(depth):
        modules += [
            (f"transformer_blocks.{i}.norm1.linear", f"blocks.{i}.modulation.linear"),
            (f"transformer_blocks.{i}.attn1.to_out.0", f"blocks.{i}.attention.proj"),
            (f"transformer_blocks.{i}.ff.net.0.proj", f"blocks.{i}.mlp.0"),
            (f"transformer_blocks.{i}.ff.net.2", f"blocks.{i}.mlp.2"),
        ]
    return with_parameters(
        [*modules, ("proj_out_1", "final.modulation.linear"), ("proj_out_2", "final.linear")]
    )


def _attention(depth: int) -> list[tuple[list[str], str]]:
    """Queries, keys and values of diffusers, and the one parameter they are here."""
    return [
        (
            [f"transformer_blocks.{i}.attn1.to_{part}.{name}" for part in "qkv"],
            f"blocks.{i}.attention.qkv.{name}",
        )
        for i in range(depth)
        for name in ("weight", "bias")
    ]


def to_ours(state: State, depth: int) -> dict[str, Tensor]:
    """diffusers' state dict under our names; of the embeddings, block 0's."""
    ours = {name: state[theirs] for theirs, name in (*_shared(0), *_single(depth))}
    return ours | {name: torch.cat([state[part] for part in parts]) for parts, name in _attention(depth)}


def to_diffusers(state: State, depth: int) -> dict[str, Tensor]:
    """Ours under diffusers' names, the embeddings copied into every block."""
    theirs = {name: state[ours] for name, ours in _single(depth)}
    for i in range(depth):
        theirs |= {name: state[ours] for name, ours in _shared(i)}
    for parts, ours in _attention(depth):
        theirs |= dict(zip(parts, state[ours].chunk(3), strict=True))
    return theirs


# Reading


def find_diffusers(folder: Path) -> Path | None:
    """The folder of the network in a folder of diffusers', itself or a pipeline's `transformer`."""
    for candidate in (folder, folder / "transformer"):
        config = candidate / "config.json"
        if config.is_file():
            values = _json(config)
            name, norm = values.get("_class_name"), values.get("norm_type")
            # The class's name until diffusers 0.28, which the released folders still carry.
            if name == CLASS or (name == "Transformer2DModel" and norm == "ada_norm_zero"):
                return candidate
    return None


def read_diffusers(folder: Path, transformer: Path, kind: Kind | None = None) -> Imported:
    """The network in `transformer`, with the autoencoder beside it where `folder` is a whole pipeline.

    Raises InputError: a network, a scheduler or weights of another kind, or embeddings that differ from
    block to block.
    """
    if kind == "SiT":
        raise InputError(f"{folder}: `kind` SiT is not among diffusers' networks; leave it out")
    config = NetworkConfig.checked(_json(transformer / "config.json"), str(transformer / "config.json"))
    scheduler = folder / "scheduler" / "scheduler_config.json"
    if scheduler.is_file():
        SchedulerConfig.checked(_json(scheduler), str(scheduler))
    channels, outputs = config.in_channels, config.out_channels or config.in_channels
    if outputs not in (channels, 2 * channels):
        raise InputError(
            f"{transformer}: {outputs} output channels for {channels} input channels; "
            "as many or twice as many are known"
        )
    backbone = DiTConfig.checked(
        {
            "width": config.num_attention_heads * config.attention_head_dim,
            "depth": config.num_layers,
            "heads": config.num_attention_heads,
            "patch": config.patch_size,
            "time_period": RELEASED_PERIOD if kind else PERIOD,
        },
        str(transformer / "config.json"),
    )
    file = next((transformer / name for name in WEIGHTS if (transformer / name).is_file()), None)
    if file is None:
        raise InputError(f"{transformer}: neither {' nor '.join(WEIGHTS)} is there")
    state = read_state(file)
    empty = empty_state(backbone, channels, config.num_embeds_ada_norm, outputs)
    check_fit(file, state, to_diffusers(empty, config.num_layers))
    _check_shared(file, state, config.num_layers)
    weights = {name: value.float() for name, value in to_ours(state, config.num_layers).items()}
    recipe = imported_recipe(
        folder.name if folder.name != "transformer" else folder.absolute().parent.name,
        backbone,
        Transport(path="ddpm", predict="noise", variance="learned" if outputs > channels else "fixed"),
        classes=config.num_embeds_ada_norm,
        channels=channels,
        side=config.sample_size,
        codec=_autoencoder(folder, channels),
    )
    return Imported(recipe, weights, {"imported_as": "DiT"})


def _json(file: Path) -> dict[str, Any]:
    try:
        values = parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as JSON ({error})") from None
    return values if isinstance(values, dict) else {}


def _check_shared(file: Path, state: State, depth: int) -> None:
    for i in range(1, depth):
        for (first, _), (name, _) in zip(_shared(0), _shared(i), strict=True):
            if not torch.equal(state[first], state[name]):
                raise InputError(
                    f"{file}: {name} differs from that of block 0; here, as in the released DiT, all blocks "
                    "share one embedding of time and label"
                )


def _autoencoder(folder: Path, channels: int) -> CodecConfig | None:
    """The pipeline's own, by its folder."""
    config = folder / "vae" / "config.json"
    if not config.is_file():
        return None
    scale = _json(config).get("scaling_factor", VaeConfig().scale)
    values = {"id": str(config.parent.resolve()), "scale": scale, "channels": channels}
    return VaeConfig.checked(values, str(config))


# Writing


def write_diffusers(folder: Path, recipe: Recipe, net: Backbone, dtype: torch.dtype = torch.float32) -> Path:
    """Write `net` as a folder for `DiTTransformer2DModel.from_pretrained`; the file of weights.

    A warning says so when the network's clock is not diffusers', whose output then differs from ours.
    InputError, before anything is written, for a network that diffusers' class cannot be.
    """
    config = recipe.backbone
    if official_kind(recipe) != "DiT" or not isinstance(config, DiTConfig):
        raise InputError(
            f"{recipe.name}: diffusers' {CLASS} reads DiT's clock, not SiT's; give `to` official"
        )
    if config.mlp_ratio != 4:
        raise InputError(f"{recipe.name}: diffusers' {CLASS} has an mlp_ratio of 4, not {config.mlp_ratio:g}")
    if config.time_period != PERIOD:
        log.warning(
            f"{folder}: diffusers reads the time with frequencies 10000^(-i/127), this network with "
            "10000^(-i/128) like the released DiT: the outputs differ there, as they do for diffusers' own "
            "conversion of the released weights"
        )
    channels, side, _ = recipe.build_codec().layout(*recipe.data.shape).shape
    values = NetworkConfig(
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        in_channels=channels,
        out_channels=2 * channels if recipe.transport.variance == "learned" else channels,
        num_layers=config.depth,
        sample_size=side,
        patch_size=config.patch,
        num_embeds_ada_norm=recipe.data.classes or 0,
        norm_eps=1e-6,
    )
    state = to_diffusers(net.state_dict(), config.depth)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / WEIGHTS[0]
    # Cloned: safetensors refuses names that share memory, and the blocks' embeddings do.
    save_tensors(
        file, {name: value.to("cpu", dtype, copy=True) for name, value in state.items()}, {"format": "pt"}
    )
    write_json(folder / "config.json", {"_class_name": CLASS, **values.model_dump()})
    return file
