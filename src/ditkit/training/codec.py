"""Training an autoencoder: diffusers' `AutoencoderKL` in small, on images of one's own, for the `vae` codec.

    loss = mean |x - decode(z)| + kl · KL(q(z|x) || N(0, 1)) / pixel values,    z a sample of q(z|x)

(Kingma & Welling 2014; the weight as in Rombach et al. 2022, whose 1e-6 stands before sums over all values of an
image.) No perceptual or adversarial term: on small images outside the world of photographs, for which this is,
there is no network to ask. What comes out is a folder in diffusers' format whose latents have mean 0 and
spread 1 in every channel. How a codec is used: ditkit.codecs.vae.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ditkit import first_values
from ditkit.codecs import POSTERIOR, Vae, VaeConfig
from ditkit.codecs.identity import as_uint8, to_signed
from ditkit.codecs.vae import draw, write_autoencoder
from ditkit.config import Section
from ditkit.data import Batch, DataConfig, Source, Split, batches, in_order, workers_named
from ditkit.data.latents.source import LOGVAR, channel_means
from ditkit.device import autocast, sent
from ditkit.errors import InputError
from ditkit.evaluation import FeatureNetwork, frechet_distance, gather
from ditkit.files import owned
from ditkit.pictures import grid, save_picture
from ditkit.progress import progress_bar
from ditkit.randomness import Draws
from ditkit.recipe import Count, Recipe, Training
from ditkit.records import write_json
from ditkit.scoring.rulers import CLASSIFIER, network
from ditkit.signals import Requests
from ditkit.trackers import check_trackers
from ditkit.training.data import recorded, settled
from ditkit.training.fit import fit
from ditkit.training.hooks import CHECKPOINTS, run_hooks
from ditkit.training.run import check_run, claim_run
from ditkit.training.state import TrainState
from ditkit.training.step import make_optimizer
from ditkit.training.tracking import Tracking

log = logging.getLogger(__name__)

SETTINGS, REPORT, PICTURE = "train-codec.json", "reconstruction.json", "reconstructions.png"
COLUMNS, ROWS = 10, 3  # of the picture
NORMALISED = 2_000  # training images that the latents' mean and spread are measured on

Width = Annotated[int, Field(ge=1, le=1_000_000)]


class Architecture(Section):
    """The autoencoder: each width after the first halves the side."""

    widths: Annotated[tuple[Width, ...], Field(min_length=1)] = (32, 64, 64)
    """Channels of the levels, from the image inwards; three levels make latents of a quarter of the side."""
    channels: Width = 4
    """Channels of the latents."""
    layers: Annotated[int, Field(ge=1, le=100)] = 1
    """Residual blocks at each level of the encoder; the decoder has one more."""

    @property
    def downsampling(self) -> int:
        """Image pixels per latent pixel."""
        return 2 ** (len(self.widths) - 1)


class CodecTraining(Training):
    """The training run of an autoencoder."""

    images: Count = 300_000
    """Train until this many images have been seen."""
    batch: Count = 64
    """Images per optimiser step."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """AdamW's learning rate."""
    warmup_images: Annotated[int, Field(ge=0)] = 5_000
    """The learning rate rises linearly from 0 over this many images."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """cosine: the learning rate falls to 0 at the last image."""
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Clip the gradient's norm to this."""
    loss: Literal["l1", "mse"] = "l1"
    """The loss of the pixels, in [-1, 1]: absolute or squared differences. l1 keeps edges sharper."""
    kl: Annotated[float, Field(ge=0)] = 1e-6
    """Weight of the KL divergence, in nats per pixel value; more makes latents smoother, images blurrier."""


class CodecRecipe(Section):
    """What an autoencoder is, what it is trained on and how."""

    data: DataConfig
    codec: Architecture = Architecture()
    train: CodecTraining = CodecTraining()

    @classmethod
    def upgraded(cls, values: dict[str, Any]) -> dict[str, Any]:
        return Recipe.upgraded(values)


