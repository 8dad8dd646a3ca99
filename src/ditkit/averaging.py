"""Models of a run's averages of weights: one that it kept, or one of any width that is made of what it stored.

    from ditkit.averaging import kept, post_hoc

    pipe = post_hoc("runs/mine", width=0.12)             # a Pipeline, of power averages stored on the way
    pipe = kept("runs/mine", "half_life:images=500000")
    pipe.save("mine-0.12")                               # a snapshot

After Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models" (2024), section 3.2.
"""

import logging
from pathlib import Path
from typing import NamedTuple

import torch

from ditkit.averages import power_widths, same_average
from ditkit.averages.files import Stored, combined, part_name, stored_files
from ditkit.averages.profiles import LEAST, MOST, Fit, Profile, fit
from ditkit.checks import whole_number
from ditkit.device import DeviceName, pick_device
from ditkit.errors import InputError
from ditkit.interop import Imported
from ditkit.pipeline import Pipeline, assembled
from ditkit.recipe import Recipe
from ditkit.snapshots import check_finite, own_recipe, plain, read_checkpoint

log = logging.getLogger(__name__)

POOR = 0.1
"""The share of a profile's norm that may be missing without a warning."""


def post_hoc(
    run: str | Path,
    width: float,
    *,
    images: int | None = None,
    device: DeviceName | torch.device = "auto",
) -> Pipeline:
    """The model of the power average of that `width`, as it would be if it had been kept, after so many `images`, by default
    those of the last file in RUN/averages.

    Its record says how well the stored averages stand for it: "missing" is the norm of what their sum misses of its profile,
    through the norm of the profile. Where that is more than `POOR` it is logged.

    InputError for a width out of [`LEAST`, `MOST`], images of which nothing is stored, a run that stored nothing or has no
    checkpoint, or a damaged file.
    """
    return Averaged(Path(run)).of_width(width, images, pick_device(device))


def kept(run: str | Path, name: str, *, device: DeviceName | torch.device = "auto") -> Pipeline:
    """The model of one of the run's `train.averages`, by its name there, as of the newest checkpoint. InputError where it kept
    no such average."""
    run = Path(run)
    recipe = _recipe(run)
    place = next((k for k, own in enumerate(recipe.train.averages) if _same(own, name)), None)
    if place is None:
        there = ", ".join(recipe.train.averages) or "none: they are chosen by `train.averages`"
        raise InputError(f"`name` {name}: {run} kept no such average; it kept {there}")
    record, parts = read_checkpoint(run, recipe, ("ema", part_name(place)))
    weights = parts["ema"] | parts[part_name(place)]
    check_finite(run, weights)
    found = Imported(recipe, plain(recipe, weights), record | {"average": recipe.train.averages[place]})
    return assembled(found, pick_device(device), str(run))


class Averaged:
    """A run's stored averages, read once, for models of several widths."""

    def __init__(self, run: Path):
        """InputError as of `post_hoc`."""
        self.run, self.recipe = run, _recipe(run)
        if not power_widths(self.recipe.train.averages):
            raise InputError(
                f"{run}: this run keeps no power averages; train one with `train.averages` power:width=0.05 power:width=0.1 "
                "and `train.snapshot_images`"
            )
        self._files = stored_files(run)
        if not self._files:
            raise InputError(
                f"{run}: no averages are stored in its folder yet; give `train.snapshot_images` to its training"
            )
        self._read: dict[int, Stored] = {}

    def of_width(self, width: float, images: int | None, device: torch.device) -> Pipeline:
        """As `post_hoc`."""
        if isinstance(width, bool) or not isinstance(width, int | float) or not LEAST <= width <= MOST:
            raise InputError(
                f"`width` {width!r:.80} is no width of an average; give one from {LEAST} to {MOST}"
            )
        first, last = min(self._files), max(self._files)
        images = last if images is None else whole_number(images, "images")
        if not first <= images <= last:
            raise InputError(
                f"`images` {images:,}: {self.run} has averages after {first:,} to {last:,} images to make others of"
            )
        terms = self._terms(Profile(images, float(width)))
        record, parts = read_checkpoint(self.run, self.recipe, ("ema",))
        weights = parts["ema"]
        shares = [
            (stored, part, share) for (stored, part), share in zip(terms.of, terms.fit.shares, strict=True)
        ]
        for name in self._names(terms):
            weights[name] = combined(shares, name).to(weights[name])
        check_finite(self.run, weights)
        missing = terms.fit.missing
        if missing > POOR:
            log.warning(
                f"{self.run}: the {len(shares)} stored averages miss {missing:.0%} of the profile of width {width:g} after "
                f"{images:,} images; take images of which some are stored, and a width between theirs, or store more "
                "(`train.snapshot_images`)"
            )
        record = record if record["images"] == images else {"images": images}
        record |= {"average": f"power:width={width:g}, of {len(shares)} stored", "missing": round(missing, 6)}
        return assembled(Imported(self.recipe, plain(self.recipe, weights), record), device, str(self.run))

    def _terms(self, target: Profile) -> "Terms":
        """The stored averages that stand for one: those of up to its images, and the next."""
        after = min(count for count in self._files if count >= target.images)
        needed = [count for count in self._files if count <= after]
        found, profiles = [], []
        for count in needed:
            if count not in self._read:
                self._read[count] = Stored(self._files[count])
            stored = self._read[count]
            for part, own in stored.widths.items():
                found.append((stored, part))
                profiles.append(Profile(stored.images, own))
        return Terms(found, fit(profiles, target))

    def _names(self, terms: "Terms") -> set[str]:
        """The tensors that all of them have. InputError where they differ."""
        names = [stored.of(part) for stored, part in terms.of]
        for (stored, _), own in zip(terms.of, names, strict=True):
            if own != names[0]:
                raise InputError(
                    f"{stored.file}: it has other tensors than {terms.of[0][0].file}; remove one"
                )
        return names[0]


class Terms(NamedTuple):
    """Stored averages, each a file and a part of it, and the sum of them."""

    of: list[tuple[Stored, str]]
    fit: Fit


def _recipe(run: Path) -> Recipe:
    """InputError where there is no run."""
    if not (run / "recipe.json").exists() or (run / "model.safetensors").exists():
        raise InputError(f"{run}: no run; give the folder of one, which holds its checkpoints and averages")
    return own_recipe(run)


def _same(own: str, name: str) -> bool:
    try:
        return same_average(own, name)
    except ValueError:
        return False
