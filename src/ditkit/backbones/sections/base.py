"""What the sections of all networks share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from ditkit.config import Section
from ditkit.randomness import Stream

if TYPE_CHECKING:
    from ditkit.backbones.base import Backbone

MOST, WIDEST = 10_000, 1_000_000
Count = Annotated[int, Field(ge=1, le=MOST)]
"""Of blocks, heads, multiples: numbers above it are mistakes, and building what they say would take hours."""


Ability = Literal[
    "images",
    "clips",
    "text",
    "no text",
    "levels",
    "times of parts",
    "packed rows",
    "routing",
    "terms",
    "learned variance",
    "sparse blocks",
]
"""What a recipe can ask of a network."""


class BackboneSection(Section):
    """The configuration of a network. It imports none: `build` does."""

    kind: str

    @abstractmethod
    def build(
        self, *, channels: int, classes: int, out_channels: int | None = None, text_dim: int = 0
    ) -> Backbone:
        """The network, freshly initialised.

        Args:
            channels: of the state. classes: 0 for an unconditional network. out_channels: by default as `channels`.
            text_dim: channels of the text encoder; 0 without one, and where the network takes no text.
        """

    def cannot(self, ability: Ability) -> str:
        """Why this network cannot do that: the field that says so, what it means; what to give instead. "" where it can.

        A recipe that asks for it is refused in these words. By default a network takes images only.
        """
        kind = f"backbone.kind {self.kind}"
        different = f"{kind} has blocks that work on different tokens; take a DiT"
        reasons: dict[Ability, str] = {
            "clips": f"{kind} is a network of images; take a DiT with `backbone.tubelet` 1 or more",
            "text": f"{kind} takes no text; take a DiT or an MDM",
            "levels": f"{kind} works on one resolution; take a Matryoshka",
            "times of parts": f"{kind} has one time per image; take a DiT",
            "packed rows": f"{kind} takes no packed rows; take a DiT",
            "sparse blocks": f"{kind} has no sparse blocks; take a DiT with `backbone.sparse` 0.75",
            "routing": different,
            "terms": different,
        }
        return reasons.get(ability, "")

    @property
    def ratios(self) -> tuple[int, ...]:
        """The sides of each resolution relative to the lowest's, highest first; (1,) for a network on one."""
        return (1,)

    @property
    def frame_ratios(self) -> tuple[int, ...]:
        """Likewise of the frames of clips."""
        return (1,) * len(self.ratios)

    @property
    def uniform(self) -> bool:
        """Whether all blocks work on the same tokens, of one width: what compares blocks needs that, and what leaves tokens
        out."""
        return not self.cannot("terms")

    @property
    def whole_blocks(self) -> range:
        """The blocks that must work on all tokens, where some can be left out."""
        return range(0)

    @property
    def streams(self) -> tuple[Stream, ...]:
        """What training draws for each image for the network (`Backbone.in_training`)."""
        return ()

    @property
    def dense_share(self) -> float:
        """The share of its blocks that are run where the sparse ones are left out."""
        return 1.0

    @property
    def takes_text(self) -> bool:
        """Whether it can be conditioned on a text."""
        return not self.cannot("text")

    @property
    def patch_sizes(self) -> tuple[int, ...]:
        """What the sides of a state must be multiples of, (height, width) or of clips (frames, height, width); of a
        state on several resolutions, those of the highest."""
        return (1, 1)

    def tokens(self, size: Sequence[int]) -> int:
        """How many tokens or pixels its first layer works on, at the highest resolution, of a state (H, W) or (F, H, W);
        of several resolutions, the state's size is the lowest's."""
        return math.prod(size)
