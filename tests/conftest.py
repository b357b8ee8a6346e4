"""Tiny real data sets and the commands run as a user runs them."""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from threading import RLock

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from utils.config import Config
from utils.labels import CITYSCAPES
from utils.preprocess_data import preprocess

REPOSITORY = Path(__file__).resolve().parents[1]
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # of every command; its threads would wait by spinning
torch.ones(1, requires_grad=True).sum().backward()  # after torch.export's imports forks could not
import_module("torchvision")  # brings some of them; each fork would take seconds for it
torch.set_num_threads(1)  # tests run beside each other; one thread also fixes the bits


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


LONG = ("kill", "resume", "commands", "distributed", "export", "predict", "bootstrap")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: a worker that got one last would keep the others waiting."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Each test draws what it draws alone, whatever ran before."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def cityscapes_root(tmp_path_factory) -> Path:
    """A preprocessed tree that tests only read."""
    root = write_cityscapes(tmp_path_factory.mktemp("cityscapes"))
    preprocess(root, workers=1, overwrite=False)
    return root


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


class Command:
    """A command of the repository at work: a fork of this process, which has imported torch.

    It runs the same file as __main__ as Python would, four seconds sooner. What must not lean on
    these imports, on this process's limits or on what tests of torch.export leave in it is started
    by `run(..., fork=False)`.
    """

    def __init__(
        self,
        *command: object,
        cwd: Path = REPOSITORY,
        limit: Callable[[], None] | None = None,
        **environment: str,
    ) -> None:
        """`limit` is called in the new process before the command."""
        self.arguments = [str(REPOSITORY / str(command[0])), *map(str, command[1:])]
        self.cwd, self.limit, self.environment = cwd, limit, environment
        self.streams = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115
        self.process = multiprocessing.get_context("fork").Process(target=self.work)
        self.process.start()

    def work(self) -> None:
        tqdm.set_lock(RLock())  # its own is shared by all forks: one killed within stops the rest
        for number, stream in enumerate(self.streams, 1):
            os.dup2(stream.fileno(), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        os.chdir(self.cwd)
        os.environ.update(self.environment)
        sys.argv = self.arguments
        sys.path.insert(0, str(Path(sys.argv[0]).parent))
        if self.limit is not None:
            self.limit()
        runpy.run_path(sys.argv[0], run_name="__main__")

    def send_signal(self, number: int) -> None:
        if self.is_alive():
            os.kill(self.process.pid, number)

    def is_alive(self) -> bool:
        return self.process.is_alive()

    def end(self, timeout: float = 180) -> subprocess.CompletedProcess:
        """Wait for its end: exit code and what it printed."""
        self.process.join(timeout)
        printed = []
        for stream in self.streams:
            stream.seek(0)
            printed.append(stream.read())
        assert not self.is_alive(), f"{self.arguments} takes longer than {timeout} s: {printed}"
        return subprocess.CompletedProcess(self.arguments, self.process.exitcode, *printed)


def run(
    script: object,
    *arguments: object,
    cwd: Path = REPOSITORY,
    limit: Callable[[], None] | None = None,
    fork: bool = True,
    **environment: str,
) -> subprocess.CompletedProcess:
    """A command of the repository to its end; without `fork` by a new Python."""
    if fork:
        return Command(script, *arguments, cwd=cwd, limit=limit, **environment).end()
    return subprocess.run(
        [sys.executable, str(REPOSITORY / str(script)), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=180,
        preexec_fn=limit,
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
