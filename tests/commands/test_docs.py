"""The commands of the task pages in docs/, one after the other as written; `make test-slow`."""

import os
import re
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from cityscapesscripts.preparation.createPanopticImgs import convert2panoptic
from helpers import REPOSITORY, randomize
from test_readme import commands
from torch import nn

sys.path.append(str(REPOSITORY / "tests" / "model"))
from test_convert import Fregu856, Mmseg

# What would take hours is done on little data and in two steps.
FEW_STEPS = ["--steps", "2", "--eval_every", "2", "--crop", "[64,128]", "--batch_size", "2"]
FEW_STEPS += ["--dataset", "synthetic", "--backbone_weights", "null", "--warmup_steps", "0"]
FEW_STEPS += ["--epochs", "null"]
LESS = {"train.py": FEW_STEPS, "evaluation/robustness.py": ["--corruptions", "[fog]"]}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project with a few drawn scenes, a test split, and runs demo and r18."""
    root = tmp_path_factory.mktemp("project")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(lambda x: (REPOSITORY / x).is_file(), listed.stdout.splitlines()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, root / name)
    execute(root, "utils/synthetic.py", "--train", "4", "--val", "2")
    execute(root, "utils/preprocess_data.py", "--dataset", "synthetic")
    execute(root, "train.py", "--config", "configs/synthetic/demo.yaml", *FEW_STEPS)
    execute(root, "evaluation/eval_on_val_for_metrics.py")
    images = root / "data" / "synthetic" / "leftImg8bit"
    shutil.copytree(images / "val", images / "test")
    logs = root / "training_logs"
    for name in ("r18", "r50", "camvid"):
        shutil.copytree(logs / "demo", logs / name, symlinks=True)
    shutil.copytree(logs / "model_eval_val_for_metrics", root / "results")
    truth = root / "segments"
    truth.mkdir()
    convert2panoptic(str(root / "data" / "synthetic" / "gtFine"), str(truth), setNames=["val"])
    for name in ("panoptic", "annotations/panoptic_val2017"):
        shutil.copytree(truth / "cityscapes_panoptic_val", root / name)
        shutil.copy(truth / "cityscapes_panoptic_val.json", root / f"{name}.json")
    (root / "photos").symlink_to(images / "val")
    shutil.copy(next(images.rglob("*.png")), root / "street.jpg")
    pretrained = root / "pretrained_models"
    published_file(pretrained / "model_13_2_2_2_epoch_580.pth", Fregu856(18, 8))
    published_file(pretrained / "deeplabv3_r50b-d8.pth", Mmseg(50, deep_stem=False))
    hub = "deeplabv3_r50-d8_512x1024_80k_cityscapes_20200606_113404-b92cfdd4.pth"
    published_file(pretrained / hub, Mmseg(50, deep_stem=True))
    (root / "my_data").symlink_to(root / "data" / "synthetic")
    return root


def published_file(path: Path, theirs: nn.Module) -> None:
    """A file in a project's format, with random weights; its hash is known."""
    randomize(theirs)
    torch.save({"state_dict": theirs.state_dict()}, path)
    path.with_name(f"{path.name}.sha256").write_text(sha256(path.read_bytes()).hexdigest())


def execute(root: Path, script: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, script, *arguments],
        cwd=root, env={**os.environ, "CITYSCAPES_DATASET": str(root / "data" / "synthetic")},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, (script, arguments, done.stderr)
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    ["predict", "submit", "export", "compare", "reproduce", "score", "robustness", "training",
     "panoptic", "README", "published_checkpoints"],
)  # fmt: skip
def test_the_commands_of_a_page_run_as_written(project, page):
    path = REPOSITORY / "docs" / f"{page}.md"
    found = commands(path if path.is_file() else REPOSITORY / f"{page}.md")
    assert found
    for script, arguments in found:
        if script == "utils/synthetic.py":
            continue  # the fixture has drawn other scenes
        arguments = [word.replace("<run>", "demo") for word in arguments]
        fresh = script == "train.py" and "--resume" not in arguments
        again = ["--overwrite", "true"] if fresh else []
        more = [] if "--corruptions" in arguments else LESS.get(script, [])
        execute(project, script, *arguments, *more, *again)


@pytest.mark.slow
def test_the_code_of_the_python_page_runs_as_written(project):
    text = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
    code = "\n".join(line[4:] for line in text.splitlines() if line.startswith("    ") or not line)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stdout.startswith("['"), done.stderr
    assert "Score Average" in done.stdout and len(re.findall(r"\nloss \d", done.stdout)) == 5
    assert (project / "training_logs" / "from_python" / "checkpoints" / "last.pth").exists()


@pytest.mark.slow
def test_the_pages_files_are_there(project):
    """After the test above: what the pages say that the commands leave."""
    logs = project / "training_logs"
    names = sorted(path.name for path in (logs / "predictions" / "labels").rglob("*.png"))
    assert len(names) == 2 and names[0].startswith("fakehaven_000000_000019")
    for path in (
        logs / "predictions" / "fakehaven.webm", project / "submission.zip",
        logs / "demo" / "model.onnx", project / "demo.pt2", project / "demo_logits.onnx",
        logs / "report_demo.html", project / "both.html", logs / "results.json",
        logs / "again" / "results.json", logs / "r18_trainval" / "checkpoints" / "last.pth",
    ):  # fmt: skip
        assert path.stat().st_size > 1000, path
