"""Latent space of a diffusers autoencoder: `AutoencoderKL`, the codec of DiT and SiT on ImageNet, also for every frame
of a clip by itself, or one of clips (`AutoencoderKLCogVideoX`, `AutoencoderKLWan`), whose latent frames stand for several.

    state = (mean + std · noise - shift) · scale,    std = exp(logvar / 2)

The encoder gives the moments of a posterior, mean and logvar (Kingma & Welling 2014; as in Rombach et al. 2022);
a state is a sample of it, brought to a spread of about 1. `Vae.moments` and `Vae.sample` are the two halves: the
first needs the images and the network, the second the moments only, so that they can be kept on disk
(`ditkit encode`, ditkit.data.latents). The autoencoder is loaded when it is first needed, so that a recipe can be
built without its file. Training one on images of one's own: ditkit.training.codec.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from ditkit.codecs.base import CodecSection
from ditkit.codecs.identity import to_signed, to_uint8
from ditkit.data.latents.source import LOGVAR
from ditkit.device import Precision, autocast, sent
from ditkit.errors import InputError, NotFinite
from ditkit.files import disk_errors, first_line
from ditkit.layout import Layout, layout_of
from ditkit.lazy import torch
from ditkit.records import parse_json, written_whole

if TYPE_CHECKING:
    from torch import Tensor

STABLE_DIFFUSION = ("stabilityai/sd-vae-ft-ema", "stabilityai/sd-vae-ft-mse")

CONFIG = "config.json"

Factors = float | tuple[float, ...]


class LatentShape(NamedTuple):
    """What an autoencoder's configuration says of its latents."""

    channels: int
    downsampling: int
    """Image pixels per latent pixel."""
    frame_downsampling: int
    """Frames per latent frame, of which the first is one by itself; 0: an autoencoder of single images."""


def latent_shape(config: Any) -> LatentShape:
    """The shape of the latents by a diffusers autoencoder's configuration; KeyError where it has other keys."""
    if "z_dim" in config:  # Wan's words
        return LatentShape(config["z_dim"], config["scale_factor_spatial"], config["scale_factor_temporal"])
    downsampling = 2 ** (len(config["block_out_channels"]) - 1)
    frames = int(config.get("temporal_compression_ratio", 0))
    return LatentShape(config["latent_channels"], downsampling, frames)


def own_factors(config: Any) -> tuple[Factors, Factors]:
    """Shift and scale of an AutoencoderKL's configuration.

    diffusers: scaling_factor, about shift_factor (SD 3, Flux) or, per channel, latents_mean and latents_std.
    """
    scale = config.get("scaling_factor") or 1.0
    if config.get("latents_mean") and config.get("latents_std"):
        return tuple(config["latents_mean"]), tuple(scale / std for std in config["latents_std"])
    return config.get("shift_factor") or 0.0, scale


def draw(moments: Tensor, noise: Tensor | None) -> Tensor:
    """A latent of the posterior with these moments (B, 2C, *S): the mean, or with `noise` (B, C, *S) a sample."""
    mean, logvar = moments.chunk(2, dim=1)
    return mean if noise is None else mean + (logvar.clamp(*LOGVAR) / 2).exp() * noise


def write_autoencoder(model: Any, folder: Path) -> None:
    """diffusers' files of an autoencoder in a folder that is there, each whole or not at all, config.json last: a folder that
    has it is finished. OSError when the disk does not take them."""
    unfinished = folder / ".autoencoder.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        with disk_errors():
            model.save_pretrained(unfinished)
        for file in sorted(unfinished.iterdir(), key=lambda file: file.name == CONFIG):
            with written_whole(folder / file.name) as place:
                os.replace(file, place)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


