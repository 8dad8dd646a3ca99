"""One recipe trained with several seeds, one after the other."""

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from ditkit.checks import whole_number, whole_numbers
from ditkit.device import DeviceName
from ditkit.errors import InputError
from ditkit.recipe import Recipe
from ditkit.training.loop import train
from ditkit.training.run import RECIPE
from ditkit.training.siblings import sibling, sibling_folder

log = logging.getLogger(__name__)


def train_seeds(
    recipe: Recipe,
    out: str | Path,
    seeds: Sequence[int],
    *,
    device: DeviceName | torch.device,
    init: str | Path | None = None,
    init_inner: str | Path | None = None,
    progress: bool = True,
) -> list[Path]:
    """Train `recipe` with each of the seeds, as `train` does, in OUT/seed-0, OUT/seed-1, ...; the last checkpoint of each.

    Called again it goes on where it was stopped; finished runs stay as they are, and more seeds can be added. What is
    prepared of the data is shared, captions' embeddings in OUT/text. A signal ends all.

    Raises:
        InputError: no seed, one that is none or stands twice, an `out` that is a run itself or has siblings of
            another recipe, or as of `train`.
        Stopped: a signal.
    """
    out = Path(out)
    seeds = [whole_number(seed, "seeds", least=0) for seed in whole_numbers(seeds, "seeds")]
    if not seeds:
        raise InputError("seeds: there are none; give one or several, such as 0 1 2")
    if twice := sorted({seed for seed in seeds if seeds.count(seed) > 1}):
        raise InputError(f"seeds: {twice[0]} stands twice; give every seed once")
    if (out / RECIPE).exists():
        raise InputError(f"`out` {out} is a run itself; give another `out` for runs of several seeds")
    if recipe.text and recipe.train.latents is None and recipe.train.texts is None:
        recipe = recipe.replace(train={"texts": out / "text"})
    paths = []
    for number, seed in enumerate(seeds, start=1):
        log.info(f"{sibling_folder(out, seed)}: training {number} of {len(seeds)}")
        paths.append(
            train(
                sibling(recipe, seed),
                sibling_folder(out, seed),
                device=device,
                init=init,
                init_inner=init_inner,
                progress=progress,
            )
        )
    return paths
