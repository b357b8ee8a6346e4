"""Scores of the predictions for a data set, computed from its counts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import reduce
from operator import add

import numpy as np

from evaluation.counts import CATEGORY_HITS, HITS, ID, SIZE, Counts
from utils.data.label_table import LabelTable


@dataclass(frozen=True)
class Scores:
    """Scores of a data set in [0,1]; classes that occur nowhere are nan and not part of means."""

    classes: dict[str, float]  # IoU
    instance_classes: dict[str, float]  # iIoU, called nIoU in the official table
    categories: dict[str, float]
    instance_categories: dict[str, float]
    boundary: dict[str, float]  # boundary IoU of classes
    miou: float
    iiou: float
    category_miou: float
    category_iiou: float
    boundary_miou: float
    pixel_accuracy: float
    mean_accuracy: float  # mean over classes of the share of correct pixels
    frequency_weighted_iou: float
    kappa: float  # Cohen's
    counts: Counts = field(repr=False)
    loss: float | None

    @property
    def best(self) -> float:
        """The score that decides which checkpoint is the best."""
        return self.miou

    @property
    def curve(self) -> dict[str, float]:
        """The scores in metrics.csv."""
        return {"miou": self.miou}

    def plain(self) -> dict[str, object]:
        """JSON-safe values."""
        own = {x.name: getattr(self, x.name) for x in fields(Scores) if x.name != "counts"}
        return json_safe(own)

    def table(self) -> str:
        """The official scorer's table: IoU and nIoU of classes and categories, then the means."""
        below = {
            "pixel accuracy": self.pixel_accuracy,
            "mean class accuracy": self.mean_accuracy,
            "frequency-weighted IoU": self.frequency_weighted_iou,
            "kappa": self.kappa,
            "boundary IoU": self.boundary_miou,
            "loss": self.loss,
        }
        known = {n: v for n, v in below.items() if v is not None and not np.isnan(v)}
        blocks = [self.block("classes", self.miou, self.iiou)]
        if self.categories:
            blocks.append(self.block("categories", self.category_miou, self.category_iiou))
        return "\n\n".join([*blocks, "\n".join(f"{n:<22}: {v:>5.3f}" for n, v in known.items())])

    def block(self, kind: str, *averages: float) -> str:
        """One of the official scorer's tables; without the nIoU column if no class has nIoU."""
        ious, instance_ious = getattr(self, kind), getattr(self, f"instance_{kind}")
        both = any(not np.isnan(value) for value in instance_ious.values())

        def line(name: str, iou: float, instance_iou: float) -> str:
            return f"{name:<14}: {iou:>5.3f}" + f"    {instance_iou:>5.3f}" * both

        rule = "-" * 32
        rows = [line(name, value, instance_ious[name]) for name, value in ious.items()]
        rows += [rule, line("Score Average", *averages), rule]
        return "\n".join([f"{kind:<17}IoU" + "      nIoU" * both, rule, *rows])


def json_safe(value: object) -> object:
    """Numbers, perhaps in dicts, as floats or ints; nan becomes None."""
    if isinstance(value, dict):
        return {name: json_safe(number) for name, number in value.items()}
    if isinstance(value, int) or value is None:
        return value
    return None if np.isnan(value) else float(value)


def compute_scores(counts: Counts, classes: LabelTable, *, loss: float | None = None) -> Scores:
    """All scores; averages skip classes that occur nowhere."""
    confusion, ids = counts.confusion, classes.ids.tolist()
    groups = {name: [label] for name, label in zip(classes.names, ids, strict=True)}
    members = {name: [ids[i] for i in group] for name, group in classes.categories.items()}
    iou = {name: group_iou(confusion, group, ids) for name, group in groups.items()}
    category_iou = {name: group_iou(confusion, group, ids) for name, group in members.items()}
    things = {name: group for name, group in groups.items() if group[0] in classes.instance_sizes}
    in_class = {name: instance_iou(counts, classes, things.get(name, ()), HITS) for name in groups}
    kinds = classes.instance_categories
    in_category = {
        name: instance_iou(counts, classes, kinds.get(name, ()), CATEGORY_HITS) for name in members
    }
    boundary = {}
    if counts.border.any():
        boundary = {name: ratio(*counts.border[label]) for name, (label,) in groups.items()}

    square = confusion[np.ix_(ids, ids)].astype(float)
    right, truth = square.diagonal(), confusion[ids].sum(1).astype(float)
    pixels = truth.sum()
    accuracy = ratio(right.sum(), pixels)
    chance = ratio(truth @ square.sum(0), pixels**2)
    weighted = [share * value for share, value in zip(truth, iou.values(), strict=True) if share]
    return Scores(
        classes=iou,
        instance_classes=in_class,
        categories=category_iou,
        instance_categories=in_category,
        boundary=boundary,
        miou=mean_of_present(iou.values()),
        iiou=mean_of_present(in_class.values()),
        category_miou=mean_of_present(category_iou.values()),
        category_iiou=mean_of_present(in_category.values()),
        boundary_miou=mean_of_present(boundary.values()),
        pixel_accuracy=accuracy,
        mean_accuracy=mean_of_present(map(ratio, right, truth)),
        frequency_weighted_iou=ratio(sum(weighted), pixels),
        kappa=ratio(accuracy - chance, 1 - chance),
        counts=counts,
        loss=loss,
    )


def group_iou(confusion: np.ndarray, group: Sequence[int], evaluated: Sequence[int]) -> float:
    """Intersection / union, with the ids of `group` merged into one class.

    evaluated: the ids whose pixels count; a prediction on a pixel of another id is no error.
    """
    truth = confusion[list(group)].sum()
    inside = confusion[np.ix_(group, group)].sum()
    return ratio(inside, truth + false_positives(confusion, group, evaluated))


def instance_iou(counts: Counts, classes: LabelTable, group: Sequence[int], column: int) -> float:
    """iIoU: the weight of a pixel is the class's average instance size / the instance's size.

    Cordts et al., CVPR 2016, section 4.1; false positives have no instance and weight 1. `group`:
    ids that are merged; nan if empty. reduce adds in the official scorer's order: same rounding.
    """
    if not group:
        return float("nan")
    rows = counts.instances[np.isin(counts.instances[:, ID], group)]
    average = np.array([classes.instance_sizes[label] for label in rows[:, ID].tolist()])
    weight = average / rows[:, SIZE]
    hit = reduce(add, (rows[:, column] * weight).tolist(), 0.0)
    missed = reduce(add, ((rows[:, SIZE] - rows[:, column]) * weight).tolist(), 0.0)
    wrong = false_positives(counts.confusion, group, classes.ids.tolist())
    return ratio(hit, hit + wrong + missed)


def false_positives(confusion: np.ndarray, group: Sequence[int], evaluated: Sequence[int]) -> int:
    return int(confusion[np.ix_(np.setdiff1d(evaluated, group), group)].sum())


def ratio(part: float, whole: float) -> float:
    return float(part) / float(whole) if whole else float("nan")


def mean_of_present(values: Iterable[float]) -> float:
    present = [value for value in values if not np.isnan(value)]
    return sum(present) / len(present) if present else float("nan")
