"""`ditkit encode RECIPE --out DIR`: the latents of a recipe's images, once, to train from."""

import time
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ditkit.cli.options import check_writable
from ditkit.cli.parsing import without
from ditkit.cli.train import RecipeFlags, parse_recipe
from ditkit.cli.verbs import to_type, typed
from ditkit.codecs import Vae
from ditkit.config import read_section
from ditkit.data.latents import Index, write_cache
from ditkit.data.latents.cache import INDEX, Dtype, data_facts
from ditkit.device import pick_device
from ditkit.errors import InputError
from ditkit.files import owned
from ditkit.processes import joined
from ditkit.recipes import RECIPES
from ditkit.training.captions import TEXT, embed_captions
from ditkit.training.data import recorded, settled
from ditkit.training.latents import codec_facts, multiple_of

USAGE = f"""usage: ditkit encode RECIPE --out DIR [--section.field value ...]

Encode the training images of a recipe once, with its autoencoder, and keep the posteriors' moments, of the
mirrored images too where the recipe flips: {", ".join(RECIPES)}.

    ditkit encode imagenet256-sit-xl2 --data /data/imagenet/train --out /data/latents
    ditkit train imagenet256-sit-xl2 --data /data/imagenet/train --train.latents /data/latents

Training from the cache equals training on the images: the same order, flips and draws from the posteriors.
Captions are kept, and embedded once where the recipe has a text encoder.
With --data.aspect native every image keeps its size, cut to multiples that depend on --backbone.patch: give the same patch
to both commands.
The same command again goes on where it was stopped. A 256-pixel image takes 32 kB, twice that with flips.
The flags are those of `ditkit train`; --data, --codec and their fields are what matters."""


class EncodeCommand(RecipeFlags):
    """Encode a recipe's training images once. Run again, the same command resumes it."""

    out: Path | None = None
    """Folder of the cache; required."""
    shard: Annotated[int, Field(ge=1)] = 1024
    """Images per file: what is lost at most when it is stopped."""
    dtype: Dtype = "float32"
    """float16 takes half the disk and rounds every number to 1 in 2,048 of itself."""


def parse_encode(argv: list[str]) -> EncodeCommand:
    return parse_recipe(EncodeCommand, "encode", argv)


def run(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print(typed(USAGE))
        return
    command = parse_encode(argv)
    out = command.out
    if out is None:
        raise InputError("encode: --out DIR names the folder of the cache")
    check_writable(out)
    if command.data.of_clips:
        raise InputError(f"encode: data {command.data.kind} is of clips; take images")
    data = settled(command.data, out / "recipe.json", latents=out)
    device = pick_device(command.device)
    codec = command.codec.build(data.channels, device)
    if not isinstance(codec, Vae):
        raise InputError(
            f"encode: the codec of {command.name} is {command.codec.kind}, which has no latents; give --codec vae"
        )
    source = data.open("train")
    data = recorded(data, source)
    channels, height, width = codec.layout(*data.shape).shape
    plan = Index(
        count=len(source),
        shape=(2 * channels, height, width),
        multiple=multiple_of(command.recipe),
        flips=data.flip,
        dtype=command.dtype,
        shard=command.shard,
        encoder=codec.encoder_hash,
        codec={"id": codec.config.id, "revision": codec.config.revision, **codec_facts(codec.config)},
        data=data_facts(data) | ({"content": data.content} if data.content else {}),
        names=source.names,
        captions=source.captions is not None,
    )
    start = time.perf_counter()
    with joined(device) as processes, owned(out) if processes.first else nullcontext():
        encoded = write_cache(out, source, codec.moments, plan)
        seconds = time.perf_counter() - start
        if not processes.first:
            return
        if command.recipe.text and source.captions:
            texts = embed_captions(command.recipe, source, out / TEXT, device)
            print(f"{texts.folder}: {len(texts):,} captions, by {command.recipe.text.id}")
    index = read_section(Index, out / INDEX)
    mean, std = index.mean or (), index.std or ()
    own = EncodeCommand.model_fields.keys() - RecipeFlags.model_fields.keys()
    print(f"{out}: {encoded:,} of {len(source):,} images encoded, {encoded / seconds:.1f} images/s")
    print(f"channels: mean {_numbers(mean)}, spread {_numbers(std)}")
    print(
        f"next: {to_type('train', *without(argv, own), '--train.latents', out)}\n"
        f"to give each channel mean 0 and spread 1: --codec.shift {_numbers(mean)} "
        f"--codec.scale {_numbers([1 / max(each, 1e-6) for each in std])}"
    )


def _numbers(values: Iterable[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)
