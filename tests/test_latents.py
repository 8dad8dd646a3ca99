"""Latents on disk: training from them is training on the images; what is another's is refused by name."""

import json
import logging
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import CPU, SMALL
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_codecs import saved

from ditkit import files
from ditkit.cli import main
from ditkit.codecs import Vae
from ditkit.data import DATA, Batch, Folder, batches
from ditkit.data.latents import Cache, cache, layouts, open_latents, write_cache
from ditkit.errors import InputError
from ditkit.recipe import Recipe
from ditkit.recipes import recipe
from ditkit.training import train
from ditkit.training.draws import draws_of
from ditkit.training.latents import FromMoments, open_for
from ditkit.training.log import read_log
from ditkit.training.step import backward

BUDGET = {"images": 96, "batch": 32, "warmup_images": 0, "precision": "fp32", "validate_images": 0}
EVERY = {"log_images": 32, "checkpoint_images": 96, "preview_images": 96}


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    """Latents of 3 channels at half the side; posteriors wide enough to see their draws."""
    return saved(tmp_path_factory.mktemp("vae"), blocks=2, latent_channels=3, in_channels=1, out_channels=1)


@pytest.fixture(scope="module")
def latent(vae) -> Recipe:
    """`digits` in latent space, with flips: 3 x 4 x 4, a network that trains in a second."""
    parts = {"codec": {"kind": "vae", "id": vae}, "data": {"flip": True}, "train": BUDGET | EVERY}
    base = recipe("digits").replace(**SMALL, **parts)
    return Recipe.model_validate(base.model_dump() | {"codec": {"kind": "vae", "id": vae}})


def flags(chosen):
    """Those of `ditkit encode digits` that make this recipe."""
    data = ["--data.flip" if chosen.data.flip else "--data.no-flip", "--data.size", str(chosen.data.size)]
    return ["encode", "digits", "--codec", "vae", "--codec.id", chosen.codec.id, *data]


def encode(chosen, out, *more):
    assert main([*flags(chosen), "--out", str(out), "--shard", "500", *more]) == 0
    return out


@pytest.fixture(scope="module")
def encoded(latent, tmp_path_factory):
    return encode(latent, tmp_path_factory.mktemp("latents") / "digits")


def from_cache(chosen, folder):
    return chosen.replace(train={"latents": str(folder)})


# --- the proof -------------------------------------------------------------------------------------


def test_training_from_the_cache_is_training_on_the_images(latent, encoded, tmp_path):
    """Same losses, same weights, to the rounding of the encoder's sums: order, flips, draws and labels agree."""
    online = train(latent, tmp_path / "online", device=CPU, progress=False)
    cached = train(from_cache(latent, encoded), tmp_path / "cached", device=CPU, progress=False)
    losses = [
        [row["loss"] for row in read_log(tmp_path / name / "log.jsonl")] for name in ("online", "cached")
    ]
    assert len(losses[0]) == 3
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    theirs = load_file(cached / "ema.safetensors")
    for name, value in load_file(online / "ema.safetensors").items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-3, atol=1e-5)


def test_every_batch_and_its_draws_agree(latent, encoded):
    """Over more than an epoch: labels and numbers are the same, states too; workers change nothing."""
    codec = latent.build_codec()
    source, encoding = open_for(latent, codec, encoded)
    assert isinstance(encoding, FromMoments)
    window = {"seed": 3, "start": 1400, "stop": 1500, "batch": 40}
    images = list(batches(latent.data.open(), latent.data, **window))
    moments = list(batches(source, latent.data, **window))
    ahead = list(batches(source, latent.data, **window, workers=1))
    noise = torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    flipped = 0
    for ours, theirs, others in zip(images, moments, ahead, strict=True):
        draw = noise[: len(ours.index)]
        assert torch.equal(ours.label, theirs.label)
        assert torch.equal(ours.index, theirs.index)
        assert torch.equal(theirs.moments, others.moments)
        expected = codec.encode(ours.images, draw)
        torch.testing.assert_close(encoding.encode(theirs.moments, draw), expected, rtol=0, atol=1e-5)
        plain = torch.stack([source.row(place, False) for place in range(2)])
        flipped += (plain - torch.stack([source.row(place, True) for place in range(2)])).abs().max() > 1e-3
    assert flipped  # the mirrored latents are others


