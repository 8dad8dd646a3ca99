"""Images of their own heights and widths: nothing is cut square, padded or resized but what is too large."""

from ditkit.backbones import DiTConfig
from ditkit.codecs import VaeConfig
from ditkit.data import FashionMNIST, Folder
from ditkit.recipe import Recipe, TrainConfig
from ditkit.recipes.fashion import TRAIN
from ditkit.sampling.config import SamplingConfig
from ditkit.transports import Transport

UNSEEN = ("16x28", "28x16", "24x20")


def anysize_fashion() -> Recipe:
    """Fashion-MNIST cut to what each picture shows: 23 sizes between 4 × 28 and 28 × 28 pixels, three of them left out of
    training.

    Command: ditkit train anysize-fashion. Cost: ten minutes of one CPU core with AMX. Expect of 500 samples of one size:
    Fréchet distance 2 to 4, of the sizes left out 4 to 7 (docs/results.md, `ditkit study anysize`).
    """
    return Recipe(
        name="anysize-fashion",
        data=FashionMNIST(aspect="native", crop="garment", without=UNSEEN),
        backbone=DiTConfig(width=192, depth=6, heads=3, patch=4, positions="rotary", size_embedding=True),
        transport=Transport(path="linear", predict="velocity"),
        train=TRAIN.model_copy(
            update={"images": 180_000, "tokens": 64 * 49}  # as many as 64 squares have
        ),
        sample=SamplingConfig(sampler="ab2", steps=5, guidance=1.5),
    )


def imagenet_anysize() -> Recipe:
    """ImageNet at its own aspects, of as many pixels as 256 × 256 at most, in latents: DiT-XL/2 with rotary positions.

    Command: ditkit train imagenet-anysize --data DIR. For a cluster. The plan of FiT (Lu et al., 2024: AdamW 1e-4,
    batches of as many tokens as 256 images of 256, rotary positions that reach beyond the trained grid), with SiT's path
    and velocity as FiTv2 has; its other changes of the network (SwiGLU, masked attention over padding) are not here.
    """
    return Recipe(
        name="imagenet-anysize",
        data=Folder(size=256, aspect="native", flip=True, classes=1000, check=False, held_out=0.0),
        codec=VaeConfig(),
        backbone=DiTConfig(
            width=1152,
            depth=28,
            heads=16,
            patch=2,
            positions="rotary",
            grid=(16, 16),
            extrapolation="ntk",
            size_embedding=True,
            time_scale=-1.0,
            time_shift=1.0,
        ),
        transport=Transport(
            path="linear", predict="velocity", time_law="logit_normal", size_shift=32.0 * 32.0
        ),
        train=TrainConfig(images=256 * 2_000_000, tokens=256 * 256, lr=1e-4, workers=8),
        sample=SamplingConfig(sampler="heun", steps=125, guidance=1.5),
    )
