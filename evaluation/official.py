"""cityscapesScripts' csEvalPixelLevelSemanticLabeling: its JSON file's layout, and the referee."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from cityscapesscripts.helpers.labels import category2labels, labels

from evaluation.metrics import Scores, ratio
from utils.labels import official_scorer


def official_results(scores: Scores) -> dict[str, Any]:
    """Cityscapes scores under the referee's key names; nan where it has nan."""
    nan, confusion = float("nan"), scores.counts.confusion
    ids = {label.name: label.id for label in labels if label.id >= 0}
    classes, categories = dict.fromkeys(ids, nan), dict.fromkeys(category2labels, nan)
    return {
        "confMatrix": confusion.tolist(),
        "priors": {name: ratio(confusion[i].sum(), confusion.sum()) for name, i in ids.items()},
        "labels": ids,
        "classScores": classes | scores.classes,
        "classInstScores": classes | scores.instance_classes,
        "categoryScores": categories | scores.categories,
        "categoryInstScores": categories | scores.instance_categories,
        "averageScoreClasses": scores.miou,
        "averageScoreInstClasses": scores.iiou,
        "averageScoreCategories": scores.category_miou,
        "averageScoreInstCategories": scores.category_iiou,
    }


def run_referee(predictions: list[Path], instances: list[Path]) -> dict[str, Any]:
    """The referee's own results for pairs of label id and *_instanceIds.png files.

    Prints its progress and tables. It reads *_labelIds.png beside each instance file.
    """
    if not hasattr(np, "in1d"):  # gone in numpy 2.4; cityscapesScripts 2.3.0 calls it
        np.in1d = np.isin
    scorer = official_scorer()
    scorer.args.JSONOutput = False  # it would go into the data set's folder
    truths = [str(path).replace("_instanceIds", "_labelIds") for path in instances]
    return scorer.evaluateImgLists([str(path) for path in predictions], truths, scorer.args)


def largest_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[float, int]:
    """Of all numbers of the referee's results: the largest difference, and how many there are.

    Infinite where a number is missing or only one of the two is nan.
    """
    pairs = list(compare(ours, theirs))
    return max(pairs), len(pairs)


def compare(ours: Any, theirs: Any) -> Iterator[float]:
    if isinstance(theirs, Mapping):
        for name in theirs:
            yield from compare(ours.get(name), theirs[name])
    elif isinstance(theirs, list):
        yield (
            float("inf")
            if np.shape(ours) != np.shape(theirs)
            else float(np.abs(np.subtract(ours, theirs)).max())
        )
    elif ours is None or np.isnan(ours) != np.isnan(theirs):
        yield float("inf")
    else:
        yield 0.0 if np.isnan(theirs) else abs(ours - theirs)
