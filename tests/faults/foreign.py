"""Mutated files of other projects: diffusers' folders, tables of captions, weights of feature networks, text encoders. Each
is used, or counted and named, or the command is refused in one line."""

import csv
import io
import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import save

from ditkit.evaluation.networks.efficientnet import load_efficientnet
from faults.commands import run
from faults.inputs import ASSETS, CPU, picture, short_training, singles, where_it_matters
from faults.mutations import ESCAPE, Sound, mutated, mutated_json
from faults.tally import Tally
from faults.verbs import QUICK, TINY, a_codec

WORDS = (
    "<pad> [SEP] <unk> [CLS] a picture of the digit zero one two three four five six seven eight nine".split()
)
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def _hurt(draw: Random, file: Path) -> None:
    """Mutate a file in place: JSON in its values, all else in its bytes, where they matter most."""
    content = file.read_bytes()
    if isinstance(draw, Sound):
        return
    how = draw.random()
    if how < 0.05:
        file.unlink()
    elif file.suffix == ".json" and how < 0.8 and isinstance(values := json.loads(content), dict):
        file.write_bytes(mutated_json(draw, values))
    elif file.suffix in (".safetensors", ".bin", ".pth"):
        file.write_bytes(where_it_matters(draw, content))
    else:
        file.write_bytes(mutated(draw, content))


def _hurt_one(draw: Random, folder: Path, heavy: float = 0.3) -> None:
    """Mutate one file of a folder, its weights with that probability."""
    there = sorted(file for file in folder.rglob("*") if file.is_file())
    weights = [file for file in there if file.suffix in (".safetensors", ".bin", ".pth")]
    light = [file for file in there if file not in weights]
    _hurt(draw, draw.choice(weights if not light or (weights and draw.random() < heavy) else light))


# --- diffusers ---


