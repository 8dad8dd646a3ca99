"""Rulers: what images are measured with, a feature network and its statistics of a reference.

The reference is a data set's training split, a folder of images, or a file of statistics made by `ditkit
reference` or published with ADM. A network is named as in `ditkit list features`, with `=FILE` for weights
of one's own; `classifier` is the one trained on the data set itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ditkit.data import DataSection, Folder, in_order
from ditkit.errors import InputError
from ditkit.evaluation import (
    FEATURES,
    FeatureNetwork,
    Statistics,
    bundled_classifier,
    gather_all,
    load_classifier,
    load_features,
    read_statistics,
)
from ditkit.scoring.retrieval import CaptionReader, Embed, caption_reader
from ditkit.scoring.samples import frame_by_frame

REFERENCE_ROWS = 10_000  # feature vectors of the reference for precision, recall and KID, as ADM has
CLASSIFIER = "classifier"


@dataclass(frozen=True)
class Ruler:
    """One network and what it reads from the reference."""

    network: FeatureNetwork
    reference: Statistics
    name: str
    """The name of the reference."""
    shape: tuple[int, ...] | None
    """Channels, height and width of the reference's images; None where only statistics are known."""
    captions: CaptionReader | None = None
    """Tells which caption an image shows, where the reference has captions."""


def rulers(
    features: Sequence[str],
    reference: DataSection | Path,
    device: torch.device | str = "cpu",
    data: DataSection | None = None,
    embed: Embed | None = None,
) -> list[Ruler]:
    """The rulers of these networks, with the reference's statistics computed in one pass over its images,
    or read from a file.

    `data` says whose classifier "classifier" is: by default the reference's own. With `embed`, a text encoder,
    the reference's captions are read too, to find which one an image shows. InputError: no such network or
    weights, no reference, a file of another network.
    """
    if data is None and not isinstance(reference, Path):
        data = reference
    own = [name for name in features if name.partition("=")[0] != CLASSIFIER]
    if data is not None and data.channels not in (1, 3) and own:
        raise InputError(
            f"`features` {own[0]} reads pictures of 1 or 3 channels, data {data.kind} has {data.channels}; make a network of "
            "its own with `ditkit classifier DATA --out FILE` and give classifier=FILE"
        )
    networks = [network(name, data, device) for name in features]
    if isinstance(reference, Path):
        return [
            Ruler(net, read_statistics(reference, net, keep=REFERENCE_ROWS), reference.name, None)
            for net in networks
        ]
    found = gather_all(frame_by_frame(in_order(reference, "train")), networks, keep=REFERENCE_ROWS)
    shape = (reference.channels, *reference.shape[-2:])
    name = reference_name(reference)
    captions = reference.open("train").captions if embed else None
    return [
        Ruler(
            net,
            statistics,
            name,
            shape,
            caption_reader(net, statistics, captions, embed) if captions and embed else None,
        )
        for net, statistics in zip(networks, found, strict=True)
    ]


def class_names(reference: DataSection | Path, rulers: Sequence[Ruler]) -> tuple[str, ...]:
    """What the reference calls its classes, where a network reads text; () elsewhere."""
    if isinstance(reference, Path) or not any(hasattr(ruler.network, "text") for ruler in rulers):
        return ()
    return reference.open().names


def reference_name(data: DataSection) -> str:
    """What a report calls the training split of a data set."""
    return str(data.path) if isinstance(data, Folder) else f"{data.kind} train"


def network(name: str, data: DataSection | None, device: torch.device | str = "cpu") -> FeatureNetwork:
    """The feature network "NAME" or "NAME=WEIGHTS"; `data` says whose classifier "classifier" is."""
    name, _, weights = name.partition("=")
    if name != CLASSIFIER:
        if name not in FEATURES:
            raise InputError(
                f"`features`: no network {name!r}; use {CLASSIFIER} or one of: {', '.join(FEATURES)}"
            )
        return load_features(name, weights or None, device)
    if weights:
        return load_classifier(weights).to(device)
    found = None if data is None else bundled_classifier(data.kind, data.size)
    if found is None:
        what = "a file of statistics" if data is None else f"data {data.kind!r}"
        raise InputError(
            f"`features`: no classifier comes with ditkit for {what}; use another network (`ditkit list "
            "features`), or make one with `ditkit classifier DATA --out FILE` and give classifier=FILE"
        )
    return found.to(device)
