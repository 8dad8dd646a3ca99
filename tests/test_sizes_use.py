"""Clips and images of any size from end to end: training on buckets and packed rows, going on from frames, the command line."""

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CPU
from PIL import Image
from safetensors.torch import load_file

from ditkit.backbones import DiTConfig, UNetConfig
from ditkit.cli import main
from ditkit.data import Folder, MovingDigits, batches, plan_for
from ditkit.data.clips import Mixed
from ditkit.data.video import VideoFolder, read_movie
from ditkit.errors import InputError
from ditkit.interop.official import official_kind
from ditkit.movie_writing import save_movie
from ditkit.pipeline import Pipeline, load
from ditkit.recipes import recipe
from ditkit.rollout import WINDOW, roll_out
from ditkit.scoring.samples import frame_by_frame
from ditkit.text import Text, TextConfig
from ditkit.training import train
from ditkit.training.draws import draws_of
from ditkit.training.initial import load_initial
from ditkit.training.log import read_log
from ditkit.training.step import backward

TINY = DiTConfig(width=16, depth=2, heads=2, patch=4, positions="rotary", size_embedding=True)
FEW = {
    "batch": 8,
    "lr": 1e-3,
    "preview_images": 0,
    "validate_images": 0,
    "compile": "off",
    "schedule": "constant",
    "precision": "fp32",
}
SIZES = [(8, 12), (8, 12), (12, 8), (16, 16), (8, 12), (4, 8), (12, 8), (16, 16), (16, 4), (8, 12)]  # H, W


def quiet(chosen, out, **options):
    return train(chosen, out, device=CPU, progress=False, **options)


def clips(**sections):
    """A recipe of clips of 5 frames, 16 × 16."""
    data = MovingDigits(size=16, glyph=8, frames=5, clips=20, classes=10, **sections.pop("data", {}))
    backbone = TINY.model_copy(update={"tubelet": 1, "attention": "factorised"})
    return recipe("moving-digits").replace(
        data=data,
        backbone=sections.pop("backbone", backbone),
        train={**FEW, "images": 32, **sections.pop("train", {})},
        **sections,
    )


def randomised(chosen):
    """An untrained network that does something."""
    net = chosen.build_backbone().eval().requires_grad_(False)
    stream = torch.Generator().manual_seed(0)
    for value in net.parameters():
        value.data += 0.1 * torch.randn(value.shape, generator=stream)
    return Pipeline(chosen, net, chosen.build_codec(), CPU)


