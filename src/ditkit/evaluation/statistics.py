"""What remains of a set of images after one pass of a feature network: enough for every score.

Statistics of parts of a set are joined by `+`, so a set can be streamed, and ranks can share it:

    mine = gather(batches_of_my_part, network, first=index_of_my_first_image)
    whole = mine + theirs

The result is a function of the images and their indices. Batch sizes change no bit of it (as long as the
network reads an image alike in every batch); how the set is cut among ranks changes rounding only.

Files of statistics: `ditkit.evaluation.npz`. The scores computed from them: `frechet`, `inception_score`,
`neighbours`, `kernel`, `bootstrap`.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ditkit.errors import InputError
from ditkit.evaluation.frechet import Gaussian, Moments
from ditkit.evaluation.inception_score import SPLIT, ScoreSums
from ditkit.evaluation.networks.features import FeatureNetwork

Batches = Iterable[tuple[Tensor, Tensor | None]]
KEEP = 50_000  # feature vectors, 400 MB of 2,048 features


@dataclass(frozen=True, eq=False)
class Statistics:
    """A set of images as one network sees it."""

    network: str
    """Name, as in `FeatureNetwork`; so are the next two."""
    network_hash: str
    resize: str
    digest: str
    """64 hex digits that name the images, whatever their order (`digest_of`), or the SHA-256 of the file
    that these statistics were read from where the images are not known."""
    moments: Moments | Gaussian
    """The moments of the pooled features; `Gaussian` when read from a file of mean and covariance."""
    spatial: Moments | Gaussian | None
    """Those of the spatial features, where the network has any."""
    rows: Tensor
    """(R, D), float32: pooled features of all images, or of `keep` of them."""
    index: Tensor
    """(R,), int64, ascending: which images `rows` are. Those kept are chosen by their index alone."""
    keep: int
    """The most rows to keep."""
    scores: ScoreSums | None
    """Sums for the Inception Score, where the network has logits."""
    confusion: Tensor | None
    """(K, K), int64: images by label and class read; zeros without labels. None where the
    network does not read the data's labels."""
    read: Tensor | None
    """(K,), int64: images by class read; None as above."""

    def __post_init__(self) -> None:
        if self.confusion is None or self.count is None:
            return
        labelled = int(self.confusion.sum())
        if labelled not in (0, self.count):
            raise InputError(
                f"only {labelled:,} of {self.count:,} images carry a label; label all images or none"
            )

    @property
    def count(self) -> int | None:
        """N, the number of images; None when it is not known."""
        return self.moments.count

    def __add__(self, other: "Statistics") -> "Statistics":
        """Both parts of one set together.

        InputError when the networks differ, when both parts have the same image, when only one is
        labelled, or when one was read from a file of mean and covariance alone.
        """
        check_network(self, other.network, other.network_hash, other.resize, "another part")
        if not (isinstance(self.moments, Moments) and isinstance(other.moments, Moments)):
            raise InputError("statistics of unknown images cannot be joined; gather them from the images")
        if not (self.count and other.count):
            return self if self.count else other
        if len(np.intersect1d(self.index, other.index)):
            raise InputError(
                f"both parts have an image {np.intersect1d(self.index, other.index)[0]}; give each part the "
                "index of its first image (first=)"
            )
        keep = min(self.keep, other.keep)
        index, rows = _kept(torch.cat([self.index, other.index]), torch.cat([self.rows, other.rows]), keep)
        return Statistics(
            network=self.network,
            network_hash=self.network_hash,
            resize=self.resize,
            digest=_hex(int(self.digest, 16) + int(other.digest, 16)),
            moments=self.moments + other.moments,
            spatial=_sum(self.spatial, other.spatial),
            rows=rows,
            index=index,
            keep=keep,
            scores=_sum(self.scores, other.scores),
            confusion=_sum(self.confusion, other.confusion),
            read=_sum(self.read, other.read),
        )


def gather(batches: Batches, network: FeatureNetwork, *, first: int = 0, keep: int = KEEP) -> Statistics:
    """Statistics of a set, or of the part of it whose first image has the index `first`.

    `batches` are (images uint8 (N, C, H, W), labels int64 (N,) or None), of any sizes. Labels are looked
    at only where the network reads them (`network.classes`). InputError when they are not as many as the
    images or no classes of the network, when only some images have any, and when features are not finite.
    """
    return gather_all(batches, [network], first=first, keep=keep)[0]


def gather_all(
    batches: Batches, networks: Sequence[FeatureNetwork], *, first: int = 0, keep: int = KEEP
) -> list[Statistics]:
    """`gather` by several networks in one pass over the images."""
    gatherers = [_Gatherer(network, first, keep) for network in networks]
    for images, labels in batches:
        if len(images):
            digests = bytearray(b"".join(map(digest_of, images.cpu())))  # once for all networks
            rows = torch.frombuffer(digests, dtype=torch.uint8).view(-1, 32)
            for gatherer in gatherers:
                gatherer.add(images, labels, rows)
    return [gatherer.result() for gatherer in gatherers]


def digest_of(image: Tensor) -> bytes:
    """32 bytes that name one uint8 image (C, H, W) on the CPU: SHA-256 of "C H W " in ASCII and the pixels.

    The digest of a set is the sum of these, as big-endian numbers, modulo 2^256: in any order and in
    any batches it is the same, and an image more or an image twice changes it.
    """
    header = "".join(f"{size} " for size in image.shape).encode()
    return hashlib.sha256(header + image.numpy().tobytes()).digest()


