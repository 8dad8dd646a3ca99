"""Progress bars: lively on a terminal, a line now and then in a log file."""

import sys
from weakref import WeakSet

from tqdm import tqdm

from ditkit.environment import place

_bars: WeakSet[tqdm] = WeakSet()


def close_bars() -> None:
    """End every bar that is still open, so that what is printed next stands on a line of its own."""
    for bar in list(_bars):
        bar.close()


def progress_bar(
    total: int | None, what: str, unit: str, *, initial: int = 0, shown: bool = True, delay: float = 0
) -> tqdm:
    """A bar of `total` units (None: not known) that is updated by its `.update(n)` and closed by `with` or `.close()`.

    With `delay`, in seconds, work that is over sooner shows none. Of several processes the first shows it.
    """
    lively = sys.stderr.isatty()
    bar = tqdm(
        total=total,
        initial=initial,
        desc=what,
        unit=unit,
        unit_scale=(total or 0) >= 10_000,
        mininterval=0.2 if lively else 10,
        dynamic_ncols=lively,
        disable=not (shown and place().first),
        delay=delay,
    )
    _bars.add(bar)
    return bar
