"""Frozen text encoders, through `transformers` (extra `text`).

| kind | tokens | pooled |
|---|---|---|
| CLIP's text half | last hidden states after the final norm | that of the end token |
| T5, Flan-T5, UMT5 | the encoder's last hidden states | their mean (Ni et al. 2022, Sentence-T5) |
| BERT-like sentence encoders | last hidden states | their mean or the first, to unit length, as the folder says |

A prompt's first `length` tokens are read; shorter ones are padded to `length` with zeros that the mask marks, so
that what is computed with them does not depend on what else is in the batch. How a network takes a text:
the backbones; embeddings on disk: cache.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field

from ditkit.config import Section
from ditkit.errors import InputError, NotFinite
from ditkit.files import quiet_transformers
from ditkit.lazy import torch
from ditkit.records import parse_json
from ditkit.text.files import find_folder, identity, width

if TYPE_CHECKING:
    from torch import Tensor

CLIP, T5 = ("clip", "clip_text_model"), ("t5", "mt5", "umt5")
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}  # as torch calls them

Pool = Callable[["Tensor", "Tensor"], "Tensor"]  # tokens (B, L, D), mask (B, L) -> (B, D)

log = logging.getLogger(__name__)


class Text(NamedTuple):
    """B prompts as an encoder gives them."""

    tokens: Tensor  # float32 (B, M, D); zero where there is no token
    mask: Tensor  # bool (B, M): whether there is one
    pooled: Tensor  # float32 (B, D)


class TextConfig(Section):
    """A frozen text encoder (needs the extra: pip install 'ditkit[text]')."""

    id: str = "minilm"
    """A name of `ditkit list text-encoders`, a Hugging Face id, or a local folder in transformers' format."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    length: Annotated[int, Field(ge=2, le=1_000_000)] = 77
    """Tokens of a prompt, its end included; longer ones are cut."""
    dim: Annotated[int, Field(ge=1, le=1_000_000)] = 384
    """Channels of its tokens; checked against the encoder."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """The precision of the weights; bf16 takes half the memory."""
    null: Literal["learned", "empty"] = "learned"
    """What the network reads where the text is unknown: something it learns, or the empty prompt."""

    def build(self, device: torch.device | str = "cpu") -> TextEncoder:
        """InputError: no extra, no such encoder, or it reads fewer tokens than `length`."""
        folder = find_folder(self.id, self.revision)
        return TextEncoder(
            self, *open_model(folder, getattr(torch, DTYPES[self.dtype])), identity(folder), device
        )


class TextEncoder:
    """Prompts to `Text`, always in eval mode and without gradients."""

    def __init__(
        self,
        config: TextConfig,
        model: Any,
        tokenizer: Any,
        pool: Pool | None,
        identity: str,
        device: torch.device | str = "cpu",
    ):
        """InputError when the network reads fewer tokens than config.length."""
        self.config, self.length, self.identity = config, config.length, identity
        self.device = torch.device(device)
        self.dim: int = model.config.hidden_size
        """Width D of tokens and pooled."""
        if self.dim != config.dim:
            raise InputError(
                f"`text.dim` {config.dim}: {config.id} has {self.dim} channels; give `text.dim` {self.dim}"
            )
        self._model, self._tokenizer, self._pool = model.to(self.device), tokenizer, pool
        limits = tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None)
        numbers = [limit for limit in limits if limit]
        if not all(isinstance(number, int) for number in numbers):
            raise InputError(
                f"{config.id}: model_max_length or max_position_embeddings is no number; correct its files"
            )
        most = min(numbers)
        if config.length > most:
            raise InputError(
                f"`text.length` {config.length}: {config.id} reads at most {most} tokens; give at most that"
            )

    def encode(self, prompts: Sequence[str], batch: int = 64) -> Text:
        """Tokens (B, M, D), mask (B, M) and pooled (B, D) of B prompts, `batch` at a time, on the encoder's device.

        What is longer than M tokens is cut with a warning; the empty prompt is a prompt. InputError when one is
        not text (bytes of another encoding than UTF-8), or the tokenizer is not the network's.
        """
        ids = self._tokenize(prompts)
        tokens = torch.zeros((len(prompts), self.length, self.dim), device=self.device)
        mask = torch.zeros((len(prompts), self.length), dtype=torch.bool, device=self.device)
        pooled = torch.zeros((len(prompts), self.dim), device=self.device)
        for start in range(0, len(prompts), batch):
            rows = slice(start, start + batch)
            padded = self._tokenizer.pad({"input_ids": ids[rows]}, return_tensors="pt").to(self.device)
            check_tokens(padded.input_ids, self._model, self.config.id)
            width = padded.input_ids.shape[1]  # of the longest among them
            there = mask[rows, :width] = padded.attention_mask.bool()
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                read = self._model(input_ids=padded.input_ids, attention_mask=padded.attention_mask)
            found = read.last_hidden_state.float()
            tokens[rows, :width] = found.masked_fill(~there[..., None], 0)
            pooled[rows] = self._pool(found, there) if self._pool else read.pooler_output.float()
        return Text(tokens, mask, pooled)

    def _tokenize(self, prompts: Sequence[str]) -> list[list[int]]:
        """The token numbers of each prompt, at most `length`, its end among them."""
        for prompt in prompts:
            try:
                prompt.encode()
            except UnicodeEncodeError:
                raise InputError(f"prompt {prompt[:50]!a} is not UTF-8; give text") from None
        if not prompts:
            return []
        whole = self._tokenizer(list(prompts), verbose=False).input_ids
        too_many = [max(0, len(ids) - self.length) for ids in whole]
        if not any(too_many):
            return whole
        worst = max(range(len(prompts)), key=too_many.__getitem__)
        log.warning(
            f"{sum(map(bool, too_many))} of {len(prompts)} prompts are longer than {self.length} tokens and are cut; "
            f"most, {too_many[worst]} tokens, from {prompts[worst][:50]!r}; `text.length` sets the limit"
        )
        return self._tokenizer(list(prompts), truncation=True, max_length=self.length).input_ids


def load_text_encoder(
    name: str = "minilm", *, device: torch.device | str = "cpu", **choices: Any
) -> TextEncoder:
    """The encoder of a name, folder or Hub id; `choices` are `TextConfig`'s other fields, `dim` not needed.
    InputError: see `build`."""
    known = {"dim": width(find_folder(name, choices.get("revision")))}
    return TextConfig.checked({"id": name, **known, **choices}, "text encoder").build(device)


def open_model(folder: Path, dtype: torch.dtype) -> tuple[Any, Any, Pool | None]:
    """(frozen network, tokenizer, how its tokens are pooled; None: it does so itself) of a folder.

    InputError: the extra is not installed, no text encoder, no tokenizer, or weights are missing or not finite.
    """
    try:
        import transformers
    except ImportError:
        raise InputError("text encoders need transformers: pip install 'ditkit[text]'") from None
    try:
        kind = parse_json((folder / "config.json").read_bytes())["model_type"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{folder}: no readable config.json of transformers") from None
    model_class: Any
    pool: Pool | None
    if kind in CLIP:
        model_class, pool = transformers.CLIPTextModel, None
    elif kind in T5:
        model_class, pool = transformers.AutoModelForTextEncoding, mean
    else:
        model_class, pool = transformers.AutoModel, sentence_pooling(folder)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, padding_side="right"
        )
        if tokenizer.pad_token is None:
            raise ValueError("its tokenizer has no padding")
        with torch.random.fork_rng(devices=[]), quiet_transformers():
            model, report = model_class.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=dtype, output_loading_info=True
            )
    except Exception as error:  # transformers raises many kinds; each means that the folder does not fit
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{folder}: cannot be loaded as a text encoder ({reason})") from error
    # transformers goes on with random ones; a BERT's own pooler is not used.
    missing = sorted(
        name for name in report["missing_keys"] if pool is None or not name.startswith("pooler.")
    )
    if missing:
        raise InputError(f"{folder}: {len(missing)} weights are missing, {missing[0]} among them")
    if lost := next((name for name, value in model.state_dict().items() if not value.isfinite().all()), None):
        raise NotFinite(f"{folder}: its weights are not all finite numbers ({lost}); fetch them again")
    return model.requires_grad_(False), tokenizer, pool  # in eval mode already


def check_tokens(ids: Tensor, model: Any, where: str) -> None:
    """InputError for numbers of tokens that the network has no embedding of: the tokenizer is another's."""
    known = model.config.vocab_size
    if ids.numel() and int(ids.max()) >= known:
        raise InputError(
            f"{where}: its tokenizer gives token {int(ids.max())}, its network knows {known}; fetch both from one place"
        )


