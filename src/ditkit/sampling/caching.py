"""Caches: what a network has computed at some evaluations of a trajectory stands in for others.

    def a_cache(t, at, *, interval: int = 3) -> Around

A cache is asked at every evaluation, at times t (B,) or (B, K) on the CPU, what to put around the network's blocks. What it
keeps for later ones belongs into `at.store`, apart for each of `at.roles`: in guidance the rows of one call are of several.
It decides for all images alike, so that image k still depends on seed k only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ditkit.lazy import Named

if TYPE_CHECKING:
    from torch import Tensor

    from ditkit.transports import At


def none(t: Tensor, at: At) -> None:
    """Every block is run at every evaluation."""


CACHES: dict[str, Any] = {
    "none": none,
    "taylor_seer": Named("ditkit.sampling.taylor_seer:taylor_seer"),
}
