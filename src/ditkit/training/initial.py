"""Starting a run from another model: what fits is taken, what does not is named."""

import logging
from pathlib import Path

import torch

from ditkit.adapting import frozen_names
from ditkit.backbones import Backbone, MatryoshkaConfig
from ditkit.codecs import VaeConfig
from ditkit.config import Section
from ditkit.errors import InputError
from ditkit.nn.low_rank import is_addition
from ditkit.pipeline import load
from ditkit.recipe import Recipe

log = logging.getLogger(__name__)


def load_inner(net: Backbone, recipe: Recipe, origin: str | Path) -> None:
    """Copy the weights of `origin`, a run or snapshot of the lowest levels of `recipe`, into `net`, in place.

    InputError where `origin` is not what the recipe puts levels around: its network, path, prediction or codec are
    others, it has as many levels or more, or its tensors other shapes (classes, text).
    """
    where = f"`init_inner` {origin}"
    whole, pipe = recipe.backbone, load(origin, device="cpu")
    theirs = pipe.recipe.backbone
    if not isinstance(whole, MatryoshkaConfig):
        raise InputError(f"{where}: this backbone has no levels around another; give `init` instead")
    count, wanted = len(theirs.ratios), len(whole.ratios)
    if count >= wanted:
        raise InputError(
            f"{where} has {count} levels, this recipe {wanted}: it goes inside, so it must have fewer; to start from "
            "one with as many give `init`"
        )
    expected = whole.lowest(count)
    for what, found, needed in (
        ("backbone", theirs, expected),
        ("path", pipe.transport.path, recipe.transport.path),
        ("prediction", pipe.transport.predict, recipe.transport.predict),
        ("codec", _codec(pipe.recipe), _codec(recipe)),
    ):
        if found != needed:
            raise InputError(
                f"{where} has {what} {_in_one_line(found)}, the recipe has {_in_one_line(needed)} inside; give the same"
            )
    prefix = "inner." if count == 1 else ""
    weights = {f"{prefix}{name}": value for name, value in pipe.backbone.state_dict().items()}
    ours = net.state_dict()
    unfit = [name for name, value in weights.items() if name not in ours or ours[name].shape != value.shape]
    if unfit:
        raise InputError(
            f"{where}: {unfit[0]} is of another shape; classes, channels and text must be the same"
        )
    net.load_state_dict(weights, strict=False)
    which = "level" if count == 1 else f"{count} levels"
    log.info(f"{origin}: {len(weights)} of {len(ours)} tensors taken, those of the lowest {which}")


def _codec(recipe: Recipe) -> str:
    config = recipe.codec.resolved()
    return f"{config.kind} {config.id}" if isinstance(config, VaeConfig) else config.kind


def _in_one_line(value: object) -> str:
    """A configuration in one line."""
    return value.model_dump_json(exclude_defaults=True) if isinstance(value, Section) else str(value)


def load_initial(net: Backbone, origin: str | Path) -> list[str]:
    """Copy every weight of `origin` (a run, a snapshot) whose name and shape fit into `net`, in place.

    Returns, and prints, the names that did not fit; those keep their fresh start. The label table is
    new when the classes differ; positions are computed, so another image size always fits. A network of clips with a
    tubelet of one frame takes the patches of one of images. InputError where something that is frozen would start fresh.
    """
    theirs = load(origin, device="cpu").backbone.state_dict()
    ours = {name: value for name, value in net.state_dict().items() if not is_addition(name)}
    patches = "patches.proj.weight"
    if patches in theirs and patches in ours and ours[patches].ndim > theirs[patches].ndim:
        theirs[patches] = theirs[patches].unsqueeze(2)
    left = [name for name, value in ours.items() if name not in theirs or theirs[name].shape != value.shape]
    extra = [name for name in theirs if name not in ours]
    if lost := [name for name in frozen_names(net) if name in left]:
        raise InputError(
            f"`init` {origin}: {', '.join(lost)} did not fit, would start fresh and never be trained; name them in "
            "train.unfreeze, or give data, classes and a network as there"
        )
    with torch.no_grad():
        for name, value in ours.items():
            if name not in left:
                value.copy_(theirs[name])
    if left or extra:
        fresh = ", ".join(left) or "none"
        log.warning(f"{origin}: did not fit and start fresh: {fresh}; not used: {', '.join(extra) or 'none'}")
    log.info(f"{origin}: {len(ours) - len(left)} of {len(ours)} tensors taken")
    return left