class VaeConfig(CodecSection):
    """A pretrained autoencoder (needs the extra: pip install 'ditkit[latent]')."""

    cached: ClassVar[bool] = True
    kind: Literal["vae"] = "vae"
    id: str = STABLE_DIFFUSION[0]
    """Hugging Face id, or a local folder in diffusers' format (`ditkit train-codec` makes one)."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    scale: Factors | None = None
    """Latents are multiplied by this, so that their spread is about 1: a number, or one for each channel. None: as
    the autoencoder's own configuration has it, 0.18215 for Stable Diffusion's."""
    shift: Factors | None = None
    """Taken away before that: a number, or one for each channel. None: the autoencoder's own, mostly 0."""
    channels: Annotated[int, Field(ge=1)] | None = None
    """Channels of the latent. None: a local folder's own, otherwise 4; checked against the autoencoder."""
    downsampling: Annotated[int, Field(ge=1)] | None = None
    """Image pixels per latent pixel. None: a local folder's own, otherwise 8; checked against the autoencoder."""
    frame_downsampling: Annotated[int, Field(ge=0)] | None = None
    """Frames per latent frame of an autoencoder of clips, whose first frame is one by itself; 0: each frame is encoded
    alone. None: a local folder's own, otherwise 0; checked against the autoencoder."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Images encoded or decoded at once; 1 takes least memory."""
    tiling: bool = False
    """Encode and decode large images in overlapping tiles that are blended: less memory, other values."""
    precision: Precision = "fp32"
    """bf16 is faster where the machine has it, and rounds images and latents to about 1 in 256."""

    def build(self, image_channels: int, device: torch.device | str = "cpu") -> Vae:
        return Vae(self.resolved(), image_channels, device)

    def resolved(self) -> VaeConfig:
        """The same with what is None filled in, as far as it is known without the Hub, and a local folder by its
        whole path: a record that is read elsewhere still finds it."""
        shape, shift, scale = LatentShape(4, 8, 0), None, None
        folder = Path(self.id).absolute()
        try:
            found = parse_json((folder / CONFIG).read_bytes())
            shape = latent_shape(found)
            shift, scale = own_factors({"scaling_factor": 0.18215} | found)
        except (OSError, ValueError, KeyError, TypeError):  # elsewhere or damaged: loading it reports that
            if self.id in STABLE_DIFFUSION:
                shift, scale = 0.0, 0.18215
        known = {**shape._asdict(), "shift": shift, "scale": scale}
        chosen = self.model_dump(include=set(known), exclude_none=True)
        where = {"id": str(folder)} if folder.is_dir() else {}
        return self.model_copy(update=known | chosen | where)


