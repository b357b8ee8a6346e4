"""Our scores against the official scorer's, digit by digit, and against plain definitions."""

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
from helpers import write_pair

from datasets import find_data_set
from evaluation.counts import Counts, count_pixels, joint_counts, likely_numbers
from evaluation.metrics import compute_scores
from evaluation.official import largest_difference, official_results, run_referee
from evaluation.prediction_files import count_pairs, find_truth, match_predictions
from utils.data.class_weights import histogram
from utils.data.image_files import read_ids
from utils.data.label_table import CITYSCAPES, ids_of_instances

THINGS = list(CITYSCAPES.instance_sizes)


def random_set(root: Path, seed: int) -> tuple[list[Path], list[Path]]:
    """A small tree of truth and label id predictions; (predictions, instance files).

    Over the seeds: absent classes, groups, ignored regions, images without instances, instances of
    ignored classes, single-pixel instances, predictions of ignored ids, from perfect to noise.
    """
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(8, 60, 2).tolist())
    present = rng.permutation(34)[: rng.integers(2, 35)]
    for number in range(int(rng.integers(1, 5))):
        truth = np.full(size, rng.choice(present), np.uint16)
        for _ in range(int(rng.integers(0, 40))):
            top, left = (int(rng.integers(0, length)) for length in size)
            height, width = rng.integers(1, 20, 2)
            label = int(rng.choice(present))
            instance = label in (*THINGS, 29, 30) and number and rng.random() < 0.8
            value = label * 1000 + int(rng.integers(0, 1000)) if instance else label
            truth[top : top + height, left : left + width] = value
        write_pair(root, "val", "lindau", number, truth, rng)
        ids = ids_of_instances(truth)
        share = rng.choice([0.0, 0.1, 0.5, 1.0])
        usual = rng.permutation(34)[: rng.integers(1, 35)]
        wrong = rng.choice(usual, size) if rng.random() < 0.5 else np.roll(ids, 3, 1)
        prediction = np.where(rng.random(size) < share, wrong, ids).astype(np.uint8)
        folder = root / "predictions" / ("nested" if number % 2 else ".")
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"lindau_{number:06d}_000019_pred.png"), prediction)
    pairs = match_predictions(root / "predictions", find_truth(root, "val"))
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def check_sets(root: Path, seeds: range) -> list[dict]:
    """Compare every number for each seed; the official results."""
    found = []
    for seed in seeds:
        predictions, instances = random_set(root / str(seed), seed)
        counts = Counts.total(
            count_pixels(read_ids(truth, np.uint16), read_ids(prediction, np.uint8), CITYSCAPES)
            for prediction, truth in zip(predictions, instances, strict=True)
        )
        ours = official_results(compute_scores(counts, CITYSCAPES))
        theirs = run_referee(predictions, instances)
        assert ours["confMatrix"] == theirs["confMatrix"], seed
        difference, numbers = largest_difference(ours, theirs)
        assert difference <= 1e-12 and numbers == 157, seed
        assert set(ours) == set(theirs)
        found.append(theirs)
        shutil.rmtree(root / str(seed))
    return found


def test_every_number_equals_the_official_one_on_random_sets(tmp_path):
    found = check_sets(tmp_path, range(25))
    # The sets hold what they promise: absent classes, empty instance scores and full ones.
    for key in ("averageScoreInstClasses", "averageScoreInstCategories"):
        values = [one[key] for one in found]
        assert any(map(math.isnan, values)) and sum(0 < value < 1 for value in values) > 10
    assert any(math.isnan(one["classScores"]["car"]) for one in found)
    ignored = [sum(map(sum, one["confMatrix"][:7])) for one in found]
    predicted = [np.array(one["confMatrix"])[7:, :7].sum() for one in found]
    assert max(ignored) > 0 and max(predicted) > 0


@pytest.mark.slow
def test_every_number_equals_the_official_one_on_200_random_sets(tmp_path):
    check_sets(tmp_path, range(1000, 1200))


