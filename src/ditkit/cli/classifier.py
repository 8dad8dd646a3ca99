"""`ditkit classifier DATA`: make the frozen classifier that scores a data set."""

from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ditkit.cli.kinds import data_section
from ditkit.cli.options import check_new
from ditkit.cli.parsing import parse
from ditkit.cli.verbs import to_type, typed
from ditkit.config import Section
from ditkit.data import DataConfig, DataSection, Split, load_all
from ditkit.errors import InputError
from ditkit.evaluation import save_classifier
from ditkit.scoring.samples import frame_by_frame
from ditkit.training.classifier import fit_classifier

USAGE = """usage: ditkit classifier DATA --out FILE [--replace] [--data.field value ...] [--epochs N] [--seed N]

Train the small classifier whose features every score of this data set is measured in, on the training
split; its accuracy on the held-out split and its hash are printed. Freeze it: scores under different
hashes cannot be compared. DATA: digits, fashion-mnist, clipart, moving-digits (of clips every frame is an image), hub,
arrays, or a folder with one sub-folder per class (then a fifth of each class is held out)."""

HOLD_OUT = 5  # every fifth image, where the data has no held-out part


class ClassifierCommand(Section):
    """Train and freeze the classifier of a data set."""

    data: DataConfig
    out: Path | None = None
    """The safetensors file to write; DATA.safetensors by default."""
    replace: bool = False
    """Write over a file that is there."""
    epochs: Annotated[int, Field(ge=1)] | None = None
    """Passes over the data; by default as its size needs."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Initial weights, order and augmentation."""


def run(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print(typed(USAGE))
        return
    name, *flags = argv
    default = ClassifierCommand(data=data_section(name, flag=None))
    command = parse(ClassifierCommand, flags, f"classifier {name}", default=default)
    out = command.out or Path(f"{command.data.kind}.safetensors")
    check_new(out, command.replace)
    images, labels = _load(command.data, "train")
    if labels is None:
        raise InputError(f"{name} has no classes: a classifier needs labels (one sub-folder per class)")
    try:
        test_images, test_labels = _load(command.data, "test")
    except InputError:  # no part of its own for that: hold out a fifth
        held_out = torch.arange(len(images)) % HOLD_OUT == 0
        test_images, test_labels = images[held_out], labels[held_out]
        images, labels = images[~held_out], labels[~held_out]
    classifier = fit_classifier(
        images,
        labels,
        test_images=test_images,
        test_labels=test_labels,
        classes=int(labels.max()) + 1,
        data=command.data.kind,
        seed=command.seed,
        epochs=command.epochs,
    )
    save_classifier(out, classifier)
    card = classifier.card
    print(
        f"{out}\nheld-out accuracy {card.accuracy:.4f} on {len(test_images)} images, hash {classifier.hash[:12]}\n"
        f"next: {to_type('eval', 'RUN', '--features', f'classifier={out}')}"
    )


def _load(data: DataSection, split: Split) -> tuple[Tensor, Tensor | None]:
    """All images of a part; of clips their frames."""
    ((images, labels),) = frame_by_frame([load_all(data, split)])
    return images, labels