class Vae:
    """Images (B, C, H, W) to latents (B, channels, H/8, W/8) and back, clips (B, C, F, H, W) to those of their
    frames; grey images become RGB where the autoencoder needs it."""

    random = True

    def __init__(self, config: VaeConfig, image_channels: int, device: torch.device | str):
        """InputError: a scale or shift for another number of channels."""
        self.config, self.image_channels, self.device = config, image_channels, torch.device(device)
        self.channels = config.channels or 4
        self.downsampling = config.downsampling or 8
        self.frame_downsampling = config.frame_downsampling or 0
        for name in ("scale", "shift"):
            factors = getattr(config, name)
            if isinstance(factors, tuple) and len(factors) not in (1, self.channels):
                raise InputError(
                    f"`codec.{name}` has {len(factors)} numbers, but the latents of {config.id} have {self.channels} "
                    f"channels; give one, or {self.channels}"
                )

    @cached_property
    def autoencoder(self):
        """diffusers' autoencoder, frozen. InputError: no extra, no such model, another shape of latents or
        number of image channels, weights that are not finite."""
        config = self.config
        try:
            from diffusers import AutoencoderKL, AutoModel
        except ImportError:
            raise InputError("`codec` vae needs diffusers: pip install 'ditkit[latent]'") from None
        try:
            # The other way of loading needs accelerate, and warns without it.
            kind = AutoModel if self.frame_downsampling else AutoencoderKL
            model = kind.from_pretrained(config.id, revision=config.revision, low_cpu_mem_usage=False)
            found = latent_shape(model.config)
        except Exception as error:  # diffusers and the Hub raise many kinds; each means "not there"
            offline = isinstance(error.__context__, FileNotFoundError)  # LocalEntryNotFoundError, in full
            reason = "neither reached on the Hub nor in its cache" if offline else first_line(error)
            raise InputError(
                f"`codec.id` {config.id}: cannot load this autoencoder ({reason}); give a local folder "
                "in diffusers' format, or check the id and the connection"
            ) from None
        if found != (self.channels, self.downsampling, self.frame_downsampling):
            raise InputError(
                f"`codec.id` {config.id} has {found.channels} latent channels at 1/{found.downsampling}; set "
                f"`codec.channels` {found.channels} `codec.downsampling` {found.downsampling} `codec.frame_downsampling` "
                f"{found.frame_downsampling}"
            )
        if model.config.in_channels not in (self.image_channels, 3 if self.image_channels == 1 else None):
            raise InputError(
                f"`codec.id` {config.id} is for images of {model.config.in_channels} channel, these have "
                f"{self.image_channels}; set `data.channels` {model.config.in_channels}"
            )
        if not all(value.isfinite().all() for value in model.state_dict().values()):
            raise NotFinite(
                f"`codec.id` {config.id}: its weights are not all finite numbers; fetch or train it again"
            )
        if config.tiling:
            if model.tile_latent_min_size % 4:  # tiles overlap by a quarter
                raise InputError(
                    f"`codec.tiling`: the tiles of {config.id} are {model.tile_latent_min_size} latent pixels wide, "
                    "which four do not divide; use `codec.tiling` False"
                )
            model.enable_tiling()
        return model.eval().requires_grad_(False).to(self.device)

    @cached_property
    def encoder_hash(self) -> str:
        """SHA-256 of the weights that encode: latents depend on nothing else, so autoencoders that differ in their
        decoders only, as Stable Diffusion's two, have one hash."""
        digest = hashlib.sha256()
        for name, value in sorted(self.autoencoder.state_dict().items()):
            if name.startswith(("encoder.", "quant_conv.")):
                digest.update(name.encode())
                digest.update(value.float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor]:
        """Shift and scale, each (1,) or (channels,)."""
        shift, scale = own_factors(self.autoencoder.config)
        shift = shift if self.config.shift is None else self.config.shift
        scale = scale if self.config.scale is None else self.config.scale
        return torch.tensor(shift).reshape(-1), torch.tensor(scale).reshape(-1)

    def save(self, folder: Path) -> None:
        """Copy an autoencoder that is a local folder, so that a snapshot can travel; one of the Hub is fetched."""
        unfinished = folder.with_name(f".{folder.name}.tmp")
        local = Path(self.config.id).is_dir()
        if local:
            unfinished.mkdir(exist_ok=True)
            write_autoencoder(self.autoencoder, unfinished)
        if folder.exists():  # of the snapshot that is written over
            shutil.rmtree(folder)
        if local:
            unfinished.rename(folder)

    def layout(self, *size: int) -> Layout:
        factor, frames = self.downsampling, self.frame_downsampling
        *length, height, width = size
        if height % factor or width % factor:
            raise InputError(
                f"images of {height}x{width} are not divisible by the autoencoder's factor {factor}; "
                f"set `data.size` to a multiple of {factor}"
            )
        if length and frames:
            if (length[0] - 1) % frames:
                raise InputError(
                    f"clips of {length[0]} frames: this autoencoder takes one and then multiples of {frames}; set "
                    f"`data.frames` {(length[0] - 1) // frames * frames + 1}"
                )
            length = [1 + (length[0] - 1) // frames]
        return layout_of(self.channels, *length, height // factor, width // factor)

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """A sample of the posterior drawn with `noise` (latent's shape); its mean without."""
        return self.sample(self.moments(images), noise)

    def moments(self, images: Tensor) -> Tensor:
        """Mean and logvar of the posterior of images (B, C, H, W) or clips, as the network gives them: float32
        (B, 2 channels, *size of the state)."""
        colours = self.autoencoder.config.in_channels

        def encode(part: Tensor) -> Tensor:
            pixels = to_signed(sent(part, self.device))
            pixels = pixels.expand(-1, colours, *pixels.shape[2:])
            return self.autoencoder.encode(pixels).latent_dist.parameters

        with torch.no_grad():
            return self._in_parts(encode, images)

    def sample(self, moments: Tensor, noise: Tensor | None = None) -> Tensor:
        """The state of a posterior's moments: a sample drawn with `noise`, or its mean, shifted and scaled."""
        latents = draw(moments, noise)
        shift, scale = self._spread(latents)
        return (latents - shift) * scale

    def values(self, state: Tensor) -> Tensor:
        shift, scale = self._spread(state)
        with torch.no_grad():
            latents = state / scale + shift
            images = self._in_parts(lambda part: self.autoencoder.decode(part).sample, latents)
        if self.image_channels == 1:
            images = images.mean(1, keepdim=True)
        return images

    def decode(self, state: Tensor) -> Tensor:
        return to_uint8(self.values(state))

    def _spread(self, latents: Tensor) -> list[Tensor]:
        """Shift and scale, broadcasting with latents."""
        return [
            sent(factor, latents.device, latents.dtype).reshape(-1, *[1] * (latents.ndim - 2))
            for factor in self._factors
        ]

    def _in_parts(self, function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        """The function of all rows, `config.batch` at a time, as float32. An autoencoder of images takes each frame of a
        clip as one, one of clips an image as a clip of one frame."""
        if rows.ndim == 5 and not self.frame_downsampling:
            frames = self._in_parts(function, rows.transpose(1, 2).flatten(0, 1))
            return frames.unflatten(0, (len(rows), -1)).transpose(1, 2)
        if rows.ndim == 4 and self.frame_downsampling:
            return self._in_parts(function, rows[:, :, None]).squeeze(2)
        with autocast(self.device, self.config.precision):
            return torch.cat([function(part).float() for part in rows.split(self.config.batch)])
