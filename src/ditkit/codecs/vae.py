"""Latent space of a diffusers `AutoencoderKL`: the codec of DiT and SiT on ImageNet.

The state is a sample of the encoder's posterior times `scale`; decoding divides by it. The
autoencoder is loaded when it is first needed, so that a recipe can be built without its file.
"""

from functools import cached_property
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ditkit.codecs.identity import to_signed, to_uint8
from ditkit.config import Section
from ditkit.errors import InputError
from ditkit.transports import Layout


class VaeConfig(Section):
    """A pretrained autoencoder (needs the extra: pip install 'ditkit[latent]')."""

    kind: Literal["vae"] = "vae"
    id: str = "stabilityai/sd-vae-ft-ema"
    """Hugging Face id, or a local folder in diffusers' format."""
    scale: float = 0.18215
    """Latents are multiplied by this, so that their spread is about 1."""
    channels: Annotated[int, Field(ge=1)] = 4
    """Channels of the latent; checked against the autoencoder."""
    downsampling: Annotated[int, Field(ge=1)] = 8
    """Image pixels per latent pixel; checked against the autoencoder."""

    def build(self, image_channels: int, device: torch.device | str = "cpu") -> "Vae":
        return Vae(self, image_channels, device)


class Vae:
    """Images uint8 (B, C, H, W) to latents (B, channels, H/8, W/8) and back; grey images become RGB."""

    random = True

    def __init__(self, config: VaeConfig, image_channels: int, device: torch.device | str):
        self.config, self.image_channels, self.device = config, image_channels, device
        self.channels = config.channels

    @cached_property
    def autoencoder(self):
        """diffusers' AutoencoderKL, frozen. InputError: no extra, no such model, another latent shape."""
        config = self.config
        try:
            from diffusers import AutoencoderKL
        except ImportError:
            raise InputError("--codec vae needs diffusers: pip install 'ditkit[latent]'") from None
        try:
            # The other way of loading needs accelerate, and warns without it.
            model = AutoencoderKL.from_pretrained(config.id, low_cpu_mem_usage=False)
        except Exception as error:  # diffusers and the Hub raise many kinds; each means "not there"
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"--codec.id {config.id}: cannot load this autoencoder ({reason}); give a local folder "
                "in diffusers' format, or check the id and the connection"
            ) from None
        found = (model.config.latent_channels, 2 ** (len(model.config.block_out_channels) - 1))
        if found != (config.channels, config.downsampling):
            raise InputError(
                f"--codec.id {config.id} has {found[0]} latent channels at 1/{found[1]}; set "
                f"--codec.channels {found[0]} --codec.downsampling {found[1]}"
            )
        return model.eval().requires_grad_(False).to(self.device)

    def layout(self, height: int, width: int) -> Layout:
        factor = self.config.downsampling
        if height % factor or width % factor:
            raise InputError(
                f"images of {height}x{width} are not divisible by the autoencoder's factor {factor}; "
                f"set --data.size to a multiple of {factor}"
            )
        return Layout((self.channels, height // factor, width // factor))

    @torch.no_grad()
    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """A sample of the posterior drawn with `noise` (latent's shape); its mean without."""
        images = to_signed(images).expand(-1, self.autoencoder.config.in_channels, -1, -1)
        posterior = self.autoencoder.encode(images.to(self.device)).latent_dist
        latent = posterior.mean if noise is None else posterior.mean + posterior.std * noise
        return latent * self.config.scale

    @torch.no_grad()
    def decode(self, state: Tensor) -> Tensor:
        images = self.autoencoder.decode(state / self.config.scale).sample
        if self.image_channels == 1:
            images = images.mean(1, keepdim=True)
        return to_uint8(images)
