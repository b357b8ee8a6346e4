"""What each option of a recipe gains on CamVid, and what the shipped CamVid config reaches.

    python benchmarks/camvid_recipes.py                          three seeds of every option
    python benchmarks/camvid_recipes.py --only baseline ema      some of them
    python benchmarks/camvid_recipes.py --only "class weights, photometric"    sequence held out
    python benchmarks/camvid_recipes.py --only shipped           configs/camvid as it is

Options: DeepLabV3-ResNet18 at stride 16 from scratch, 5 epochs of 367 training images, 160x240
crops, one option or the network changed at a time; mIoU of the last weights on the val images.
Shipped: the config's own epochs; the weights best on val are scored on the test images.
"fine-tuning" starts from the demo's checkpoint (make demo), trained on drawn scenes. Unseen: val's
101 images are of a sequence that train holds too, test's are not, so some options were also tried
with sequence 0006R0 held out.

Every finished run is written to benchmarks/results/recipes/camvid.json at once; a second call goes
on where the first one stopped; processes with other --only may share the work. Runs lie in
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
from evaluation.metrics import Scores
from train import train
from utils import distributed
from utils.config import Config
from utils.errors import run_command
from utils.files import REPOSITORY, write_json
from utils.parser import parse
from utils.preprocess_data import weigh

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
AT_8 = "trained at 16, evaluated at 8"
NETWORKS: dict[str, dict] = {
    "GroupNorm, Weight Standardization": {"norm": "gn_ws"},
    "Multi-Grid 1, 2, 4": {"multi_grid": (1, 2, 4)},
    "stride 8": {"output_stride": 8},
    AT_8: {},
}
LONGER = replace(SHORT, epochs=None, steps=276, ema=0.99, class_uniform=0.5, class_weights=True)
UNSEEN: dict[str, dict] = {
    "no class weights": {"class_weights": False},
    "no class weights, photometric": {"class_weights": False, "photometric": True},
    "class weights, EMA, uniform crops": {},
    "class weights, photometric": {"photometric": True},
    "photometric, learning rate 4e-4": {"photometric": True, "base_lr": 4e-4},
    "photometric, learning rate 2e-4": {"photometric": True, "base_lr": 2e-4},
    "photometric, 4e-4, twice the steps of 4": {
        "photometric": True,
        "base_lr": 4e-4,
        "batch_size": 4,
        "steps": 552,
    },
    "photometric, smaller scales": {"photometric": True, "scale": (0.5, 1.25)},
}
HELD_OUT = "0006R0"
CAMVID = REPOSITORY / "data" / "camvid"
VARIANTS = [*OPTIONS, *NETWORKS, *UNSEEN, "shipped"]


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
    base, options = SHORT, (OPTIONS | NETWORKS).get(name, {})
    if name == "shipped":
        base = parse(Config, "", ["--config", str(SHIPPED)])
    if name in UNSEEN:
        base, options = replace(LONGER, data_root=with_a_sequence_held_out()), UNSEEN[name]
    folder = LOGS / f"recipe-{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    begun = (folder / "checkpoints" / "last.pth").exists()
    train(
        replace(
            base, **options, seed=seed, log_root=LOGS, run_name=folder.name,
            resume="auto" if begun else None, overwrite=not begun,
        )
    )  # fmt: skip
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return {
        "variant": name, "seed": seed, "options": options,
        "unseen": name in UNSEEN, "network": name in NETWORKS,
        **{key: results[key] for key in ("miou", "pixel_accuracy", "seconds")},
        **(test_scores(folder) if name == "shipped" else {}),
        **(scores_at_8(folder) if name == AT_8 else {}),
        "machine": machine(choose_device()), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def with_a_sequence_held_out() -> Path:
    """CamVid's 468 train and val images by links: one sequence's 101 are val, the others train."""
    root = CAMVID.with_name("camvid_unseen")
    for split in ("train", "val"):
        for kind in ("", "annot"):
            for path in sorted((CAMVID / f"{split}{kind}").iterdir()):
                part = "val" if path.name.startswith(HELD_OUT) else "train"
                (root / f"{part}{kind}").mkdir(parents=True, exist_ok=True)
                link = root / f"{part}{kind}" / path.name
                if not link.is_symlink():
                    link.symlink_to(path)
    weigh("camvid", root, workers=1)
    return root


def test_scores(folder: Path) -> dict:
    """Of the weights that were best on val."""
    scores, step = score(folder / "checkpoints" / "best.pth", "test")
    return {"step": step, "test": scores.plain()}


def scores_at_8(folder: Path) -> dict:
    """Of the last weights, on val."""
    scores, _ = score(folder / "checkpoints" / "last.pth", "val", output_stride=8)
    return {"miou": scores.miou, "pixel_accuracy": scores.pixel_accuracy}


def score(path: Path, split: str, *, output_stride: int | None = None) -> tuple[Scores, int]:
    model, state = load_model(path, output_stride=output_stride)
    dataset = build_dataset("camvid", Path(state["config"]["data_root"]), split)
    world = distributed.start("auto")
    return evaluate(model.to(world.device), dataset, world=world), state["step"]


if __name__ == "__main__":
    run_command(main)
