"""Clip art of 64 × 64 pixels on a CPU: by subject, by caption, in latents and at several resolutions."""

from ditkit.backbones import DiTConfig, MatryoshkaConfig, OuterLevel
from ditkit.codecs import VaeConfig
from ditkit.data import Clipart
from ditkit.recipe import Recipe, TrainConfig
from ditkit.sampling.config import SamplingConfig
from ditkit.text import TextConfig
from ditkit.transports import Transport

TRAIN = TrainConfig(
    images=120_000,
    batch=64,
    lr=1e-3,
    warmup_images=5_000,
    schedule="cosine",
    clip=1.0,
    ema_half_life_images=10_000,
    ema_rampup=0.05,
    log_images=5_000,
    preview_images=20_000,
    validate_images=20_000,
    checkpoint_images=20_000,
)
SAMPLE = SamplingConfig(sampler="ab2", steps=25, guidance=2.0)


def clipart() -> Recipe:
    """A DiT in patches of 4 pixels, 256 tokens, conditioned on the subject; linear path, velocity.

    Command: ditkit train clipart. Cost: not measured yet.
    """
    return Recipe(
        name="clipart",
        data=Clipart(),
        backbone=DiTConfig(width=192, depth=6, heads=3, patch=4),
        transport=Transport(path="linear", predict="velocity"),
        train=TRAIN,
        sample=SAMPLE,
    )


def clipart_t2i() -> Recipe:
    """A DiT that attends to MiniLM's tokens of a caption, 32 × 32 pixels, as `emoji-t2i`.

    Command: ditkit train clipart-t2i. Cost: not measured yet.
    """
    return clipart().replace(
        name="clipart-t2i",
        data={"size": 32},
        text=TextConfig(length=24),
        backbone={"label": False, "text": "cross_attention", "text_pooled": True},
        train={
            "images": 400_000,
            "ema_half_life_images": 20_000,
            "preview_images": 100_000,
            "validate_images": 50_000,
            "checkpoint_images": 50_000,
        },
        sample={"guidance": 3.0},
    )


def clipart_latent() -> Recipe:
    """The network of `clipart` on 16 × 16 latents of an autoencoder trained here, in patches of 2: 64 tokens.

    Commands: ditkit train-codec clipart --out runs/clipart-codec; ditkit encode clipart-latent --out runs/clipart-latents;
    ditkit train clipart-latent --train.latents runs/clipart-latents. Cost: not measured yet.
    """
    return clipart().replace(
        name="clipart-latent",
        codec=VaeConfig(id="runs/clipart-codec", channels=4, downsampling=4),
        backbone={"patch": 2},
        train={
            "images": 360_000,
            "ema_half_life_images": 20_000,
            "preview_images": 60_000,
            "validate_images": 60_000,
            "checkpoint_images": 60_000,
        },
    )


def clipart_matryoshka() -> Recipe:
    """A DiT of 16 pixels, trained first, then with levels of 32 and 64 around it; conditioned on the subject.

    Command: ditkit train clipart-matryoshka. Cost: not measured yet.
    """
    inner = DiTConfig(width=192, depth=6, heads=3, patch=2)
    high = OuterLevel(widths=(32,), depth=(1,), patch=2)
    middle = OuterLevel(widths=(64,), depth=(1,), patch=2)
    return clipart().replace(
        name="clipart-matryoshka",
        backbone=MatryoshkaConfig(inner=inner, levels=(high, middle)),
        transport={"level_shift": 2.0},
        train={"images": 60_000, "stages": (120_000, 40_000)},
    )
