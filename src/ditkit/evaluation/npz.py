"""Statistics of reference images as .npz files, so that they are computed once.

Three kinds are read: ditkit's own, with everything that `Statistics` holds; ADM's reference batches
(`VIRTUAL_*.npz`: some images as arr_0, and mean and covariance of all the training images, whose number is
not stated); and plain files of a mean and a covariance. The arrays that ADM has go by its names: mu,
sigma, mu_s, sigma_s (divisor N - 1), arr_0 (uint8, NHWC). Nothing pickled is read or written.
"""

import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ditkit.errors import InputError, is_defect
from ditkit.evaluation.frechet import Gaussian, Moments
from ditkit.evaluation.inception_score import ScoreSums
from ditkit.evaluation.networks.features import FeatureNetwork
from ditkit.evaluation.statistics import KEEP, Statistics, check_network, gather
from ditkit.files import DAMAGED_ARRAYS, file_hash
from ditkit.progress import progress_bar
from ditkit.records import written_whole

BATCH = 64  # images of arr_0 in memory at a time
GAUSSIAN = ("mu", "sigma")
SPATIAL = ("mu_s", "sigma_s")
OWN = ("network", "network_hash", "resize", "digest", "count", "rows", "index", "keep")
SCORES = ("split", "split_count", "split_probability", "split_negentropy")
LABELS = ("labels", "arr_1")
READINGS = ("confusion", "read")  # names of arrays
TEXTS = ("network", "network_hash", "resize", "digest")
FORMS = {  # of ditkit's own arrays: what each is, the kinds of its numbers and its dimensions
    **dict.fromkeys(TEXTS, ("a text", "U", 0)),
    **dict.fromkeys(("count", "keep"), ("a whole number", "iu", 0)),
    "rows": ("features (R, D)", "f", 2),
    "index": ("whole numbers (R,)", "i", 1),
    "split": ("whole numbers (S,)", "i", 1),
    "split_count": ("whole numbers (S,)", "i", 1),
    "split_probability": ("numbers (S, K)", "f", 2),
    "split_negentropy": ("numbers (S,)", "f", 1),
    "confusion": ("whole numbers (K, K)", "i", 2),
    "read": ("whole numbers (K,)", "i", 1),
}


def save_statistics(path: str | Path, statistics: Statistics) -> None:
    """Write everything to one .npz file; InputError for fewer than two images."""
    arrays: dict[str, Any] = {
        "network": statistics.network,
        "network_hash": statistics.network_hash,
        "resize": statistics.resize,
        "digest": statistics.digest,
        "count": -1 if statistics.count is None else statistics.count,
        "mu": statistics.moments.mean,
        "sigma": statistics.moments.covariance,
        "rows": statistics.rows,
        "index": statistics.index,
        "keep": statistics.keep,
    }
    if statistics.spatial is not None:
        arrays |= {"mu_s": statistics.spatial.mean, "sigma_s": statistics.spatial.covariance}
    if (scores := statistics.scores) is not None:
        sums = (scores.split, scores.count, scores.probability, scores.negentropy)
        arrays |= dict(zip(SCORES, sums, strict=True))
    if statistics.confusion is not None:
        arrays |= dict(zip(READINGS, (statistics.confusion, statistics.read), strict=True))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    # Given a name, numpy would add .npz to one without.
    with written_whole(Path(path)) as place, place.open("wb") as file:
        np.savez(file, **arrays)


def save_images(
    path: Path, blocks: Iterable[np.ndarray], count: int, labels: np.ndarray | None = None
) -> None:
    """Write `count` images that come in blocks (B, ...) as arr_0, and labels (N,) where there are any, as ADM's evaluator
    reads them; one block is in memory at a time. The file is written whole."""
    with written_whole(path) as place, zipfile.ZipFile(place, "w") as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as member:
            begun = False
            for block in blocks:
                if not begun:
                    header = np.lib.format.header_data_from_array_1_0(np.empty(0, block.dtype))
                    np.lib.format.write_array_header_1_0(
                        member, header | {"shape": (count, *block.shape[1:])}
                    )
                    begun = True
                member.write(np.ascontiguousarray(block).data)
        if labels is not None:
            with archive.open("labels.npy", "w") as member:
                np.lib.format.write_array(member, labels)


