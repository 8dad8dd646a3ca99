"""Several images in one sequence of tokens, each attending to its own only (NaViT: Dehghani et al., "Patch n' Pack",
2023). Nothing is padded: attention is computed run by run.
"""

from collections.abc import Sequence
from itertools import accumulate, groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from ditkit.device import sent
from ditkit.kernels.attention import Runs


def stacks(parts: Sequence[Tensor]) -> list[Tensor]:
    """Those of equal shape that follow each other as one tensor, (n, ...): what is done to them is done at once."""
    return [torch.stack(list(run)) for _, run in groupby(parts, key=lambda part: part.shape)]


def extended(
    tokens: Sequence[Tensor], behind: Sequence[Tensor], mask: Tensor | None
) -> tuple[Sequence[Tensor], Tensor | None]:
    """Tokens (n, L_i, D) of every n images with those that stand behind each image's, (N, R, D) of all N; and which of them all
    are attended to, bool (1, L), where `mask` (N, M) says it of the last M behind each."""
    counts = [len(own) for own in tokens]
    if behind:
        others = torch.cat([*behind], dim=1).split(counts)
        tokens = [torch.cat(both, dim=1) for both in zip(tokens, others, strict=True)]
    if mask is None:
        return tokens, None
    masks = [
        F.pad(there, (own.shape[1] - there.shape[1], 0), value=True).flatten()[None]
        for own, there in zip(tokens, mask.split(counts), strict=True)
    ]
    return tokens, torch.cat(masks, dim=1)


def owners(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Whose each token is, of images of so many tokens one after another: int64 (1, L)."""
    counts = torch.tensor(lengths, device="cpu")
    return sent(torch.stack([torch.arange(len(lengths), device="cpu").repeat_interleave(counts)]), device)


def runs(lengths: Sequence[int], device: torch.device) -> Runs:
    """The same as where each image begins."""
    starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device="cpu")
    return Runs(starts, sent(starts, device))
