"""Frozen text encoders and their embeddings on disk: numbers of another library, identities, wrong input."""

import json
import logging
import shutil
import sys
import weakref
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from needs import needs_minilm
from safetensors.torch import load_file, save_file

from ditkit.errors import InputError, NotFinite
from ditkit.text import TEXT_ENCODERS, Text, TextCache, TextConfig, TextEncoder, embed, load_text_encoder
from ditkit.text.files import PACKAGE, find_folder, identity, width

transformers = pytest.importorskip("transformers", reason="needs the extra `text`")

PROMPTS = ["a red heart", "a heart that is red", "train station", "thumbs up: medium-dark skin tone", ""]


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    return load_text_encoder("minilm")


def words_tokenizer(folder: Path, end: str, first: str | None = None, **options) -> None:
    """A tokenizer of whole words, written in transformers' format."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", end, "<unk>", first or "<none>", "a", "red", "heart", "that", "is", "train",
             "station", "of", "gold"]  # fmt: skip
    tokenizer = Tokenizer(
        models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    around = f"{first} $A {end}" if first else f"$A {end}"
    specials = [(word, words.index(word)) for word in (end, first) if word]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=specials)
    special = {"pad_token": "<pad>", "eos_token": end, "unk_token": "<unk>"} | options
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


@pytest.fixture(scope="module")
def t5(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    config = transformers.T5Config(
        vocab_size=20, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3, initializer_factor=3.0
    )
    torch.manual_seed(0)
    transformers.T5EncoderModel(config).save_pretrained(folder)
    words_tokenizer(folder, "</s>", model_max_length=64)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """A whole CLIP, of which the text half is taken."""
    folder = tmp_path_factory.mktemp("clip")
    small = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": 3, "eos_token_id": 1, "pad_token_id": 0}
    config = transformers.CLIPConfig(
        text_config=small | ends | {"vocab_size": 20, "max_position_embeddings": 16},
        vision_config=small | {"image_size": 28, "patch_size": 14},
        initializer_factor=5.0,
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    words_tokenizer(folder, "<end>", "<start>", model_max_length=16)
    return folder


def bert(folder: Path, *steps: str, way: str | None = None) -> Path:
    """A tiny BERT, with the files of sentence-transformers where steps are named."""
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    torch.manual_seed(0)
    transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    words_tokenizer(folder, "[SEP]", "[CLS]")
    if way:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling/config.json").write_text(
            json.dumps({f"pooling_mode_{way}": True, "other": True})
        )
    if steps:
        modules = [{"type": f"sentence_transformers.models.{step}"} for step in steps]
        (folder / "modules.json").write_text(json.dumps(modules))
    return folder


# MiniLM's numbers


@needs_minilm
def test_minilm_gives_the_numbers_of_sentence_transformers(minilm):
    """Printed by sentence-transformers 6.2.0, SentenceTransformer(FOLDER).encode(PROMPTS), on the same weights;
    the tokens by output_value="token_embeddings"."""
    text = minilm.encode(PROMPTS)
    first = [
        [-0.014818, 0.027689, -0.055271, 0.081083, -0.049960],
        [-0.018889, 0.043654, -0.063053, 0.061872, -0.057833],
        [-0.053981, -0.009018, -0.040151, 0.083765, -0.039073],
        [0.006295, 0.040762, 0.022078, 0.006897, 0.011612],
        [-0.118838, 0.048299, -0.002548, -0.011011, 0.051951],
    ]
    tokens = [[-0.006121, -0.065025, -0.270564, 0.591977], [-0.607915, 0.377522, -0.709436, 0.809861]]
    assert torch.allclose(text.pooled[:, :5], torch.tensor(first), atol=5e-6)
    assert torch.allclose(text.tokens[0, :2, :4], torch.tensor(tokens), atol=2e-5)
    cosines = [0.957730, 0.146879, 0.152792, 0.190298]
    assert torch.allclose(text.pooled[0] @ text.pooled[1:].T, torch.tensor(cosines), atol=5e-6)
    assert torch.allclose(text.pooled.norm(dim=1), torch.ones(5))


@needs_minilm
def test_minilm_knows_what_is_alike(minilm):
    of = dict(zip(prompts := [*PROMPTS, "thumbs up: dark skin tone", "grinning cat", "smiling kitty"],
                  minilm.encode(prompts).pooled, strict=True))  # fmt: skip
    assert of["a red heart"] @ of["a heart that is red"] > 0.9 > 0.3 > of["a red heart"] @ of["train station"]
    assert (
        of["grinning cat"] @ of["smiling kitty"] > of["grinning cat"] @ of["thumbs up: dark skin tone"] + 0.3
    )


@needs_minilm
def test_shapes_masks_and_what_is_padding(minilm):
    text = minilm.encode(PROMPTS)
    assert (minilm.dim, minilm.length) == (384, 77)
    assert text.tokens.shape == (5, 77, 384)
    assert text.pooled.shape == (5, 384)
    assert text.tokens.dtype == text.pooled.dtype == torch.float32
    assert text.mask.dtype == torch.bool
    assert text.mask.sum(1).tolist() == [5, 7, 4, 10, 2]  # words or their parts, and two ends
    assert (text.mask.int().diff(dim=1) <= 0).all()  # padding is at the end
    assert (text.tokens[~text.mask] == 0).all()
    assert (text.tokens[text.mask] != 0).any(1).all()
    assert [part.shape[0] for part in minilm.encode([])] == [0, 0, 0]


# identities of every kind


@pytest.fixture(scope="module", params=["minilm", "t5", "clip"])
def encoder(request) -> TextEncoder:
    if request.param == "minilm" and find_spec(PACKAGE) is None:
        pytest.skip("needs the extra `text`")
    if request.param == "minilm":
        return request.getfixturevalue("minilm")
    return load_text_encoder(str(request.getfixturevalue(request.param)), length=16)


def same(found: Text, expected: Text) -> bool:
    return torch.equal(found.mask, expected.mask) and all(
        torch.allclose(a, b, atol=1e-5)
        for a, b in ((found.tokens, expected.tokens), (found.pooled, expected.pooled))
    )


def test_a_prompt_does_not_depend_on_its_batch(encoder):
    prompts = ["a red heart", "a heart that is red of gold", "", "train"]
    together = encoder.encode(prompts)
    for row, prompt in enumerate(prompts):
        alone = encoder.encode([prompt])
        assert same(alone, Text(*(part[row : row + 1] for part in together)))
    assert same(encoder.encode(prompts, batch=3), together)
    assert (together.pooled[0] - together.pooled[1]).abs().max() > 0.01


def test_padding_changes_nothing(encoder):
    prompt = ["a red heart"]
    short = load_text_encoder(encoder.config.id, length=8).encode(prompt)
    long = encoder.encode(prompt)
    assert torch.allclose(long.tokens[:, :8], short.tokens, atol=1e-5)
    assert torch.allclose(long.pooled, short.pooled, atol=1e-5)
    assert not long.mask[:, 8:].any()


def test_encoders_are_frozen_and_draw_nothing(encoder):
    state = torch.get_rng_state()
    other = load_text_encoder(encoder.config.id, length=encoder.length)
    text = other.encode(PROMPTS)
    assert torch.equal(torch.get_rng_state(), state)
    assert other.identity == encoder.identity
    assert not any(part.requires_grad for part in text)
    assert torch.equal(other.encode(PROMPTS).tokens, text.tokens)
    assert text.tokens.new_ones(5, requires_grad=True).mul(text.pooled[:, 0]).sum().backward() is None


@pytest.mark.parametrize("kind", ["minilm", "t5", "clip"])
def test_long_prompts_are_cut_with_a_warning_and_keep_their_end(kind, request, caplog):
    if kind == "minilm" and find_spec(PACKAGE) is None:
        pytest.skip("needs the extra `text`")
    name = kind if kind == "minilm" else str(request.getfixturevalue(kind))
    encoder = load_text_encoder(name, length=6)
    with caplog.at_level(logging.WARNING):
        cut = encoder.encode(["a red heart", "a red heart that is of gold", "train"])
    over = 2 if kind == "t5" else 3
    assert (
        f"1 of 3 prompts are longer than 6 tokens and are cut; most, {over} tokens, from 'a red"
        in caplog.text
    )
    assert "`text.length`" in caplog.text
    caplog.clear()
    expected = encoder.encode(
        ["a red heart", "a red heart that is" if kind == "t5" else "a red heart that", "train"]
    )
    assert caplog.text == ""
    assert same(cut, expected)


# what each kind gives


def test_t5_pools_by_the_mean_of_its_tokens(t5):
    text = load_text_encoder(str(t5), length=12).encode(["a red heart", "train"])
    model = transformers.T5EncoderModel.from_pretrained(t5).eval()
    with torch.no_grad():
        states = model(input_ids=torch.tensor([[4, 5, 6, 1]])).last_hidden_state[0]
    assert torch.allclose(text.tokens[0, :4], states, atol=1e-5)
    assert torch.allclose(text.pooled[0], states.mean(0), atol=1e-5)
    assert torch.allclose(text.pooled[1], text.tokens[1, :2].mean(0), atol=1e-5)


def test_clip_pools_by_its_end_token(clip):
    encoder = load_text_encoder(str(clip), length=16)
    text = encoder.encode(["a red heart", "train"])
    assert encoder.dim == 24
    assert text.mask.sum(1).tolist() == [5, 3]
    assert torch.allclose(text.pooled, text.tokens[[0, 1], [4, 2]], atol=1e-6)
    whole = transformers.CLIPModel.from_pretrained(clip).eval()
    with torch.no_grad():
        expected = whole.text_model(input_ids=torch.tensor([[3, 4, 5, 6, 1]])).pooler_output
    assert torch.allclose(text.pooled[:1], expected, atol=1e-5)


def test_sentence_encoders_pool_as_their_folder_says(tmp_path):
    def pooled(name: str, *steps: str, way: str | None = None) -> tuple[torch.Tensor, Text]:
        text = load_text_encoder(str(bert(tmp_path / name, *steps, way=way)), length=8).encode(
            ["a red heart"]
        )
        return text.pooled[0], text

    bert(tmp_path / "again")
    state = torch.get_rng_state()
    load_text_encoder(
        str(tmp_path / "again"), length=8
    )  # its own pooler, which is not used, is not in the file
    assert torch.equal(torch.get_rng_state(), state)
    usual, text = pooled("plain")
    mean, first = text.tokens[0, :5].mean(0), text.tokens[0, 0]
    assert torch.allclose(usual, mean / mean.norm(), atol=1e-6)
    steps = ("Transformer", "Pooling")
    assert torch.allclose(pooled("a", *steps, way="mean_tokens")[0], mean, atol=1e-6)
    assert torch.allclose(
        pooled("b", *steps, "Normalize", way="cls_token")[0], first / first.norm(), atol=1e-6
    )
    new = bert(tmp_path / "c", *steps, way="mean_tokens")
    (new / "1_Pooling/config.json").write_text('{"pooling_mode": "cls", "include_prompt": true}')
    assert torch.allclose(
        load_text_encoder(str(new), length=8).encode(["a red heart"]).pooled[0], first, atol=1e-6
    )
    for name, wrong, way, words in (
        ("d", steps, "max_tokens", "pools by pooling_mode_max_tokens; only mean and cls"),
        ("e", (*steps, "Dense", "Normalize"), "mean_tokens", "pools by Transformer then Pooling then Dense"),
    ):
        with pytest.raises(InputError, match=words):
            pooled(name, *wrong, way=way)


def test_bf16_is_near_float32(t5):
    exact, near = (
        load_text_encoder(str(t5), length=8, dtype=dtype).encode(PROMPTS) for dtype in ("fp32", "bf16")
    )
    assert near.tokens.dtype == torch.float32
    error = (near.tokens - exact.tokens).norm() / exact.tokens.norm()
    assert 1e-4 < error < 0.1


def test_the_identity_is_that_of_the_files(t5, tmp_path):
    copy = shutil.copytree(t5, tmp_path / "copy")
    assert identity(copy) == identity(t5)
    (copy / "README.md").write_text("words")
    assert identity(copy) == identity(t5)
    weights = load_file(copy / "model.safetensors")
    name = next(iter(weights))
    save_file(weights | {name: weights[name] + 1e-3}, copy / "model.safetensors", {"format": "pt"})
    assert identity(copy) != identity(t5)
    other = shutil.copytree(t5, tmp_path / "other")
    (other / "tokenizer.json").write_text((other / "tokenizer.json").read_text().replace("station", "halt"))
    assert identity(other) != identity(t5)


# wrong input


def test_what_is_missing_is_named_with_the_remedy(t5, tmp_path, monkeypatch):
    def refused(words: str, name: str, **choices) -> None:
        with pytest.raises(InputError, match=words) as caught:
            load_text_encoder(name, **choices)
        assert "\n" not in str(caught.value)

    refused(r"`text\.length` 65: .* reads at most 64 tokens", str(t5), length=65)
    odd = shutil.copytree(t5, tmp_path / "odd")
    settings = json.loads((odd / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["model_max_length"] = [64]
    (odd / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    refused(r"odd: model_max_length or max_position_embeddings is no number", str(odd))
    refused("text encoder: length: .*greater than or equal to 2", str(t5), length=1)
    refused(r"`text\.dim` 32: .* has 24 channels; give `text\.dim` 24", str(t5), dim=32)

    def gone(*args, **options):
        raise ConnectionError("no route to the Hub\nat all")

    monkeypatch.setattr("huggingface_hub.snapshot_download", gone)
    refused(
        r"someone/encoder: neither .* \(no route to the Hub\); give a local folder .*minilm",
        "someone/encoder",
    )
    broken = shutil.copytree(t5, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    dropped = next(name for name in weights if "layer_norm" in name)
    save_file(
        {k: v for k, v in weights.items() if k != dropped}, broken / "model.safetensors", {"format": "pt"}
    )
    refused(f"1 weights are missing, {dropped.replace('.', '[.]')} among them", str(broken), length=8)
    (broken / "tokenizer.json").unlink()
    refused(r"no tokenizer; add tokenizer\.json", str(broken))
    (broken / "tokenizer.json").write_text("{}")
    refused("cannot be loaded as a text encoder", str(broken))
    (broken / "config.json").write_text("[]")
    refused("no readable config.json", str(broken))
    (broken / "model.safetensors").unlink()
    refused(r"no model\.safetensors; pickled weights are not read", str(broken))
    monkeypatch.setattr("ditkit.text.files.find_spec", lambda name: None)
    refused(r"minilm needs its wheel: pip install 'ditkit\[text\]'", "minilm")
    monkeypatch.setitem(sys.modules, "transformers", None)
    refused(r"need transformers: pip install 'ditkit\[text\]'", str(t5))


def test_a_prompt_that_is_no_text_is_named(t5):
    with pytest.raises(InputError, match=r"prompt 'caf.udce9' is not UTF-8"):
        load_text_encoder(str(t5), length=8).encode(
            ["a red heart", b"caf\xe9".decode("utf-8", "surrogateescape")]
        )


def test_names_have_an_id_and_a_line():
    assert TextConfig().id in TEXT_ENCODERS
    assert all(choice.id and choice.about for choice in TEXT_ENCODERS.values())


def test_the_width_is_read_from_the_configuration(t5, clip, tmp_path):
    assert (width(t5), width(clip), width(bert(tmp_path / "bert"))) == (24, 24, 16)
    if find_spec(PACKAGE) is not None:
        assert width(find_folder("minilm")) == TEXT_ENCODERS["minilm"].dim == TextConfig().dim


# the cache


def test_a_tokenizer_or_weights_that_are_not_the_networks_are_refused(t5, tmp_path):
    other = shutil.copytree(t5, tmp_path / "other")
    words = json.loads((other / "tokenizer.json").read_text())
    words["model"]["vocab"]["heart"] = 25  # of 20
    (other / "tokenizer.json").write_text(json.dumps(words))
    encoder = load_text_encoder(str(other), length=8)
    with pytest.raises(InputError, match=r"its tokenizer gives token 25, its network knows 20; fetch both"):
        encoder.encode(["a red heart"])
    lost = shutil.copytree(t5, tmp_path / "lost")
    weights = load_file(lost / "model.safetensors")
    weights["shared.weight"][0, 0] = float("nan")
    save_file(weights, lost / "model.safetensors", {"format": "pt"})
    with pytest.raises(NotFinite, match="weights are not all finite numbers"):
        load_text_encoder(str(lost), length=8)


CAPTIONS = ["a red heart", "train station", "a red heart", "a heart that is red of gold"]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_cache_gives_back_what_the_encoder_gave(t5, tmp_path, dtype):
    config = TextConfig(id=str(t5), dim=24, length=8, dtype=dtype)
    cache = embed(CAPTIONS, config, tmp_path / "cache")
    assert (len(cache), cache.dim, cache.length) == (4, 24, 8)
    encoded = config.build().encode(["", "a red heart", "train station", CAPTIONS[3]])
    picks = [3, 0, 1, 1, 2]
    found = cache(["a heart that is red of gold", "", "a red heart", "a red heart", "train station"])
    for part, expected in zip(found, encoded, strict=True):
        assert torch.equal(part, expected[picks])
    kept = load_file(tmp_path / "cache" / "text-00000.safetensors")
    assert kept["tokens"].shape == (int(encoded.mask.sum()), 24)  # no padding
    index = json.loads((tmp_path / "cache" / "text.json").read_text())
    assert index["identity"] == identity(t5)
    assert index["captions"] == ["", "a red heart", "train station", "a heart that is red of gold"]


def test_the_cache_is_made_once_and_its_encoder_freed(t5, tmp_path, monkeypatch):
    built = []
    build = TextConfig.build

    def watched(self, device="cpu"):
        encoder = build(self, device)
        built.append(weakref.ref(encoder._model))
        return encoder

    monkeypatch.setattr(TextConfig, "build", watched)
    config = TextConfig(id=str(t5), dim=24, length=8)
    first = embed(CAPTIONS, config, tmp_path)
    assert [model() for model in built] == [None]
    again = embed(reversed(CAPTIONS[:2]), config, tmp_path)  # fewer, in another order
    assert len(built) == 1
    assert torch.equal(again(CAPTIONS).tokens, first(CAPTIONS).tokens)
    assert list(tmp_path.glob(".*")) == []


def test_the_same_captions_make_the_same_files(t5, tmp_path):
    """safetensors writes several remarks in an order that changes from file to file."""
    config = TextConfig(id=str(t5), dim=24, length=8)
    made = [embed(CAPTIONS, config, tmp_path / str(k)).folder for k in range(8)]
    for name in ("text.json", "text-00000.safetensors"):
        assert len({(folder / name).read_bytes() for folder in made}) == 1


def test_a_stopped_cache_goes_on_and_many_files_are_as_one(t5, clip, tmp_path, monkeypatch):
    config = TextConfig(id=str(t5), dim=24, length=8)
    whole = embed(CAPTIONS, config, tmp_path / "whole")
    monkeypatch.setattr("ditkit.text.cache.SHARD", 3)
    monkeypatch.setattr("safetensors.torch.save_file", stop_at(".text-00001.tmp.safetensors"))
    with pytest.raises(KeyboardInterrupt):
        embed(CAPTIONS, config, tmp_path / "cut")
    monkeypatch.setattr("safetensors.torch.save_file", save_file)
    first = tmp_path / "cut" / "text-00000.safetensors"
    made = first.stat().st_mtime_ns
    cut = embed(CAPTIONS, config, tmp_path / "cut")
    assert first.stat().st_mtime_ns == made
    assert sorted(file.name for file in (tmp_path / "cut").iterdir()) == [
        "text-00000.safetensors", "text-00001.safetensors", "text.json"
    ]  # fmt: skip
    assert same(cut(CAPTIONS), whole(CAPTIONS))
    (tmp_path / "cut" / "text.json").unlink()
    other = TextConfig(id=str(clip), dim=24, length=8)  # what was begun by another encoder is made anew
    assert embed(CAPTIONS, other, tmp_path / "cut").index.identity == identity(clip)


def stop_at(name):
    def save(tensors, file, metadata):
        if file.name == name:
            raise KeyboardInterrupt
        save_file(tensors, file, metadata)

    return save


def test_numbers_that_were_changed_on_disk_are_refused(t5, tmp_path):
    """A flipped bit in tokens, in pooled vectors or in where captions begin gives no other embedding in silence."""
    folder = tmp_path / "cache"
    whole = embed(CAPTIONS, TextConfig(id=str(t5), dim=24, length=8), folder)
    expected = whole(CAPTIONS)
    file = folder / "text-00000.safetensors"
    kept = {name: value.clone() for name, value in load_file(file).items()}  # not of the file that is changed
    for name in ("tokens", "pooled", "starts"):
        changed = {key: value.clone() for key, value in kept.items()}
        changed[name][1] += 1
        save_file(changed, file, whole._shards[0]._file.metadata())
        with pytest.raises(InputError, match=rf"{file} is damaged.*; delete the folder {folder}") as caught:
            TextCache(folder)(CAPTIONS)
        assert "\n" not in str(caught.value)
    changed = {key: value for key, value in kept.items() if key != "sums"}  # as version 0.1 wrote it
    save_file(changed, file, whole._shards[0]._file.metadata())
    assert same(TextCache(folder)(CAPTIONS), expected)


def test_a_cache_of_something_else_is_refused_by_name(t5, clip, tmp_path):
    folder = tmp_path / "cache"
    config = TextConfig(id=str(t5), dim=24, length=8)
    cache = embed(CAPTIONS, config, folder)

    def refused(words: str, captions=CAPTIONS, **choices) -> None:
        with pytest.raises(InputError, match=words) as caught:
            embed(captions, config.model_copy(update=choices), folder)
        assert "\n" not in str(caught.value)

    refused(r"embedded with `text\.length` 8, not 9", length=9)
    refused(r"embedded with `text\.dtype` fp32, not bf16", dtype="bf16")
    refused(
        rf"embedded by {t5} \({identity(t5)[:12]}\), not by {clip} \({identity(clip)[:12]}\)", id=str(clip)
    )
    refused("lacks 1 of the data's captions, 'a blue heart' among them", [*CAPTIONS, "a blue heart"])
    with pytest.raises(InputError, match="'a blue heart' is not among its captions"):
        cache(["a red heart", "a blue heart"])


def test_damaged_caches_are_refused(t5, tmp_path):
    with pytest.raises(InputError, match=r"text\.json is not there"):
        TextCache(tmp_path)
    embed(CAPTIONS, TextConfig(id=str(t5), dim=24, length=8), tmp_path)
    tensors, index = tmp_path / "text-00000.safetensors", tmp_path / "text.json"
    whole, words = tensors.read_bytes(), index.read_text()
    tensors.write_bytes(whole[:200])
    with pytest.raises(InputError, match=r"text-00000\.safetensors is damaged"):
        TextCache(tmp_path)
    tensors.write_bytes(whole)
    for damage in (words.replace("station", "halt"), words.replace('"length": 8', '"length": 9')):
        index.write_text(damage)
        with pytest.raises(InputError, match="do not belong together"):
            TextCache(tmp_path)
    index.write_text(words[:50])
    with pytest.raises(InputError, match=r"text\.json: cannot be read .* delete the folder"):
        TextCache(tmp_path)
    index.write_text("{}")
    with pytest.raises(InputError, match="Field required"):
        TextCache(tmp_path)
