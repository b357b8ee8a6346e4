"""Confusion matrices in a data set's own label ids, and the scores that follow from them.

Counting in label ids, not train ids, is what the Cityscapes referee does: a pixel predicted as an
ignored id counts against its true class, a pixel whose truth is ignored counts nowhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, num_ids: int) -> np.ndarray:
    """Two (H,W) uint8 id images -> (ids,ids) int64 counts; rows truth, columns prediction."""
    joint = truth.astype(np.int32).ravel() * num_ids + prediction.ravel()
    return np.bincount(joint, minlength=num_ids**2).reshape(num_ids, num_ids)


def intersection_and_union(
    confusion: np.ndarray, groups: Sequence[Sequence[int]], evaluated: Sequence[int]
) -> np.ndarray:
    """Ids of each group taken together -> (len(groups), 2) int64 intersection and union.

    evaluated: the ids whose pixels count; a prediction where the truth is another id is no error.
    """
    totals = []
    for group in groups:
        others = [label for label in evaluated if label not in group]
        inside = confusion[np.ix_(group, group)].sum()
        missed = confusion[group].sum() - inside
        wrong = confusion[np.ix_(others, group)].sum()
        totals.append((inside, inside + missed + wrong))
    return np.array(totals, np.int64)


@dataclass(frozen=True)
class Scores:
    """Scores of a data set in [0,1]; classes that occur nowhere are nan and left out of means."""

    classes: dict[str, float]
    categories: dict[str, float]
    miou: float
    category_miou: float
    pixel_accuracy: float
    confusion: np.ndarray = field(repr=False)
    loss: float | None = None

    def plain(self) -> dict[str, object]:
        """JSON-safe values; nan becomes None."""

        def number(x: float | None) -> float | None:
            return None if x is None or np.isnan(x) else float(x)

        return {
            "miou": number(self.miou),
            "category_miou": number(self.category_miou),
            "pixel_accuracy": number(self.pixel_accuracy),
            "val_loss": number(self.loss),
            "classes": {name: number(value) for name, value in self.classes.items()},
            "categories": {name: number(value) for name, value in self.categories.items()},
        }

    def table(self) -> str:
        """Per-class IoU in per cent, then the means."""
        rows = [*self.classes.items(), ("mean IoU", self.miou)]
        if self.categories:
            rows += [*self.categories.items(), ("mean category IoU", self.category_miou)]
        rows.append(("pixel accuracy", self.pixel_accuracy))
        if self.loss is not None:
            rows.append(("loss", self.loss / 100))
        return "\n".join(f"{name:<18} {100 * value:6.2f}" for name, value in rows)


def scores_from_confusion(
    confusion: np.ndarray,
    *,
    names: Sequence[str],
    ids: Sequence[int],
    categories: dict[str, tuple[int, ...]],
    loss: float | None = None,
) -> Scores:
    """IoU = intersection / union of every class and category (PASCAL VOC's definition).

    names, ids: of the K evaluated classes; categories: name -> indices into those.
    """
    ids = [int(label) for label in ids]

    def iou(groups: Sequence[Sequence[int]]) -> np.ndarray:
        inside, union = intersection_and_union(confusion, groups, ids).reshape(-1, 2).T
        return np.where(union > 0, inside / np.maximum(union, 1), np.nan)

    by_class = iou([[label] for label in ids])
    by_category = iou([[ids[index] for index in members] for members in categories.values()])
    labelled = confusion[ids].sum()
    return Scores(
        classes=dict(zip(names, by_class.tolist(), strict=True)),
        categories=dict(zip(categories, by_category.tolist(), strict=True)),
        miou=mean_of_present(by_class),
        category_miou=mean_of_present(by_category),
        pixel_accuracy=float(confusion[ids, ids].sum() / labelled) if labelled else float("nan"),
        confusion=confusion,
        loss=loss,
    )


def mean_of_present(values: np.ndarray) -> float:
    present = values[~np.isnan(values)]
    return float(present.mean()) if len(present) else float("nan")
