"""DiT-XL/2, SiT-XL/2 and the U-DiTs on ImageNet with the papers' settings. For a cluster; the papers used TPU
pods and, for U-DiT, eight A100.

Data: a folder of ImageNet's training images, one sub-folder per class: --data DIR.
Settings of all three papers: AdamW, 1e-4 constant, no weight decay, no warm-up, batch 256, EMA decay 0.9999
(a half-life of 1.774 M images), horizontal flips, label dropout 0.1, float32.
"""

from ditkit.backbones import BACKBONES, BackboneConfig
from ditkit.codecs import VaeConfig
from ditkit.data import Folder
from ditkit.recipe import Recipe, TrainConfig
from ditkit.sampling.config import SamplingConfig
from ditkit.transports import Transport

STEPS_7M, STEPS_3M, STEPS_400K = 7_000_000, 3_000_000, 400_000
DDPM = Transport(path="ddpm", predict="noise", variance="learned")
FLOW = Transport(path="linear", predict="velocity")
ANCESTRAL_250 = SamplingConfig(sampler="ancestral", steps=250, guidance=1.5)
UNGUIDED_250 = SamplingConfig(sampler="ancestral", steps=250, guidance=1.0)
SDE_250 = SamplingConfig(sampler="euler_maruyama", steps=250, guidance=1.5)


def imagenet256_dit_xl2() -> Recipe:
    """DiT paper, table 2: FID-50K 2.27 at guidance 1.5 after 7 M steps (9.62 unguided).

    Command: ditkit train imagenet256-dit-xl2 --data DIR. The paper guides three of the four
    latent channels; here all are guided, for which 1.375 is the comparable scale (FID 2.20).
    """
    return _recipe("imagenet256-dit-xl2", BACKBONES["DiT-XL/2"], DDPM, 256, STEPS_7M, ANCESTRAL_250)


def imagenet512_dit_xl2() -> Recipe:
    """DiT paper, table 3: FID-50K 3.04 at guidance 1.5 after 3 M steps (12.03 unguided).

    Command: ditkit train imagenet512-dit-xl2 --data DIR.
    """
    return _recipe("imagenet512-dit-xl2", BACKBONES["DiT-XL/2"], DDPM, 512, STEPS_3M, ANCESTRAL_250)


def imagenet256_sit_xl2() -> Recipe:
    """SiT paper, table 1: FID-50K 2.06 at guidance 1.5 after 7 M steps (8.3 unguided, SDE).

    Command: ditkit train imagenet256-sit-xl2 --data DIR. The paper's 2.06 uses a tuned diffusion
    coefficient whose table it does not give; its ODE (heun, 125 steps) reaches 2.15.
    """
    return _recipe("imagenet256-sit-xl2", BACKBONES["SiT-XL/2"], FLOW, 256, STEPS_7M, SDE_250)


def imagenet512_sit_xl2() -> Recipe:
    """SiT paper: FID-50K 2.62 at guidance 1.5 after 3 M steps (SDE).

    Command: ditkit train imagenet512-sit-xl2 --data DIR.
    """
    return _recipe("imagenet512-sit-xl2", BACKBONES["SiT-XL/2"], FLOW, 512, STEPS_3M, SDE_250)


def imagenet256_udit_s() -> Recipe:
    """U-DiT paper, table 2: FID-50K 31.51 unguided after 400 K steps (DiT-S/2, of as many MACs: 67.40).

    Command: ditkit train imagenet256-udit-s --data DIR. sFID 8.97, IS 51.62, precision 0.543, recall 0.633
    with 250 ancestral steps. Labels are dropped once per image; the released code drops each of the three
    embeddings by itself.
    """
    return _recipe("imagenet256-udit-s", BACKBONES["U-DiT-S"], DDPM, 256, STEPS_400K, UNGUIDED_250)


def imagenet256_udit_b() -> Recipe:
    """U-DiT paper, table 2: FID-50K 16.64 unguided after 400 K steps (DiT-XL/2, of five times the MACs: 20.05).

    Command: ditkit train imagenet256-udit-b --data DIR. sFID 6.33, IS 85.15, precision 0.642, recall 0.639;
    12.87 after 1 M steps (--train.images 256000000). With --sample.guidance 1.5 and
    --sample.guidance-channels 3, as the paper guides: 4.26.
    """
    return _recipe("imagenet256-udit-b", BACKBONES["U-DiT-B"], DDPM, 256, STEPS_400K, UNGUIDED_250)


def imagenet256_udit_l() -> Recipe:
    """U-DiT paper, table 2: FID-50K 10.08 unguided after 400 K steps.

    Command: ditkit train imagenet256-udit-l --data DIR. sFID 5.21, IS 112.44, precision 0.702, recall 0.631;
    7.54 after 1 M steps; guided as the paper guides: 3.37.
    """
    return _recipe("imagenet256-udit-l", BACKBONES["U-DiT-L"], DDPM, 256, STEPS_400K, UNGUIDED_250)


def imagenet512_udit_b() -> Recipe:
    """U-DiT paper, 512 pixels: FID-50K 15.39 unguided after 400 K steps (DiT-XL/2, of five times the MACs: 20.94).

    Command: ditkit train imagenet512-udit-b --data DIR. sFID 6.86, IS 92.73, precision 0.756, recall 0.605.
    """
    return _recipe("imagenet512-udit-b", BACKBONES["U-DiT-B"], DDPM, 512, STEPS_400K, UNGUIDED_250)


def _recipe(
    name: str, backbone: BackboneConfig, transport: Transport, size: int, steps: int, sample: SamplingConfig
) -> Recipe:
    return Recipe(
        name=name,
        data=Folder(size=size, classes=1000, flip=True, check=False, held_out=0.0),
        codec=VaeConfig(),
        backbone=backbone,
        transport=transport,
        train=TrainConfig(
            images=256 * steps,
            batch=256,
            precision="fp32",
            preview_images=2_560_000,
            checkpoint_images=2_560_000,
            log_images=25_600,
            workers=8,
        ),
        sample=sample,
    )
