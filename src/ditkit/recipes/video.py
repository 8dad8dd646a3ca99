"""Clips: tokens in space and time."""

from ditkit.backbones import DiTConfig
from ditkit.codecs import VaeConfig
from ditkit.data import MovingDigits, VideoFolder
from ditkit.recipe import Recipe, TrainConfig
from ditkit.sampling.config import SamplingConfig
from ditkit.text import TextConfig
from ditkit.transports import Transport


def moving_digits() -> Recipe:
    """A digit moves in a straight line and bounces off the borders (Srivastava et al., 2015): 16 frames of 32 × 32 pixels.

    Three of ten clips are trained with some frames known, so that it goes on from a picture or a clip:
    ditkit sample RUN --image FILE, --extend FILE, --loop. Sixteen frames show one digit sixteen times, so which it is is
    lost in much more noise than in a picture: times are moved as for a state sixteen times as large.

    Command: ditkit train moving-digits. Cost: an hour and a quarter of two CPU cores with AMX. Expect digits that keep
    their class in 96 % of the clips, and two of three that go straight (docs/results.md).
    """
    return Recipe(
        name="moving-digits",
        data=MovingDigits(size=32, frames=16, classes=10),
        backbone=DiTConfig(width=192, depth=8, heads=3, patch=8, tubelet=1, attention="factorised"),
        transport=Transport(path="linear", predict="data", known_frames=0.3, size_shift=32 * 32),
        train=TrainConfig(
            images=280_000,
            batch=16,
            lr=2e-3,
            betas=(0.9, 0.95),
            warmup_images=2_000,
            schedule="cosine",
            clip=1.0,
            ema_half_life_images=5_000,
            ema_rampup=0.05,
            log_images=1_000,
            preview_images=20_000,
            validate_images=20_000,
            checkpoint_images=20_000,
        ),
        sample=SamplingConfig(sampler="heun", steps=25, guidance=2.0),
    )


def video_webvid_256() -> Recipe:
    """Text to video, 16 frames of 256 × 256 pixels, every third of a file's, in the latents of each frame: Latte-XL/2.

    Command: ditkit train video-webvid-256 --data.path DIR, a folder of WebVid's files with metadata.jsonl. For a
    cluster. As published (Ma et al., "Latte", 2024): variant 1, patch 2, stride 3, AdamW 1e-4 without decay, EMA decay
    0.9999; of the text-to-video model the data and the text encoder's size, whose batch it does not give (here 256).
    """
    return Recipe(
        name="video-webvid-256",
        data=VideoFolder(size=256, frames=16, stride=3, classes=0, caption_column="caption", held_out=0.0),
        codec=VaeConfig(),
        text=TextConfig(id="google/flan-t5-xxl", dim=4096, length=120, null="empty"),
        backbone=DiTConfig(
            width=1152,
            depth=28,
            heads=16,
            patch=2,
            tubelet=1,
            attention="factorised",
            label=False,
            text="cross_attention",
        ),
        transport=Transport(path="ddpm", predict="noise", variance="learned"),
        train=TrainConfig(
            images=256 * 1_000_000,
            batch=256,
            lr=1e-4,
            ema_half_life_images=1_774_000,
            workers=8,
        ),
        sample=SamplingConfig(sampler="ancestral", steps=250, guidance=7.5),
    )
