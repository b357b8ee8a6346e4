"""Our scores against the official command's, digit by digit."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import REPOSITORY, run, write_cityscapes

from datasets import build_dataset, instance_to_label_ids
from evaluation.metrics import confusion_matrix, scores_from_confusion
from utils.labels import CITYSCAPES

TABLE = {
    "names": CITYSCAPES.names,
    "ids": CITYSCAPES.ids.tolist(),
    "categories": CITYSCAPES.categories,
}


def official(root: Path, predictions: Path, export: Path) -> dict:
    """The real csEvalPixelLevelSemanticLabeling command."""
    command = Path(sys.executable).with_name("csEvalPixelLevelSemanticLabeling")
    export.mkdir(exist_ok=True)
    names = ("CITYSCAPES_DATASET", "CITYSCAPES_RESULTS", "CITYSCAPES_EXPORT_DIR")
    folders = dict(zip(names, map(str, (root, predictions, export)), strict=True))
    done = subprocess.run(
        [command], env={**os.environ, **folders}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((export / "resultPixelLevelSemanticLabeling.json").read_text())


def same(ours: float, theirs: float) -> bool:
    return (math.isnan(ours) and math.isnan(theirs)) or abs(ours - theirs) <= 1e-12


@pytest.mark.parametrize("seed, absent", [(0, ()), (1, ("train", "bus")), (2, ("sky", "bicycle"))])
def test_every_score_equals_the_official_one(tmp_path, seed, absent):
    """Predictions hold every id, ignored ones too; some classes occur nowhere."""
    root = write_cityscapes(tmp_path / "data", train=0, val=4, seed=seed)
    gone = [int(CITYSCAPES.ids[CITYSCAPES.names.index(name)]) for name in absent]
    rng, results = np.random.default_rng(seed), tmp_path / "results"
    results.mkdir()
    for path in root.glob("gtFine/val/*/*Ids.png"):
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        ids = instance_to_label_ids(pixels.astype(np.uint16))
        pixels[np.isin(ids, gone)] = 0
        cv2.imwrite(str(path), pixels)
    dataset = build_dataset("cityscapes", root, "val")
    confusion = np.zeros((34, 34), np.int64)
    for index in range(len(dataset)):
        sample = dataset[index]
        truth = instance_to_label_ids(sample["instance"])
        prediction = np.where(rng.random(truth.shape) < 0.6, truth, np.roll(truth, 5, 1))
        noise = rng.integers(0, 34, truth.shape)
        prediction = np.where(rng.random(truth.shape) < 0.1, noise, prediction).astype(np.uint8)
        prediction[np.isin(prediction, gone)] = 0
        cv2.imwrite(str(results / f"{sample['name']}_pred_label_img.png"), prediction)
        confusion += confusion_matrix(truth, prediction, 34)
    scores = scores_from_confusion(confusion, **TABLE)
    expected = official(root, results, tmp_path / "export")
    assert confusion.tolist() == expected["confMatrix"]
    for name, value in scores.classes.items():
        assert same(value, expected["classScores"][name]), name
    for name, value in scores.categories.items():
        assert same(value, expected["categoryScores"][name]), name
    assert same(scores.miou, expected["averageScoreClasses"])
    assert same(scores.category_miou, expected["averageScoreCategories"])
    assert [name for name, value in scores.classes.items() if math.isnan(value)] == [
        name for name in CITYSCAPES.names if name in absent
    ]


def test_official_py_gives_the_same_file_from_any_folder(tmp_path, cityscapes_root):
    results = tmp_path / "results"
    results.mkdir()
    for path in cityscapes_root.glob("gtFine/val/*/*labelIds.png"):
        shutil.copy(path, results / path.name.replace("gtFine_labelIds", "pred_label_img"))
    done = run(
        REPOSITORY / "evaluation/official.py", "--data_root", cityscapes_root,
        "--predictions", results, "--export", tmp_path / "a", cwd=Path("/"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ours = json.loads((tmp_path / "a" / "resultPixelLevelSemanticLabeling.json").read_text())
    assert ours["averageScoreClasses"] == 1.0
    assert ours["confMatrix"] == official(cityscapes_root, results, tmp_path / "b")["confMatrix"]
    assert not list(cityscapes_root.glob("evaluationResults"))


def test_counts_above_two_to_the_31_stay_exact():
    confusion = np.zeros((34, 34), np.int64)
    confusion[7, 7], confusion[7, 8], confusion[8, 8] = 3 * 2**40, 2**40, 1
    scores = scores_from_confusion(confusion, **TABLE)
    assert scores.classes["road"] == 0.75
    assert scores.classes["sidewalk"] == 1 / (1 + 2**40)


def test_nothing_labelled_gives_nan_not_a_crash():
    scores = scores_from_confusion(np.zeros((34, 34), np.int64), **TABLE)
    assert math.isnan(scores.miou) and math.isnan(scores.pixel_accuracy)
    assert scores.plain()["miou"] is None
    assert "mean IoU" in scores.table()
