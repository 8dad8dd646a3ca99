"""Text to image on a CPU: about 3,700 colour emoji and their names."""

from ditkit.backbones import DiTConfig, MatryoshkaConfig, OuterLevel
from ditkit.data import EmojiData
from ditkit.recipe import Recipe, TrainConfig
from ditkit.sampling.config import SamplingConfig
from ditkit.text import TextConfig
from ditkit.transports import Transport


def emoji_t2i() -> Recipe:
    """A DiT that attends to MiniLM's tokens of a caption, 32 × 32 pixels, linear path, velocity.

    Command: ditkit train emoji-t2i. Cost: an hour of one CPU core with AMX. Expect of prompts that were held out
    the right colour, shape, gesture and skin tone and wrong expressions of cats, six in ten retrieved among 20 captions (of
    real glyphs 98 %); of captions that were trained on, their pictures (docs/results.md).
    """
    return Recipe(
        name="emoji-t2i",
        data=EmojiData(size=32),
        text=TextConfig(length=24),
        backbone=DiTConfig(
            width=192, depth=6, heads=3, patch=4, label=False, text="cross_attention", text_pooled=True
        ),
        transport=Transport(path="linear", predict="velocity"),
        train=TrainConfig(
            images=500_000,
            batch=64,
            lr=1e-3,
            warmup_images=10_000,
            schedule="cosine",
            clip=1.0,
            ema_half_life_images=20_000,
            ema_rampup=0.05,
            log_images=5_000,
            preview_images=100_000,
            checkpoint_images=100_000,
        ),
        sample=SamplingConfig(sampler="ab2", steps=25, guidance=3.0),
    )


def emoji_matryoshka() -> Recipe:
    """64 × 64 pixels: a DiT of 16 pixels, trained first, then with levels of 32 and 64 around it.

    Command: ditkit train emoji-matryoshka. Cost: not measured yet.
    """
    plain = emoji_t2i()
    inner = DiTConfig(
        width=192, depth=6, heads=3, patch=2, label=False, text="cross_attention", text_pooled=True
    )
    high = OuterLevel(widths=(32,), depth=(1,), patch=2)
    middle = OuterLevel(widths=(64,), depth=(1,), patch=2)
    return plain.replace(
        name="emoji-matryoshka",
        data={"size": 64},
        backbone=MatryoshkaConfig(inner=inner, levels=(high, middle)),
        transport={"level_shift": 2.0},
        train={"images": 150_000, "stages": (300_000, 100_000)},
    )
