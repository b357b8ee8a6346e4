"""Time the networks of table 5 of docs/recipes.md, all in turn, on a CPU with one thread.

    python benchmarks/camvid_speed.py

A training step is that of camvid_recipes.py with eight crops of 120x160 or, of SMP's networks, that
of camvid_peer.py. A prediction turns one image of 360x480 (SMP's networks: 384x480) into its label
map, on a CPU in float32. Weights and images are random; the times are medians.
"""

import json
import sys
import time
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # else it would replace another folder
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import torch

from benchmarks import measure
from benchmarks.bench_step import AMP, DEVICE, ON_CPU, noise, our_side, peer_side, with_memory
from benchmarks.camvid_peer import BATCH, CROP, build
from benchmarks.camvid_recipes import FAMILY
from model import build_model, option_names
from utils.base.errors import run_command
from utils.base.paths import make_folder, write_json

OURS = {name.partition(", ")[0]: options["model"] for name, options in FAMILY.items()}
PEERS = ("DeepLabV3Plus", "FPN")


def speeds(rounds: int, *, training: bool) -> dict[str, float]:
    """Images per second of every network, ours and SMP's."""
    ours, theirs = noise(1, (360, 480), 11), noise(1, (384, 480), 11)
    if training:
        ours, theirs = noise(BATCH, (120, 160), 11), noise(BATCH, CROP, 11)
    amp = None if ON_CPU and not training else AMP  # as the evaluation
    sides: measure.Sides = {}
    for name, model in {"DeepLabV3": "deeplabv3", **OURS}.items():
        options = {"output_stride": 16} if "output_stride" in option_names(model) else {}
        own = partial(build_model, model, num_classes=11, backbone="resnet18", **options)
        sides[name] = with_memory(True, our_side(own, ours, training, amp=amp))
    for name in PEERS:
        side = peer_side(partial(build, name), theirs, training, fast=False, compiled=False)
        sides[f"SMP's {name}"] = with_memory(False, side)
    how = {"at_once": 1 if ON_CPU else 10, "device": DEVICE}
    seconds = measure.median_seconds(sides, rounds, **how)
    return {name: round(len(ours.images) / value, 2) for name, value in seconds.items()}


def main() -> None:
    given = measure.options(__doc__, rounds=5, results=measure.RESULTS)
    measure.one_thread()
    path = given.results / "recipes" / "camvid.json"
    make_folder(path.parent)
    training, prediction = (speeds(given.rounds, training=kind) for kind in (True, False))
    facts = {"group": "speed", "seed": 0, "machine": measure.machine(DEVICE)}
    facts |= {"torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}
    held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    rows = [row for row in held if row["group"] != "speed"]
    for name, value in training.items():
        print(f"{name}: {value} images/s in training, {prediction[name]} in prediction")
        rows.append({"variant": name, "training": value, "prediction": prediction[name], **facts})
    write_json(path, rows)


if __name__ == "__main__":
    run_command(main)
