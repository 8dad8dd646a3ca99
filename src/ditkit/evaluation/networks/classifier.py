"""The frozen little classifier of a data set: the one ruler by which its images are measured.

Inception features say little about 8 × 8 digits and need a download. A small convolutional network,
trained once on the data set itself and then frozen into a file, gives both what the Fréchet distance
needs (few features, so that few images suffice) and a reading of the label. Numbers are comparable
only under the same file: its hash belongs to every result.

    image -> convolution down to about 16 × 16 positions -> 3×3 convolution -> max-pool by 2
          -> two 3×3 convolutions -> mean over the positions = features -> linear head = logits

with a ReLU after each convolution. The frozen form has no normalisation layer and no dropout, so train
and eval mode agree. How it is trained: `ditkit.training.classifier`.
"""

import hashlib
from importlib import resources
from itertools import pairwise
from pathlib import Path

import safetensors.torch
import torch
from pydantic import PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ditkit.config import Section
from ditkit.device import full_float32
from ditkit.errors import InputError
from ditkit.evaluation.networks.features import Features
from ditkit.records import write_whole

FEATURES = 64
WIDTHS = (64, 64, 128)  # of the convolutions before the last; 740 kB with it


class Card(Section):
    """What a classifier is and how it was made; the metadata of its file."""

    data: str
    """Name of the data set."""
    classes: PositiveInt
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    """Channels, height and width of the images it reads."""
    features: PositiveInt = FEATURES
    seed: int
    epochs: PositiveInt
    images: PositiveInt
    """Number of training images."""
    accuracy: float
    """Share of the held-out test images that it reads correctly."""


class Classifier(nn.Module):
    """A `FeatureNetwork`: uint8 images -> features (N, D) >= 0 and logits (N, K). Frozen: float32 always, no
    gradients, no modes."""

    name = "classifier"
    resize = "none"
    classes: int | None

    def __init__(self, card: Card):
        super().__init__()
        self.card = card
        self.dim, self.classes = card.features, card.classes
        self.hash = ""  # SHA-256 of the file, 64 hex digits; set by fit, save and load
        with torch.random.fork_rng(devices=[]):  # weights come later: leave the caller's stream alone
            self.trunk = trunk(card.shape, card.features)
            self.head = nn.Linear(card.features, card.classes)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    @full_float32()
    def forward(self, images: Tensor) -> Features:
        """Features of uint8 images (N, C, H, W) of the card's shape, float32 on the CPU.

        Images are moved to the classifier's device. InputError when they are not of its kind.
        """
        if images.dtype != torch.uint8 or images.shape[1:] != self.card.shape:
            raise InputError(
                f"images {tuple(images.shape)} {images.dtype} cannot be scored by the classifier of "
                f"{self.card.data}, which reads uint8 (N, {', '.join(map(str, self.card.shape))}); "
                "make one for these images with `ditkit classifier DATA --out FILE`"
            )
        device = self.head.weight.device
        with torch.autocast(device.type, enabled=False):
            features = self.trunk(scale(images.to(device)))  # (N, D)
            return Features(features.cpu(), self.head(features).cpu())


def save_classifier(path: str | Path, classifier: Classifier) -> None:
    """Write weights and card as one safetensors file and set `classifier.hash` to its SHA-256."""
    content = serialise(classifier)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(path), content)
    classifier.hash = hashlib.sha256(content).hexdigest()


def load_classifier(path: str | Path) -> Classifier:
    """The classifier of a file, with the file's SHA-256 as `.hash`; InputError when it is not one."""
    try:
        content = Path(path).read_bytes()
        with safe_open(path, framework="pt") as file:
            card = Card.model_validate_json((file.metadata() or {})["card"])
        classifier = Classifier(card)
        classifier.load_state_dict(safetensors.torch.load(content))
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such classifier; make one with `ditkit classifier DATA --out FILE`"
        ) from None
    except (OSError, SafetensorError, KeyError, ValidationError, RuntimeError) as error:
        raise InputError(
            f"{path}: not a readable classifier ({type(error).__name__}); "
            "make it anew with `ditkit classifier DATA --out FILE`"
        ) from error
    classifier.hash = hashlib.sha256(content).hexdigest()
    return classifier


def bundled_classifier(name: str, side: int | None = None) -> Classifier | None:
    """The classifier inside the package for the data set `name`, or None when there is none.

    That of images of `side` pixels where there is one, otherwise that of the set's own size.
    """
    folder = resources.files("ditkit") / "assets" / "classifiers"
    for source in (folder / f"{name}-{side}.safetensors", folder / f"{name}.safetensors"):
        if source.is_file():
            with resources.as_file(source) as path:
                return load_classifier(path)
    return None


def trunk(shape: tuple[int, int, int], features: int, *, normalise: bool = False) -> nn.Sequential:
    """Everything before the head; `normalise` puts in the batch norms that training needs."""
    # The first convolution strides so that about 16 positions a side remain of any image. It is two
    # pixels wider than its stride, so that no pixel is seen at the border of a patch only.
    stride = max(round(min(shape[1:]) / 16), 1)
    widths = (shape[0], *WIDTHS, features)
    layers: list[nn.Module] = []
    for place, (inner, outer) in enumerate(pairwise(widths)):
        step = stride if place == 0 else 1
        layers.append(nn.Conv2d(inner, outer, step + 2, step, padding=1))
        if normalise:
            layers.append(nn.BatchNorm2d(outer))
        layers.append(nn.ReLU())
        if place == 1:
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def scale(images: Tensor) -> Tensor:
    """uint8 to [-1, 1], in the memory layout that CPU convolutions are quickest with."""
    return (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def serialise(classifier: Classifier) -> bytes:
    """The bytes of the classifier's file, a function of its weights and card alone."""
    state = {name: value.cpu().contiguous() for name, value in classifier.state_dict().items()}
    # One key only: safetensors writes several in random order, and the hash must not be random.
    return safetensors.torch.save(state, metadata={"card": classifier.card.model_dump_json()})
