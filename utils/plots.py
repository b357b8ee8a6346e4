"""Curves of a run; confusion matrices."""

from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from utils.errors import UserError
from utils.labels import LabelTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {"loss": ("loss", "val_loss"), "mIoU": ("miou",), "learning rate": ("lr",)}


def plot_curves(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Rows of metrics.csv -> a PNG with loss, mIoU and learning rate over the steps."""
    figure = new_figure(figsize=(15, 4))
    figure.subplots_adjust(left=0.04, right=0.99, bottom=0.14, top=0.92, wspace=0.2)
    for axis, (title, names) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        for name in names:
            points = [
                (int(r["step"]), float(r[name])) for r in rows if r.get(name) not in (None, "")
            ]
            if points:
                marker = "o" if len(points) < 40 else None
                axis.plot(*zip(*points, strict=True), label=name, marker=marker, markersize=3)
        axis.set(title=title, xlabel="step", xlim=(0, None))
        axis.grid(alpha=0.3)
        if title == "mIoU":
            axis.set_ylim(0, 1)
        if axis.lines:
            axis.legend()
    figure.savefig(path, dpi=110)


def plot_confusion(confusion: np.ndarray, classes: LabelTable, path: Path | IO[bytes]) -> None:
    """(ids,ids) counts -> a PNG: of each true class, per cent predicted as each class.

    path: or a binary file.
    """
    counts = confusion[classes.ids]
    shown = np.column_stack([counts[:, classes.ids], counts.sum(1) - counts[:, classes.ids].sum(1)])
    percent = 100 * shown / np.maximum(counts.sum(1, keepdims=True), 1)
    columns = [*classes.names, "other ids"]
    side = 3 + 0.42 * len(columns)
    figure = new_figure(figsize=(side, side), layout="constrained")
    axis = figure.subplots()
    axis.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    axis.set_xticks(range(len(columns)), columns, rotation=90)
    axis.set_yticks(range(len(classes.names)), classes.names)
    axis.set(xlabel="prediction", ylabel="truth", title="pixels of each true class in per cent")
    for (row, column), value in np.ndenumerate(percent):
        if value >= 0.5:
            color = "white" if value > 60 else "black"
            axis.text(column, row, f"{value:.0f}", ha="center", va="center", color=color, size=8)
    try:
        figure.savefig(path, dpi=130, format="png")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}). Free the place") from error


def new_figure(**options: Any) -> "Figure":
    """matplotlib is imported when something is drawn; without pyplot: no screen, no globals."""
    from matplotlib.figure import Figure

    return Figure(**options)
