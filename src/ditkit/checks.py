"""Arguments of the Python API that no section checks: whole numbers, alone and in lists."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np

from ditkit.errors import InputError
from ditkit.lazy import torch


def whole_numbers(values: object, what: str) -> list[int]:
    """Each of a list, a range, or a tensor or array of one dimension, as an int. InputError, naming `what` and the first
    that is none, for anything else."""
    if not is_list(values):
        raise InputError(f"{what}: {values!r:.80} is no list; give a list or a tensor of whole numbers")
    if isinstance(values, torch.Tensor | np.ndarray):
        if values.ndim != 1:
            raise InputError(f"{what}: of shape {tuple(values.shape)}; give one dimension")
        values = values.tolist()
    return [whole_number(value, what) for value in values]  # type: ignore[attr-defined]


def whole_number(value: object, what: str, least: int | None = None) -> int:
    """The value as an int; InputError for one that is no whole number, however near, has more than 64 bits, or is less
    than `least`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        found = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"{what}: {value!r:.80} is no whole number") from None
    if (
        found.bit_length() > 64
    ):  # nothing that computes with it takes it, and very long ones cannot be printed
        raise InputError(
            f"{what}: a whole number of {found.bit_length()} bits is larger than any that is understood"
        )
    if least is not None and found < least:
        raise InputError(f"{what}: {found} is less than {least}")
    return found


def is_list(values: object) -> bool:
    """Whether they stand in an order, one after another."""
    return isinstance(values, torch.Tensor | np.ndarray | Sequence) and not isinstance(values, str | bytes)
