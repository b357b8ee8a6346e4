"""What each option of a recipe gains on CamVid, from scratch, at a small equal budget.

    python benchmarks/camvid_recipes.py [--seeds 3] [--only baseline ema ...]

DeepLabV3-ResNet18 at stride 16, 5 epochs of 367 training images, 160x240 crops, the optimizer of
configs/camvid; one option is changed at a time. Every finished run is written to
benchmarks/results/recipes/camvid.json at once, and a second call goes on where the first one
stopped. mIoU of the last weights on the val images; the table gives mean and standard deviation.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks.measure import RESULTS, choose_device, machine
from train import train
from utils.config import Config, parse
from utils.errors import run_command
from utils.files import REPOSITORY, write_json

PATH = RESULTS / "recipes" / "camvid.json"
BUDGET = {"epochs": 5.0, "crop": (160, 240), "workers": 1, "eval_every": 10**9, "save_every": 10**9}
VARIANTS: dict[str, dict] = {
    "baseline": {},
    "aux": {"aux": True},
    "hard pixels": {"hard_threshold": 0.7, "hard_min_kept": 20_000},
    "ema": {"ema": 0.99},
    "class weights": {"class_weights": True},
    "photometric": {"photometric": True},
    "class share": {"max_class_share": 0.75},
    "label smoothing": {"label_smoothing": 0.1},
    "clipping": {"clip_grad": 1.0},
    "batch of 4": {"batch_size": 4},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    given = parser.parse_args()
    config = REPOSITORY / "configs" / "camvid" / "deeplabv3_resnet18_os16.yaml"
    base = replace(parse(Config, "", ["--config", str(config)]), **BUDGET)
    for seed in range(given.seeds):
        for name in given.only:
            if not any((row["variant"], row["seed"]) == (name, seed) for row in held()):
                row = measure(name, seed, base)
                write_json(PATH, [*held(), row])  # read again: several processes may share the work
    table(held())


def held() -> list[dict]:
    return json.loads(PATH.read_text(encoding="utf-8")) if PATH.is_file() else []


def measure(name: str, seed: int, base: Config) -> dict:
    """One training; its val scores."""
    with tempfile.TemporaryDirectory() as folder:
        config = replace(base, seed=seed, run_name="run", log_root=Path(folder), **VARIANTS[name])
        begin = time.perf_counter()
        train(config)
        results = json.loads((Path(folder) / "run" / "results.json").read_text(encoding="utf-8"))
    return {
        "variant": name, "seed": seed, "options": VARIANTS[name], "miou": results["miou"],
        "pixel_accuracy": results["pixel_accuracy"], "seconds": time.perf_counter() - begin,
        "machine": machine(choose_device()), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def table(rows: list[dict]) -> None:
    for name in VARIANTS:
        values = [100 * row["miou"] for row in rows if row["variant"] == name]
        if values:
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            print(f"{name:<18} {statistics.mean(values):5.1f} +- {spread:.1f}  n = {len(values)}")


if __name__ == "__main__":
    run_command(main)
