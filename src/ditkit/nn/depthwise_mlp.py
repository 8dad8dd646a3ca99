"""The MLP with a depthwise convolution in its hidden layer, and its form for training (U-DiT: Tian et al.,
2024, section 3.4; re-parameterised as in RepVGG, Ding et al., 2021).

    h = GELU(W_in x + b_in),  y = W_out (K * h + b) + b_out      GELU in its exact form, K depthwise 5 × 5

Trained, each of the three maps is a product or a sum of several; fused, they are multiplied out:

    W_in = W2 W1,   K = K5 + K3 + K1 + identity (the smaller ones zero-padded),   W_out = W4 W3
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ditkit.errors import InputError
from ditkit.kernels.depthwise import depthwise
from ditkit.nn.convolutions import DepthwiseConv
from ditkit.nn.linear import dense
from ditkit.nn.low_rank import whole_weight


class DepthwiseMlp(nn.Module):
    """On a grid of tokens (B, H, W, D), `hidden` channels wide; also what `ReparameterisedMlp` is fused to."""

    into: nn.Module
    depthwise: nn.Module
    out: nn.Module

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.into, self.depthwise, self.out = self.parts(width, hidden)
        self.register_load_state_dict_pre_hook(_refuse_the_other_form)

    @staticmethod
    def parts(width: int, hidden: int) -> tuple[nn.Module, nn.Module, nn.Module]:
        return dense(width, hidden), DepthwiseConv(hidden, 5), dense(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.depthwise(F.gelu(self.into(x))))


class ReparameterisedMlp(DepthwiseMlp):
    """The same in its form for training, from which `fused` makes the other."""

    into: "DoubleLinear"
    depthwise: "ParallelDepthwise"
    out: "DoubleLinear"

    @staticmethod
    def parts(width: int, hidden: int) -> tuple[nn.Module, nn.Module, nn.Module]:
        into, out = DoubleLinear(width, hidden // 2, hidden), DoubleLinear(hidden, hidden // 2, width)
        return into, ParallelDepthwise(hidden), out

    @torch.no_grad()
    def fused(self) -> DepthwiseMlp:
        """A new module with weights of its own that computes the same with fewer products."""
        weight = self.into.first.weight
        with torch.device("meta"):  # so that no random numbers are drawn
            mlp = DepthwiseMlp(weight.shape[1], self.into.second.out_features)
        with nullcontext() if weight.is_meta else torch.autocast(weight.device.type, enabled=False):
            merged = [value for part in (self.into, self.depthwise, self.out) for value in part.merged()]
        mlp.load_state_dict(dict(zip(mlp.state_dict(), merged, strict=True)), assign=True)
        return mlp.train(self.training).requires_grad_(weight.requires_grad)


class DoubleLinear(nn.Module):
    """Two linear maps with nothing between them."""

    def __init__(self, fan_in: int, middle: int, fan_out: int):
        super().__init__()
        self.first = dense(fan_in, middle)
        self.second = dense(middle, fan_out)

    def merged(self) -> tuple[Tensor, Tensor]:
        """Their product: weight (fan_out, fan_in) and bias (fan_out,)."""
        weight = whole_weight(self.second)
        return weight @ whole_weight(self.first), weight @ self.first.bias + self.second.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class ParallelDepthwise(nn.Module):
    """Depthwise convolutions of 5 × 5, 3 × 3 and 1 × 1 beside each other and the identity: their sum.

    The kernels are added up before anything is convolved: the same function and the same gradients at
    the price of one convolution.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.five, self.three, self.one = (DepthwiseConv(channels, kernel) for kernel in (5, 3, 1))

    def merged(self) -> tuple[Tensor, Tensor]:
        """The one kernel (C, 1, 5, 5), with the identity in its middle, and the bias (C,)."""
        kernels = F.pad(self.three.weight, [1] * 4) + F.pad(self.one.weight + 1, [2] * 4)
        biases = [layer.bias for layer in (self.five, self.three, self.one) if layer.bias is not None]
        return self.five.weight + kernels, torch.stack(biases).sum(0)

    def forward(self, x: Tensor) -> Tensor:
        return depthwise(x, *self.merged())


def _refuse_the_other_form(module: nn.Module, state: dict[str, Tensor], prefix: str, *_) -> None:
    """InputError when weights of one form are loaded into the other."""
    trained = isinstance(module, ReparameterisedMlp)
    if trained and f"{prefix}into.weight" in state:
        raise InputError(
            "these weights are fused (or of a network with ffn depthwise) and this network is in its form for "
            'training; load what it was fused from, or build with ffn="depthwise"'
        )
    if not trained and f"{prefix}into.first.weight" in state:
        raise InputError(
            "these weights are in the form for training and this network is fused (or has ffn depthwise); load "
            "them into a network with ffn reparameterised and call its fused()"
        )