def test_the_official_command_says_the_same(tmp_path):
    """csEvalPixelLevelSemanticLabeling itself, as a user runs it."""
    predictions, instances = random_set(tmp_path, 3)
    command = Path(sys.executable).with_name("csEvalPixelLevelSemanticLabeling")
    names = ("CITYSCAPES_DATASET", "CITYSCAPES_RESULTS", "CITYSCAPES_EXPORT_DIR")
    folders = map(str, (tmp_path, tmp_path / "predictions", tmp_path))
    environment = {**os.environ, **dict(zip(names, folders, strict=True))}
    done = subprocess.run([command], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    theirs = json.loads((tmp_path / "resultPixelLevelSemanticLabeling.json").read_text())
    scores = compute_scores(count_pairs(list(zip(predictions, instances, strict=True))), CITYSCAPES)
    assert largest_difference(official_results(scores), theirs) == (0.0, 157)
    for table in scores.table().split("\n\n")[:2]:
        assert table in done.stdout


def test_a_difference_is_seen():
    confusion = np.diag(np.arange(1, 35))
    counts = Counts(confusion, np.array([[26, 10, 5, 7]]), np.zeros((34, 2), np.int64))
    right = official_results(compute_scores(counts, CITYSCAPES))
    assert largest_difference(right, right)[0] == 0
    for key, name in (("classInstScores", "car"), ("categoryScores", "sky")):
        for wrong in (right[key][name] + 1e-9, float("nan")):
            assert largest_difference(right | {key: right[key] | {name: wrong}}, right)[0] >= 1e-10
    wrong = confusion.copy()
    wrong[0, 1] += 1
    assert largest_difference(right | {"confMatrix": wrong.tolist()}, right)[0] == 1
    missing = {key: value for key, value in right.items() if key != "priors"}
    assert largest_difference(missing | {"priors": {}}, right)[0] == math.inf


def test_instances_weigh_by_their_size():
    """By hand: two cars of 4 and 16 pixels, half of each found, 3 road pixels taken for car."""
    truth = np.full((8, 8), 7, np.uint16)
    truth[0, :4], truth[2:4] = 26001, 26002
    prediction = ids_of_instances(truth)
    prediction[0, :2], prediction[2], prediction[7, :3] = 27, 7, 26
    counts = count_pixels(truth, prediction, CITYSCAPES)
    assert counts.instances.tolist() == [[26, 4, 2, 4], [26, 16, 8, 8]]
    scores, size = compute_scores(counts, CITYSCAPES), CITYSCAPES.instance_sizes[26]
    assert scores.instance_classes["car"] == pytest.approx(size / (size + size + 3), rel=1e-12)
    hit = size + size / 2
    assert scores.instance_categories["vehicle"] == pytest.approx(hit / (2 * size + 3), rel=1e-12)
    assert math.isnan(scores.instance_classes["road"])


def test_more_numbers_than_one_histogram_holds():
    """More instances than fit into one histogram of 16-bit cells."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 34000, (300, 400)).astype(np.uint16)
    prediction = rng.integers(0, 34, truth.shape).astype(np.uint8)
    numbers, joint = joint_counts(truth, prediction, 34, likely_numbers(CITYSCAPES))
    assert len(numbers) > 3 * 1926
    expected = np.bincount(
        truth.ravel().astype(int) * 34 + prediction.ravel(), minlength=34000 * 34
    )
    assert np.array_equal(numbers, np.unique(truth))
    assert np.array_equal(joint, expected.reshape(-1, 34)[numbers])


def test_images_beyond_the_exact_range_of_float32_count_exactly():
    image = np.full((1, (1 << 24) + 3), 7, np.uint8).reshape(1, -1)
    tall = np.broadcast_to(np.uint8(7), ((1 << 12) + 1, 1 << 12)).copy()
    tall[0, 0] = 8
    assert histogram(tall)[[7, 8]].tolist() == [tall.size - 1, 1]
    assert histogram(image.reshape(-1, 1))[7] == image.size


def test_counts_above_two_to_the_31_stay_exact():
    confusion = np.zeros((34, 34), np.int64)
    confusion[7, 7], confusion[7, 8], confusion[8, 8] = 3 * 2**40, 2**40, 1
    half = Counts(confusion, np.zeros((0, 4), np.int64), np.zeros((34, 2), np.int64))
    scores = compute_scores(half, CITYSCAPES)
    assert scores.classes["road"] == 0.75
    assert scores.classes["sidewalk"] == 1 / (1 + 2**40)
    assert Counts.total([half, half]).confusion[7, 7] == 3 * 2**41


def test_nothing_labelled_gives_nan_not_a_crash():
    truth = np.zeros((4, 5), np.uint16)
    scores = compute_scores(count_pixels(truth, ids_of_instances(truth), CITYSCAPES), CITYSCAPES)
    assert math.isnan(scores.miou) and math.isnan(scores.pixel_accuracy)
    assert scores.plain()["miou"] is None and "nan" in scores.table()
    assert json.dumps(scores.plain(), allow_nan=False)


def test_ids_that_do_not_exist_are_refused():
    good = np.full((4, 5), 7, np.uint8)
    with pytest.raises(ValueError, match="id 34"):
        count_pixels(good.astype(np.uint16), good + 27, CITYSCAPES)
    for wrong in (34, 263, 999, 34000, 65535):
        with pytest.raises(ValueError, match=f"undefined ids .*{wrong}"):
            count_pixels(np.full((4, 5), wrong, np.uint16), good, CITYSCAPES)


def test_the_other_scores_follow_their_definitions():
    """Pixel by pixel, on CamVid's table: no instances, void is the last id."""
    rng, camvid = np.random.default_rng(0), find_data_set("camvid", Path()).classes
    truth = rng.choice([0, 1, 3, 8, 11], (20, 30), p=[0.5, 0.2, 0.1, 0.1, 0.1]).astype(np.uint8)
    prediction = np.where(rng.random(truth.shape) < 0.7, truth, 4).astype(np.uint8)
    prediction[truth == 11] = 2
    scores = compute_scores(count_pixels(truth, prediction, camvid), camvid)
    t, p = truth[truth < 11], prediction[truth < 11]
    present = [c for c in range(11) if (t == c).any() or (p == c).any()]
    iou = {c: ((t == c) & (p == c)).sum() / ((t == c) | (p == c)).sum() for c in present}
    share = {c: (t == c).mean() for c in present}
    right = (t == p).mean()
    chance = sum(share[c] * (p == c).mean() for c in present)
    assert scores.miou == pytest.approx(np.mean(list(iou.values())), rel=1e-12)
    assert [n for n, v in scores.classes.items() if not math.isnan(v)] == [
        camvid.names[c] for c in present
    ]
    assert scores.pixel_accuracy == pytest.approx(right, rel=1e-12)
    assert scores.mean_accuracy == pytest.approx(
        np.mean([(p == c)[t == c].mean() for c in present if share[c]]), rel=1e-12
    )
    weighted = sum(share[c] * iou[c] for c in present)
    assert scores.frequency_weighted_iou == pytest.approx(weighted, rel=1e-12)
    assert scores.kappa == pytest.approx((right - chance) / (1 - chance), rel=1e-12)
    assert math.isnan(scores.iiou) and scores.categories == {} and scores.boundary == {}


def contour_zone(mask: np.ndarray, width: int) -> np.ndarray:
    """A mask without what is left of it after `width` erosions; outside the image is no mask."""
    inner = np.pad(mask.astype(np.uint8), width)
    inner = cv2.erode(inner, np.ones((3, 3), np.uint8), iterations=width)
    return mask & (inner[width:-width, width:-width] == 0)


@pytest.mark.parametrize("width", [1, 3])
def test_boundary_iou_equals_masks_eroded_one_by_one(width):
    rng = np.random.default_rng(width)
    coarse = rng.choice([0, 7, 8, 26, 33], (2, 6, 8)).astype(np.uint8)
    truth, prediction = (cv2.resize(x, (64, 48), interpolation=cv2.INTER_NEAREST) for x in coarse)
    prediction = np.where(rng.random((48, 64)) < 0.7, truth, prediction)
    prediction = cv2.medianBlur(prediction, 5)
    counts = count_pixels(truth.astype(np.uint16), prediction, CITYSCAPES, border=width)
    scores = compute_scores(counts, CITYSCAPES)
    for name, label in zip(CITYSCAPES.names, CITYSCAPES.ids, strict=True):
        masks = [contour_zone((x == label) & (truth != 0), width) for x in (truth, prediction)]
        union = (masks[0] | masks[1]).sum()
        if union:
            expected = (masks[0] & masks[1]).sum() / union
            assert scores.boundary[name] == pytest.approx(expected, rel=1e-12)
        else:
            assert math.isnan(scores.boundary[name])
    assert 0 < scores.boundary_miou < scores.miou
