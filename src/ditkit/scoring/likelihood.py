"""How likely a model finds real images: bits per dimension, image by image (`sampling/likelihood.py`)."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ditkit.data import Split, in_order
from ditkit.errors import InputError, NotFinite
from ditkit.pipeline import Pipeline
from ditkit.progress import progress_bar
from ditkit.randomness import RowNoise
from ditkit.sampling import time_grid
from ditkit.sampling.likelihood import LEVEL, bits_per_dim, log_likelihood, variational_bound
from ditkit.transports import DDPM_STEPS

Method = Literal["flow", "bound"]

STEPS: dict[Method, int] = {"flow": 100, "bound": DDPM_STEPS}


class Likelihoods(NamedTuple):
    """Of some images of a data set."""

    images: Tensor
    """uint8 (N, C, H, W)."""
    bits: Tensor
    """Bits per dimension (N,), float64; the lower, the likelier."""


def likelihoods(
    pipeline: Pipeline,
    count: int,
    *,
    split: Split = "test",
    method: Method = "flow",
    steps: int | None = None,
    seed: int = 0,
    batch: int = 50,
    progress: bool = False,
) -> Likelihoods:
    """Of `count` images of the model's own data, evenly spread, each with its label.

    Args:
        method: "flow", the density of the probability-flow ODE at the image with uniform noise of one 8-bit
            level added (Heun's rule, one probe an image), an upper bound of the image's own bits in expectation.
            "bound", the variational bound over the grid, which is DDPM's own number with all 1,000 steps.
        steps: of the grid, even in log SNR for flow: 100, for bound 1,000, by default.
        seed: image k takes its noise from seed + k.

    InputError behind an autoencoder, where bits per dimension mean nothing, and for data without that split; NotFinite
    where they are not finite.
    """
    if pipeline.recipe.codec.kind != "identity":
        raise InputError(
            f"{pipeline.recipe.name}: its states are latents ({pipeline.recipe.codec.kind}); bits per dimension are "
            "of pixels, take a model without an autoencoder"
        )
    if pipeline.recipe.backbone.ratios != (1,):
        raise InputError(
            f"{pipeline.recipe.name}: its states are several resolutions of an image, which follow from the highest; bits "
            "per dimension are of pixels, take a model of one"
        )
    if (bounds := pipeline.recipe.data.bounds) is not None:
        raise InputError(
            f"{pipeline.recipe.name}: its data is numbers from {bounds[0]:g} to {bounds[1]:g}; bits per dimension count the "
            "256 levels of 8-bit pixels, take a model of those"
        )
    data, steps = pipeline.recipe.data, steps or STEPS[method]
    denoise = pipeline.transport.denoiser(pipeline.network, pipeline.codec.layout(*data.shape))
    # Images of whole levels make the flow stiff near t = 0: evenly spaced times are far off there.
    grid = (
        time_grid(pipeline.transport, "ode", steps, grid="log_snr")
        if method == "flow"
        else time_grid(pipeline.transport, "jump", steps)
    )
    read = in_order(data, split, limit=count, batch=batch)
    images: list[Tensor] = []
    bits: list[Tensor] = []
    with progress_bar(count, f"likelihood, {split}", "img", shown=progress) as bar:
        for pixels, labels in read:
            first = seed + sum(len(each) for each in images)
            noise = RowNoise(range(first, first + len(pixels)))
            x0 = pipeline.codec.encode(pixels.to(pipeline.device))
            cond = {"label": labels.to(pipeline.device)} if pipeline.classes and labels is not None else {}
            if method == "flow":
                x0 = x0 + (torch.special.ndtr(noise(x0)) - 0.5) * LEVEL
                density, _ = log_likelihood(denoise, x0, grid, cond, noise=noise)
                found = bits_per_dim(density, x0[0].numel())
            else:
                with torch.no_grad():
                    found = variational_bound(denoise, x0, grid, cond, noise=noise)
            images.append(pixels)
            bits.append(found.detach().cpu().double())
            if (lost := (~bits[-1].isfinite()).nonzero()).numel():
                place = sum(map(len, images)) - len(pixels) + int(lost[0])
                raise NotFinite(
                    f"{pipeline.name}: the bits per dimension of image {place} of {split} are not finite; give more `steps`, "
                    "or take an earlier checkpoint"
                )
            bar.update(len(pixels))
    return Likelihoods(torch.cat(images), torch.cat(bits))
