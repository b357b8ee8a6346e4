"""Measure the gain of each option of a recipe on CamVid, and the score of the shipped config.

    python benchmarks/camvid_recipes.py                          three seeds of every option
    python benchmarks/camvid_recipes.py --only baseline EMA      some of them
    python benchmarks/camvid_recipes.py --only '30 minutes'      the config in configs/camvid
    python benchmarks/camvid_recipes.py --only long              the long config, for a GPU

camvid_recipes.yaml lists the trainings. Scores the last weights on val; for the configs in
configs/camvid, of any length, also the weights best on val, on test. A second call resumes the
first; several processes with different --only or --seeds can share the work. Runs are in
training_logs/recipe-*.
"""

import json
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

if __name__ == "__main__":  # else it would replace another folder
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import torch
import yaml
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure
from datasets import build_dataset
from evaluation.evaluate import evaluate
from evaluation.trained import load_model
from utils.base.errors import UserError, run_command
from utils.base.paths import REPOSITORY, make_folder, write_json
from utils.data.prepare import weigh
from utils.training.distributed import start

PLAN = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
FAMILY = PLAN["family"]
GROUPS = {name: group for group in PLAN["groups"] for name in PLAN["groups"][group]["variants"]}
UNSEEN = ("unseen", "half size")  # groups that hold a sequence out
CONFIGS = REPOSITORY / "configs" / "camvid"
SHIPPED = {  # config and its changes
    "long": ("deeplabv3_resnet18_os8_long.yaml", {}),
    **{x: ("deeplabv3_resnet18_os16.yaml", y) for x, y in (PLAN["curve"] | FAMILY).items()},
}
AT_8, HELD_OUT = "trained at 16, evaluated at 8", "0006R0"


def main() -> None:
    given = measure.options(
        __doc__, seeds=(0, 1, 2), only=(*GROUPS, *PLAN["curve"], *FAMILY), steps=0,
        root=REPOSITORY / "data" / "camvid", log_root=REPOSITORY / "training_logs",
        results=measure.RESULTS,
    )  # fmt: skip
    path = given.results / "recipes" / "camvid.json"
    make_folder(path.parent)

    def finished() -> list[dict]:  # not cached, because several processes may share the work
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []

    for seed in given.seeds:
        for name in given.only:
            if not any((row["variant"], row["seed"]) == (name, seed) for row in finished()):
                row = measured(name, seed, given.root, given.log_root, given.steps)
                write_json(path, [*finished(), row])
                print(f"{name}, seed {seed}: mIoU {100 * row['miou']:.1f} -> {path}")


def measured(name: str, seed: int, root: Path, log_root: Path, steps: int) -> dict:
    """Run or resume one training and score it; steps: 0 for those of the plan."""
    group = GROUPS.get(name)
    if group is not None:
        options = PLAN["groups"][group]["variants"][name]
        config = PLAN["every"] | PLAN["groups"][group]["base"] | options
    elif name in SHIPPED:
        file, options = SHIPPED[name]
        config = yaml.safe_load((CONFIGS / file).read_text(encoding="utf-8")) | options
    else:
        known = ", ".join((*GROUPS, *SHIPPED))
        raise UserError(f"--only {name}: not in camvid_recipes.yaml. Give {known}")
    if group in UNSEEN:
        root = with_a_sequence_held_out(root)
    folder = log_root / f"recipe-{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    begun = (folder / "checkpoints" / "last.pth").exists()
    config |= {"resume": "auto"} if begun else {"overwrite": True}
    config |= {"steps": steps, "epochs": None} if steps else {}
    paths = {"data_root": str(root), "log_root": str(log_root), "run_name": folder.name}
    train({**config, **paths, "seed": seed})
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    steps_done = results["step"]
    if begun:
        results["seconds"] = None  # of the last process only
    if name in SHIPPED:
        how = {"scales": config.get("eval_scales", (1.0,))}
        results["step"], results["test"] = score(folder, "best.pth", root, "test", **how)
    if name == AT_8:
        results |= score(folder, "last.pth", root, "val", stride=8)[1]
    network, _ = load_model(folder / "checkpoints" / "last.pth")
    keys = ("miou", "pixel_accuracy", "seconds", *(("step", "test") if name in SHIPPED else ()))
    return {
        "variant": name, "seed": seed, "options": options,
        "group": "family" if name in FAMILY else group, "steps": steps_done,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "pflop": pflop(steps_done, config["batch_size"], config["crop"], network),
        **{key: results[key] for key in keys},
        "machine": measure.machine(measure.choose_device()), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip


def pflop(steps: int, batch_size: int, crop: tuple[int, int], model: nn.Module) -> float:
    """Arithmetic of a training in 1e15 operations, as torch counts it; model loses its weights."""
    model.to("meta").train().requires_grad_()
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(batch_size, 3, *crop, device="meta"))["out"].sum().backward()
    return steps * counter.get_total_flops() / 1e15


def train(config: dict) -> None:
    """Run train.py with these options; exit with its code if it fails."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "config.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        command = [sys.executable, str(REPOSITORY / "train.py"), "--config", str(path)]
        if code := subprocess.run(command, check=False).returncode:
            sys.exit(code)


def with_a_sequence_held_out(camvid: Path) -> Path:
    """Link train and val images into a new data set: one sequence is val, the others train."""
    root = camvid.with_name(f"{camvid.name}_unseen")
    for path in sorted(path for kind in ("train*", "val*") for path in camvid.glob(f"{kind}/*")):
        part = "val" if path.name.startswith(HELD_OUT) else "train"
        link = root / path.parent.name.replace("train", part).replace("val", part) / path.name
        make_folder(link.parent)
        with suppress(FileExistsError):  # another process may have linked it
            link.symlink_to(path.resolve())
    weigh(build_dataset("camvid", root, "train", packed=False), root, workers=1)
    return root


def score(
    folder: Path, name: str, root: Path, split: str, *, stride: int | None = None, **how: tuple
) -> tuple[int, dict]:
    """Step and scores of a checkpoint. how: options of predict_logits."""
    model, state = load_model(folder / "checkpoints" / name, output_stride=stride)
    world, dataset = start("auto"), build_dataset("camvid", root, split)
    scores = evaluate(model.to(world.device), dataset, world=world, **how)
    return state["step"], scores.plain()


if __name__ == "__main__":
    run_command(main)
