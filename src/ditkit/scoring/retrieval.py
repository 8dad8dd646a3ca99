"""Which of some captions an image shows, by a ruler's network: through a probe fitted to the reference's images and
captions, or directly where the network reads text itself."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ditkit.evaluation import Statistics
from ditkit.evaluation.retrieval import CANDIDATES, distractors, fit_probe, retrieved

log = logging.getLogger(__name__)

Embed = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True)
class CaptionReader:
    """Of one network."""

    read: Callable[[Tensor], Tensor]
    """Features (N, D) to readings (N, E)."""
    embed: Embed
    """Captions to what readings are compared with, (N, E)."""
    pool: tuple[str, ...]
    """Captions of the reference, to be confused with."""
    embedded: Tensor
    """The same, (M, E)."""
    record: dict[str, Any]
    """How it was made."""

    def share(self, statistics: Statistics, captions: Sequence[str]) -> float:
        """The share of the images with rows in `statistics` that find their caption; `captions` are of all images."""
        own = [captions[place] for place in statistics.index.tolist()]
        right = embed_each(self.embed, own)
        others = self.embedded[distractors(own, self.pool)]
        return retrieved(self.read(statistics.rows), right, others).double().mean().item()


def embed_each(embed: Embed, captions: Sequence[str]) -> Tensor:
    """(N, E) of N texts; equal ones, of which there may be many, are embedded once."""
    places = {text: place for place, text in enumerate(dict.fromkeys(captions))}
    return embed(list(places))[[places[text] for text in captions]]


def caption_reader(
    network: Any, reference: Statistics, captions: Sequence[str], embed: Embed
) -> CaptionReader | None:
    """Of this network, from its statistics of the reference and the captions of all the reference's images; None
    where too few are different. `embed` is the text encoder that a network without one of its own is taught to read."""
    shown = [captions[place] for place in reference.index.tolist()]
    pool = tuple(dict.fromkeys(shown))
    if len(pool) <= CANDIDATES:
        return None
    log.info(f"{len(pool):,} captions are embedded, to tell which of {CANDIDATES} an image shows")
    record = {"candidates": CANDIDATES, "captions": len(pool)}
    if hasattr(network, "text"):
        return CaptionReader(lambda rows: rows, network.text, pool, network.text(pool), record)
    embedded = embed(pool)
    places = {caption: place for place, caption in enumerate(pool)}
    probe = fit_probe(reference.rows, embedded[[places[caption] for caption in shown]])
    return CaptionReader(
        read=probe,
        embed=lambda texts: embed(texts) - probe.text_mean,
        pool=pool,
        embedded=embedded - probe.text_mean,
        record={**record, "penalty": probe.penalty},
    )