def test_a_run_from_the_cache_resumes_and_takes_the_cache_elsewhere(latent, encoded, tmp_path):
    """Stopped and resumed from a cache that has moved: the same weights bit for bit."""
    latent = latent.replace(train={"schedule": "constant"})
    small = from_cache(latent, encoded)
    whole = train(small, tmp_path / "whole", device=CPU, progress=False)
    train(small.replace(train={"images": 64}), tmp_path / "parts", device=CPU, progress=False)
    moved = tmp_path / "moved"
    moved.symlink_to(encoded)
    resumed = train(from_cache(latent, moved), tmp_path / "parts", device=CPU, progress=False)
    ours, theirs = load_file(whole / "ema.safetensors"), load_file(resumed / "ema.safetensors")
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_the_step_never_touches_the_autoencoder(latent, encoded):
    """What a cache is for."""
    codec = latent.build_codec()
    source, encoding = open_for(latent, codec, encoded)
    codec.autoencoder.encode = None
    draws = draws_of(latent, encoding, [source.shape[1:]])
    (batch,) = batches(source, latent.data, seed=0, start=0, stop=8, batch=8, draws=draws)
    assert isinstance(batch, Batch)
    terms = backward(latent, latent.replace(data={"classes": 10}).build_backbone(), encoding, batch, CPU)
    assert terms["loss"].isfinite()


# --- what is written -------------------------------------------------------------------------------


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_the_index_tells_what_the_cache_is(latent, encoded, vae):
    index = json.loads((encoded / "index.json").read_text())
    codec = latent.build_codec()
    assert (index["count"], index["shape"], index["flips"]) == (1442, [6, 4, 4], True)
    assert index["encoder"] == codec.encoder_hash
    assert index["codec"] == {"id": vae, "revision": None, "precision": "fp32", "tiling": False}
    assert (index["data"]["kind"], index["data"]["size"]) == ("digits", 8)
    assert index["names"] == list("0123456789")
    sizes = [len(load_file(file)["labels"]) for file in sorted(encoded.glob("*.safetensors"))]
    assert sizes == [500, 500, 442]
    assert torch.equal(Cache(encoded).labels, latent.data.open().labels)


def test_channel_statistics_are_those_of_draws(latent, encoded, capsys):
    """Mean and spread of samples of every image both ways round; with them as flags, states have 0 and 1."""
    index = Cache(encoded).index
    images = latent.data.open().images
    codec = latent.replace(codec={"scale": 1.0, "shift": 0.0}).build_codec()
    noise = torch.randn(2 * len(images), 3, 4, 4, generator=torch.Generator().manual_seed(0))
    draws = codec.encode(torch.cat([images, images.flip(-1)]), noise).double()
    expected = draws.mean(dim=(0, 2, 3)), draws.std(dim=(0, 2, 3))
    torch.testing.assert_close(torch.tensor(index.mean).double(), expected[0], rtol=0, atol=0.02)
    torch.testing.assert_close(torch.tensor(index.std).double(), expected[1], rtol=0.01, atol=0)
    scale = {"scale": tuple(1 / std for std in index.std), "shift": index.mean}
    states = latent.replace(codec=scale).build_codec().sample(codec.moments(images), noise[: len(images)])
    assert states.mean(dim=(0, 2, 3)).abs().max() < 0.05
    assert (states.std(dim=(0, 2, 3)) - 1).abs().max() < 0.02


def test_float16_takes_half_and_costs_a_rounding(latent, encoded, tmp_path):
    half = encode(latent, tmp_path / "half", "--dtype", "float16")
    name = "latents-00000.safetensors"
    assert (half / name).stat().st_size < 0.6 * (encoded / name).stat().st_size
    ours, theirs = (Cache(folder).moments(range(50), [True] * 50) for folder in (encoded, half))
    assert theirs.dtype == torch.float32
    assert 0 < ((ours - theirs).abs() / ours.abs().clamp(min=1e-4)).max() <= 2**-11


