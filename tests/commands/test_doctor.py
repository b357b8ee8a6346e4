"""One screen about the machine: with and without data, PyTorch, a GPU, or anything installed."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import REPOSITORY, fails, run
from PIL import Image

SMI = "NVIDIA H100 80GB HBM3, {driver}, 81559 MiB"
GPU = """
import runpy, sys, torch
class Card: name, total_memory, major, minor = "NVIDIA H100", 80 << 30, {capability}, 0
class Ones:
    def add_(self, number): return self
    def item(self): {compute}
torch.cuda.is_available, torch.cuda.device_count = (lambda: {available}), lambda: 1
torch.cuda.get_device_properties, torch.cuda.set_device = (lambda number: Card), lambda device: None
torch.ones, torch.version.cuda = (lambda count, device: Ones()), {cuda!r}
sys.argv = sys.argv[1:]
sys.path.insert(0, "")
runpy.run_path(sys.argv[0], run_name="__main__")
"""  # PyTorch as on machines that no test has


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The repository without an environment, data and runs."""
    absent = {".venv", ".git", "data", "training_logs", "pretrained_models", "tests"}
    root = tmp_path_factory.mktemp("doctor") / "a copy"
    ignore = lambda folder, _: absent if Path(folder) == REPOSITORY else set()  # noqa: E731
    shutil.copytree(REPOSITORY, root, ignore=ignore)
    (root / "pretrained_models").mkdir()
    return root


