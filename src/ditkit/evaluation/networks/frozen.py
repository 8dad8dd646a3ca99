"""What every feature network shares: it is frozen, reads any uint8 image and names its weights by hash.

A network is a subclass that says how it resizes, scales and reads in `read`; `forward` is the same for
all. Which networks there are: `__init__.py`.
"""

from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditkit.device import full_float32
from ditkit.evaluation.networks.features import Features, check_images

Network = TypeVar("Network", bound="Frozen")


class Frozen(nn.Module):
    """A `FeatureNetwork`: uint8 images (N, C, H, W) -> `Features`, always in eval mode, no gradients."""

    name: str
    hash: str
    dim: int
    resize: str
    classes: int | None = None
    maps_dim: int = 0
    """Channels of `maps`; 0 where it has none."""

    def maps(self, pixels: Tensor) -> Tensor:
        """Features at their places, (N, maps_dim, h, w), of pixels as those of `read`."""
        raise NotImplementedError

    def read(self, pixels: Tensor) -> Features:
        """Features of RGB pixels (N, 3, H, W), floats of 0 to 255 in the network's own dtype and device."""
        raise NotImplementedError

    @torch.no_grad()
    @full_float32()
    def forward(self, images: Tensor) -> Features:
        """float32 on the CPU; grey images become RGB. InputError when they are not uint8 (N, 1 or 3, H, W)."""
        check_images(images)
        weight = next(self.parameters())
        with torch.autocast(weight.device.type, enabled=False):
            found = self.read(images.to(weight.device).to(weight.dtype).expand(-1, 3, -1, -1))
        return Features(found.pooled.float().cpu(), _plain(found.logits), _plain(found.spatial))

    def freeze(self: Network, hash: str) -> Network:
        """Called once, when the weights are in: eval mode for good, and the hash of their file."""
        self.hash = hash
        nn.Module.train(self, False)
        return self.requires_grad_(False)

    def train(self: Network, mode: bool = True) -> Network:
        """Nothing: a ruler has no modes."""
        return self


def convolved(
    x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, padding: tuple[int, int] | None = None
) -> Tensor:
    """A convolution without bias and the batch norm after it, by its stored statistics, as one convolution: the norm's scale
    and shift are put into the weights, which are few beside the maps. `padding` in place of the convolution's own."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight, bias = torch.nn.utils.fuse_conv_bn_weights(
        conv.weight, None, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    beside = conv.padding if padding is None else padding
    return F.conv2d(x, weight, bias, conv.stride, beside, conv.dilation, conv.groups)


def _plain(part: Tensor | None) -> Tensor | None:
    return None if part is None else part.float().cpu()