def test_a_killed_encode_goes_on_and_the_result_is_identical(latent, encoded, tmp_path, monkeypatch, capsys):
    """Killed while it writes the second shard, and unreadable until it is finished; then byte for byte the same."""
    out = tmp_path / "out"
    saving, calls = safetensors.torch.save_file, []

    def killed(tensors, file, metadata):
        calls.append(file)
        if len(calls) == 2:
            file.write_bytes(b"half")
            raise KeyboardInterrupt
        saving(tensors, file, metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", killed)
    assert main([*flags(latent), "--out", str(out), "--shard", "500"]) == 130
    assert (out / "latents-00000.safetensors").exists()
    assert not (out / "latents-00001.safetensors").exists()
    with pytest.raises(InputError, match=r"is not finished; give the `ditkit encode` command again"):
        open_latents(out)
    monkeypatch.setattr(safetensors.torch, "save_file", saving)
    capsys.readouterr()
    encode(latent, out)
    assert "942 of 1,442 images encoded" in capsys.readouterr().out
    assert contents(out) == contents(encoded)
    encode(latent, out)
    assert "0 of 1,442 images encoded" in capsys.readouterr().out
    assert contents(out) == contents(encoded)


def test_a_second_process_that_encodes_into_a_folder_is_one_line(latent, tmp_path, capsys):
    with files.owned(tmp_path / "out"):
        assert main([*flags(latent), "--out", str(tmp_path / "out")]) == 2
    assert "another process is writing into this folder" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_a_full_disk_is_reported_and_leaves_no_half_file(latent, tmp_path, monkeypatch, capsys):
    def full(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    assert main([*flags(latent), "--out", str(tmp_path / "out")]) == 2
    assert "make room on the disk and give the same command" in capsys.readouterr().err
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [".lock", "unfinished.json"]


def test_captions_and_images_without_classes(tmp_path, vae):
    for k in range(3):
        Image.new("L", (8, 8), 80 * k).save(tmp_path / f"{k}.png")
        (tmp_path / f"{k}.txt").write_text(f"number {k}")
    data = DATA["folder"].model_copy(
        update={"path": tmp_path, "size": 8, "channels": 1, "caption_column": "txt"}
    )
    base = Recipe.model_validate(
        recipe("digits").model_dump() | {"data": data.model_dump(), "codec": {"kind": "vae", "id": vae}}
    )
    codec = base.build_codec()
    source = data.open()
    plan = cache.Index(
        count=3, shape=(6, 4, 4), flips=False, dtype="float32", shard=2, encoder=codec.encoder_hash,
        codec={"precision": "fp32", "tiling": False}, data=cache.data_facts(data), names=(), captions=True,
    )  # fmt: skip
    write_cache(tmp_path / "out", source, codec.moments, plan)
    found, _ = open_for(base, codec, tmp_path / "out")
    assert found.captions == ["number 0", "number 1", "number 2"]
    assert found.labels is None
    (batch,) = batches(found, data, seed=0, start=0, stop=3, batch=3)
    assert sorted(batch.caption) == found.captions
    assert batch.label is None
    (tmp_path / "out" / "captions.json").unlink()
    with pytest.raises(
        InputError, match=r"captions\.json is missing or damaged .*`ditkit encode` command again"
    ):
        open_latents(tmp_path / "out")


# --- images of their own sizes ---------------------------------------------------------------------

SIZES = [(8, 12), (12, 8), (8, 8), (4, 8), (8, 12), (12, 8), (8, 12)]  # H, W


@pytest.fixture(scope="module")
def native(latent, tmp_path_factory):
    """Images of four sizes in two classes; their latents of half the side, in patches of 2."""
    folder, draw = tmp_path_factory.mktemp("native"), np.random.default_rng(0)
    for k, (height, width) in enumerate(SIZES):
        where = folder / "ab"[k % 2]
        where.mkdir(exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (height, width), dtype=np.uint8)).save(where / f"{k}.png")
    data = Folder(
        path=folder, size=12, channels=1, classes=2, aspect="native", flip=True, held_out=0.0, order="natural"
    )
    tokens = {"tokens": 12, "images": 28, "log_images": 7, "checkpoint_images": 28, "preview_images": 28}
    return latent.replace(data=data, train=tokens)


def encode_native(chosen, out, *more):
    data = [
        "--data",
        str(chosen.data.path),
        "--data.aspect",
        "native",
        "--data.size",
        "12",
        "--data.channels",
        "1",
    ]
    others = [
        "--data.flip",
        "--data.held-out",
        "0",
        "--train.tokens",
        "12",
        "--shard",
        "3",
        "--out",
        str(out),
    ]
    codec = ["--codec", "vae", "--codec.id", chosen.codec.id]
    assert main(["encode", "digits", *codec, *data, *others, *more]) == 0
    return out


@pytest.fixture(scope="module")
def native_cache(native, tmp_path_factory):
    return encode_native(native, tmp_path_factory.mktemp("latents") / "native")


@pytest.mark.parametrize("packed", [False, True])
def test_training_from_latents_of_native_sizes_is_training_on_the_images(
    native, native_cache, tmp_path, packed
):
    """In buckets and packed, with a size left out: the same batches, flips and draws."""
    chosen = native.replace(train={"packed": packed}, data={"without": ("4x8",)})
    online = train(chosen, tmp_path / "online", device=CPU, progress=False)
    cached = train(from_cache(chosen, native_cache), tmp_path / "cached", device=CPU, progress=False)
    losses = [
        [row["loss"] for row in read_log(tmp_path / name / "log.jsonl")] for name in ("online", "cached")
    ]
    assert len(losses[0]) > 2
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    # As a whole: where a gradient is 0 but for rounding, AdamW takes a step either way.
    theirs, ours = (
        torch.cat([value.flatten() for value in load_file(run / "ema.safetensors").values()])
        for run in (cached, online)
    )
    assert (theirs - ours).norm() < 1e-4 * ours.norm()


def test_latents_of_native_sizes_are_each_images_own(native, native_cache):
    codec, source = native.build_codec(), native.data.open()
    found, _ = open_for(native, codec, native_cache)
    sizes = source.sizes(native.multiple)
    assert found.sizes() == [(height // 2, width // 2) for height, width in sizes]
    assert torch.equal(found.labels, source.labels)
    for place, size in enumerate(sizes):
        image = source.read([place], size=size)
        for mirrored, way in ((False, image), (True, image.flip(-1))):
            torch.testing.assert_close(
                found.moments([place], [mirrored]), codec.moments(way), rtol=0, atol=1e-5
            )
    assert found.read([], [], (4, 6)).shape == (0, 6, 4, 6)
    index = found.index
    assert (index.shape, index.multiple) == ((6, 6, 6), 4)
    latents = [codec.moments(source.read([k], size=size)) for k, size in enumerate(sizes)]
    mirrored = [codec.moments(source.read([k], size=size).flip(-1)) for k, size in enumerate(sizes)]
    means = torch.cat([part[0, :3].flatten(1) for part in latents + mirrored], dim=1)
    assert index.mean == pytest.approx(means.mean(1).tolist(), abs=1e-5)


def test_a_shard_of_native_sizes_that_was_lost_is_made_again(native, native_cache, tmp_path, capsys):
    out = shutil.copytree(native_cache, tmp_path / "out")
    (out / "latents-00001.safetensors").unlink()
    capsys.readouterr()
    encode_native(native, out)
    assert "3 of 7 images encoded" in capsys.readouterr().out
    assert contents(out) == contents(native_cache)


def test_latents_of_other_sizes_are_refused(native, native_cache):
    message = refusal(native.replace(backbone={"patch": 1}), native_cache)
    assert (
        "has latents of images of multiples of 4 pixels, the recipe's are of images of multiples of 2"
        in message
    )
    square = native.replace(data={"aspect": "square"}, train={"tokens": None})
    assert "the recipe's are of square images; give its `data.aspect`" in refusal(square, native_cache)


# --- what is refused -------------------------------------------------------------------------------


def refusal(chosen, folder):
    with pytest.raises(InputError) as caught:
        train(from_cache(chosen, folder), folder.parent / "never", device=CPU, progress=False)
    assert not (folder.parent / "never").exists()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_the_cache_of_something_else_is_refused_with_both_values(latent, encoded, tmp_path):
    other = saved(tmp_path / "other", blocks=2, seed=1, latent_channels=3, in_channels=1, out_channels=1)
    message = refusal(latent.replace(codec={"id": other}), encoded)
    assert "another autoencoder" in message
    assert latent.codec.id in message
    assert other in message
    assert latent.build_codec().encoder_hash[:12] in message
    assert "`codec.id`" in message
    message = refusal(latent.replace(data={"size": 16}), encoded)
    assert "4x4 with 3 channels" in message
    assert "8x8 with 3 channels" in message
    assert "`data.size` 16" in message
    message = refusal(latent.replace(codec={"precision": "bf16"}), encoded)
    assert "codec.precision fp32, the recipe has bf16" in message
    four = saved(tmp_path / "four", blocks=2, in_channels=1, out_channels=1)
    assert "4x4 with 4 channels" in refusal(latent.replace(codec={"id": four}), encoded)
    fashion = Recipe.model_validate(
        latent.model_dump() | {"data": {"kind": "fashion-mnist", "size": 8, "flip": True}}
    )
    assert "data.kind digits, the recipe has fashion-mnist" in refusal(fashion, encoded)
    pixels = Recipe.model_validate(latent.model_dump() | {"codec": {"kind": "identity"}})
    assert "codec is identity, which has no latents; give `codec` vae" in refusal(pixels, encoded)


def test_flips_are_needed_where_the_recipe_flips(latent, tmp_path):
    plain = latent.replace(data={"flip": False})
    encode(plain, tmp_path / "plain")
    message = refusal(latent, tmp_path / "plain")
    assert (
        "no mirrored images, but `data.flip` is True; give `data.flip` False, or encode with flips" in message
    )
    assert not any("moments_flip" in load_file(file) for file in (tmp_path / "plain").glob("*.safetensors"))
    open_for(
        plain, plain.build_codec(), tmp_path / "plain"
    )  # and the other way round flips are not in the way


def test_a_cache_with_flips_serves_a_recipe_without(latent, encoded):
    plain = latent.replace(data={"flip": False})
    source, encoding = open_for(plain, plain.build_codec(), encoded)
    (batch,) = batches(source, plain.data, seed=0, start=0, stop=20, batch=20)
    (images,) = batches(plain.data.open(), plain.data, seed=0, start=0, stop=20, batch=20)
    expected = plain.build_codec().encode(images.images)
    torch.testing.assert_close(encoding.encode(batch.moments), expected, rtol=0, atol=1e-5)


def test_damaged_caches(latent, tmp_path):
    folder = encode(latent, tmp_path / "cache")
    shard = folder / "latents-00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:1000])
    assert f"{shard} is missing or damaged" in refusal(latent, folder)
    shard.unlink()
    assert f"{shard} is missing or damaged" in refusal(latent, folder)
    save_file({"moments": torch.zeros(500, 6, 2, 2)}, shard)
    assert f"{shard} is missing or damaged" in refusal(latent, folder)
    encode(latent, folder)  # the remedy that the message names
    assert shard.read_bytes() == whole
    open_latents(folder)
    (folder / "index.json").write_text("{}")
    assert "index.json" in refusal(latent, folder)
    (tmp_path / "empty").mkdir()
    assert "holds no latents" in refusal(latent, tmp_path / "empty")


def altered(shard, change, checksum=True):
    """The shard with other numbers, under its old checksum or, as version 0.1 wrote it, without one."""
    with safe_open(shard, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(shard)
    change(tensors)
    if not checksum:
        metadata["means"] = json.dumps({**json.loads(metadata["means"]), "sha256": None})
    save_file(tensors, shard, metadata)


def one_bit(tensors):
    tensors["moments"].view(torch.int32)[3, 0, 0, 0] ^= 1


def no_number(tensors):
    tensors["moments_flip"].fill_(float("nan"))


def another_label(tensors):
    tensors["labels"][7] = 9 - tensors["labels"][7]


@pytest.mark.parametrize(
    ("change", "checksum", "message"),
    [
        (one_bit, True, "is damaged: it does not match its checksum"),
        (another_label, True, "is damaged: it does not match its checksum"),
        (no_number, True, "is damaged: it does not match its checksum"),
        (no_number, False, "the latents of image 503 are not finite"),
    ],
)
def test_a_damaged_shard_is_refused_when_it_is_read_and_made_again(
    latent, encoded, tmp_path, change, checksum, message
):
    folder = shutil.copytree(encoded, tmp_path / "cache")
    shard, before = folder / "latents-00001.safetensors", contents(encoded)
    altered(shard, change, checksum)
    found = open_latents(folder)
    found.moments([0, 499, 1000], [False] * 3)
    with pytest.raises(InputError, match=f"latents-00001.safetensors:? {message}.*encode"):
        found.moments([503], [True])
    for workers in (0, 1):
        chosen = from_cache(latent, folder).replace(train={"workers": workers})
        with pytest.raises(InputError, match=r"latents-00001.safetensors.*encode"):
            train(chosen, tmp_path / f"run-{workers}", device=CPU, progress=False)
    encode(latent, folder)
    assert contents(folder) == before


def test_moments_that_are_not_finite_are_not_written(latent, tmp_path, monkeypatch, capsys):
    moments = Vae.moments
    monkeypatch.setattr(Vae, "moments", lambda self, images: moments(self, images).fill_(float("inf")))
    assert main([*flags(latent), "--out", str(tmp_path / "cache")]) == 2
    assert (
        f"autoencoder {latent.codec.id} makes numbers of image 0 that are not finite"
        in capsys.readouterr().err
    )
    assert [file.name for file in (tmp_path / "cache").iterdir() if file.name[0] != "."] == [
        "unfinished.json"
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--dtype", "float16"], ["dtype float32, not float16"]),
        (["--shard", "100"], ["shard 500, not 100"]),
        (["--data.no-flip"], ["flips True, not False"]),
        (["--data.size", "9"], ["9x9", "factor 2"]),
        (["--codec.id", "/nowhere"], ["/nowhere", "cannot load this autoencoder"]),
    ],
)
def test_wrong_commands(latent, encoded, capsys, change, words):
    before = contents(encoded)
    assert main([*flags(latent), "--out", str(encoded), "--shard", "500", *change]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ditkit: ")]
    for word in words:
        assert word in line
    assert contents(encoded) == before


def test_encode_needs_a_place_and_latents(latent, tmp_path, capsys):
    assert main(["encode", "digits", "--out", str(tmp_path / "out")]) == 2
    assert "codec of digits is identity, which has no latents; give --codec vae" in capsys.readouterr().err
    assert main(flags(latent)) == 2
    assert "--out DIR" in capsys.readouterr().err
    clips = ["--data", "moving-digits", "--backbone.tubelet", "1", "--out", str(tmp_path / "out")]
    assert main(["encode", "digits", "--codec", "vae", "--codec.id", latent.codec.id, *clips]) == 2
    assert "encode: data moving-digits is of clips; take images" in capsys.readouterr().err
    (tmp_path / "notes.txt").write_text("mine")
    assert main([*flags(latent), "--out", str(tmp_path)]) == 2
    assert "is not empty and holds no latents" in capsys.readouterr().err


# --- other projects' layouts -----------------------------------------------------------------------

STREAM = torch.Generator().manual_seed(0)
MEAN, STD = torch.randn(5, 3, 4, 4, generator=STREAM), torch.rand(5, 3, 4, 4, generator=STREAM) + 0.1
LABELS = [3, 1, 4, 1, 5]


def edm2(folder):
    """Numbered .npy files of mean and std in sub-folders, and their labels in dataset.json."""
    names = [f"{k // 2:05d}/img-mean-std-{k:08d}.npy" for k in range(5)]
    for name, mean, std in zip(names, MEAN, STD, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, torch.cat([mean, std]).numpy())
    pairs = [[name, label] for name, label in zip(names, LABELS, strict=True)]
    (folder / "dataset.json").write_text(json.dumps({"labels": pairs[::-1]}))


def fast_dit(folder):
    """A file per image, {i}.npy, in two folders: a sample times 0.18215, and its label."""
    for kind in ("features", "labels"):
        (folder / f"imagenet256_{kind}").mkdir(parents=True)
    for k in range(5):
        name = f"{[0, 2, 3, 10, 11][k]}.npy"  # as text, 10 would come before 2
        np.save(folder / "imagenet256_features" / name, 0.18215 * MEAN[k : k + 1].numpy())
        np.save(folder / "imagenet256_labels" / name, np.array([LABELS[k]]))


def lightning(folder, flips=True):
    """Two files of unequal length."""
    folder.mkdir(parents=True)
    for number, rows in enumerate((slice(0, 2), slice(2, 5))):
        tensors = {"latents": MEAN[rows].clone(), "labels": torch.tensor(LABELS)[rows]}
        if flips:
            tensors["latents_flip"] = -MEAN[rows]
        save_file(tensors, folder / f"latents_rank00_shard{number:03d}.safetensors")


@pytest.mark.parametrize(
    ("write", "std", "message"),
    [(edm2, STD, "mean and std"), (fast_dit, None, "one sample"), (lightning, None, "latents_stats.pt")],
)
def test_layouts_of_other_projects(latent, tmp_path, caplog, write, std, message):
    """The moments that were put in come out, in order, with their labels; one line says what is lacking."""
    write(tmp_path / "theirs")
    plain = latent.replace(data={"flip": False})
    with caplog.at_level(logging.INFO):
        found, encoding = open_for(plain, plain.build_codec(), tmp_path / "theirs")
    (line,) = [record.message for record in caplog.records if "layout" in record.message]
    assert message in line
    assert "not recorded" in line
    assert "\n" not in line
    assert len(found) == 5
    assert found.labels.tolist() == LABELS
    assert found.names == tuple(str(k) for k in range(10))  # of the recipe's data
    moments = found.moments(range(5), [False] * 5)
    torch.testing.assert_close(moments[:, :3], MEAN)
    noise = torch.randn(5, 3, 4, 4)
    expected = 0.18215 * (MEAN if std is None else MEAN + std * noise)
    torch.testing.assert_close(encoding.encode(moments, noise), expected, rtol=1e-4, atol=1e-5)
    run = train(from_cache(plain, tmp_path / "theirs"), tmp_path / "run", device=CPU, progress=False)
    assert run.name == "000000000096"


def test_flips_of_other_projects(latent, tmp_path):
    codec = latent.build_codec()
    lightning(tmp_path / "both")
    found, _ = open_for(latent, codec, tmp_path / "both")
    torch.testing.assert_close(found.moments([1, 4], [True, False])[:, :3], torch.stack([-MEAN[1], MEAN[4]]))
    lightning(tmp_path / "one", flips=False)
    edm2(tmp_path / "edm2")
    for name in ("one", "edm2"):
        with pytest.raises(InputError, match=r"no mirrored images, but `data\.flip` is True"):
            open_for(latent, codec, tmp_path / name)


def test_damage_in_other_projects_layouts(latent, tmp_path):
    plain = latent.replace(data={"flip": False})
    codec = plain.build_codec()

    def refusal(folder):
        with pytest.raises(InputError) as caught:
            open_for(plain, codec, folder)[0].moments(range(5), [False] * 5)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    edm2(tmp_path / "a")
    (tmp_path / "a" / "00001" / "img-mean-std-00000003.npy").write_bytes(b"cut")
    assert "00000003.npy is missing or no .npy file" in refusal(tmp_path / "a")
    (tmp_path / "a" / "dataset.json").write_text('{"labels": [["x.npy", 1]]}')
    assert "has no label for 00000/img-mean-std-00000000.npy" in refusal(tmp_path / "a")
    (tmp_path / "a" / "dataset.json").write_text("[")
    assert "dataset.json: cannot be read" in refusal(tmp_path / "a")
    fast_dit(tmp_path / "b")
    (tmp_path / "b" / "imagenet256_labels" / "3.npy").unlink()
    assert "5 files in *_features and 4 in *_labels" in refusal(tmp_path / "b")
    np.save(tmp_path / "b" / "imagenet256_labels" / "3.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert "3.npy is missing or no .npy file of numbers" in refusal(tmp_path / "b")  # nothing pickled is run
    lightning(tmp_path / "c")
    save_file({"moments": torch.zeros(3)}, tmp_path / "c" / "latents_rank00_shard000.safetensors")
    assert "holds moments, not latents and labels" in refusal(tmp_path / "c")
    fast_dit(tmp_path / "d")
    edm2(tmp_path / "e")
    (tmp_path / "e" / "dataset.json").write_text('{"labels": null}')
    assert "has no labels, but `data.classes` is 10" in refusal(tmp_path / "e")
    few = plain.replace(data={"classes": 10})
    np.save(tmp_path / "d" / "imagenet256_labels" / "3.npy", np.array([10]))
    with pytest.raises(InputError, match=r"labels up to 10, but `data\.classes` is 10"):
        open_for(few, codec, tmp_path / "d")


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (2**40, "no class|classes are numbered"),
        (-1, "numbered from 0"),
        ("cat", "no class"),
        ([1], "no class|cannot be read"),
    ],
)
def test_labels_of_other_projects_that_are_no_classes(tmp_path, label, message):
    edm2(tmp_path)
    known = json.loads((tmp_path / "dataset.json").read_text())["labels"]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [[name, label] for name, _ in known]}))
    with pytest.raises(InputError, match=message):
        open_latents(tmp_path)