@cache
def a_pipeline(made: Path) -> Path:
    """A small DiT in diffusers' format with its scheduler and its autoencoder, as the Hub has them."""
    from diffusers import AutoencoderKL

    folder, trained = made / "a-pipeline", made / "a-pipelines-run"
    codec = ["--codec", "vae", "--codec.id", a_codec(made), "--backbone.patch", 1]
    noise = ["--transport.path", "ddpm", "--transport.predict", "noise"]
    flags = [*TINY, *codec, *noise, "--train.images", 32, "--train.preview-images", 0]
    for argv in (
        ["train", "digits", *flags, "--out", trained],
        ["convert", trained, "--to", "diffusers", "--out", folder / "transformer"],
    ):
        ended = run(argv)
        assert ended.status == 0, ended.err
    coloured = AutoencoderKL.load_config(a_codec(made)) | {"in_channels": 3, "out_channels": 3}
    AutoencoderKL.from_config(coloured).save_pretrained(folder / "vae")
    (folder / "scheduler").mkdir()
    scheduler = {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear"}
    scheduler |= {"beta_start": 1e-4, "beta_end": 0.02, "prediction_type": "epsilon", "trained_betas": None}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    parts = {
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
    }
    index = {
        "_class_name": "DiTPipeline",
        **parts,
        "vae": ["diffusers", "AutoencoderKL"],
        "id2label": {"0": "zero"},
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def diffusers(made: Path, count: int, seed: int) -> Tally:
    """Pipelines of diffusers': their JSON and their weights."""

    def prepare(draw: Random, folder: Path, number: int) -> list[object]:
        model = folder / "model"
        shutil.copytree(a_pipeline(made), model)
        _hurt_one(draw, model)
        return [
            ["sample", model, "--n", 1, *QUICK, "--out", folder / "out", *CPU],
            ["info", model],
            ["convert", model, "--out", folder / "out"],
        ][number % 3]

    return singles("inputs: diffusers", made, count, seed, prepare)


# --- text encoders ---


def _tokenizer(folder: Path) -> None:
    """A tokenizer of whole words, in transformers' format."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    places = {word: place for place, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(places, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(word, places[word]) for word in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    special = {"pad_token": "<pad>", "eos_token": "[SEP]", "bos_token": "[CLS]", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **special).save_pretrained(
        folder
    )


@cache
def an_encoder(made: Path) -> Path:
    """A tiny BERT with the files of sentence-transformers."""
    import transformers

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # or it warns of every fork
    folder = made / "an-encoder"
    config = transformers.BertConfig(vocab_size=len(WORDS), max_position_embeddings=64, **SMALL)
    torch.manual_seed(0)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    _tokenizer(folder)
    (folder / "1_Pooling").mkdir()
    pooling = {
        "word_embedding_dimension": 16,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_cls_token": False,
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    steps = [
        {"idx": k, "type": f"sentence_transformers.models.{name}"}
        for k, name in enumerate(("Transformer", "Pooling", "Normalize"))
    ]
    (folder / "modules.json").write_text(json.dumps(steps))
    return folder


def text_flags(made: Path, data: Path, encoder: Path | None = None) -> list[object]:
    """Flags of a network that reads the captions of a folder of images."""
    flags = ["--data", data, "--data.size", 8, "--data.channels", 1, "--data.caption-column", "text"]
    kept = ["--data.cache", "off", "--data.held-out", 0, "--backbone.patch", 4]
    return [*flags, *kept, "--text", encoder or an_encoder(made), "--text.length", 12]


def captioned(folder: Path, count: int = 12) -> list[dict[str, Any]]:
    """Pictures in a folder; the rows about them."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.png").write_bytes(picture(number, "png"))
    return [
        {
            "file_name": f"{number}.png",
            "text": f"a picture of the digit {WORDS[8 + number % 10]}",
            "label": number,
        }
        for number in range(count)
    ]


def encoders(made: Path, count: int, seed: int) -> Tally:
    """Folders of text encoders: configuration, tokenizer, pooling and weights."""

    def prepare(draw: Random, folder: Path, number: int) -> list[object]:
        encoder, data = folder / "encoder", folder / "data"
        shutil.copytree(an_encoder(made), encoder)
        _write_jsonl(Sound(0), captioned(data), data)
        _hurt_one(draw, encoder, heavy=0.2)
        return ["train", "emoji-t2i", *text_flags(made, data, encoder), *short_training(folder)]

    return singles("inputs: text encoders", made, count, seed, prepare)


# --- tables of captions ---


def _any_text(draw: Random) -> Any:
    return draw.choice(
        (
            "",
            " ",
            ESCAPE,
            "\0",
            "a" * 100_000,
            "é漢字",
            "\ud800",
            None,
            7,
            1.5,
            [],
            ["a", "b"],
            {"a": 1},
            True,
            "a,b",
            '"',
            "\n",
        )
    )


def _changed(draw: Random, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with some values, names or files that are none."""
    if isinstance(draw, Sound):
        return rows
    for _ in range(draw.choice((0, 1, 1, 2, 8))):
        row = draw.choice(rows)
        how = draw.randrange(5)
        if how < 2:
            row[draw.choice(("text", "file_name"))] = _any_text(draw)
        elif how == 2:
            row.pop(draw.choice(("text", "file_name", "label")), None)
        elif how == 3:
            rows.append(dict(row))
        else:
            row["file_name"] = draw.choice(
                ("../1.png", "/etc/passwd", "nothing.png", "1.PNG", ".\\1.png", "./2.png")
            )
    return rows


def _write_jsonl(draw: Random, rows: list[dict[str, Any]], folder: Path) -> None:
    content = "\n".join(json.dumps(row) for row in _changed(draw, rows)).encode()
    (folder / "metadata.jsonl").write_bytes(mutated(draw, content) if draw.random() < 0.7 else content)


def _write_csv(draw: Random, rows: list[dict[str, Any]], folder: Path) -> None:
    file = io.StringIO()
    writer = csv.DictWriter(file, ("file_name", "text", "label"))
    writer.writeheader()
    writer.writerows(_changed(draw, rows))
    content = file.getvalue().encode("utf-8", "surrogatepass")
    (folder / "metadata.csv").write_bytes(mutated(draw, content) if draw.random() < 0.7 else content)


def _write_parquet(draw: Random, rows: list[dict[str, Any]], folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    (folder / "metadata.parquet").write_bytes(mutated(draw, file.getvalue()))


TABLES: tuple[Callable[[Random, list[dict[str, Any]], Path], None], ...] = (
    _write_jsonl,
    _write_csv,
    _write_parquet,
)


def captions(made: Path, count: int, seed: int) -> Tally:
    """metadata.jsonl, .csv and .parquet beside images."""

    def prepare(draw: Random, folder: Path, number: int) -> list[object]:
        data = folder / "data"
        TABLES[number % len(TABLES)](draw, captioned(data), data)
        return ["train", "emoji-t2i", *text_flags(made, data), *short_training(folder)]

    return singles("inputs: captions", made, count, seed, prepare)


# --- weights of feature networks ---


@cache
def networks(made: Path) -> dict[str, Path]:
    """Files and folders of weights, by the name of the network."""
    import transformers

    store = made / "networks"
    store.mkdir()
    torch.manual_seed(0)
    dinov2 = transformers.Dinov2Config(image_size=28, patch_size=14, mlp_ratio=1, **SMALL)
    transformers.Dinov2Model(dinov2).save_pretrained(store / "dinov2")
    text = SMALL | {
        "vocab_size": len(WORDS),
        "max_position_embeddings": 16,
        "eos_token_id": 1,
        "bos_token_id": 3,
    }
    vision = SMALL | {"image_size": 28, "patch_size": 14}
    clip = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    transformers.CLIPModel(clip).save_pretrained(store / "clip")
    _tokenizer(store / "clip")
    torch.save(load_efficientnet().model.state_dict(), store / "efficientnet-112.pth")
    return {
        "classifier": ASSETS / "classifiers" / "digits.safetensors",
        "efficientnet-112": store / "efficientnet-112.pth",
        "dinov2": store / "dinov2",
        "clip": store / "clip",
    }


@cache
def _few(made: Path) -> Path:
    """Images to look at with networks that are large."""
    folder = made / "few"
    folder.mkdir()
    for file in sorted((made / "images").rglob("*.png"))[:16]:
        shutil.copy(file, folder)
    return folder


def features(made: Path, count: int, seed: int) -> Tally:
    """Weights that `--features` names, and folders of them."""

    def prepare(draw: Random, folder: Path, number: int) -> list[object]:
        name = ("classifier", "dinov2", "clip", "classifier", "efficientnet-112")[number % 5]
        source = networks(made)[name]
        copy = folder / source.name
        if source.is_dir():
            shutil.copytree(source, copy)
            _hurt_one(draw, copy, heavy=0.4)
        else:
            shutil.copy(source, copy)
            _hurt(draw, copy)
            if draw.random() < 0.1 and copy.exists():
                copy.write_bytes(save({"trunk.0.weight": torch.zeros(2)}, {"card": "{}"}))
        few = _few(made)
        return ["eval", few, "--reference", few, "--features", f"{name}={copy}", *CPU]

    return singles("inputs: feature networks", made, count, seed, prepare, sound=5)
