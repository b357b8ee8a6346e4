"""What each option of a recipe gains on CamVid, and what the shipped CamVid config reaches.

    python benchmarks/camvid_recipes.py                          three seeds of every option
    python benchmarks/camvid_recipes.py --only baseline ema      some of them
    python benchmarks/camvid_recipes.py --only shipped           configs/camvid as it is

Options: DeepLabV3-ResNet18 at stride 16 from scratch, 5 epochs of 367 training images, 160x240
crops, one option at a time; mIoU of the last weights on the val images. Shipped: the config's own
epochs; the weights best on val are scored on the test images. "fine-tuning" starts from the
demo's checkpoint (make demo), trained on drawn scenes.

Every finished run is written to benchmarks/results/recipes/camvid.json at once; a second call goes
on where the first one stopped, and several processes may share the work. Runs lie in
training_logs/recipe-*. benchmarks/table.py puts the figures into docs/recipes.md.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from benchmarks.measure import RESULTS, choose_device, machine
from datasets import build_dataset
from evaluation.evaluate import evaluate
from evaluation.inference import load_model
from train import train
from utils import distributed
from utils.config import Config, parse
from utils.errors import run_command
from utils.files import REPOSITORY, write_json

PATH = RESULTS / "recipes" / "camvid.json"
LOGS = REPOSITORY / "training_logs"
SHIPPED = REPOSITORY / "configs" / "camvid" / "deeplabv3_resnet18_os16.yaml"
SHORT = Config(
    dataset="camvid", output_stride=16, backbone_weights=None, class_weights=False, epochs=5.0,
    crop=(160, 240), batch_size=8, optimizer="adamw", base_lr=1e-3, min_lr=0.0, weight_decay=0.01,
    warmup_steps=0, workers=1, eval_every=10**9, save_every=50,
)  # fmt: skip
OPTIONS: dict[str, dict] = {
    "baseline": {},
    "auxiliary head": {"aux": True},
    "hard pixels": {"hard_threshold": 0.7, "hard_min_kept": 20_000},
    "EMA": {"ema": 0.99},
    "class weights": {"class_weights": True},
    "photometric": {"photometric": True},
    "class-uniform crops": {"class_uniform": 0.5},
    "weights and uniform crops": {"class_weights": True, "class_uniform": 0.5},
    "both and EMA": {"class_weights": True, "class_uniform": 0.5, "ema": 0.99},
    "fine-tuning": {"init_from": "demo"},
    "class share": {"max_class_share": 0.75},
    "label smoothing": {"label_smoothing": 0.1},
    "clipping": {"clip_grad": 1.0},
    "batch of 4": {"batch_size": 4},
}
VARIANTS = [*OPTIONS, "shipped"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=VARIANTS)
    given = parser.parse_args()
    for seed in range(given.seeds):
        for name in given.only:
            if not any((row["variant"], row["seed"]) == (name, seed) for row in held()):
                row = measure(name, seed)
                write_json(PATH, [*held(), row])  # read again: several processes may share the work


def held() -> list[dict]:
    return json.loads(PATH.read_text(encoding="utf-8")) if PATH.is_file() else []


def measure(name: str, seed: int) -> dict:
    """One training, from where an earlier call left it, and its scores."""
    base = parse(Config, "", ["--config", str(SHIPPED)]) if name == "shipped" else SHORT
    folder = LOGS / f"recipe-{name.replace(' ', '-')}-{seed}"
    begun = (folder / "checkpoints" / "last.pth").exists()
    train(
        replace(
            base, **OPTIONS.get(name, {}), seed=seed, log_root=LOGS, run_name=folder.name,
            resume="auto" if begun else None, overwrite=not begun,
        )
    )  # fmt: skip
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return {
        "variant": name, "seed": seed, "options": OPTIONS.get(name, {}), "miou": results["miou"],
        "pixel_accuracy": results["pixel_accuracy"], "seconds": results["seconds"],
        **(test_scores(folder) if name == "shipped" else {}),
        "machine": machine(choose_device()), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def test_scores(folder: Path) -> dict:
    """Of the weights that were best on val."""
    model, state = load_model(folder / "checkpoints" / "best.pth")
    dataset = build_dataset("camvid", Path(state["config"]["data_root"]), "test")
    world = distributed.start("auto")
    scores = evaluate(model.to(world.device), dataset, world=world)
    return {"step": state["step"], "test": scores.plain()}


if __name__ == "__main__":
    run_command(main)
