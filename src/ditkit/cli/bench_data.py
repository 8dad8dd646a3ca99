"""`ditkit bench --data DIR`: how fast a folder of images is decoded, prepared, and read again; and how soon training begins.

The first pass is compared with Pillow's bare decoding (open and load, nothing made of the pixels) of the same files, in
turn, so that a busy machine slows both: on one core, and on all at once, which on cores that share a processor's units
are hardly faster than one. What it does besides is lay transparency on white, crop and scale by ADM's rule, hash the
file, and write.
"""

import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
from PIL import Image
from pydantic import Field

from ditkit.cli.measured import MeasuredCommand, machine, threads, write
from ditkit.cli.parsing import parse
from ditkit.data import Folder, batches, spread
from ditkit.data.decoding import own_limit
from ditkit.data.folder import Files, scan
from ditkit.data.listing import Listing, Strings
from ditkit.data.prepared import kept
from ditkit.data.preparing import process_context
from ditkit.data.sources import Channels, Size
from ditkit.device import cores
from ditkit.errors import InputError
from ditkit.recipe import Recipe
from ditkit.recipes import recipe as named_recipe
from ditkit.scoring import software
from ditkit.training import train

READ = 20_000  # images, from the cache


class DataBenchCommand(MeasuredCommand):
    """Time a folder of images: bare decoding, the first pass, reading prepared images, and the first training step.

    Prepared images go to a folder that is removed afterwards. Leave the machine alone meanwhile.
    """

    data: Path
    """The folder."""
    recipe: str = "fashion-sit"
    """Whose first step is timed, without compiling."""
    size: Size = 32
    channels: Channels = 3
    sample: Annotated[int, Field(ge=1)] = 1000
    """Images for bare decoding and the first pass, at even distances."""


def run(argv: list[str]) -> None:
    command = parse(DataBenchCommand, argv, "bench")
    command.check()
    if not command.data.is_dir():
        raise InputError(f"--data {command.data}: not a folder of images")
    with tempfile.TemporaryDirectory(prefix="ditkit-bench-") as folder, threads(command.threads), _quiet():
        record = {
            "machine": machine() | {"cores": cores()},
            "software": software(),
            "data": {
                "images": len(scan(command.data).files),
                "size": command.size,
                "channels": command.channels,
            },
            **measured(command, Path(folder)),
        }
    print("\n".join(_report(record)))
    write(record, command.out)


def measured(command: DataBenchCommand, folder: Path) -> dict:
    """The rates, in images a second, and the seconds to the end of the first training step."""
    config = Folder(path=command.data, size=command.size, channels=command.channels, cache=folder / "cache")
    some = sample(command.data, command.sample)
    rounds: dict[str, list[float]] = {"decoding": [], "decoding_all_cores": [], "pass": []}
    for number in range(command.rounds):
        rounds["decoding"].append(len(some) / seconds(lambda: decode_all(some)))
        rounds["decoding_all_cores"].append(len(some) / seconds(lambda: decode_on_all_cores(some)))
        cache = folder / f"pass-{number}"
        rounds["pass"].append(len(some) / seconds(partial(kept, some, config.rule, cache)))
    recipe = named_recipe(command.recipe).replace(data=config, name="bench")
    starts = [seconds(partial(first_step, recipe, folder / out)) for out in ("first", "second")]
    return {
        "sample": len(some),
        "rounds": rounds,
        "decoding_per_core": median(rounds["decoding"]),
        "decoding_all_cores": median(rounds["decoding_all_cores"]),
        "pass": median(rounds["pass"]),
        "pass_of_cores_times_decoding": median(
            passed / (cores() * bare) for passed, bare in zip(rounds["pass"], rounds["decoding"], strict=True)
        ),
        "pass_of_decoding_all_cores": median(
            passed / bare for passed, bare in zip(rounds["pass"], rounds["decoding_all_cores"], strict=True)
        ),
        "reading_per_core": median(READ / seconds(lambda: read(config)) for _ in range(command.rounds)),
        "first_start_s": starts[0],
        "second_start_s": starts[1],
    }


def sample(folder: Path, count: int) -> Files:
    """`count` of a folder's images, at even distances."""
    found = scan(folder)
    places = spread(len(found.files), count)
    return Files(
        folder, Listing(Strings(found.files[place] for place in places), None, (), f"bench {places}")
    )


def decode_all(files: Files, first: int = 0, step: int = 1) -> None:
    """Open and load each `step`-th image, in this process."""
    for number in range(first, len(files), step):
        try:
            with own_limit(), Image.open(files.path(number)) as image:
                image.load()
        except Exception:  # broken ones take their time, too
            continue


def decode_on_all_cores(files: Files) -> None:
    """Open and load each image, in as many processes as there are cores."""
    with ProcessPoolExecutor(cores(), process_context()) as pool:
        list(pool.map(decode_all, repeat(files), range(cores()), repeat(cores())))


def read(config: Folder) -> None:
    """READ images in a training's order, in this process."""
    source = config.open()
    for _ in batches(source, config, seed=0, start=0, stop=READ, batch=64):
        pass


def first_step(recipe: Recipe, out: Path) -> None:
    """A training of one step: open the images, build the network, step, and write a checkpoint."""
    only = {"images": recipe.train.batch, "preview_images": 0, "validate_images": 0, "compile": "off"}
    train(recipe.replace(train=only), out, device=torch.device("cpu"), progress=False)


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


@contextmanager
def _quiet() -> Iterator[None]:
    """Without this, Pillow's warnings and those of broken images would come in every round."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _report(record: dict) -> Iterator[str]:
    there, versions, data = record["machine"], record["software"], record["data"]
    yield f"bare decoding by Pillow, one core      {record['decoding_per_core']:10,.0f} images/s"
    yield f"bare decoding by Pillow, {there['cores']:2} cores      {record['decoding_all_cores']:10,.0f} images/s"
    yield (
        f"the first pass, {there['cores']:2} cores               {record['pass']:10,.0f} images/s, "
        f"{record['pass_of_decoding_all_cores']:.2f} of that, {record['pass_of_cores_times_decoding']:.2f} of cores x one core's"
    )
    yield f"prepared images, read on one core      {record['reading_per_core']:10,.0f} images/s"
    yield f"one training step, first start         {record['first_start_s']:10.1f} s, with the pass over all images"
    yield f"one training step, second start        {record['second_start_s']:10.1f} s"
    yield (
        f"{data['images']:,} images, {data['size']} pixels, {data['channels']} channels, a sample of {record['sample']:,}; "
        f"{there['cpu']}, torch {versions['torch']}, ditkit {versions.get('commit', versions['ditkit'])}"
    )
