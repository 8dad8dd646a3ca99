"""From labels and prompts to what a network reads, `cond`, and its "unknown".

cond = conditions(labels, prompts, read)             # read: prompts to their embeddings, an encoder or a cache
empty = unknown(net, cond, in_place_of_unknown(recipe.text, read))
"""

import unicodedata
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ditkit.backbones import Backbone
from ditkit.checks import is_list, whole_number, whole_numbers
from ditkit.device import sent
from ditkit.errors import InputError, no_such
from ditkit.layout import Cond
from ditkit.text import Text, TextConfig

Read = Callable[[Sequence[str]], Text]

LabelsAndPrompts = Mapping[str, Sequence[int] | Sequence[str] | Tensor]
"""Labels, "label", and prompts, "text", for each image."""


CONDITIONS = ("label", "text")


def check_conditioning(cond: object) -> None:
    """InputError unless these are conditions by their names."""
    if not isinstance(cond, Mapping):
        raise InputError(f"cond: {cond!r:.80} names nothing; give a dict such as {{'label': [3, 7]}}")
    for key in cond:
        if key not in CONDITIONS:
            raise no_such("cond", key, CONDITIONS)


def checked_seeds(seeds: object) -> list[int]:
    """The seeds; InputError unless there are some, all whole numbers from 0 to 2^64 - 1."""
    found = whole_numbers(seeds, "seeds")
    if not found:
        raise InputError("no seeds: give one per image")
    if wrong := [seed for seed in found if not 0 <= seed < 2**64]:
        raise InputError(f"seeds: {wrong[0]} is not from 0 to 2^64 - 1")
    return found


def checked_labels(
    cond: LabelsAndPrompts, classes: int, count: int, names: Sequence[str] = ()
) -> Tensor | None:
    """The labels (count,) for a model of so many classes, of these names where they are known; None of one without.
    InputError unless they are there for exactly a model that has classes, one for each image and in range."""
    if not classes:
        if "label" in cond:
            raise InputError("this model was trained without classes: leave the labels out")
        return None
    if "label" not in cond:
        raise InputError(f"this model has {classes} classes: say which, one label per seed")
    labels = numbered(cond["label"], names)
    if len(labels) != count:
        raise InputError(f"{len(labels)} labels for {count} seeds; give one label per seed")
    wrong = [int(label) for label in labels if not 0 <= label < classes]
    if wrong:
        raise InputError(f"label {wrong[0]} is out of range; this model has classes 0 to {classes - 1}")
    return torch.tensor(labels, dtype=torch.int64)


def numbered(labels: Tensor | Sequence[int] | Sequence[str], names: Sequence[str]) -> list[int]:
    """Labels as numbers: a text is the name of a class, or where none has that name its number. InputError for one that
    is neither, naming the classes that there are."""
    if not is_list(labels) or isinstance(labels, Tensor | np.ndarray):
        return whole_numbers(labels, "label")
    known = {name: label for label, name in enumerate(names)}
    found = []
    for label in labels:
        if isinstance(label, str):
            text = unicodedata.normalize("NFC", label)
            if text not in known and not (text.isdecimal() and len(text) < 20):
                shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
                raise InputError(
                    f"no class is called {label!r:.80}; "
                    + (f"there are {shown}" if names else "this model's classes have no names, only numbers")
                )
            label = known[text] if text in known else int(text)
        found.append(whole_number(label, "label"))
    return found


def checked_prompts(cond: LabelsAndPrompts, takes_text: bool, count: int) -> list[str] | None:
    """The prompts for a model that takes a text, None for one that is not. InputError unless they are there for
    exactly such a model, one for each image."""
    if not takes_text:
        if "text" in cond:
            raise InputError("this model takes no text: leave the prompts out")
        return None
    if "text" not in cond:
        raise InputError('this model takes a text: give `prompt` (a "text" per seed in Python)')
    if not is_list(cond["text"]):
        raise InputError(f"text: {cond['text']!r:.80} is no list; give a list of one prompt per seed")
    prompts = list(cond["text"])
    if wrong := [prompt for prompt in prompts if not isinstance(prompt, str)]:
        raise InputError(f"text: {wrong[0]!r:.80} is no prompt; give texts")
    if len(prompts) != count:
        raise InputError(f"{len(prompts)} prompts for {count} seeds; give a list of one prompt per seed")
    return prompts  # type: ignore[return-value]  # all are texts


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
    return {key: sent(value, torch.device(device)) for key, value in cond.items()}


def in_place_of_unknown(
    text: TextConfig | None, read: Read | None, negative: str | None = None
) -> Text | None:
    """The embedding that stands for an unknown text: of the negative prompt, or of the empty one where `text.null`
    says so; None: the network's own. Computed once, not at every evaluation: `read` may be an encoder."""
    if read is None or text is None or (negative is None and text.null == "learned"):
        return None
    return read([negative or ""])


def unknown(net: Backbone, cond: Cond, instead: Text | None = None) -> Cond:
    """The keys of `cond` that the network reads, all rows "unknown": the network's own, or `instead` (1 row)."""
    empty = net.null(cond)
    named = {} if instead is None else _named(instead)
    return empty | {
        key: sent(named[key], value.device, value.dtype).expand_as(value)
        for key, value in empty.items()
        if key in named
    }


def _named(text: Text) -> Cond:
    return {"text": text.tokens, "text_mask": text.mask, "text_pooled": text.pooled}