def diagnose(root: Path, *arguments: object, python=(sys.executable,), **environment: str):
    """The command of a copy by a new Python: lines of its screen, the last one unwrapped."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith(("CITYSCAPES", "CUDA"))}
    done = subprocess.run(
        [*python, root / "utils" / "doctor.py", *map(str, arguments)], cwd="/",
        env=plain | environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and not done.stderr, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100
    rows, step = done.stdout.split("\nNext: ")
    return rows, " ".join(step.split())


def emulated(folder: Path, *, driver: str = "580.65.06", **changes) -> dict[str, Any]:
    """A machine with a GPU: nvidia-smi first on PATH, PyTorch changed as GPU says."""
    facts = {"cuda": "13.0", "capability": 9, "compute": "return 1", "available": "True"}
    smi = folder / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\necho '{SMI.format(driver=driver)}'\n")
    smi.chmod(0o755)
    python = (sys.executable, "-c", GPU.format(**facts | changes))
    return {"PATH": f"{folder}:{os.environ['PATH']}", "python": python}


def whole_cityscapes(root: Path) -> None:
    """Files of the published number, all empty: whoever reads one fails."""
    for split, count in (("train", 2975), ("val", 500), ("test", 1525)):
        images, labels = (root / kind / split / "x" for kind in ("leftImg8bit", "gtFine"))
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for number in range(count):
            (images / f"x_{number:06d}_000019_leftImg8bit.png").touch()
            for kind in ("labelIds", "instanceIds"):
                (labels / f"x_{number:06d}_000019_gtFine_{kind}.png").touch()


@pytest.mark.slow
def test_each_state_of_the_data_has_its_next_step(copy, cityscapes_root, tmp_path):
    _, step = diagnose(copy)
    assert "Cityscapes to data/cityscapes" in step and step.endswith("make demo")
    root = tmp_path / "whole"
    whole_cityscapes(root)
    where = {"CITYSCAPES_DATASET": str(root)}
    rows, step = diagnose(copy, **where)
    assert "train 2975 of 2975, val 500 of 500, test 1525 of 1525; not packed" in rows
    assert step.startswith("Run python utils/preprocess_data.py")
    (root / "meta" / "label_imgs").mkdir(parents=True)
    for path in (root / "leftImg8bit" / "train" / "x").iterdir():
        (root / "meta" / "label_imgs" / path.name.replace("_leftImg8bit", "")).touch()
    shutil.copy(cityscapes_root / "meta" / "class_weights.json", root / "meta")
    begin = time.perf_counter()
    rows, step = diagnose(copy, **where)
    assert time.perf_counter() - begin < 15  # two seconds on an idle machine
    assert "cityscapes   preprocessed" in rows and step == "python train.py"
    _, step = diagnose(copy, **where, **emulated(tmp_path))
    assert step == "python utils/preprocess_data.py --pack true"
    next((root / "gtFine" / "val" / "x").glob("*instanceIds.png")).unlink()
    rows, step = diagnose(copy, **where)
    assert "1 of 500 val label files missing" in " ".join(rows.split())
    assert step == "Unpack gtFine"


def test_a_small_copy_is_incomplete_and_one_fault_leaves_the_rest(copy, cityscapes_root):
    description = copy / "data" / "custom" / "dataset.yaml"
    description.parent.mkdir(parents=True)
    description.write_text("images: [")
    rows, step = diagnose(copy, CITYSCAPES_DATASET=str(cityscapes_root))
    shutil.rmtree(copy / "data")
    assert "train 4 of 2975, val 3 of 500, test 0 of 1525; not packed" in rows
    assert "custom       data/custom/dataset.yaml: " in rows and "No data of" in rows
    assert step.endswith("python utils/preprocess_data.py --check true")
    rows, step = diagnose(copy, CITYSCAPES_DATASET="/none")
    assert "/none: no images" in rows and step.endswith("make demo")


@pytest.mark.slow
def test_a_packed_set_of_another_name_is_ready(copy):
    root, option = copy / "data" / "camvid", ["--dataset", "camvid"]
    for split in ("train", "val"):
        for folder, shape in ((split, (44, 32, 3)), (f"{split}annot", (44, 32))):
            (root / folder).mkdir(parents=True)
            cells = (np.arange(np.prod(shape)) // np.prod(shape[1:]) // 4).reshape(shape)
            Image.fromarray(cells.astype(np.uint8)).save(root / folder / "0001.png")
    _, step = diagnose(copy)
    assert step.startswith("Run utils/preprocess_data.py with the same --dataset")
    done = run("utils/preprocess_data.py", *option, "--data_root", root, "--pack", "true")
    assert done.returncode == 0, done.stderr
    rows, step = diagnose(copy)
    assert "camvid       train 1, val 1; packed; data/camvid" in rows
    assert "camvid       preprocessed" in rows
    assert step == "python train.py --dataset camvid"
    (root / "train" / "0001.png").write_bytes(b"another size")
    rows, step = diagnose(copy)
    shutil.rmtree(copy / "data")
    assert "data/camvid/train/0001.png: changed" in " ".join(rows.split())
    assert "--pack true" in step


@pytest.mark.parametrize(
    "changes, row, step",
    [
        ({}, "GPU 0 NVIDIA H100, 80 GiB, capability 9.0, bf16", "put Cityscapes"),
        ({"available": "False", "driver": "535.104.05"},
         "driver 535.104.05 is too old for CUDA 13.0, which needs 580", "update the NVIDIA driver"),
        ({"available": "False", "cuda": None}, "is built for CPUs", "install PyTorch for another"),
        ({"available": "False"}, "PyTorch cannot use the GPU", "run nvidia-smi;"),
        ({"compute": "raise RuntimeError('no kernel image is available')", "capability": 6},
         "capability 6.0, no bf16", "install PyTorch for another CUDA"),
    ],
)  # fmt: skip
def test_each_state_of_a_gpu_has_its_next_step(copy, tmp_path, changes, row, step):
    rows, advice = diagnose(copy, **emulated(tmp_path, **changes))
    assert "nvidia-smi   NVIDIA H100 80GB HBM3, 5" in rows
    assert row in " ".join(rows.split())
    assert step in advice
    assert ("no kernel image" in rows) == ("compute" in changes)


def test_a_hidden_gpu_is_no_reason_to_act(copy, tmp_path):
    machine = emulated(tmp_path, available="False") | {"CUDA_VISIBLE_DEVICES": ""}
    rows, step = diagnose(copy, **machine)
    assert "GPU          none, or hidden" in rows and step.endswith("make demo")


def test_it_answers_without_pytorch_and_without_any_package(copy):
    program = "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; "
    program += "sys.path.insert(0, ''); runpy.run_path(sys.argv[0], run_name='__main__')"
    rows, step = diagnose(copy, python=(sys.executable, "-c", program))
    assert "Packages     missing: torch\n" in rows and "PyTorch      needs torch" in rows
    assert "No data of   cityscapes" in rows and step == "make demo installs what is missing"
    rows, step = diagnose(copy, python=(sys.executable, "-I", "-S"))
    assert "missing: torch, torchvision, numpy, cv2" in rows and "Data         needs " in rows
    assert "Disk" in rows and "Weights" in rows and step == "make demo installs what is missing"
    (copy / ".venv").mkdir()
    (copy / ".venv" / "ready").touch()
    _, step = diagnose(copy, python=(sys.executable, "-I", "-S"))
    shutil.rmtree(copy / ".venv")
    assert step.startswith("source .venv/bin/activate")


def test_the_last_runs_and_weights_are_shown_a_broken_one_too(copy):
    for number, name in enumerate(("oldest", "begun", "broken", "whole")):
        folder = copy / "training_logs" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
        os.utime(folder / "config.yaml", (number, number))
    (copy / "training_logs" / "broken" / "results.json").write_text('{"miou": 0.5')
    (copy / "training_logs" / "whole" / "results.json").write_text(
        json.dumps({"miou": 0.4321, "step": 20})
    )
    (copy / "pretrained_models" / "resnet18-f37072fd.pth").touch()
    rows, _ = diagnose(copy)
    shutil.rmtree(copy / "training_logs")
    assert "Run begun    not evaluated\n" in rows and "oldest" not in rows
    assert "Run broken   results.json is broken" in rows
    assert "Run whole    mIoU 43.2 at step 20" in rows
    assert "Weights      resnet18-f37072fd.pth\n" in rows


def test_the_file_for_a_bug_report_names_nobody_and_no_other_folder(copy, tmp_path):
    home = tmp_path / "Ann Onymous"
    data = home / "my data" / "cityscapes"
    data.mkdir(parents=True)
    inside = copy / "data" / "voc"
    inside.mkdir(parents=True)
    who = {"HOME": str(home), "LOGNAME": "annonym", "CITYSCAPES_DATASET": str(data)}
    (copy / "training_logs" / "of annonym").mkdir(parents=True)
    (copy / "training_logs" / "of annonym" / "config.yaml").touch()
    report = tmp_path / "report.txt"
    rows, _ = diagnose(copy, "--file", report, **who)
    shutil.rmtree(copy / "training_logs")
    shutil.rmtree(copy / "data")
    text = report.read_text()
    assert "my data" in " ".join(rows.split()) and "of annonym" in rows
    assert "cityscapes   outside the repository" in text and "voc          data/voc: no " in text
    assert "Run of ...   not evaluated" in text and "\nNext: " in text and "Memory" in text
    for word in ("Onymous", "annonym", "my data", str(tmp_path), str(copy)):
        assert word not in text
    assert not re.search(rf"\b{re.escape(platform.node())}\b", text)
    fails(run("utils/doctor.py", "--file", report), str(report), "exists")
    fails(run("utils/doctor.py", "--file", tmp_path / "none" / "x"), "existing folder")
    assert report.read_text() == text and run("utils/doctor.py", "--help").returncode == 0
