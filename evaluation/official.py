"""cityscapesScripts' two scorers: the JSON layout of the first, and how to run them."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from math import inf, nan
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from cityscapesscripts.helpers.labels import category2labels, labels

from evaluation.metrics import Scores, ratio
from evaluation.panoptic_files import folder_of
from utils.base.errors import UserError
from utils.base.paths import read_bytes


def official_results(scores: Scores) -> dict[str, Any]:
    """Cityscapes scores under the official scorer's key names; nan where its results are nan."""
    confusion = scores.counts.confusion
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
    """The official scorer's results for predictions and *_instanceIds.png files; also prints its
    tables. UserError if a *_labelIds.png or *_instanceIds.png file is missing."""
    truths = [x.with_name(x.name.replace("_instanceIds", "_labelIds")) for x in instances]
    needed = [x.with_name(x.name.replace("_labelIds", "_instanceIds")) for x in truths]
    for path in (*truths, *needed):
        if not path.is_file():
            raise UserError(f"{path}: missing, the official scorer needs it. Unpack gtFine")
    if not hasattr(np, "in1d"):  # removed in numpy 2.4; cityscapesScripts 2.3.0 calls it
        np.in1d = np.isin
    scorer = official_scorer()
    scorer.args.JSONOutput = False  # the scorer would write it into the data set's folder
    return scorer.evaluateImgLists([*map(str, predictions)], [*map(str, truths)], scorer.args)


def run_panoptic_referee(predictions: Path, truth: Path, split: str) -> dict[str, Any]:
    """csEvalPanopticSemanticLabeling's results for two JSON files; also prints its table. truth: a
    JSON file, or gtFine, which csCreatePanopticImgs converts first."""
    from cityscapesscripts.evaluation import evalPanopticSemanticLabeling as scorer
    from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic

    with tempfile.TemporaryDirectory() as folder:
        if truth.is_dir():
            convert2panoptic(str(truth), folder, setNames=[split])
            truth = Path(folder) / f"cityscapes_panoptic_{split}.json"
        elif any(
            "iscrowd" not in segment
            for image in json.loads(read_bytes(truth))["annotations"]
            for segment in image["segments_info"]
        ):
            what = "a segment without iscrowd, which the official scorer reads"
            raise UserError(f"{truth}: {what}. Score without --check_official")
        files = [str(x) for path in (truth, predictions) for x in (path, folder_of(path))]
        return scorer.evaluatePanoptic(*files, str(Path(folder) / "results.json"))


def largest_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[float, int]:
    """Largest difference to the official scorer's numbers, and the count of its numbers; infinite
    if a number is missing or only one of the two is nan."""
    pairs = list(compare(ours, theirs))
    return max(pairs), len(pairs)


def compare(ours: Any, theirs: Any) -> Iterator[float]:
    if isinstance(theirs, Mapping):
        for name in theirs:
            yield from compare(ours.get(name), theirs[name])
    elif isinstance(theirs, list):
        same_shape = np.shape(ours) == np.shape(theirs)
        yield float(np.abs(np.subtract(ours, theirs)).max()) if same_shape else inf
    elif ours is None or np.isnan(ours) != np.isnan(theirs):
        yield inf
    else:
        yield 0.0 if np.isnan(theirs) else abs(ours - theirs)


def official_scorer() -> ModuleType:
    """cityscapesScripts' evalPixelLevelSemanticLabeling, imported without CITYSCAPES_EXPORT_DIR."""
    export = os.environ.pop("CITYSCAPES_EXPORT_DIR", None)  # the import fails if it does not exist
    try:
        from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling
    finally:
        if export is not None:
            os.environ["CITYSCAPES_EXPORT_DIR"] = export
    return evalPixelLevelSemanticLabeling
