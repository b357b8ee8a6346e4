"""Compare scoring with cityscapesScripts and torchmetrics, all sides in one run.

    python benchmarks/bench_score.py [--root SYNTHETIC_SET] [--predictions FOLDER]

Default: the synthetic val set and the demo's predictions (make demo). Measures process CPU time of
one thread per pair of 1024x2048 images. The official scorer cannot score from memory, so its time
includes decoding; the table also lists the time of decoding alone.
"""

import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # else it would replace another folder
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import numpy as np
import torch

from benchmarks import measure
from benchmarks.render import Rows, table, times
from evaluation.counts import Counts, count_pixels
from evaluation.metrics import compute_scores
from evaluation.official import largest_difference, official_results
from evaluation.prediction_files import Pair, count_pair, find_truth, match_predictions
from utils.base.errors import run_command
from utils.base.paths import REPOSITORY
from utils.data.image_files import read_ids
from utils.data.label_table import CITYSCAPES, IGNORE, ids_of_instances

DEMO = REPOSITORY / "training_logs" / "model_eval_val_for_metrics"


def per_pair(pairs: list[Pair], rounds: int) -> Rows:
    def decode(number: int) -> tuple[np.ndarray, np.ndarray]:
        prediction, truth = pairs[number % len(pairs)]
        return read_ids(truth, np.uint16), read_ids(prediction, np.uint8)

    def referee(number: int, *, niou: bool = True) -> dict:
        return measure.referee(*([path] for path in pairs[number % len(pairs)]), niou=niou)

    def count(number: int, border: int = 0) -> Counts:
        return count_pixels(*decoded[number % len(pairs)], CITYSCAPES, border=border)

    decoded = [*map(decode, range(len(pairs)))]
    sides: measure.Sides = {
        "official scorer, three PNG files": referee,
        "official scorer without nIoU, two PNG files": partial(referee, niou=False),
        "decoding prediction and instance ids alone": decode,
        "ours, two PNG files": lambda n: count_pair(pairs[n % len(pairs)], border=0),
        "ours, in memory": count,
        "ours, in memory, with boundary IoU": partial(count, border=11),
    }
    if torchmetrics := measure.optional_peer("torchmetrics"):
        ids = [(prediction, ids_of_instances(truth)) for truth, prediction in decoded]
        train_ids = [[CITYSCAPES.id_to_train[x].astype(np.int64) for x in both] for both in ids]
        for prediction, _ in train_ids:
            prediction[prediction == IGNORE] = 0  # torchmetrics cannot ignore predictions
        tensors = [[torch.from_numpy(x) for x in both] for both in train_ids]
        jaccard = torchmetrics.JaccardIndex("multiclass", num_classes=19, ignore_index=IGNORE)
        name = "torchmetrics MulticlassJaccardIndex, in memory, no nIoU"
        sides[name] = lambda n: jaccard.update(*tensors[n % len(pairs)])
    seconds = measure.median_seconds(sides, rounds * len(pairs), warm_up=len(pairs))
    rows = [["per pair", "ms", "against ours in memory", "against ours from files"]]
    for name, value in seconds.items():
        gains = [value / seconds[f"ours, {own}"] for own in ("in memory", "two PNG files")]
        rows.append([name, f"{1e3 * value:.1f}", *map(times, gains)])
    return rows


def main() -> None:
    given = measure.options(__doc__, root=measure.SYNTHETIC, predictions=DEMO, rounds=7)
    measure.one_thread()
    pairs = match_predictions(given.predictions, find_truth(given.root, "val"))
    ours = official_results(compute_scores(count_pair(pairs[0], border=0), CITYSCAPES))
    difference, numbers = largest_difference(ours, measure.referee(*([x] for x in pairs[0])))
    print(f"{measure.machine(measure.CPU)}, {len(pairs)} pairs, {given.rounds} rounds")
    print(f"largest difference to the official scorer in {numbers} results: {difference:g}\n")
    print(table(per_pair(pairs, given.rounds)))


if __name__ == "__main__":
    run_command(main)
