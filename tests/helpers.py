"""Tiny real data sets, small trainings, and the commands run as a user runs them."""

import csv
import json
import multiprocessing
import os
import resource
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from model.panoptic import mask_rcnn
from utils.base.errors import UserError
from utils.data.cityscapes import prepare
from utils.data.coco_panoptic import CLASSES as COCO_CLASSES
from utils.data.label_table import CITYSCAPES
from utils.training.checkpoint import load_checkpoint
from utils.training.config import Config, write_config
from utils.training.distributed import World

REPOSITORY = Path(__file__).resolve().parents[1]
ALONE = World(rank=0, size=1, device=torch.device("cpu"))
PERSON, CAR, ROAD, SKY = 1, 3, 149, 187  # of COCO
# UPSNet with random weights finds as many boxes as it may, which takes seconds an image.
mask_rcnn.PROPOSALS.update(training=10, testing=4)
TRAIN = [
    "--output_stride", "32", "--backbone_weights", "null", "--crop", "[32,64]",
    "--batch_size", "2", "--workers", "1", "--steps", "3", "--warmup_steps", "0",
    "--device", "cpu", "--run_name", "run",
]  # fmt: skip


def write_cityscapes(root: Path, *, train: int = 4, val: int = 3, size=(64, 128), seed: int = 0):
    """A Cityscapes tree of random rectangles: every id, instances and groups."""
    rng = np.random.default_rng(seed)
    for split, city, count in (("train", "aachen", train), ("val", "lindau", val)):
        for number in range(count):
            ids = np.zeros(size, np.uint16)
            for label in rng.permutation([*range(1, 34), *CITYSCAPES.ids.tolist()]):
                top, left = (int(rng.integers(0, length - 8)) for length in size)
                height, width = rng.integers(4, 24, 2)
                countable = label >= 24 and rng.random() < 0.7
                value = label * 1000 + number if countable else label
                ids[top : top + height, left : left + width] = value
            write_pair(root, split, city, number, ids, rng)
    return root


