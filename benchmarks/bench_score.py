"""Scoring against cityscapesScripts and torchmetrics, all sides in one run.

    python benchmarks/bench_score.py [DATA_ROOT] [PREDICTIONS] [REPEATS]

Default: the synthetic val set and the demo's predictions (make demo). Times are process CPU time of
one thread, medians over interleaved rounds, per pair of 1024x2048 images. The referee has no way to
score from memory, so its time includes decoding three PNG files; what decoding alone costs is
listed. The last table scores all pairs with one and two workers and decodes the same files with one
and two threads, wall time.
"""

import contextlib
import copy
import io
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
import torch
import torchmetrics

from benchmarks.measure import median_seconds
from evaluation.counts import Counts, count_pixels
from evaluation.metrics import compute_scores
from evaluation.official import largest_difference, official_results
from evaluation.score import Pair, count_pair, count_pairs, find_truth, match_predictions
from utils.errors import run_command
from utils.files import REPOSITORY, read_grey
from utils.labels import CITYSCAPES, IGNORE, label_ids, official_scorer


def referee(pair: Pair, *, instances: bool = True) -> dict:
    """The official scorer's results of one pair, without its printing."""
    scorer = official_scorer()
    args = copy.copy(scorer.args)
    args.quiet, args.JSONOutput, args.evalInstLevelScore = True, False, instances
    truth = str(pair[1]).replace("_instanceIds", "_labelIds")
    return scorer.evaluateImgLists([str(pair[0])], [truth], args)


def decode(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    return read_grey(pair[0], np.uint8), read_grey(pair[1], np.uint16)


def per_pair(pairs: list[Pair], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each side."""
    held = [decode(pair) for pair in pairs]
    to_train = CITYSCAPES.id_to_train
    tensors = [
        tuple(torch.from_numpy(to_train[ids].astype(np.int64)) for ids in (p, label_ids(t)))
        for p, t in held
    ]
    for prediction, _ in tensors:
        prediction[prediction == IGNORE] = 0  # torchmetrics knows ignored truth only
    jaccard = torchmetrics.JaccardIndex("multiclass", num_classes=19, ignore_index=IGNORE)
    sides: dict[str, Callable[[int], object]] = {
        "referee": lambda i: referee(pairs[i]),
        "referee without iIoU": lambda i: referee(pairs[i], instances=False),
        "torchmetrics MulticlassJaccardIndex, in memory": lambda i: jaccard.update(*tensors[i]),
        "decoding prediction and instance ids": lambda i: decode(pairs[i]),
        "ours, files": lambda i: count_pair(pairs[i], border=0),
        "ours, in memory": lambda i: count_pixels(held[i][1], held[i][0], CITYSCAPES),
        "ours, in memory, with boundary IoU of 11 pixels": lambda i: count_pixels(
            held[i][1], held[i][0], CITYSCAPES, border=11
        ),
    }
    turns = {name: lambda n, side=side: side(n % len(pairs)) for name, side in sides.items()}
    return median_seconds(turns, rounds * len(pairs), warm_up=len(pairs))


def scaling(pairs: list[Pair], rounds: int) -> dict[str, list[float]]:
    """Wall seconds of one and of two workers, for scoring and for decoding alone."""
    many = pairs * 4

    def decode_all(workers: int) -> None:
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(decode, many):
                pass

    sides = {
        "scoring": lambda n: count_pairs(many, workers=n),
        "decoding": decode_all,
    }
    seconds = {name: ([], []) for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            for workers in (1, 2):
                begin = time.perf_counter()
                with contextlib.redirect_stderr(io.StringIO()):
                    side(workers)
                seconds[name][workers - 1].append(time.perf_counter() - begin)
    return {name: [*map(statistics.median, both)] for name, both in seconds.items()}


def main() -> None:
    root, predictions = REPOSITORY / "data/synthetic", REPOSITORY / "training_logs"
    given = sys.argv[1:]
    root = Path(given[0]) if given else root
    predictions = Path(given[1]) if given[1:] else predictions / "model_eval_val_for_metrics"
    rounds = int(given[2]) if given[2:] else 7
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    pairs = match_predictions(predictions, find_truth(root, "val"))
    packages = ("cityscapesscripts", "torchmetrics", "opencv-python-headless", "numpy", "torch")
    print(", ".join(f"{name} {version(name)}" for name in packages), platform.machine())
    print(f"{os.cpu_count()} cores, {len(pairs)} pairs, {rounds} rounds\n")

    ours = Counts.total([count_pair(pair, border=0) for pair in pairs[:1]])
    results = official_results(compute_scores(ours, CITYSCAPES))
    difference, numbers = largest_difference(results, referee(pairs[0]))
    print(f"largest difference to the referee in {numbers} results: {difference:g}")

    times = per_pair(pairs, rounds)
    print(f"\n{'CPU time per pair':<50} {'ms':>7} {'in memory is':>14} {'files is':>10}")
    for name, seconds in times.items():
        ratios = [seconds / times[side] for side in ("ours, in memory", "ours, files")]
        print(f"{name:<50} {1e3 * seconds:7.1f} {ratios[0]:11.1f} x {ratios[1]:8.1f} x")
    print(f"\n{'wall time, ' + str(4 * len(pairs)) + ' pairs':<30} one worker   two   speed-up")
    for name, (one, two) in scaling(pairs, rounds).items():
        print(f"{name:<30} {one:8.2f} s {two:5.2f} s {one / two:8.2f} x")


if __name__ == "__main__":
    run_command(main)
