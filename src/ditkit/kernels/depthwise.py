"""Depthwise convolutions of grids of tokens, and their fast form on a CPU when compiled.

The compiler's own treatment of a convolution between token-wise operations transposes every map on its way in
and out, and the weight's gradient takes ten times the forward pass in the library that it calls. So the
convolution is opaque to it, and that gradient is written as the sums it consists of, which it compiles well.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def depthwise(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """A grid of tokens (B, H, W, C) with kernels (C, 1, k, k), k odd, and bias (C,) -> the same.

    On a CPU in float32, under autocast too: the weight's gradient in bf16 takes five times as long there, the rest
    as long as in float32.
    """
    if x.device.type != "cpu":
        return _convolved(x, kernel, bias)
    with torch.autocast("cpu", enabled=False):
        if not torch.compiler.is_compiling():
            return _convolved(x.float(), kernel, bias)
        out = convolved_on_cpu(x.float(), kernel)
        return out if bias is None else out + bias


def _convolved(x: Tensor, kernel: Tensor, bias: Tensor | None = None) -> Tensor:
    padding = kernel.shape[-1] // 2
    out = F.conv2d(x.permute(0, 3, 1, 2), kernel, bias, padding=padding, groups=len(kernel))
    return out.permute(0, 2, 3, 1).contiguous()


@torch.library.custom_op("ditkit::depthwise", mutates_args=())
def convolved_on_cpu(x: Tensor, kernel: Tensor) -> Tensor:
    return _convolved(x.contiguous(), kernel)


@convolved_on_cpu.register_fake
def _(x: Tensor, kernel: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("ditkit::padded", mutates_args=())
def padded(x: Tensor, margin: int) -> Tensor:
    """Zeros around a grid (B, H, W, C). Opaque, because the compiler would ask at every product whether it is within."""
    return F.pad(x, (0, 0, margin, margin, margin, margin))


@padded.register_fake
def _(x: Tensor, margin: int) -> Tensor:
    batch, height, width, channels = x.shape
    return x.new_empty(batch, height + 2 * margin, width + 2 * margin, channels)


def _remember(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Of the map, a convolution with the kernel turned around; of each weight, a sum of products."""
    x, kernel = ctx.saved_tensors
    size = kernel.shape[-1]
    _, height, width, _ = x.shape
    around = padded(x, size // 2)
    to_kernel = [
        (around[:, row : row + height, column : column + width] * gradient).sum((0, 1, 2))
        for row in range(size)
        for column in range(size)
    ]
    to_x = convolved_on_cpu(gradient, kernel.flip(2, 3))
    return to_x, torch.stack(to_kernel, dim=-1).view_as(kernel)


convolved_on_cpu.register_autograd(_gradients, setup_context=_remember)