def write_coco_panoptic(root, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Three train and two val images of two sizes; returns ids of classes by image name."""
    truth = {}
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for split, numbers in (("train", (1, 2, 3)), ("val", (4, 5))):
        folder = root / "annotations" / f"panoptic_{split}2017"
        (root / f"{split}2017").mkdir()
        folder.mkdir()
        entries = []
        for number in numbers:
            name, size = f"{number:012d}", (72 + 8 * (number % 2), 96 - 4 * (number % 2))
            segments = np.zeros(size, np.int64)
            segments[40:], segments[:30] = 70_000 + number, 300
            segments[45:65, 10:30], segments[20:60, 40:60] = 2**24 - 2, 5
            segments[50:70, 70:90], segments[10:20, 80:] = 9, 1000
            info = [(70_000 + number, ROAD, 0), (300, SKY, 0), (2**24 - 2, CAR, 0)]
            info += [(5, PERSON, 0), (9, CAR, 0), (1000, PERSON, 1)]
            rgb = np.stack([segments % 256, segments // 256 % 256, segments // 65536], -1)
            cv2.imwrite(str(folder / f"{name}.png"), rgb[..., ::-1].astype(np.uint8))
            ids = np.zeros(size, np.uint8)
            for segment, category, _ in info:
                ids[segments == segment] = category
            image = ids[..., None] * np.array([1, 2, 3]) + rng.integers(0, 30, (*size, 3))
            path = root / f"{split}2017" / f"{name}.jpg"
            cv2.imwrite(str(path), (image % 256).astype(np.uint8))
            rows = [{"id": x, "category_id": y, "iscrowd": z, "area": 1} for x, y, z in info]
            entries.append({"image_id": number, "file_name": f"{name}.png", "segments_info": rows})
            truth[name] = ids
        categories = [
            {"id": x, "name": y, "isthing": int(x in COCO_CLASSES.instance_sizes)}
            for x, y in zip(COCO_CLASSES.ids.tolist(), COCO_CLASSES.names, strict=True)
        ]
        content = {"annotations": entries, "categories": categories}
        (root / "annotations" / f"panoptic_{split}2017.json").write_text(json.dumps(content))
    return truth


def write_pair(root: Path, split: str, city: str, number: int, instance: np.ndarray, rng) -> None:
    name = f"{city}_{number:06d}_000019"
    images, labels = (root / kind / split / city for kind in ("leftImg8bit", "gtFine"))
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    ids = np.where(instance >= 1000, instance // 1000, instance).astype(np.uint8)
    noise = rng.integers(0, 40, (*ids.shape, 3))
    image = ((ids[..., None] * np.array([7, 5, 3]) + noise) % 256).astype(np.uint8)
    cv2.imwrite(str(images / f"{name}_leftImg8bit.png"), image)
    Image.fromarray(ids).save(labels / f"{name}_gtFine_labelIds.png")
    cv2.imwrite(str(labels / f"{name}_gtFine_instanceIds.png"), instance)


def preprocess(root: Path) -> None:
    """Train ids and class weights, as utils/preprocess_data.py writes them."""
    prepare(root, workers=1, overwrite=False)


def tiny(root: Path, log_root: Path, **changes) -> Config:
    """A training of six steps, some seconds on one core."""
    options = {
        "data_root": root,
        "log_root": log_root,
        "run_name": "run",
        "device": "cpu",
        "output_stride": 32,
        "backbone_weights": None,
        "crop": (32, 64),
        "batch_size": 2,
        "workers": 0,
        "steps": 6,
        "warmup_steps": 2,
        "eval_every": 100,
        "save_every": 100,
        "log_every": 1,
    }
    return Config(**(options | changes))


forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["tests.preloaded"])


class Command:
    """A command of the repository at work: a fork of a process that has imported torch.

    It runs the same file as __main__ as Python would, four seconds sooner. That process, which
    forks them all, never starts a thread: a fork of a test's own process could find a lock of
    OpenCV held by a thread that was ending. What must not lean on the imports or on that process's
    limits is started by `run(..., fork=False)`.
    """

    def __init__(
        self,
        *command: object,
        cwd: Path = REPOSITORY,
        first: Callable[[], None] | None = None,
        **environment: str,
    ) -> None:
        """`first`, which must be picklable, is called in the new process before the command."""
        self.arguments = [str(REPOSITORY / str(command[0])), *map(str, command[1:])]
        self.folder = tempfile.TemporaryDirectory()
        self.printed = [Path(self.folder.name) / name for name in ("stdout", "stderr")]
        arguments = (self.arguments, self.printed, cwd, {**os.environ, **environment}, first)
        self.process = forks.Process(target=work, args=arguments)
        self.process.start()

    def send_signal(self, number: int) -> None:
        if self.is_alive():
            os.kill(self.process.pid, number)

    def is_alive(self) -> bool:
        return self.process.is_alive()

    def end(self, timeout: float = 180) -> subprocess.CompletedProcess:
        """Wait for its end: exit code and what it printed."""
        self.process.join(timeout)
        printed = [path.read_text() if path.exists() else "" for path in self.printed]
        if self.is_alive():
            self.process.kill()
            raise AssertionError(f"{self.arguments} takes longer than {timeout} s: {printed}")
        return subprocess.CompletedProcess(self.arguments, self.process.exitcode, *printed)


def work(
    arguments: list[str],
    printed: list[Path],
    cwd: Path,
    environment: dict[str, str],
    first: Callable[[], None] | None,
) -> None:
    """Body of a forked process: the command, with what it prints in two files."""
    for number, path in enumerate(printed, 1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).parent))
    if first is not None:
        first()
    runpy.run_path(arguments[0], run_name="__main__")


def limit_files(size: int) -> None:
    """Files may have `size` bytes: a write beyond fails as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def run(
    script: object,
    *arguments: object,
    cwd: Path = REPOSITORY,
    first: Callable[[], None] | None = None,
    fork: bool = True,
    **environment: str,
) -> subprocess.CompletedProcess:
    """A command of the repository to its end; without `fork` by a new Python."""
    if fork:
        return Command(script, *arguments, cwd=cwd, first=first, **environment).end()
    return subprocess.run(
        [sys.executable, str(REPOSITORY / str(script)), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,  # on a GPU it may compile first
        preexec_fn=first,
    )


def randomize(model: torch.nn.Module, seed: int = 0) -> None:
    """Every weight, bias and BatchNorm statistic at random, outputs of order one.

    With torchvision's or timm's initial values a wrong network can equal a right one.
    """
    generator = torch.Generator().manual_seed(seed)

    def noise(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Conv2d):
                fan_in = module.weight[0].numel()
                module.weight.copy_(noise(module.weight) * (2 / fan_in) ** 0.5)
                if module.bias is not None:
                    module.bias.copy_(noise(module.bias) * 0.1)
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.copy_(0.5 + 0.1 * noise(module.weight))
                module.bias.copy_(0.1 * noise(module.bias))
                module.running_mean.copy_(0.1 * noise(module.running_mean))
                module.running_var.copy_(0.8 + 0.2 * noise(module.running_var).abs())


def train(config: Config, **how: Any) -> subprocess.CompletedProcess:
    """train.py with these options, to its end; UserError with its line on exit code 2.

    how: the other options of `run`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        write_config(config, path)
        done = run("train.py", "--config", path, **how)
    if done.returncode == 2:
        raise UserError(done.stderr.splitlines()[-1].removeprefix("error: "))
    assert done.returncode == 0, done.stderr
    return done


def fails(done: subprocess.CompletedProcess, *words: str) -> None:
    """Exit code 2 and one line `error: ...` with these words; nothing like a traceback."""
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip() and "%|" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    for word in words:
        assert word in lines[0]


EXACT = ("step", "epoch", "loss", "lr", "val_loss", "miou")


def exact_rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [[row[name] for name in EXACT] for row in csv.DictReader(file)]


def assert_same_bits(one, other):
    """Compare nested containers of tensors and numbers."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_bits(one[key], other[key])
    elif isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            assert_same_bits(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


def final_state(folder):
    state = load_checkpoint(folder / "checkpoints" / "last.pth")
    names = ("model", "ema", "optimizer", "scaler", "step", "loss_sum", "best_miou")
    return {name: state[name] for name in names}
