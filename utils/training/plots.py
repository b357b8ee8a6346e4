"""Plots the curves of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.base.paths import whole

PANELS = {"loss": ("loss", "val_loss"), "score": ("miou", "pq"), "learning rate": ("lr",)}


def plot_curves(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Rows of metrics.csv -> a PNG with loss, scores and learning rate over the steps."""
    from matplotlib.figure import Figure  # slow, so only here; no display, no globals

    figure = Figure(figsize=(12, 3.6))
    figure.subplots_adjust(left=0.05, right=0.99, bottom=0.15, top=0.91, wspace=0.24)
    for axis, (title, names) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for name in names:
            known = [row for row in rows if row.get(name) not in (None, "")]
            if points := [(int(row["step"]), float(row[name])) for row in known]:
                marker = "o" if len(points) < 40 else None
                axis.plot(*zip(*points, strict=True), label=name, marker=marker, markersize=3)
        axis.set(title=title, xlabel="step", xlim=(0, None))
        axis.grid(alpha=0.3)
        if title == "score":
            axis.set_ylim(0, 1)
        if axis.lines:
            axis.legend()
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=110)
