"""Training of a data set's little classifier, and its freezing.

    loss = cross-entropy(head(features), label) + 2 · mean (redraw(features) - image)²

Differs: the second term, a linear map from the features back to the pixels which is thrown away
afterwards, is what makes the features a ruler. A network that only has to separate classes forgets
what varies within them: 3 % of the variance of its features on the digits, against 24 % with the term
at the same accuracy. A model that repeats ten training digits per class is then at 0.5, with it at 6.4.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ditkit.data import Batch
from ditkit.device import autocast
from ditkit.errors import InputError
from ditkit.evaluation.networks.classifier import Card, Classifier, scale, serialise, trunk
from ditkit.progress import progress_bar
from ditkit.randomness import generator
from ditkit.recipe import Training
from ditkit.training.fit import fit
from ditkit.training.state import TrainState

IMAGES_SHOWN = 200_000  # the usual length: 139 passes over the digits ...
LEAST_EPOCHS = 12  # ... but this many passes over any set
MOST_EPOCHS = 1_000_000  # days, whatever the data
BATCH = 128
PEAK_RATE = 4e-3  # of AdamW, on a one-cycle schedule
REDRAW = 2.0
REDRAW_SIDE = 16  # larger images are redrawn at this size: only their gross variety matters here


def fit_classifier(
    images: Tensor,
    labels: Tensor | None,
    *,
    test_images: Tensor,
    test_labels: Tensor | None,
    classes: int,
    data: str = "images",
    seed: int = 0,
    epochs: int | None = None,
    device: torch.device | str = "cpu",
) -> Classifier:
    """Train a classifier and freeze it; `classifier.card.accuracy` is measured on the test images.

    Images uint8 (N, C, H, W), labels int64 (N,) in [0, classes). `epochs=None` shows the network 200,000
    images or each one 12 times, whichever is more. On one kind of CPU the result, down to the hash, is a
    function of the arguments. InputError when images and labels do not fit together, or for too many epochs.
    """
    if epochs is not None and epochs > MOST_EPOCHS:
        raise InputError(f"`epochs` {epochs}: no classifier needs so many; give at most {MOST_EPOCHS}")
    labels = _checked("training", images, labels, classes)
    test_labels = _checked("test", test_images, test_labels, classes)
    device = torch.device(device)
    card = Card(
        data=data,
        classes=classes,
        shape=(images.shape[1], images.shape[2], images.shape[3]),
        seed=seed,
        epochs=epochs or max(LEAST_EPOCHS, round(IMAGES_SHOWN / len(images))),
        images=len(images),
        accuracy=0,
    )
    with _one_thread():
        body, head = _train(images.to(device), labels.to(device), card)
        classifier = Classifier(card).to(device)
        classifier.trunk.load_state_dict(_folded(body).state_dict())
        classifier.head.load_state_dict(head.state_dict())
        _set_unit(classifier, images)
        right = sum(
            int((classifier(some)[1].argmax(dim=1).cpu() == labels.cpu()).sum())
            for some, labels in zip(test_images.split(500), test_labels.split(500), strict=True)
        )
        classifier.card = card.model_copy(update={"accuracy": right / len(test_images)})
        classifier.hash = hashlib.sha256(serialise(classifier)).hexdigest()
    return classifier


@contextmanager
def _one_thread() -> Iterator[None]:
    """On a CPU more threads sum in another order: the hash must not depend on the number of cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _train(images: Tensor, labels: Tensor, card: Card) -> tuple[nn.Sequential, nn.Linear]:
    """The trunk, batch norms and all, and the head."""
    device = images.device
    small = (min(card.shape[1], REDRAW_SIDE), min(card.shape[2], REDRAW_SIDE))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(card.seed)
        body = trunk(card.shape, card.features, normalise=True)
        head = nn.Linear(card.features, card.classes)
        redraw = nn.Linear(card.features, card.shape[0] * small[0] * small[1])
    network = nn.ModuleList([body, head, redraw]).to(device).train()
    size = min(BATCH, len(images))
    epoch = len(images) // size * size  # images of it that make whole batches
    length = Training(images=card.epochs * epoch, batch=size)
    # Not the fused one: the bundled files' hashes hang on every bit of this.
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=length.images // size)

    def step(batch: Batch) -> dict[str, Tensor]:
        inputs = scale(batch.encodable)
        with autocast(device, "auto"):
            features = body(inputs)  # (B, D)
            logits, drawn = head(features).float(), redraw(features).float()
        target = F.adaptive_avg_pool2d(inputs, small).flatten(1)
        loss = F.cross_entropy(logits, labels[batch.index]) + REDRAW * F.mse_loss(drawn, target)
        loss.backward()
        return {"loss": loss}

    def follow(state: TrainState, before: int, seen: int) -> None:
        schedule.step()
        bar.update(seen - before)
        if seen % epoch == 0:
            bar.set_postfix(loss=f"{state.terms['loss'].item():.3f}")

    with progress_bar(length.images, f"classifier of {card.data}", "image") as bar:
        stream = _epochs(images, card, size)
        fit(TrainState(network, optimizer), stream, step, length, hooks=[follow], rate=None)
    return body.eval(), head


