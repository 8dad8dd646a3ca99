"""What a network is told, from what people say: labels and prompts to `cond`, and "unknown".

cond = conditions(labels, prompts, read)             # read: prompts to their embeddings, an encoder or a cache
empty = unknown(net, cond, recipe.text, read)
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ditkit.backbones import Backbone, Cond
from ditkit.text import Text, TextConfig

Read = Callable[[Sequence[str]], Text]


def conditions(
    labels: Tensor | None,
    prompts: Sequence[str] | None,
    read: Read | None,
    device: torch.device | str = "cpu",
) -> Cond:
    """ "label" (B,) where there are labels, "text", "text_mask" and "text_pooled" where there are prompts (B,)."""
    cond = {} if labels is None else {"label": labels}
    if prompts is not None and read is not None:
        cond |= _named(read(prompts))
    return {key: value.to(device) for key, value in cond.items()}


def unknown(
    net: Backbone,
    cond: Cond,
    text: TextConfig | None = None,
    read: Read | None = None,
    negative: str | None = None,
) -> Cond:
    """The keys of `cond` that the network reads, every entry "unknown": the network's own, or the empty prompt's
    embedding where `text.null` says so; with `negative` that prompt's instead."""
    empty = net.null(cond)
    if read is not None and text is not None and (negative is not None or text.null == "empty"):
        said = _named(read([negative or ""]))
        empty |= {key: said[key].to(value).expand_as(value) for key, value in empty.items() if key in said}
    return empty


def _named(text: Text) -> Cond:
    return {"text": text.tokens, "text_mask": text.mask, "text_pooled": text.pooled}
