"""What a network is told, from what people say: labels and prompts to `cond`, and "unknown".

cond = conditions(labels, prompts, read)             # read: prompts to their embeddings, an encoder or a cache
empty = unknown(net, cond, in_place_of_unknown(recipe.text, read))
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
    """What there is of labels (B,), as "label", and prompts (B,), as "text", "text_mask" and "text_pooled"."""
    cond = {} if labels is None else {"label": labels}
    if prompts is not None and read is not None:
        cond |= _named(read(prompts))
    return {key: value.to(device) for key, value in cond.items()}


def in_place_of_unknown(
    text: TextConfig | None, read: Read | None, negative: str | None = None
) -> Text | None:
    """The embedding that stands for an unknown text: of the negative prompt, or of the empty one where `text.null`
    says so; None: the network's own. Computed once, not at every evaluation: `read` may be an encoder."""
    if read is None or text is None or (negative is None and text.null == "learned"):
        return None
    return read([negative or ""])


def unknown(net: Backbone, cond: Cond, instead: Text | None = None) -> Cond:
    """The keys of `cond` that the network reads, every entry "unknown": the network's own, or `instead` (1 row)."""
    empty = net.null(cond)
    said = {} if instead is None else _named(instead)
    return empty | {key: said[key].to(value).expand_as(value) for key, value in empty.items() if key in said}


def _named(text: Text) -> Cond:
    return {"text": text.tokens, "text_mask": text.mask, "text_pooled": text.pooled}
