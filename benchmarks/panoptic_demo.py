"""Train a panoptic demo with several seeds, and overfit four scenes; docs/panoptic.md shows both.

    python benchmarks/panoptic_demo.py [--root SYNTHETIC_SET] [--seeds 0 1 2] [--steps 2]
    python benchmarks/panoptic_demo.py --config upsnet_demo --seeds 0 --by_heart 150

The demo's segments are compared with the same network's classes alone, whose connected components
are the instances: all of them, and those of the smallest area with the best PQ on these images.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":  # else it would replace another folder
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import cv2
import numpy as np

from benchmarks import measure
from datasets import build_dataset, listed
from evaluation.panoptic_files import categories_of, of_instances
from evaluation.panoptic_quality import (
    PanopticCounts,
    Segments,
    count_segments,
    panoptic_results,
)
from evaluation.trained import PredictionOptions, Trained
from utils.base.errors import run_command
from utils.base.paths import REPOSITORY
from utils.data.dataset import Dataset
from utils.data.label_table import CITYSCAPES

CONFIGS = REPOSITORY / "configs" / "synthetic"
CATEGORIES = categories_of(CITYSCAPES)
THINGS = np.array([category.thing for category in CATEGORIES])
AREAS = (0, 250, 500, 1000, 2000, 4000)  # pixels of the smallest component
OVERFIT = ("--batch_size", "2", "--crop", "[256,512]", "--flip", "false")
OVERFIT += ("--scale", "[0.25,0.25]", "--class_uniform", "0")


def train(config: Path, root: Path, logs: Path, name: str, *more: str) -> tuple[Trained, float]:
    """A run of the demo's config, and its seconds."""
    command = [sys.executable, REPOSITORY / "train.py", "--config", config, "--data_root", root]
    command += ["--log_root", logs, "--run_name", name, "--overwrite", "true", *more]
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    return Trained.open(PredictionOptions(checkpoint=name, log_root=logs)), seconds


def components(train_ids: np.ndarray, smallest: int) -> Segments:
    """Connected pixels of a class of things are an instance; stuff as in evaluation/grouping.py."""
    numbers, kinds = np.zeros(train_ids.shape, np.uint16), []
    for kind, thing in enumerate(THINGS):
        mask = (train_ids == kind).astype(np.uint8)
        places = [mask > 0]
        if thing:
            _, own, stats, _ = cv2.connectedComponentsWithStats(mask)
            large = np.flatnonzero(stats[1:, cv2.CC_STAT_AREA] >= max(1, smallest)) + 1
            places = [own == number for number in large]
        for place in places:
            if place.sum() >= (1 if thing else 2048):
                kinds.append(kind)
                numbers[place] = len(kinds)
    return Segments(numbers, np.array(kinds, np.int64), np.zeros(len(kinds), bool))


def qualities(trained: Trained, dataset: Dataset) -> dict[str, float]:
    """mIoU and PQ of a network, and PQ of its classes' components."""
    counts: dict[int, list[PanopticCounts]] = {area: [] for area in AREAS}

    def add(sample: dict, _counts: object, prediction: object) -> None:
        truth = of_instances(sample["instance"], CITYSCAPES)
        for area in AREAS:
            found = components(prediction.train_ids, area)
            counts[area].append(count_segments(truth, found, len(CATEGORIES)))

    scores = trained.evaluate(dataset, on_image=add)
    totals = (PanopticCounts.total(x) for x in counts.values())
    peers = [panoptic_results(x, CATEGORIES)["Things"]["pq"] for x in totals]
    found = {"miou": scores.miou, "pq": scores.best, "things": scores.panoptic["Things"]["pq"]}
    found |= {"components_things": peers[0], "best_components_things": max(peers)}
    detection = scores.plain().get("detection", {})
    return found | {f"{kind}_ap": values["ap"] for kind, values in detection.items()}


def main() -> None:
    given = measure.options(
        __doc__, config="panoptic_demo", root=measure.SYNTHETIC, seeds=(0, 1, 2), steps=0,
        by_heart=300, results=measure.RESULTS,
    )  # fmt: skip
    config, name = CONFIGS / f"{given.config}.yaml", given.config.removesuffix("_demo")
    steps = ["--steps", str(given.steps), "--eval_every", str(given.steps)] if given.steps else []
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        for seed in given.seeds:
            options = ["--seed", str(seed), *steps]
            trained, seconds = train(config, given.root, logs, f"seed{seed}", *options)
            dataset = build_dataset("synthetic", given.root, "val", instances=True)
            rows.append({"seed": seed, "seconds": round(seconds), **qualities(trained, dataset)})
            measure.record(given.results, f"{name}_demo", rows)
        if not given.by_heart:
            return
        whole = build_dataset("synthetic", given.root, "train", instances=True)
        names = whole.names[:: max(1, len(whole) // 4)]
        four = Path(folder) / "four.txt"
        four.write_text("\n".join(names))
        options = ["--train_list", str(four), *OVERFIT]
        for option in ("--steps", "--eval_every"):
            options += [option, str(given.steps or given.by_heart)]
        trained, seconds = train(config, given.root, logs, "four", *options)
        scores = qualities(trained, listed(whole, four))
        row = {"images": len(names), "seconds": round(seconds), **scores}
        measure.record(given.results, f"{name}_overfit", [row])


if __name__ == "__main__":
    run_command(main)