def read_statistics(path: str | Path, network: FeatureNetwork, *, keep: int = KEEP) -> Statistics:
    """The reference statistics of a file of any of the three kinds, for values measured with `network`.

    A file that is not ditkit's own does not say which network it is of: the number of features is all
    that can be checked. Its images, where it has any, are read by `network` and give `rows` and the
    sums of the Inception Score; a file of images alone gives everything. InputError when the file
    is not readable, lacks an array, holds no covariance, or is of another network.
    """
    arrays, has_images = _arrays(path)
    if "network" in arrays:
        statistics = load_statistics(path)
        check_network(statistics, network.name, network.hash, network.resize, str(path))
        return statistics
    if not (has_images or "mu" in arrays):
        raise InputError(f"{path}: neither statistics (mu and sigma) nor images (arr_0); give another file")
    images = npz_images(path) if has_images else ()
    if "mu" not in arrays:
        return gather(images, network, keep=keep)
    moments = _gaussian(path, arrays, *GAUSSIAN)
    if len(moments.mean) != network.dim:
        raise InputError(
            f"{path}: mu has {len(moments.mean)} features, {network.name} has {network.dim}; "
            "give statistics of the same network"
        )
    return replace(
        gather(images, network, keep=keep),
        digest=file_hash(path),
        moments=moments,
        spatial=_gaussian(path, arrays, *SPATIAL) if "mu_s" in arrays else None,
    )


def load_statistics(path: str | Path) -> Statistics:
    """The statistics of a file that `save_statistics` wrote; InputError when it is not one."""
    arrays, _ = _arrays(path)
    _require(path, arrays, *OWN)
    _check_own(path, arrays)
    count = int(arrays["count"])
    moments = _counted(_gaussian(path, arrays, *GAUSSIAN), count)
    tensors = {name: torch.from_numpy(arrays[name]) for name in (*SCORES, *READINGS) if name in arrays}
    rows, index = torch.from_numpy(arrays["rows"]), torch.from_numpy(arrays["index"])
    if rows.shape != (*index.shape, len(moments.mean)):
        raise InputError(
            f"{path}: rows {tuple(rows.shape)} are not {len(index)} images of {len(moments.mean)} features; "
            "make the file anew"
        )
    return Statistics(
        **{name: str(arrays[name]) for name in TEXTS},
        moments=moments,
        spatial=_counted(_gaussian(path, arrays, *SPATIAL), count) if "mu_s" in arrays else None,
        rows=rows,
        index=index,
        keep=int(arrays["keep"]),
        scores=ScoreSums(*(tensors[name] for name in SCORES)) if set(SCORES) <= set(tensors) else None,
        confusion=tensors.get("confusion"),
        read=tensors.get("read"),
    )


def npz_labels(path: str | Path) -> Tensor | None:
    """The labels of the images of arr_0, int64 (N,), where the file has any: as `labels`, or in ADM's samples
    arr_1. InputError when they are not one whole number for each image."""
    with _opened(path) as file:
        name = next((name for name in LABELS if name in file.files), None)
        if name is None:
            return None
        labels = file[name]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(f"{path}: {name} is {labels.dtype} {labels.shape}, not labels: give integers (N,)")
    return torch.from_numpy(labels.astype(np.int64))


