"""How far colour and row alone go: the peer that the demo's network has to beat.

    python benchmarks/bench_pixel_baseline.py [DATA_ROOT] [SCORES_JSON]

Fits a histogram classifier of single pixels, (R, G, B, row) -> class, on every training pixel of
the synthetic set and scores it on val. Reported are the most frequent class and the class-balanced
choice; cells that training never saw are answered by a coarser histogram. With scores.json of
evaluation/eval_on_val_for_metrics.py the network's lead is printed too.
"""

import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from tqdm import tqdm

from datasets import SegmentationDataset, build_dataset
from evaluation.counts import Counts, count_pixels
from evaluation.metrics import compute_scores
from utils.errors import UserError, run_command
from utils.files import REPOSITORY

FINE, COARSE = (5, 16), (3, 8)  # bits per colour channel, rows
LEAST = 20  # training pixels below which a fine cell asks the coarse one


def cells(image: np.ndarray, bits: int, rows: int) -> np.ndarray:
    """(H,W,3) uint8 -> (H,W) number of each pixel's cell."""
    red, green, blue = np.moveaxis(image.astype(np.int32) >> (8 - bits), 2, 0)
    row = np.arange(len(image), dtype=np.int32)[:, None] * rows // len(image)
    return ((red << bits | green) << bits | blue) * rows + row


def histogram(dataset: SegmentationDataset, bits: int, rows: int) -> np.ndarray:
    """(cells, K) training pixels."""
    classes = dataset.classes.num_classes
    counts = np.zeros((1 << 3 * bits) * rows * classes, np.int64)
    for index in tqdm(range(len(dataset)), desc=f"fit {bits} bits", unit="image"):
        sample = dataset[index]
        labelled = sample["label"] < classes
        joint = cells(sample["image"], bits, rows)[labelled] * classes + sample["label"][labelled]
        counts += np.bincount(joint, minlength=len(counts))
    return counts.reshape(-1, classes)


def coarse_cell_of_fine_cells() -> np.ndarray:
    """For every fine cell the coarse cell that holds it."""
    (bits, rows), (few_bits, few_rows) = FINE, COARSE
    fine = np.arange((1 << 3 * bits) * rows)
    row, colour = fine % rows * few_rows // rows, fine // rows
    red, green, blue = ((colour >> shift & 31) >> (bits - few_bits) for shift in (10, 5, 0))
    return ((red << few_bits | green) << few_bits | blue) * few_rows + row


def main() -> None:
    arguments = [Path(argument) for argument in sys.argv[1:]] or [REPOSITORY / "data" / "synthetic"]
    train_set, val_set = (build_dataset("synthetic", arguments[0], s) for s in ("train", "val"))
    fine, coarse = histogram(train_set, *FINE), histogram(train_set, *COARSE)
    counts = np.where(
        fine.sum(1, keepdims=True) >= LEAST, fine, coarse[coarse_cell_of_fine_cells()]
    )
    classes = train_set.classes
    tables = {
        "most frequent": counts.argmax(1).astype(np.uint8),
        "balanced": (counts / np.maximum(fine.sum(0), 1)).argmax(1).astype(np.uint8),
    }
    counted: dict[str, list[Counts]] = {name: [] for name in tables}
    for index in range(len(val_set)):
        sample = val_set[index]
        where = cells(sample["image"], *FINE)
        for name, table in tables.items():
            ids = classes.ids[table[where]]
            counted[name].append(count_pixels(sample["instance"], ids, classes))
    best = 0.0
    for name, parts in counted.items():
        scores = compute_scores(Counts.total(parts), classes)
        best = max(best, scores.miou)
        print(f"{name:<14} mIoU {scores.miou:.4f}  pixel accuracy {scores.pixel_accuracy:.4f}")
    if len(arguments) > 1:
        if not arguments[1].is_file():
            raise UserError(f"{arguments[1]}: no such file. Evaluate a checkpoint first")
        network = json.loads(arguments[1].read_text())["miou"]
        print(f"network        mIoU {network:.4f}  lead {network - best:+.4f}")


if __name__ == "__main__":
    run_command(main)
