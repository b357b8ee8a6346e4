"""Pictures of scores: the confusion matrix, and what became of true segments."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO

import numpy as np

from evaluation.panoptic_quality import FATES, SIZES, Category, PanopticCounts
from utils.base.errors import UserError
from utils.base.paths import whole
from utils.data.label_table import LabelTable


def plot_confusion(confusion: np.ndarray, classes: LabelTable, path: Path | IO[bytes]) -> None:
    """(ids,ids) counts -> a PNG file: per cent of each true class predicted as each class."""
    from matplotlib.figure import Figure  # slow import; unlike pyplot it needs no screen

    counts = confusion[classes.ids]
    shown = np.column_stack([counts[:, classes.ids], counts.sum(1) - counts[:, classes.ids].sum(1)])
    percent = 100 * shown / np.maximum(counts.sum(1, keepdims=True), 1)
    columns = [*classes.names, "other ids"]
    many = len(columns) > 50  # then without numbers, in a picture of readable size
    side = 3 + (0.15 if many else 0.42) * len(columns)
    figure = Figure(figsize=(side, side), layout="constrained")
    axis = figure.subplots()
    axis.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    axis.set_xticks(range(len(columns)), columns, rotation=90, size=7 if many else None)
    axis.set_yticks(range(len(classes.names)), classes.names, size=7 if many else None)
    axis.set(xlabel="prediction", ylabel="truth", title="pixels of each true class in per cent")
    for (row, column), value in np.ndenumerate(percent):
        if value >= 0.5 and not many:
            color = "white" if value > 60 else "black"
            axis.text(column, row, f"{value:.0f}", ha="center", va="center", color=color, size=8)
    with whole(path) if isinstance(path, Path) else nullcontext(path) as file:
        figure.savefig(file, dpi=130, format="png")


def plot_fates(counts: PanopticCounts, categories: Sequence[Category], path: Path) -> None:
    """A PNG: per cent of the true segments of each category and size that were matched, split,
    merged and missed."""
    from matplotlib.figure import Figure  # slow import; unlike pyplot it needs no screen

    rows = [(x.name, own.sum(0)) for x, own in zip(categories, counts.fates, strict=True)]
    rows += zip(SIZES, counts.fates.sum(0), strict=True)
    rows = [(f"{name} ({numbers.sum():,})", numbers) for name, numbers in rows if numbers.any()]
    if not rows:
        raise UserError(f"{path}: there is no true segment to draw. Leave --segments out")
    names, numbers = zip(*reversed(rows), strict=True)
    shares = 100 * np.array(numbers) / np.sum(numbers, 1, keepdims=True)
    figure = Figure(figsize=(9, 1.5 + 0.3 * len(names)), layout="constrained")
    axis = figure.subplots()
    colors = ("tab:green", "tab:orange", "tab:purple", "tab:red")
    for place, (fate, color) in enumerate(zip(FATES, colors, strict=True)):
        left = shares[:, :place].sum(1)
        axis.barh(names, shares[:, place], left=left, color=color, label=fate)
    axis.set(xlabel="true segments in per cent", xlim=(0, 100))
    axis.legend(ncols=len(FATES), frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
    with whole(path) as file:
        figure.savefig(file, dpi=130, format="png")