def check_network(statistics: Statistics, name: str, hash_: str, resize: str, other: str) -> None:
    """InputError unless the statistics are of this network; `other` is what stands against them."""
    mine = (statistics.network, statistics.network_hash, statistics.resize)
    if mine != (name, hash_, resize):
        raise InputError(
            f"statistics of {_identity(*mine)} cannot be used with {other} of {_identity(name, hash_, resize)}; "
            "gather both with the same network"
        )


class _Gatherer:
    """One network's statistics as the batches come. The rows are added SPLIT at a time instead of by batch,
    so that batch sizes change nothing."""

    def __init__(self, network: FeatureNetwork, first: int, keep: int):
        self._network, self._first, self._keep = network, first, keep
        self._waiting: list[dict[str, Tensor]] = []
        self._rows = 0
        nothing = {"digest": torch.empty(0, 32, dtype=torch.uint8), "pooled": torch.empty(0, network.dim)}
        self._whole = _part(nothing, first, network, keep)

    def add(self, images: Tensor, labels: Tensor | None, digests: Tensor) -> None:
        self._waiting.append({"digest": digests, **_reading(images, labels, self._network)})
        self._rows += len(images)
        while self._rows >= SPLIT:
            self._join(SPLIT)

    def result(self) -> Statistics:
        if self._rows:
            self._join(self._rows)
        return self._whole

    def _join(self, count: int) -> None:
        """Add the first `count` rows of those that wait to the whole."""
        rows = {name: torch.cat([some[name] for some in self._waiting]) for name in self._waiting[0]}
        part = {name: values[:count] for name, values in rows.items()}
        self._whole = self._whole + _part(part, self._first, self._network, self._keep)
        self._waiting = [{name: values[count:] for name, values in rows.items()}]
        self._first, self._rows = self._first + count, self._rows - count


def _reading(images: Tensor, labels: Tensor | None, network: FeatureNetwork) -> dict[str, Tensor]:
    """All that is known of the images of a batch, one row an image."""
    features = network(images)
    rows = {"pooled": features.pooled, "logits": features.logits, "spatial": features.spatial}
    found = {name: values for name, values in rows.items() if values is not None}
    for name, values in found.items():
        if not values.isfinite().all():
            raise InputError(
                f"the {name} features of {network.name} are not finite for {len(images)} images; "
                "look at the images, and at the weights of the network"
            )
    if network.classes is not None:
        found["asked"] = _labels(labels, len(images), network)
    return found


def _labels(labels: Tensor | None, count: int, network: FeatureNetwork) -> Tensor:
    """(N,), int64: the labels, checked; -1 where there are none."""
    if labels is None:
        return torch.full((count,), -1)
    if labels.shape != (count,):
        raise InputError(f"{count} images need as many labels, not {tuple(labels.shape)}")
    if labels.min() < 0 or labels.max() >= (network.classes or 0):
        raise InputError(
            f"labels from {labels.min()} to {labels.max()}, but {network.name} knows 0 to "
            f"{(network.classes or 0) - 1}"
        )
    return labels.cpu().long()


def _part(rows: dict[str, Tensor], first: int, network: FeatureNetwork, keep: int) -> Statistics:
    """The statistics of a few thousand consecutive images, from their rows."""
    pooled = rows["pooled"]
    index, kept = _kept(torch.arange(first, first + len(pooled)), pooled.float(), keep)
    confusion = read = None
    if network.classes is not None:
        labels = rows.get("asked", torch.empty(0, dtype=torch.long))
        guesses = rows["logits"].argmax(dim=1) if len(pooled) else labels
        read = guesses.bincount(minlength=network.classes)
        pairs = (labels * network.classes + guesses)[labels >= 0]
        confusion = pairs.bincount(minlength=network.classes**2).view(network.classes, network.classes)
    return Statistics(
        network=network.name,
        network_hash=network.hash,
        resize=network.resize,
        digest=_hex(sum(int.from_bytes(row.tobytes(), "big") for row in rows["digest"].numpy())),
        moments=Moments.of(pooled),
        spatial=Moments.of(rows["spatial"]) if "spatial" in rows else None,
        rows=kept,
        index=index,
        keep=keep,
        scores=ScoreSums.of(rows["logits"], first=first) if "logits" in rows else None,
        confusion=confusion,
        read=read,
    )


def _kept(index: Tensor, rows: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """The `keep` rows whose index comes first in an order that is as good as random, by index.

    Which they are is decided by the indices alone, hence the same however the set was cut.
    """
    chosen = torch.from_numpy(np.argsort(_scattered(index.numpy()))[:keep])
    chosen = chosen[index[chosen].argsort()]
    return index[chosen], rows[chosen]


def _scattered(index: np.ndarray) -> np.ndarray:
    """A permutation of the 64-bit numbers, element by element: the finaliser of splitmix64 (Steele, Lea &
    Flood 2014), which leaves no trace of classes that repeat along the index."""
    z = (index.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _sum(a, b):
    """The sum, where the network gives such a thing."""
    return None if a is None or b is None else a + b


def _hex(number: int) -> str:
    return f"{number % 2**256:064x}"


def _identity(name: str, hash_: str, resize: str) -> str:
    return f"{name} (hash {hash_[:12]}, resize {resize})"