@pytest.fixture(scope="module")
def pipe():
    return randomised(clips(sample={"sampler": "heun", "steps": 2, "guidance": 1.0}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of several sizes."""
    where = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for k, (height, width) in enumerate(SIZES):
        Image.fromarray(random.integers(0, 256, (height, width), dtype=np.uint8)).save(where / f"{k:02d}.png")
    return where


@pytest.fixture(scope="module")
def captioned(folder, tmp_path_factory):
    """The same with captions."""
    where = shutil.copytree(folder, tmp_path_factory.mktemp("captioned") / "pictures")
    for path in where.glob("*.png"):
        path.with_suffix(".txt").write_text("a" * (1 + int(path.stem)), encoding="utf-8")
    return where


def read(captions):
    """Embeddings of one to three words."""
    lengths = torch.tensor([len(caption) for caption in captions])
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randn(20, 3, 8, generator=draw)[lengths]
    return Text(tokens, torch.arange(3) <= (lengths % 3)[:, None], tokens.mean(1))


def native(folder, caption_column=None, **sections):
    return recipe("anysize-fashion").replace(
        data=Folder(
            path=folder, size=16, channels=1, aspect="native", classes=0, caption_column=caption_column
        ),
        backbone=sections.pop("backbone", TINY),
        train={**FEW, "images": 40, "tokens": 16, "micro_batch": None, **sections.pop("train", {})},
        **sections,
    )


# sampling


def test_a_clip_depends_on_its_seed_only(pipe):
    together = pipe.generate({"label": [1, 2, 3]}, seeds=[5, 6, 7])
    assert together.shape == (3, 1, 5, 16, 16)
    alone = pipe.generate({"label": [3]}, seeds=[7], batch=1)
    assert (together[2].int() - alone[0].int()).abs().max() <= 1
    assert not together[0].equal(together[1])


def test_other_sizes_and_lengths_than_trained(pipe):
    made = pipe.generate({"label": [1]}, seeds=[0], size=(8, 24), frames=7)
    assert made.shape == (1, 1, 7, 8, 24)
    with pytest.raises(InputError, match=r"`size` 10x16: this model takes sides that are multiples of 4"):
        pipe.generate({"label": [1]}, seeds=[0], size=(10, 16))


def test_images_of_other_sizes(folder):
    pipeline = randomised(native(folder))
    assert pipeline.generate(seeds=[0, 1], size=(8, 20)).shape == (2, 1, 8, 20)
    with pytest.raises(InputError, match="`frames` 4: this model makes images"):
        pipeline.generate(seeds=[0], frames=4)


def test_known_frames_are_kept_and_change_the_others(pipe):
    made = pipe.generate({"label": [1, 2]}, seeds=[0, 1])
    start, end = made[:, :, :2], made[:, :, 4:]
    after = pipe.generate({"label": [1, 2]}, seeds=[8, 9], start=start, end=end)
    assert after[:, :, :2].equal(start)
    assert after[:, :, 4:].equal(end)
    free = pipe.generate({"label": [1, 2]}, seeds=[8, 9])
    assert not after[:, :, 2:4].equal(free[:, :, 2:4])
    image = pipe.generate({"label": [1, 2]}, seeds=[8, 9], start=made[:1, :, 0])  # one for both
    assert image[:, :, 0].equal(made[:1, :, 0].expand(2, -1, -1, -1))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ({"start": torch.zeros(1, 1, 5, 16, 16, dtype=torch.uint8)}, "of 5 frames, .* for 2 clips of 5"),
        ({"start": torch.zeros(1, 1, 1, 8, 16, dtype=torch.uint8)}, "in states of 8x16, .* 16x16"),
        ({"end": torch.zeros(3, 1, 1, 16, 16, dtype=torch.uint8)}, "3 clips of 1 frames, .* for 2 clips"),
        (
            {key: torch.zeros(1, 1, 3, 16, 16, dtype=torch.uint8) for key in ("start", "end")},
            "all 5 frames are given",
        ),
    ],
)
def test_frames_that_cannot_be_kept(pipe, frames, message):
    with pytest.raises(InputError, match=message):
        pipe.generate({"label": [1, 2]}, seeds=[0, 1], **frames)


def test_a_model_that_never_saw_known_frames():
    pipeline = randomised(clips(transport={"known_frames": 0.0}))
    with pytest.raises(InputError, match=r"not trained to go on from frames \(transport.known_frames 0\)"):
        pipeline.generate({"label": [1]}, seeds=[0], start=torch.zeros(1, 1, 16, 16, dtype=torch.uint8))


def test_longer_clips_go_on_from_the_last_frames(pipe):
    cond = {"label": [1, 2]}
    long = roll_out(pipe, cond, seeds=[3, 4], length=10, keep=2)
    assert long.shape == (2, 1, 10, 16, 16)
    first = pipe.generate(cond, seeds=[3, 4])
    assert long[:, :, :5].equal(first)
    second = pipe.generate(cond, seeds=[3 + WINDOW, 4 + WINDOW], start=first[:, :, 3:])
    assert long[:, :, 5:8].equal(second[:, :, 2:])
    looped = roll_out(pipe, cond, seeds=[3, 4], keep=2, loop=True)
    assert looped.shape[2] == 6  # one frame leads from the last two to the first two
    assert looped[:, :, :5].equal(first)
    with pytest.raises(InputError, match="`keep` 3: of windows of 5 frames, keep 1 to 2"):
        roll_out(pipe, cond, seeds=[3, 4], keep=3, loop=True)


def test_clips_that_begin_with_a_clip_of_ones_own(pipe):
    start = pipe.generate({"label": [4]}, seeds=[0], frames=3)
    made = roll_out(pipe, {"label": [1, 2]}, seeds=[3, 4], keep=2, start=start)
    assert made.shape[2] == 6
    assert made[:, :, :3].equal(start.expand(2, -1, -1, -1, -1))


# training


def batch_of(chosen, stop, packed=False):
    source = chosen.data.open()
    plan = plan_for(source, chosen.data, chosen.multiple, chosen.tokens, 64, packed)
    draws = draws_of(chosen, chosen.build_codec(), {*plan.sizes})
    return batches(source, chosen.data, seed=0, start=0, stop=stop, batch=0, plan=plan, draws=draws)


def gradients(net):
    found = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    return found


@pytest.mark.parametrize(
    "transport",
    [
        {},
        {"size_shift": 4.0},
        {"level_weights": (2.0,)},
        {"path": "ddpm", "predict": "noise", "variance": "learned"},
    ],
)
def test_a_packed_step_is_the_step_of_its_images_one_by_one(folder, transport):
    assert_one_by_one(native(folder, train={"packed": True}, transport=transport))


@pytest.mark.parametrize("text", ["cross_attention", "in_context"])
@pytest.mark.parametrize("null", ["learned", "empty"])
def test_so_is_one_of_captioned_images(captioned, text, null):
    """Some of whose texts are dropped."""
    chosen = native(
        captioned,
        "txt",
        train={"packed": True, "label_dropout": 0.5},
        backbone=TINY.model_copy(update={"text": text, "text_pooled": True}),
        text=TextConfig(length=3, dim=8, null=null),
    )
    assert_one_by_one(chosen, read)


def assert_one_by_one(chosen, read=None):
    net = randomised(chosen).backbone.requires_grad_(True)
    (batch,) = batch_of(chosen, 8, packed=True)
    assert len(batch.groups) > 2
    assert torch.cat([group.index for group in batch.groups]).equal(batch.index)
    terms = backward(chosen, net, chosen.build_codec(), batch, CPU, read)
    packed = gradients(net)
    losses = []
    singles = (single for group in batch.groups for single in group.split(1))
    for k, single in enumerate(singles):
        caption = batch.caption and batch.caption[k : k + 1]
        whole = replace(single, share=None, caption=caption)  # not a share of its group
        losses.append(backward(chosen, net, chosen.build_codec(), whole, CPU, read)["loss"])
    alone = gradients(net)
    torch.testing.assert_close(terms["loss"], torch.stack(losses).mean())
    for name, grad in packed.items():
        torch.testing.assert_close(8 * grad, alone[name], atol=2e-5, rtol=1e-3)


def test_a_folder_is_looked_through_once(folder, tmp_path, caplog):
    """Also where its images are those of the validation loss."""
    pictures = tmp_path / "pictures"
    shutil.copytree(folder, pictures)
    (pictures / "broken.png").write_bytes(b"no picture")
    quiet(native(pictures, train={"images": 16, "validate_images": 16}), tmp_path / "run")
    assert caplog.text.count("broken.png") == 1
    assert len(read_log(tmp_path / "run" / "validation.jsonl")) == 1


@pytest.mark.parametrize("packed", [False, True])
def test_training_on_native_sizes_resumes_bit_for_bit(folder, tmp_path, packed):
    chosen = native(folder, train={"packed": packed, "validate_images": 20, "log_images": 10})
    whole = quiet(chosen, tmp_path / "whole")
    (half, last) = (chosen.replace(train={"images": n}) for n in (20, 40))
    quiet(half, tmp_path / "parts")
    parts = quiet(last, tmp_path / "parts")
    for name in ("model", "ema"):
        ours, theirs = (load_file(where / f"{name}.safetensors") for where in (whole, parts))
        assert all(value.equal(theirs[key]) for key, value in ours.items())
    assert read_log(tmp_path / "whole" / "validation.jsonl")[-1]["images"] == 40
    assert load(tmp_path / "whole", CPU).generate(seeds=[0], size=(8, 12)).shape == (1, 1, 8, 12)


def test_the_plan_is_logged(folder, tmp_path, caplog):
    caplog.set_level("INFO")
    quiet(native(folder), tmp_path)
    assert " 8x12       4      2              12" in caplog.text  # of 6 tokens each, 16 in a batch
    assert "10 images of 5 sizes" in caplog.text


def test_clips_train_and_resume(tmp_path):
    chosen = clips(train={"validate_images": 16, "preview_images": 32, "log_images": 16})
    whole = quiet(chosen, tmp_path / "whole")
    quiet(chosen.replace(train={"images": 16}), tmp_path / "parts")
    parts = quiet(chosen, tmp_path / "parts")
    ours, theirs = (load_file(where / "model.safetensors") for where in (whole, parts))
    assert all(value.equal(theirs[key]) for key, value in ours.items())
    sheet = Image.open(tmp_path / "whole" / "previews" / f"{32:012d}.png")
    assert sheet.height > 1.5 * sheet.width  # ten classes below each other, five frames beside each other
    assert (tmp_path / "whole" / "validation.png").exists()


def test_clips_train_beside_single_frames_and_pictures(tmp_path, folder, caplog):
    caplog.set_level("INFO")
    chosen = clips(data={"single_frames": 0.5}, train={"tokens": 160})
    quiet(chosen, tmp_path / "run")
    assert "1x16x16      10     10             160" in caplog.text
    assert "5x16x16      20      2             160" in caplog.text
    movies = tmp_path / "movies"
    movies.mkdir()
    stream = torch.Generator().manual_seed(0)
    for k in range(3):
        clip = torch.randint(0, 256, (1, 6, 16, 16), generator=stream).to(torch.uint8)
        save_movie(clip, movies / f"{k}.webp", 8)
    data = VideoFolder(path=movies, pictures=folder, size=16, channels=1, frames=5, classes=0)
    source = data.training()
    assert len(source) == 3 + len(SIZES)
    plan = plan_for(source, data, 4, lambda size: math.prod(size) // 16, 160)
    sizes = {
        tuple(batch.images.shape[2:])
        for batch in batches(source, data, seed=0, start=0, stop=13, batch=0, plan=plan)
    }
    assert sizes == {(5, 16, 16), (1, 16, 16)}
    (movies / "0.txt").write_text("a clip")
    captioned = data.model_copy(update={"caption_column": "txt"}).open()
    silent = Folder(path=folder, size=16, channels=1).open()
    with pytest.raises(InputError, match="the pictures' captions are not those of the clips"):
        Mixed(data, captioned, silent)


def test_clips_start_from_a_network_of_images(tmp_path):
    """Which draws a single frame as the image that it is."""
    plain = TINY.model_copy(update={"positions": "sincos", "size_embedding": False})
    images = randomised(recipe("digits").replace(data={"size": 16}, backbone=plain))
    images.save(tmp_path / "images")
    whole = clips(backbone=plain.model_copy(update={"tubelet": 1}))
    net = whole.build_backbone()
    assert load_initial(net, tmp_path / "images") == []
    x, t, cond = torch.randn(2, 1, 16, 16), torch.tensor([0.2, 0.7]), {"label": torch.tensor([1, 2])}
    torch.testing.assert_close(net.eval()(x, t, cond), images.backbone(x, t, cond))


@pytest.mark.parametrize("field", [{"tubelet": 1}, {"positions": "rotary"}, {"size_embedding": True}])
def test_networks_without_released_names(field):
    chosen = recipe("imagenet256-dit-xl2").replace(data={"classes": 10}, backbone=field)
    with pytest.raises(InputError, match="the released networks are of images, with added positions"):
        official_kind(chosen)


def test_clips_in_latents_of_their_frames(tmp_path):
    from test_codecs import saved

    vae = saved(tmp_path / "vae", blocks=2)
    chosen = clips(codec={"kind": "vae", "id": vae}, train={"images": 8})
    checkpoint = quiet(chosen, tmp_path / "run")
    pipeline = load(tmp_path / "run", CPU)
    assert checkpoint.exists()
    made = pipeline.generate({"label": [1]}, seeds=[0])
    assert made.shape == (1, 1, 5, 16, 16)
    assert pipeline.generate({"label": [1]}, seeds=[0], start=made[:, :, :2]).shape == made.shape


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"tokens": None}}, "train.tokens is needed for data of several sizes"),
        (
            {"train": {"packed": True, "micro_batch": 2}},
            "train.packed is for train.tokens, without train.micro_batch",
        ),
        ({"train": {"score_images": 10}}, "data.aspect native: train.score_images is of images of one size"),
        ({"transport": {"known_frames": 0.5}}, "transport.known_frames is for data of clips"),
        ({"train": {"tokens": 15}}, "`train.tokens` 15 is less than the 16 tokens of one sample of 16x16"),
        (
            {"train": {"packed": True, "tokens": 512}, "backbone": UNetConfig(width=32, multipliers=(1,))},
            "train.packed, but backbone.kind UNet takes no packed rows; take a DiT, or leave train.packed out",
        ),
    ],
)
def test_recipes_that_do_not_fit(folder, tmp_path, sections, message):
    with pytest.raises(InputError, match=message):
        quiet(native(folder, **sections), tmp_path / "run")


# the command line


def run(*arguments, capsys, fails=False):
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert (status != 0) == fails, captured.err
    return captured.err if fails else captured.out


def test_sampling_clips_by_command(tmp_path, capsys, pipe):
    pipe.save(tmp_path / "model")
    out = tmp_path / "out"
    printed = run("sample", tmp_path / "model", "--n", 4, "--npz", "--out", out, "--length", 8, capsys=capsys)
    assert "4 clips of 8 frames" in printed
    assert np.load(out / "samples.npz")["arr_0"].shape == (4, 8, 16, 16, 1)
    assert len(list((out / "clips").iterdir())) == 4
    clip, fps = read_movie(out / "clips" / "000002.gif", 1)
    assert fps == pytest.approx(8, rel=0.05)
    assert clip.permute(1, 2, 3, 0).equal(torch.from_numpy(np.load(out / "samples.npz")["arr_0"][2]))
    on = tmp_path / "on"
    arguments = [
        "--n",
        1,
        "--extend",
        out / "clips" / "000002.gif",
        "--keep",
        2,
        "--movie",
        "webp",
        "--out",
        on,
    ]
    run("sample", tmp_path / "model", *arguments, capsys=capsys)
    longer, _ = read_movie(on / "clips" / "000000.webp", 1)
    assert longer.shape[1] == 11
    assert longer[:, :8].equal(clip)
    Image.fromarray(clip[0, 0].numpy()).save(tmp_path / "first.png")
    picture = ["--n", 1, "--image", tmp_path / "first.png", "--npz", "--out", on, "--replace"]
    run("sample", tmp_path / "model", *picture, capsys=capsys)
    assert (np.load(on / "samples.npz")["arr_0"][0, 0, ..., 0] == clip[0, 0].numpy()).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "a"], "--size a: give height x width"),
        (["--image", "a.png", "--extend", "b.gif"], "--image and --extend: clips begin with one of them"),
        (["--image", "nowhere.png"], "nowhere.png cannot be read as a clip"),
        (["--keep", "9", "--loop"], "--keep 9: of windows of 5 frames, keep 1 to 2"),
    ],
)
def test_wrong_wishes_for_clips(tmp_path, capsys, pipe, arguments, message):
    pipe.save(tmp_path / "model")
    assert message in run("sample", tmp_path / "model", *arguments, capsys=capsys, fails=True)


def test_a_picture_of_another_size(tmp_path, capsys, pipe):
    pipe.save(tmp_path / "model")
    Image.new("L", (30, 20)).save(tmp_path / "a.png")
    wide = ["--image", tmp_path / "a.png", "--size", "8x16", "--out", tmp_path / "o"]
    printed = run("sample", tmp_path / "model", *wide, capsys=capsys, fails=True)
    assert "a.png is 20x30, the clips are 8x16" in printed
    square = ["--n", 1, "--image", tmp_path / "a.png", "--out", tmp_path / "o"]  # cut as ADM does
    assert "1 clips of 5 frames" in run("sample", tmp_path / "model", *square, capsys=capsys)


def test_images_are_no_clips(capsys, tmp_path):
    printed = run("sample", "digits", "--loop", "--out", tmp_path, capsys=capsys, fails=True)
    assert "--loop: this model makes images, not clips" in printed


def test_scores_of_clips_are_of_their_frames():
    images, labels = torch.zeros(4, 1, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 2, 3])
    images[2, 0, 1] = 255
    ((frames, frame_labels),) = frame_by_frame([(images, labels)])
    assert frames.shape == (12, 1, 8, 8)
    assert frame_labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [k for k in range(12) if frames[k].any()] == [7]