def train_codec(
    recipe: CodecRecipe,
    out: Path,
    *,
    device: torch.device,
    features: str | None = None,
    count: int = 2_000,
    progress: bool = True,
) -> dict[str, Any]:
    """Train an autoencoder in the folder `out`, resuming what is there, and measure it; the report.

    Signals are answered as in `train`. Leaves a folder that diffusers and `VaeConfig(id=out)` read, train-codec.json,
    log.jsonl, loss.png, checkpoints/, reconstructions.png and reconstruction.json.

    Raises:
        InputError: data that cannot be read or does not divide, a folder of other settings, a full disk, features
            that are not there.
    """
    check_trackers(recipe.train.track)
    recipe.data.check_images("train-codec")
    data = settled(recipe.data, out / SETTINGS)
    source = data.open("train")
    data = recorded(data, source)
    recipe = recipe.model_copy(update={"data": data})
    if any(side % recipe.codec.downsampling for side in data.shape[-2:]):
        raise InputError(
            f"`data.size` {data.size} is not divisible by {recipe.codec.downsampling}, to which {len(recipe.codec.widths)} "
            "`codec.widths` lead; give another size or number of widths"
        )
    model = build(recipe).to(device).train()
    ruler = _ruler(features, data, device)  # before the long work: says what is wrong with it
    check_run(recipe, out, source, SETTINGS)
    with workers_named(), owned(out), Requests(recipe.train.max_minutes).noted() as requests:
        claim_run(recipe, out, source, SETTINGS)
        state = TrainState(model, make_optimizer(model, recipe.train))
        _fit(recipe, source, out, state, requests, device, progress)
    codec = save_codec(model.eval(), recipe, out, device)
    report = measure(codec, data, ruler, count, out / PICTURE)
    facts = {"images_seen": state.images, "minutes": round(state.seconds / 60, 2)}
    write_json(out / REPORT, report | facts)
    return report | facts


def _fit(
    recipe: CodecRecipe,
    source: Source,
    out: Path,
    state: TrainState,
    requests: Requests,
    device: torch.device,
    progress: bool,
) -> None:
    """Train to the end, from the newest checkpoint if there is one."""
    config = recipe.train
    if state.load(out / CHECKPOINTS):
        log.info(f"{out}: going on after {state.images:,} of {config.images:,} images")
    stream = batches(
        source,
        recipe.data,
        seed=config.seed,
        start=state.images,
        stop=config.images,
        batch=config.batch,
        workers=config.workers,
        draws=posterior_draws(recipe),
        pinned=device.type == "cuda",
    )

    def step(batch: Batch) -> dict[str, Tensor]:
        with autocast(device, config.precision):
            terms = losses(state.net, batch, config, device)
        terms["loss"].backward()
        return terms

    with (
        progress_bar(config.images, "autoencoder", "img", initial=state.images, shown=progress) as bar,
        Tracking(out, config, out.name, recipe) as tracking,
        closing(stream),  # an error ends the loader's processes at once
    ):
        hooks = run_hooks(state, out, config, requests, bar, tracking=tracking)
        fit(state, stream, step, config, hooks=hooks)


def build(recipe: CodecRecipe):
    """diffusers' AutoencoderKL of these settings, freshly initialised from train.seed. InputError: no extra, or less memory
    than it takes."""
    try:
        from diffusers import AutoencoderKL
    except ImportError:
        raise InputError("train-codec needs diffusers: pip install 'ditkit[latent]'") from None
    widths, colours = recipe.codec.widths, recipe.data.channels
    make: Callable[..., Any] = partial(
        AutoencoderKL,
        in_channels=colours,
        out_channels=colours,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=recipe.codec.layers,
        latent_channels=recipe.codec.channels,
        norm_num_groups=math.gcd(8, *widths),
        sample_size=recipe.data.size,
    )
    return first_values.build(make, recipe.train.seed, "`codec.widths`, `codec.channels` or `codec.layers`")


