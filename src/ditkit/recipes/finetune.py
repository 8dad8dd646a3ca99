"""Fine-tuning of a released network on one GPU of 24 GB."""

from ditkit.backbones import BACKBONES
from ditkit.codecs import VaeConfig
from ditkit.data import Folder
from ditkit.recipe import Recipe, TrainConfig
from ditkit.sampling.config import SamplingConfig
from ditkit.transports import Transport


def finetune_dit_xl2() -> Recipe:
    """DiT-XL/2 on your own images by low-rank additions (Hu et al., 2021), on one GPU of 24 GB; not measured on a GPU yet.

    Command: ditkit train finetune-dit-xl2 --data DIR --init DiT-XL-2-256x256.pt, the file of facebookresearch/DiT, or a
    snapshot. Encode once if you train often: ditkit encode, then --train.latents.

    Trained are additions of rank 16 to the blocks' attention and MLP, 8.26 M parameters, and the table of labels, which is new;
    the other 674 M are frozen. Memory by count (`ditkit info`), in GB: weights 2.73, gradients 0.03, AdamW 0.07, average 0.03,
    activations of 32 images 1.7, as every block is computed again (16 without): 4.6. Besides, uncounted, the autoencoder and
    the copies in bf16 that autocast makes.

    All weights instead: --train.lora 0 --train.unfreeze (without values), 15.2 by the same count; 11.2 with --train.optimizer
    adamw_8bit, 9.8 with adafactor (--train.lr 1e-3).
    """
    return Recipe(
        name="finetune-dit-xl2",
        data=Folder(size=256, classes=1000, flip=True),
        codec=VaeConfig(),
        backbone=BACKBONES["DiT-XL/2"],
        transport=Transport(path="ddpm", predict="noise", variance="learned"),
        train=TrainConfig(
            images=100_000,
            batch=64,
            micro_batch=32,
            lr=1e-4,
            warmup_images=1_000,
            clip=1.0,
            precision="bf16",
            lora=16,
            unfreeze=("label.*",),
            checkpoint_blocks=1,
            ema_half_life_images=10_000,
            ema_rampup=0.05,
            log_images=1_000,
            preview_images=10_000,
            validate_images=10_000,
            checkpoint_images=10_000,
        ),
        sample=SamplingConfig(sampler="ancestral", steps=50, guidance=1.5),
    )
