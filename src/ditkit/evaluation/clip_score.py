"""CLIP score: how well images fit their prompts, by the angle between embeddings of the two.

    100 · mean_i cos(image_i, text_i)

(Hessel et al. 2021, arXiv:2104.08718). The scale of 100 is the one most papers print: CLIP ViT-L/14 gives
about 25 to 32 for fitting pairs.

Differs: Hessel et al. have 2.5 · max(cos, 0) and torchmetrics max(100 · cos, 0); nothing is cut off here,
which matters only where images contradict their prompts. Values of different CLIP networks cannot be
compared. Embeddings come from elsewhere.
"""

from torch import Tensor
from torch.nn import functional as F

from ditkit.errors import InputError


def clip_score(image_embeddings: Tensor, text_embeddings: Tensor) -> float:
    """Of embeddings (N, D) and (N, D), row by row, of any length; from -100 to 100.

    InputError when they are not as many, not of the same D, or none.
    """
    if image_embeddings.shape != text_embeddings.shape or not len(image_embeddings):
        raise InputError(
            f"image embeddings {tuple(image_embeddings.shape)} and text embeddings "
            f"{tuple(text_embeddings.shape)} must be pairs of one CLIP network; give each image its prompt"
        )
    return 100 * F.cosine_similarity(image_embeddings.double(), text_embeddings.double()).mean().item()