def posterior_draws(recipe: CodecRecipe) -> Draws:
    """Image n's draw from its posterior, a function of (seed, n)."""
    shape = (recipe.codec.channels, *(side // recipe.codec.downsampling for side in recipe.data.shape))
    return Draws(recipe.train.seed, (POSTERIOR,), {recipe.data.shape: shape})


def losses(model, batch: Batch, config: CodecTraining, device: torch.device) -> dict[str, Tensor]:
    """Means over a batch, with its draws: "loss", its parts "pixels" and "kl", the latter in nats per pixel value."""
    images = to_signed(sent(batch.encodable, device))
    moments = model.encode(images).latent_dist.parameters.float()
    drawn = model.decode(draw(moments, sent(batch.draws["posterior"], device))).sample.float()
    mean, logvar = moments.chunk(2, dim=1)
    logvar = logvar.clamp(*LOGVAR)
    kl = (mean.square() + logvar.exp() - 1 - logvar).sum() / 2 / images.numel()
    pixels = F.l1_loss(drawn, images) if config.loss == "l1" else F.mse_loss(drawn, images)
    return {"loss": pixels + config.kl * kl, "pixels": pixels, "kl": kl}


def save_codec(model, recipe: CodecRecipe, out: Path, device: torch.device) -> Vae:
    """Write the autoencoder in diffusers' format, its latents normalised; the codec read back."""
    model.register_to_config(scaling_factor=1.0)
    with torch.no_grad():
        parts = [
            model.encode(to_signed(images.to(device))).latent_dist.parameters.cpu()
            for images, _ in in_order(recipe.data, "train", NORMALISED, batch=100)
        ]
    normalise(model, torch.cat(parts))
    write_autoencoder(model, out)
    return VaeConfig(id=str(out)).build(recipe.data.channels, device)


@torch.no_grad()
def normalise(model, moments: Tensor) -> None:
    """Give every channel of the latents mean 0 and spread 1 over images with these moments (N, 2C, h, w), in place.

    Nothing else about the autoencoder changes: the convolutions of one pixel that end the encoder and begin the
    decoder take the map and its inverse. So no channel outweighs another in the diffusion's noise, and no factors
    need to be known with the weights.
    """
    mean, square = channel_means(moments)
    std = (square - mean.square()).sqrt()
    channels = len(mean)
    ends, begins = model.quant_conv, model.post_quant_conv
    mean, std = mean.to(ends.bias), std.to(ends.bias)
    ends.bias[:channels].sub_(mean).div_(std)
    ends.weight[:channels].div_(std.reshape(-1, 1, 1, 1))
    ends.bias[channels:].sub_(2 * std.log())
    begins.bias.add_(begins.weight[:, :, 0, 0] @ mean)
    begins.weight.mul_(std.reshape(1, -1, 1, 1))


def measure(
    codec: Vae, data: DataConfig, ruler: FeatureNetwork | None, count: int, picture: Path
) -> dict[str, Any]:
    """Reconstruct at most `count` held-out images, without noise, and draw some above their reconstructions.

    PSNR is 10 log10(255² / mean squared difference) of an image, averaged over images; the Fréchet distance, in the
    features of `ruler`, is between the reconstructions and the same images. Training images stand in, and the
    report says so, where nothing is held out.
    """
    split, originals = _held_out(data, count)
    images = torch.cat([as_uint8(images) for images, _ in originals])
    again = torch.cat([codec.decode(codec.encode(part)).cpu() for part in images.split(100)])
    pairs = zip(images.split(100), again.split(100), strict=True)
    error = torch.cat(
        [(ours.double() - theirs.double()).square().mean(dim=(1, 2, 3)) for ours, theirs in pairs]
    )
    rows = [part for pair in zip(images.split(COLUMNS), again.split(COLUMNS), strict=True) for part in pair]
    save_picture(grid(torch.cat(rows[: 2 * ROWS]), COLUMNS), picture)
    report: dict[str, Any] = {
        "images": len(images),
        "split": split,
        "psnr": (10 * torch.log10(255**2 / error.clamp(min=1e-3))).mean().item(),
    }
    if ruler is not None:
        ours, theirs = (gather(((part, None) for part in some.split(100)), ruler) for some in (again, images))
        report["frechet"] = frechet_distance(ours.moments, theirs.moments)
        report["features"], report["features_hash"] = ours.network, ours.network_hash
    return report


def _held_out(data: DataConfig, count: int) -> tuple[Split, Iterator[tuple[Tensor, Tensor | None]]]:
    try:
        return "test", in_order(data, "test", count)
    except InputError:
        log.info("reconstruction: this data has no held-out part, training images are used")
        return "train", in_order(data, "train", count)


def _ruler(features: str | None, data: DataConfig, device: torch.device) -> FeatureNetwork | None:
    """The network to measure with, tried on an image of that size. When none is named the data's own classifier,
    and None where that is not to be had."""
    try:
        found = network(features or CLASSIFIER, data, device)
        found(torch.zeros(1, data.channels, *data.shape[-2:], dtype=torch.uint8, device=device))
    except InputError as error:
        if features is not None:
            raise
        log.info(f"no Fréchet distance will be measured: {error}")
        return None
    return found
