"""LayerSync (Haghighi et al., "LayerSync: Self-aligning Intermediate Layers", 2025): blocks learn from later ones."""

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ditkit.backbones import Backbone
from ditkit.objectives.terms import Seen, Term, two_blocks


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
        self.early, self.late = two_blocks(net, ("early", early), ("late", late), (2 / 7, 4 / 7))
        super().__init__(net, weight, (self.early, self.late))

    def forward(self, seen: Seen) -> Tensor:
        early, late = seen.captured[self.early], seen.captured[self.late].detach()
        return -F.cosine_similarity(early.float(), late.float(), dim=-1).flatten(1).mean(1)
