"""LayerSync (Haghighi et al., "LayerSync: Self-aligning Intermediate Layers", 2025): blocks learn from later ones."""

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ditkit.backbones import Backbone
from ditkit.errors import InputError
from ditkit.objectives.terms import Seen, Term


class LayerSync(Term):
    """Tokens of an early block turn towards those of a later one, which is not moved: minus their mean cosine."""

    def __init__(
        self,
        net: Backbone,
        *,
        weight: Annotated[float, Field(ge=0)] = 0.2,
        early: Annotated[int, Field(ge=-1)] = -1,
        late: Annotated[int, Field(ge=-1)] = -1,
    ):
        """Blocks by number; -1: at 2/7 and 4/7 of the depth, as 8 and 16 of 28. InputError unless the one is before the
        other."""
        depth = len(net.blocks)
        self.early = depth * 2 // 7 if early == -1 else early
        self.late = depth * 4 // 7 if late == -1 else late
        if self.early >= self.late:
            raise InputError(
                f"train.terms layer_sync: early {self.early} is not before late {self.late}; give others"
            )
        super().__init__(net, weight, (self.early, self.late))

    def forward(self, seen: Seen) -> Tensor:
        early, late = seen.captured[self.early], seen.captured[self.late].detach()
        return -F.cosine_similarity(early.float(), late.float(), dim=-1).flatten(1).mean(1)
