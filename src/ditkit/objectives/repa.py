"""REPA (Yu et al., "Representation Alignment for Generation", 2024): a block learns what a frozen encoder sees in the clean image."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ditkit.backbones import Backbone
from ditkit.backbones.base import Plain
from ditkit.device import full_float32
from ditkit.errors import InputError
from ditkit.evaluation import load_features
from ditkit.nn.linear import dense
from ditkit.objectives.terms import Seen, Term

if TYPE_CHECKING:
    from ditkit.evaluation.networks.frozen import Frozen
    from ditkit.recipe import Recipe

WIDEST = 2048  # hidden layer of the paper's projector


class RepresentationAlignment(Term):
    """A block's tokens, through a projector, turn towards a frozen encoder's features at their places: minus their mean cosine."""

    def __init__(
        self,
        net: Backbone,
        *,
        weight: Annotated[float, Field(ge=0)] = 0.5,
        block: Annotated[int, Field(ge=-1)] = -1,
        encoder: str = "efficientnet",
        hidden: Annotated[int, Field(ge=0)] = 0,
        spatial: bool = False,
    ):
        """A block by number; -1: at 2/7 of the depth, as 8 of 28. `encoder` is a feature network with maps, dinov2=FOLDER for one's
        own; `hidden` of the projector's three layers, 0: four times the network's width, at most 2048. `spatial`: a convolution
        for a projector, and features normalised over places (iREPA: Singh et al., 2025). InputError without the encoder."""
        self.block = int(len(net.blocks) * 2 / 7) if block == -1 else block
        super().__init__(net, weight, (self.block,))
        assert isinstance(net, Plain)  # as every network whose blocks are alike
        self.patch, self.encoder, self.spatial = net.body_shape.patch, encoder, spatial
        width, features = net.body_shape.output_channels, encoder_of(encoder, torch.device("cpu")).maps_dim
        hidden = hidden or min(WIDEST, 4 * width)
        self.projector = (
            nn.Conv2d(width, features, 3, padding=1)
            if spatial
            else nn.Sequential(
                dense(width, hidden), nn.SiLU(), dense(hidden, hidden), nn.SiLU(), dense(hidden, features)
            )
        )

    def forward(self, seen: Seen) -> Tensor:
        grid = [side // self.patch for side in seen.x0.shape[-2:]]
        tokens = seen.captured[self.block].flatten(1, -2)  # (B, L, D)
        target = F.interpolate(self.features(seen.x0), grid, mode="bilinear", antialias=True)
        if self.spatial:
            found = self.projector(tokens.mT.unflatten(2, grid))
            spread, mean = torch.std_mean(target, (2, 3), correction=0, keepdim=True)
            target = (target - mean) / (spread + 1e-6)
        else:
            found = self.projector(tokens).mT.unflatten(2, grid)
        return -F.cosine_similarity(found.float(), target, dim=1).flatten(1).mean(1)

    @torch.no_grad()
    @full_float32()
    def features(self, x0: Tensor) -> Tensor:
        """The encoder's maps, float32 (B, D, h, w), of pixels (B, 1 or 3, H, W) in [-1, 1]."""
        encoder = encoder_of(self.encoder, x0.device)
        with torch.autocast(x0.device.type, enabled=False):
            pixels = (127.5 * (x0.float() + 1)).clamp(0, 255)
            return encoder.maps(pixels.expand(-1, 3, -1, -1)).float()

    @classmethod
    def cannot(cls, recipe: Recipe) -> str:
        data, codec = recipe.data, recipe.codec
        if not codec.pixels:
            return f"codec {codec.kind} makes latents of images, and its encoder reads pixels; give codec identity, or leave it out"
        if data.of_clips:
            return f"data {data.kind} is of clips, and its encoder reads images; leave it out"
        if data.channels not in (None, 0, 1, 3):
            return f"data.channels {data.channels}: its encoder reads grey or RGB images; leave it out"
        return ""


@lru_cache(maxsize=2)
def encoder_of(choice: str, device: torch.device) -> Frozen:
    """The encoder on a device, loaded once: it is no part of a term, which is copied and saved. InputError where there is none of
    that name, its files are not there, or it has no maps."""
    name, _, weights = choice.partition("=")
    try:
        with torch.device("cpu"):  # whatever the term is made on
            found = load_features(name, weights or None, device)
    except InputError as error:
        raise InputError(f"train.terms repa: {error}") from None
    if not found.maps_dim:
        raise InputError(
            f"train.terms repa: {name} has no maps of features; give `encoder` efficientnet, or dinov2=FOLDER"
        )
    return found
