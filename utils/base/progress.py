"""The progress line of every command."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


def progress(
    total: int | None, items: Iterable = (), *, start: int = 0, unit: str, label: str,
    enabled: bool = True,
) -> tqdm:  # fmt: skip
    """A tqdm line with ETA on stderr, over `items` or updated by the caller; only every 30 s if
    stderr is not a terminal."""
    pause = 0.2 if sys.stderr.isatty() else 30.0
    bar = "{desc} {percentage:3.0f}%|{bar:12}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"
    return tqdm(
        items, total=total, initial=start, unit=unit, desc=label, disable=not enabled,
        unit_scale=unit == "B", mininterval=pause, maxinterval=pause, bar_format=bar,
        dynamic_ncols=True,
    )  # fmt: skip