def test_shapes_of_other_projects_that_are_no_latents(tmp_path):
    """What claims to be larger than the memory, and what has other dimensions, is refused by name."""
    for name, write in (("a", edm2), ("b", fast_dit), ("c", lightning)):
        write(tmp_path / name)
    first = tmp_path / "a" / "00000" / "img-mean-std-00000000.npy"
    for shape in ((3,), (3, 4, 4), (2, 4, 0), ()):
        np.save(first, np.zeros(shape, np.float32))
        with pytest.raises(InputError, match=r"00000000\.npy: .* no mean and std"):
            open_latents(tmp_path / "a")
    with first.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (2, 2**60)}
        )
    with pytest.raises(InputError, match=r"00000000\.npy is missing or no \.npy file of numbers"):
        open_latents(tmp_path / "a")
    np.save(tmp_path / "b" / "imagenet256_features" / "0.npy", np.zeros((4, 4), np.float32))
    with pytest.raises(InputError, match=r"0\.npy: \(4, 4\) is no latent"):
        open_latents(tmp_path / "b")
    shard = tmp_path / "c" / "latents_rank00_shard000.safetensors"
    save_file({"latents": torch.zeros(2, 3), "labels": torch.zeros(2)}, shard)
    with pytest.raises(InputError, match=r"\(2, 3\) is no latents"):
        open_latents(tmp_path / "c")
    save_file({"latents": torch.zeros(2, 3, 4, 4), "labels": torch.tensor([1, 2**40])}, shard)
    with pytest.raises(InputError, match="classes are numbered from 0 to at most"):
        open_latents(tmp_path / "c")
    save_file({"latents": torch.zeros(2, 3, 4, 4), "labels": torch.zeros(3)}, shard)
    with pytest.raises(InputError, match="are not those of 2 latents"):
        open_latents(tmp_path / "c")


def test_a_sample_is_moments_without_spread():
    moments = layouts.without_spread(MEAN[0])
    assert moments.shape == (6, 4, 4)
    assert (moments[3:] / 2).exp().max() < 1e-6


def test_shards_are_mapped_not_read(encoded):
    """A row is a slice of the file: the reader holds maps, not tensors."""
    found = Cache(encoded)
    with safe_open(encoded / "latents-00002.safetensors", "pt") as file:
        expected = file.get_tensor("moments_flip")[441]
    assert torch.equal(found.row(1441, True), expected)
    assert [type(file).__name__ for file in found._files._open.values()] == ["safe_open"]
