"""Every benchmark at its smallest size: it runs to its end and prints its table."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import REPOSITORY, Command, fails, run, tiny, train

from benchmarks.measure import SEMANTIC
from benchmarks.table import PAGES

RESULTS = REPOSITORY / "benchmarks" / "results"
SMALL = "--root {made}/synthetic --rounds 1"
WRITES = "--results {results}"
SIZE = "--crop 64 64 --size 64 64 --batch 2"
VARIANTS = "baseline 'trained at 16, evaluated at 8' 'class weights, photometric' '4 minutes'"
VARIANTS += " 'FPN, 3000 steps'"
HEAVY = ("fcn32s", "fcn16s", "fcn8s", "deconvnet")
LIGHT = [name for name in SEMANTIC if name not in HEAVY]
RUNS = {  # command, what it prints
    "argmax and loss": (
        f"bench_ops.py {SMALL} {WRITES} {SIZE} --checkpoints {{made}}/logs/run missing",
        ["cityscapes checkpoint, 1024x2048 |", "| gradient error ours |", "missing left out:"],
    ),
    "evaluation": (
        f"bench_eval.py {SMALL} {WRITES}",
        ["| ours, packed |", "157 results differ from the official by 0", "| ms, network |"],
    ),
    "step": (
        f"bench_step.py {SMALL} {WRITES} {SIZE} --networks resnet50-8 "
        "--others deeplabv3plus-resnet18-16 fpn-resnet18-32",
        ["| torchvision |", "| ours is faster |"],
    ),
    "models": (
        f"bench_models.py --models fpn segnet --encoder resnet18 --rounds 1 {WRITES}",
        ["| fpn | resnet18 |", "| segnet | vgg16_bn |"],
    ),
    **{  # the command fails if an architecture does not learn
        f"overfit {names[0]}": (
            f"overfit.py --dataset synthetic --root {{made}}/synthetic {WRITES} "
            f"--models {' '.join(names)}",
            [f"| {name} |" for name in names],
        )
        for names in (LIGHT, *([name] for name in HEAVY))
    },
    "profile": (
        f"bench_step.py {SMALL} {WRITES} --profile --configs demo --steps 1",
        ["| synthetic/demo.yaml |", "| hours of recipe |"],
    ),
    "recipes": (
        f"camvid_recipes.py --root {{made}}/camvid --log_root {{results}}/logs {WRITES} "
        f"--seeds 0 --steps 1 --only {VARIANTS}",
        ["baseline, seed 0: mIoU", "4 minutes, seed 0: mIoU"],
    ),
    "peer": (
        f"camvid_peer.py --root {{made}}/camvid {WRITES} --steps 1 --networks DeepLabV3 FPN",
        ["SMP's FPN, 1 steps, seed 0: test mIoU"],
    ),
    "speed on CamVid": (f"camvid_speed.py --rounds 1 {WRITES}", ["DeepLabV3: ", "SMP's FPN: "]),
    "sample": (f"bench_loader.py {SMALL} --crops 64x64", ["| ours, packed |", "| packed is |"]),
    "sample without a peer": (
        f"bench_loader.py {SMALL} --crops 64x64",
        ["| ours, packed |", "albumentations left out:"],
    ),
    "score": (
        f"bench_score.py {SMALL} --predictions {{made}}/predictions",
        ["| ours, in memory |", "157 results: 0\n"],
    ),
    "score without a peer": (
        f"bench_score.py {SMALL} --predictions {{made}}/predictions",
        ["| ours, in memory |", "torchmetrics left out:"],
    ),
    "panoptic quality": (
        f"bench_panoptic.py {SMALL} --encoder resnet18",
        ["| ours, two PNG files |", "| forward pass and segments |"],
    ),
    "panoptic demo": (
        f"panoptic_demo.py --root {{made}}/synthetic {WRITES} --seeds 0 --steps 1",
        ["components things", "| 2 |"],
    ),
    "conversion": (f"bench_preprocess.py {SMALL}", ["| conversion |", "3 images, pixels and"]),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A synthetic set, a checkpoint, predictions, and a CamVid of noise."""
    folder = tmp_path_factory.mktemp("benchmarks")
    root, camvid = folder / "synthetic", folder / "camvid"
    for command in (
        ["synthetic.py", "--data_root", root, "--train", 2, "--val", 1],
        ["preprocess_data.py", "--dataset", "synthetic", "--data_root", root, "--pack", "true"],
    ):
        done = run(f"utils/{command[0]}", *command[1:])
        assert done.returncode == 0, done.stderr
    train(tiny(root, folder / "logs", steps=1))
    (folder / "predictions").mkdir()
    for path in root.glob("gtFine/val/*/*_labelIds.png"):
        shutil.copy(path, folder / "predictions")
    rng = np.random.default_rng(0)
    sequences = {"train": ("0001TP", "0006R0"), "val": ("0016E5", "0006R0"), "test": ("Seq05",)}
    for split, names in sequences.items():
        for kind, shape, top in (("", (48, 64, 3), 256), ("annot", (48, 64), 12)):
            (camvid / f"{split}{kind}").mkdir(parents=True)
            for name in names:
                pixels = rng.integers(0, top, shape, np.uint8)
                cv2.imwrite(str(camvid / f"{split}{kind}" / f"{name}_{split}.png"), pixels)
    done = run("utils/preprocess_data.py", "--dataset", "camvid", "--data_root", camvid)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_it_runs_and_prints_its_table(name, made, tmp_path, monkeypatch):
    """What it measured goes into the pages too; the repository's own figures stay."""
    before = {path: path.read_bytes() for path in RESULTS.rglob("*.json")}
    if "without" in name:
        for package in ("albumentations", "torchmetrics"):
            monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    command, expected = RUNS[name]
    words = shlex.split(command.format(made=made, results=tmp_path))
    done = Command(f"benchmarks/{words[0]}", *words[1:]).end(timeout=600)
    assert done.returncode == 0, done.stderr
    for text in expected:
        assert text in done.stdout

    if "--results" in words:
        for page in PAGES:
            (tmp_path / "pages" / page).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / page, tmp_path / "pages" / page)
        options = ["--results", tmp_path, "--pages", tmp_path / "pages"]
        done = run("benchmarks/table.py", *options)
        assert done.returncode == 0, done.stderr
        recipes = "| baseline |" in (tmp_path / "pages" / "docs" / "recipes.md").read_text()
        assert recipes == (name == "recipes")
        figures = "\n### " in (tmp_path / "pages" / "docs" / "results.md").read_text()
        assert figures == (name not in ("recipes", "peer", "speed on CamVid"))
    assert {path: path.read_bytes() for path in RESULTS.rglob("*.json")} == before


