"""SRA (Jiang et al., "No Other Representation Component Is Needed: Diffusion Transformers Can Provide Representation
Guidance by Themselves", 2025): an early block learns what a later one makes of a less noisy state."""

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from ditkit.backbones import Backbone
from ditkit.backbones.base import Plain
from ditkit.nn.linear import dense
from ditkit.objectives.terms import Seen, Term, capturing, two_blocks
from ditkit.randomness import Stream

EARLIER = Stream("sra", "sra", "uniform", ())


class SelfAlignment(Term):
    """An early block's tokens, through a small head, are led to those of a later block of the moving average of the network at
    a less noisy time: their smooth absolute difference."""

    streams: ClassVar[tuple[Stream, ...]] = (EARLIER,)

    def __init__(
        self,
        net: Backbone,
        *,
        weight: Annotated[float, Field(ge=0)] = 0.2,
        student: Annotated[int, Field(ge=-1)] = -1,
        teacher: Annotated[int, Field(ge=-1)] = -1,
        interval: Annotated[float, Field(gt=0, le=1)] = 0.2,
        beta: Annotated[float, Field(gt=0)] = 0.05,
    ):
        """Blocks by number; -1: at 2/7 and 5/7 of the depth, as 8 and 20 of 28. The teacher's time is up to `interval`
        earlier. InputError unless the student is before the teacher."""
        self.student, self.teacher = two_blocks(
            net, ("student", student), ("teacher", teacher), (2 / 7, 5 / 7)
        )
        super().__init__(net, weight, (self.student, self.teacher))
        assert isinstance(net, Plain)  # as every network whose blocks are alike
        width = net.body_shape.condition_width
        self.interval, self.beta = interval, beta
        self.head = nn.Sequential(dense(width, width), nn.SiLU(), dense(width, width))

    def forward(self, seen: Seen) -> Tensor:
        assert seen.average is not None  # training has it
        t = seen.transport.nearest(earlier(seen.t, seen.draws["sra"], self.interval))
        t = torch.where(seen.t == 0, seen.t, t)  # parts that are known
        captured: dict[int, Tensor] = {}
        with torch.no_grad():
            seen.transport.evaluate(
                seen.average, seen.noisy(t), t, seen.cond_at(t), around=capturing([self.teacher], captured)
            )
        found, target = self.head(seen.captured[self.student]).float(), captured[self.teacher].float()
        return F.smooth_l1_loss(found, target, beta=self.beta, reduction="none").flatten(1).mean(1)


def earlier(t: Tensor, u: Tensor, interval: float) -> Tensor:
    """Times (B,) or (B, K), up to `interval` less noisy by u (B,), uniform in [0, 1); not below 0."""
    step = interval * u.to(t)
    return (t - (step if t.ndim == 1 else step[:, None])).clamp(min=0)
