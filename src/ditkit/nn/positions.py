"""Where tokens are along the axes of a grid, and what becomes of that on grids larger than the trained one.

Along an axis of n tokens the places are start + k · step, k = 0 .. n - 1, and their angles place · base^(-2 j / d),
d the axis' channels. Beyond the n' tokens that a network is trained for, s = n / n' times as many, places are

- raw: as they are, further out than any that was seen;
- interpolated: squeezed to those that were seen, step 1 / s (Chen et al., "Extending Context Window of Large Language
  Models via Positional Interpolation", 2023);
- ntk: as they are, with the base times s^(d / (d - 2)): the quickest frequency stays, so neighbours are as far apart
  as ever, the slowest is divided by s (bloc97, "NTK-aware scaled RoPE", 2023).

Up to the trained grid all three are the same. Tables are made of axes in `embeddings.py` (added to tokens) and
`rotary.py` (queries and keys are turned).
"""

from typing import Literal, NamedTuple

Extrapolation = Literal["raw", "interpolated", "ntk"]
BASE = 10_000.0


class Axis(NamedTuple):
    """The places of tokens along one axis."""

    tokens: int
    start: float = 0.0
    step: float = 1.0
    base: float = BASE
    """The base of the frequencies."""


def axis(count: int, trained: int, extrapolation: Extrapolation, channels: float) -> Axis:
    """`count` tokens where `trained` are known; `channels` of a token tell the axis."""
    ratio = count / trained
    if ratio <= 1 or extrapolation == "raw":
        return Axis(count)
    if extrapolation == "interpolated":
        return Axis(count, step=1 / ratio)
    if channels <= 2:  # one frequency, the quickest: it stays
        return Axis(count)
    return Axis(count, base=BASE * ratio ** (channels / (channels - 2)))
