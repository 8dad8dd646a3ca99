"""Dispersive loss (Wang & He, "Diffuse and Disperse: Image Generation with Representation Regularization", 2025)."""

from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ditkit.backbones import Backbone
from ditkit.device import sent
from ditkit.objectives.groups import same_group
from ditkit.objectives.terms import Seen, Term

GROUP = 32


class Dispersive(Term):
    """Images' tokens after a block are spread: log of the mean of exp(-D / temperature) over pairs of a group."""

    group: ClassVar[int] = GROUP

    def __init__(
        self,
        net: Backbone,
        *,
        weight: Annotated[float, Field(ge=0)] = 0.5,
        temperature: Annotated[float, Field(gt=0)] = 0.5,
        block: Annotated[int, Field(ge=-1)] = -1,
        group: Annotated[int, Field(ge=2)] = GROUP,
    ):
        """A block by number; -1: at a quarter of the depth. D is the mean squared difference of all tokens' channels; images are
        compared with the others of their `group`, themselves among them."""
        self.block = len(net.blocks) // 4 if block == -1 else block
        super().__init__(net, weight, (self.block,))
        self.temperature, self.size = temperature, group

    def forward(self, seen: Seen) -> Tensor:
        z = seen.captured[self.block].float().flatten(1)
        same = sent(same_group(seen.places, self.size), z.device)
        distance = torch.cdist(z, z).square() / z.shape[1]
        near = same * torch.exp(-distance / self.temperature)
        return ((same * near.sum(1)).sum(1) / same.sum(1).square()).log()
