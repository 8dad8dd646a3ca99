"""Starting a run from another model: what fits is taken, what does not is named."""

import logging
from pathlib import Path

import torch

from ditkit.backbones import Backbone
from ditkit.pipeline import load

log = logging.getLogger(__name__)


def load_initial(net: Backbone, origin: str | Path) -> list[str]:
    """Copy every weight of `origin` (a run, a snapshot) whose name and shape fit into `net`, in place.

    Returns, and prints, the names that did not fit; those keep their fresh start. The label table is
    new when the classes differ; positions are computed, so another image size always fits.
    """
    theirs = load(origin, device="cpu").backbone.state_dict()
    ours = net.state_dict()
    left = [name for name, value in ours.items() if name not in theirs or theirs[name].shape != value.shape]
    extra = [name for name in theirs if name not in ours]
    with torch.no_grad():
        for name, value in ours.items():
            if name not in left:
                value.copy_(theirs[name])
    if left or extra:
        fresh = ", ".join(left) or "none"
        log.warning(f"{origin}: did not fit and start fresh: {fresh}; not used: {', '.join(extra) or 'none'}")
    log.info(f"{origin}: {len(ours) - len(left)} of {len(ours)} tensors taken")
    return left