def _epochs(images: Tensor, card: Card, size: int) -> Iterator[Batch]:
    """Whole batches of `size` images, moved about, in an order of every epoch's own."""
    for epoch in range(card.epochs):
        order = torch.from_numpy(generator(card.seed, epoch, "order").permutation(len(images)))
        shifts = generator(card.seed, epoch, "augment")
        for rows in order[: len(order) // size * size].to(images.device).split(size):
            yield Batch(_shifted(images[rows], shifts), None, rows)


def _shifted(images: Tensor, random: np.random.Generator) -> Tensor:
    """Each image moved by up to 1/14 of its sides (a pixel of 8, two of 28), its border repeated."""
    count, _, height, width = images.shape

    def places(length: int) -> Tensor:
        reach = max(length // 14, 1)
        offsets = torch.from_numpy(random.integers(-reach, reach + 1, (count, 1)))
        return (torch.arange(length) + offsets).clamp(0, length - 1).to(images.device)  # (B, length)

    rows, columns = places(height)[:, :, None], places(width)[:, None, :]
    items = torch.arange(count, device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[items, rows, columns].permute(0, 3, 1, 2)


def _folded(body: nn.Sequential) -> nn.Sequential:
    """The same function, with every batch norm absorbed by the convolution before it."""
    layers: list[nn.Module] = []
    for layer in body:
        before = layers[-1] if layers else None
        if isinstance(layer, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
            layers[-1] = fuse_conv_bn_eval(before, layer)
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


def _set_unit(classifier: Classifier, images: Tensor) -> None:
    """Choose the unit of the features so that their variance over the training set is 1 on average.

    Fréchet distances of different data sets then have one scale: the training set's own spread is D.
    One number for all features leaves the geometry alone, and ReLU passes it on.
    """
    features = torch.cat([classifier(some)[0] for some in images.split(500)])
    unit = features.double().var(dim=0).mean().sqrt().item()
    last = [layer for layer in classifier.trunk if isinstance(layer, nn.Conv2d)][-1]
    last.weight /= unit
    assert last.bias is not None
    last.bias /= unit
    classifier.head.weight *= unit


def _checked(name: str, images: Tensor, labels: Tensor | None, classes: int) -> Tensor:
    """The labels, if they are labels of these images."""
    if images.dtype != torch.uint8 or images.ndim != 4 or len(images) < 2:
        raise InputError(
            f"{name} images must be uint8 (N, C, H, W), N > 1, not {images.dtype} {tuple(images.shape)}"
        )
    if labels is None or labels.shape != images.shape[:1]:
        count = "none" if labels is None else len(labels)
        raise InputError(f"{name}: a classifier of {len(images)} images needs as many labels, not {count}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise InputError(
            f"{name} labels reach from {low} to {high}, but {classes} classes allow 0 to {classes - 1}"
        )
    return labels