SMALL_GPU = [
    "--device", "cpu", "--steps", 6, "--images", 1, "--compiled", "false",
    "--train",
    "--crop [32,64] --batch_size 2 --output_stride 32 --eval_scales [0.1] --scale [0.1,0.3]",
    "--networks", "resnet18-16", "--bench", "--crop 64 64 --size 64 64 --batch 2 --rounds 1",
]  # fmt: skip
ONLY_A_GPU = {"loss, first and last row", "default recipe, gpu_utilization"}


@pytest.mark.parametrize(
    "sections",
    ["profile",
     pytest.param("doctor training stopping evaluation commands processes profile throughput",
                  marks=pytest.mark.slow)],
)  # fmt: skip
def test_what_make_gpu_proves_is_proven_on_a_cpu_as_far_as_it_goes(sections, made, tmp_path):
    options = ["--root", made / "synthetic", "--results", tmp_path, "--sections", *sections.split()]
    done = Command("benchmarks/gpu.py", *options, *SMALL_GPU).end(timeout=600)
    (path,) = tmp_path.glob("*.json")
    rows = json.loads(path.read_text())["rows"]
    failed = {row["check"] for row in rows if not row["ok"]}
    assert {check for check in failed if not check.startswith("500 of")} <= ONLY_A_GPU, rows
    counts = f"{len(rows) - len(failed)} of {len(rows)} rows are ok"
    assert done.returncode == bool(failed) and counts in done.stdout
    for name in sections.split():
        assert f"      {name}: " in done.stdout


def test_make_gpu_without_a_gpu_is_one_line():
    fails(run("benchmarks/gpu.py", CUDA_VISIBLE_DEVICES=""), "PyTorch finds no GPU", "doctor.py")


def test_public_implementations_without_their_clones_are_one_line(tmp_path):
    words = ("--semseg", tmp_path / "none", "--results", tmp_path)
    fails(run("benchmarks/bench_public.py", *words), "none: not found. Clone the project")
