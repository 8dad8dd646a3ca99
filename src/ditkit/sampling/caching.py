"""Caches: what a network has computed at some evaluations of a trajectory stands in for others.

    def a_cache(t, at, *, interval: int = 3) -> Around

A cache is called at every evaluation, with times t (B,) or (B, K) on the CPU, and returns what to put around the network's
blocks. What it keeps for later evaluations belongs in `at.store`, apart for each of `at.roles`: in guidance the rows of one
call are of several.
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