def npz_images(path: str | Path) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The images of arr_0 in batches (uint8 (N, C, H, W), labels (N,) or None), read as they are needed.

    InputError when there are none, when they are not uint8 (N, H, W, C), and when the file is cut off.
    """
    labels = npz_labels(path)
    # Differs from np.load's file["arr_0"], which takes 10 GB for 50,000 images of 256 × 256.
    with _opened(path), zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as member:
        np.lib.format.read_magic(member)
        shape, by_columns, dtype = np.lib.format.read_array_header_1_0(member)
        if dtype != np.uint8 or len(shape) != 4 or by_columns:
            raise InputError(f"{path}: arr_0 is {dtype} {shape}, not images: give uint8 (N, H, W, C)")
        with progress_bar(shape[0], "reading images", "img", delay=2.0) as bar:
            for start in range(0, shape[0], BATCH):
                part = (min(BATCH, shape[0] - start), *shape[1:])
                pixels = np.frombuffer(bytearray(member.read(int(np.prod(part)))), np.uint8).reshape(part)
                own = None if labels is None else labels[start : start + len(pixels)]
                yield torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), own
                bar.update(len(pixels))


@contextmanager
def _opened(path: str | Path) -> Iterator[np.lib.npyio.NpzFile]:
    """The .npz file; whatever is wrong with it, now or as it is read, is one InputError."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("one array, as an .npy file has it")
        with loaded as file:
            yield file
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give an .npz file of statistics or images") from None
    except DAMAGED_ARRAYS as error:
        if is_defect(error):
            raise
        raise InputError(
            f"{path}: not a readable .npz file ({' '.join(str(error).split())}); make or fetch it anew"
        ) from None


def _arrays(path: str | Path) -> tuple[dict[str, np.ndarray], bool]:
    """The arrays of the file that have a meaning here, and whether it has images (which stay there)."""
    with _opened(path) as file:
        known = {*GAUSSIAN, *SPATIAL, *OWN, *SCORES, *READINGS}
        return {name: file[name] for name in file.files if name in known}, "arr_0" in file.files


def _require(path: str | Path, arrays: dict[str, np.ndarray], *names: str) -> None:
    if missing := [name for name in names if name not in arrays]:
        raise InputError(f"{path}: no array {', '.join(missing)}; make or fetch the file anew")


def _check_own(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """InputError unless the arrays of a file that ditkit wrote are of the kinds and shapes that it writes."""
    for name, (what, kinds, dimensions) in FORMS.items():
        if name not in arrays:
            continue
        array = arrays[name]
        if array.dtype.kind not in kinds or array.ndim != dimensions:
            raise InputError(f"{path}: {name} is {array.dtype} {array.shape}, not {what}; make the file anew")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise InputError(f"{path}: {name} is not finite; make the file anew")
    splits, classes = [arrays[name].shape[0] for name in SCORES if name in arrays], _sides(arrays)
    ascending = (np.diff(arrays["index"]) > 0).all() and (arrays["index"] >= 0).all()
    if len(set(splits)) > 1 or len(set(classes)) > 1 or not ascending or arrays["count"] in (0, 1):
        raise InputError(f"{path}: its arrays do not belong together; make the file anew")


def _sides(arrays: dict[str, np.ndarray]) -> list[int]:
    """The number of classes, as each array that has them says it."""
    return [side for name in READINGS if name in arrays for side in arrays[name].shape]


def _gaussian(path: str | Path, arrays: dict[str, np.ndarray], mu: str, sigma: str) -> Gaussian:
    """Mean and covariance by these names, float64, checked."""
    _require(path, arrays, mu, sigma)
    mean, covariance = arrays[mu], arrays[sigma]
    for name in mu, sigma:
        if arrays[name].dtype.kind not in "fiu":
            raise InputError(
                f"{path}: {name} is {arrays[name].dtype}, not numbers; make or fetch the file anew"
            )
    if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
        raise InputError(
            f"{path}: {mu} {mean.shape} and {sigma} {covariance.shape} are no mean (D,) and covariance (D, D)"
        )
    mean, covariance = mean.astype(np.float64), covariance.astype(np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise InputError(f"{path}: {mu} or {sigma} is not finite; make or fetch the file anew")
    if np.abs(covariance - covariance.T).max(initial=0) > 1e-6 * np.abs(covariance).max(initial=0):
        raise InputError(f"{path}: {sigma} is not symmetric, so no covariance; make or fetch the file anew")
    return Gaussian(torch.from_numpy(mean), torch.from_numpy(covariance))


def _counted(gaussian: Gaussian, count: int) -> Gaussian | Moments:
    """The same as moments of `count` images, so that more can join; -1 is an unknown number."""
    if count < 0:
        return gaussian
    return Moments(count, gaussian.mean, gaussian.covariance * (count - 1))
