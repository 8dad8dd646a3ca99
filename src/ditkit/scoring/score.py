"""One pass over a set of images, by all rulers at once. Of clips every frame is an image."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ditkit.codecs.identity import as_uint8
from ditkit.data import DataSection
from ditkit.data.sources import stack
from ditkit.errors import InputError
from ditkit.evaluation import FeatureNetwork, Report, Statistics, gather_all, nearest, scores_of
from ditkit.processes import here
from ditkit.scoring.retrieval import embed_each
from ditkit.scoring.rulers import Ruler
from ditkit.scoring.samples import Samples, frame_by_frame
from ditkit.scoring.tables import software

PROMPT = "a photo of a {}"


def evaluate(samples: Samples, rulers: Sequence[Ruler], names: Sequence[str] = ()) -> Report:
    """Score a set with every ruler; `names` of the classes make the prompts of the CLIP score.

    InputError when there are fewer than two images, when they are not of the reference's size, or when
    only some carry labels.
    """
    return report_of(samples, rulers, measure(samples, rulers), names)


def measure(samples: Samples, rulers: Sequence[Ruler]) -> list[Statistics]:
    """The samples' statistics, of one pass, by each ruler's network; of those that several processes have, of all in each."""
    part, networks = samples.part, [ruler.network for ruler in rulers]
    if part is None:
        found = gather_all(_of_size(samples, rulers[0]), networks)
    else:
        found = _joined(samples, part, rulers[0], networks)
    if (found[0].count or 0) < 2:
        raise InputError(f"{found[0].count} images cannot be scored; give at least 2, better 1,000 or more")
    return found


def _joined(
    samples: Samples, part: range, ruler: Ruler, networks: Sequence[FeatureNetwork]
) -> list[Statistics]:
    """Those of the parts that processes have, of clips so many frames each."""
    processes = here()
    own: list[Statistics] | InputError
    try:
        begun = list(itertools.islice(samples.batches, 1))
        frames = math.prod(begun[0][0].shape[2:-2]) if begun else 1
        mine = replace(samples, batches=itertools.chain(begun, samples.batches))
        own = gather_all(_of_size(mine, ruler), networks, first=part.start * frames)
    except InputError as error:  # the others have to know: they wait for this one
        own = error
    parts: list[list[Statistics]] = []
    for found in processes.gathered(own):
        if isinstance(found, InputError):
            raise found
        parts.append(found)
    nfe = samples.protocol.get("nfe")
    if isinstance(nfe, float):  # the mean over the images of this process
        sums = processes.gathered((nfe * len(part), len(part)))
        samples.protocol["nfe"] = round(sum(some for some, _ in sums) / sum(count for _, count in sums), 1)
    return [sum(several[1:], start=several[0]) for several in zip(*parts, strict=True)]


def report_of(
    samples: Samples, rulers: Sequence[Ruler], found: Sequence[Statistics], names: Sequence[str] = ()
) -> Report:
    """The report of statistics that `measure` found."""
    protocol = {**samples.protocol, **software()}
    scores = []
    for ruler, statistics in zip(rulers, found, strict=True):
        prompts = _prompts(samples, names)
        embedded = share = None
        if prompts and hasattr(ruler.network, "text"):
            embedded = embed_each(ruler.network.text, [prompts[k] for k in statistics.index.tolist()])
            protocol["prompt"] = "captions" if samples.captions else PROMPT
        if samples.captions and ruler.captions:
            share = ruler.captions.share(statistics, samples.captions)
            protocol.setdefault("retrieval", {})[ruler.network.name] = ruler.captions.record
        scores.append(scores_of(statistics, ruler.reference, ruler.name, embedded, share))
    return Report(images=found[0].count or 0, images_hash=found[0].digest, scores=scores, protocol=protocol)


def _prompts(samples: Samples, names: Sequence[str]) -> Sequence[str] | None:
    """What each image should show: its caption, or the name of its class in a sentence."""
    if samples.captions or samples.labels is None or not names:
        return samples.captions
    return [PROMPT.format(names[label].replace("_", " ")) for label in samples.labels.tolist()]


def nearest_images(found: Statistics, ruler: Ruler, reference: DataSection, count: int = 50) -> Tensor:
    """For each of the first samples, at most `count`, that `found` has the features of, the training image of the
    reference that is nearest to it in them: uint8 (count, C, H, W)."""
    first = int((found.index == torch.arange(len(found.index))).sum())  # rows kept from the start on
    _, places = nearest(ruler.reference.rows, found.rows[: min(first, count)])
    items, length = ruler.reference.index[places], math.prod(reference.shape[:-2])
    stored = as_uint8(stack(reference.open("train"), (items // length).tolist()))
    return stored if stored.ndim == 4 else stored[torch.arange(len(items)), :, items % length]


def _of_size(samples: Samples, ruler: Ruler) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The same batches; InputError when the images are not of the size of the reference's."""
    for images, labels in frame_by_frame(samples.batches):
        if ruler.shape is not None and images.shape[1:] != ruler.shape:
            raise InputError(
                f"images of {_size(images.shape[1:])} against the reference {ruler.name} of {_size(ruler.shape)}; "
                "compare images of one size: resizing one side changes every score"
            )
        yield images, labels


def _size(shape: Sequence[int]) -> str:
    channels, height, width = shape
    return f"{width}x{height} with {channels} channels"
