"""Matryoshka Diffusion (Gu et al., ICLR 2024): text to image at 64, 256 and 1,024 pixels, and ImageNet. For a cluster;
the paper used 32 A100 for two to five days.

Data: webdataset shards of CC12M with captions, --data.path DIR, as img2dataset writes them; ImageNet: --data DIR.
As in the released configurations: the cosine schedule, v trained by the noise's loss, noise shifted by level, rate
5e-5 after 10,000 steps of warm-up, gradients clipped at 2, EMA decay 0.9999. Those do not say how many GPUs a batch
was spread over, nor how captions were dropped for guidance; here a batch of 512, as later work of the group, and
captions dropped for a tenth. Their mixed resolutions and weights by level are not read by the released code and are
left out: --train.level-share and --transport.level-weights have them.
"""

from ditkit.backbones import BACKBONES, BackboneConfig
from ditkit.data import Folder, Webdataset
from ditkit.recipe import Recipe, TrainConfig
from ditkit.sampling.config import SamplingConfig
from ditkit.text import TextConfig
from ditkit.transports import Transport

BATCH, STEPS = 512, 400_000
TRAIN = TrainConfig(
    images=BATCH * STEPS,
    batch=BATCH,
    lr=5e-5,
    warmup_images=BATCH * 10_000,
    clip=2.0,
    ema_half_life_images=BATCH * 6931,  # 0.9999 at each step
    workers=8,
)


def _recipe(name: str, size: int, backbone: BackboneConfig, shift: float, steps: int, eta: float) -> Recipe:
    levels = len(backbone.ratios)
    return Recipe(
        name=name,
        data=Webdataset(size=size, channels=3, classes=0, caption_column="txt"),
        text=TextConfig(id="google/flan-t5-xl", dim=2048, length=128, null="empty"),
        backbone=backbone,
        transport=Transport(path="cosine", predict="v", loss="noise", level_shift=shift),
        train=TRAIN.model_copy(update={"stages": (TRAIN.images,) * (levels - 1)}),
        sample=SamplingConfig(
            sampler="ddim", respacing=f"mdm{steps}", eta=eta, guidance=7.5, threshold="dynamic_if"
        ),
    )


def mdm_cc12m_64() -> Recipe:
    """The U-Net of one resolution. Command: ditkit train mdm-cc12m-64 --data.path DIR."""
    return _recipe("mdm-cc12m-64", 64, BACKBONES["MDM-64"], 1.0, steps=50, eta=0.0)


def mdm_cc12m_256() -> Recipe:
    """64 pixels first, then both. Command: ditkit train mdm-cc12m-256 --data.path DIR."""
    return _recipe("mdm-cc12m-256", 256, BACKBONES["MDM-256"], 1.0, steps=100, eta=0.0)


def mdm_cc12m_1024() -> Recipe:
    """64, then 256, then 1,024 pixels. Command: ditkit train mdm-cc12m-1024 --data.path DIR."""
    return _recipe("mdm-cc12m-1024", 1024, BACKBONES["MDM-1024"], 2.0, steps=250, eta=1.0)


def mdm_imagenet_256() -> Recipe:
    """Conditioned on classes instead of a text, whose weights were never released; the paper's FID-50K is 3.51, guided.

    Command: ditkit train mdm-imagenet-256 --data DIR. Sampled with 250 ancestral steps; the paper's guidance is not
    known.
    """
    return Recipe(
        name="mdm-imagenet-256",
        data=Folder(size=256, classes=1000, flip=True, held_out=0.0),
        backbone=BACKBONES["MDM-256"],
        transport=Transport(path="cosine", predict="v", loss="noise", level_shift=1.0),
        train=TRAIN.model_copy(update={"stages": (TRAIN.images,)}),
        sample=SamplingConfig(sampler="ancestral", respacing="mdm250", guidance=1.5, threshold="clip"),
    )