def mean(tokens: Tensor, mask: Tensor) -> Tensor:
    """The mean of the tokens that are there: (B, L, D), (B, L) -> (B, D)."""
    weights = mask[..., None].to(tokens.dtype)
    return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1)


def sentence_pooling(folder: Path) -> Pool:
    """Mean or first token, to unit length or not, as the files of sentence-transformers in a folder say; the mean
    to unit length where there are none. InputError when they say something else."""
    pooling, modules = folder / "1_Pooling/config.json", folder / "modules.json"
    way, normalised = "mean", True
    try:
        if pooling.is_file():
            found = parse_json(pooling.read_bytes())
            old = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
            chosen = [
                old.get(name, name) for name, on in found.items() if on is True and "pooling_mode_" in name
            ]
            way = found.get("pooling_mode") or ", ".join(chosen)
        if modules.is_file():
            steps = [module["type"].rpartition(".")[2] for module in parse_json(modules.read_bytes())]
            normalised = steps == ["Transformer", "Pooling", "Normalize"]
            if not normalised and steps != ["Transformer", "Pooling"]:
                way = " then ".join(steps)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise InputError(f"{folder}: {pooling.name} or {modules.name} is damaged; fetch them again") from None
    if way not in ("mean", "cls"):
        raise InputError(f"{folder}: pools by {way}; only mean and cls are read, with or without Normalize")

    def pool(tokens: Tensor, mask: Tensor) -> Tensor:
        pooled = mean(tokens, mask) if way == "mean" else tokens[:, 0]
        return torch.nn.functional.normalize(pooled, dim=-1) if normalised else pooled

    return pool
