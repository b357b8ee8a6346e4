"""What every test shares: threads, random numbers, one preprocessed tree, the order of files."""

import os
import signal
from pathlib import Path

import pytest
import torch
from helpers import preprocess, write_cityscapes

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # of every command; its threads would wait by spinning
torch.set_num_threads(1)  # tests run beside each other; one thread also fixes the bits
# A shell starts programs in the background with Ctrl-C ignored, and commands would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


LONG = ("kill", "resume", "commands", "benchmarks", "doctor", "distributed", "export", "predict")
LONG += ("bootstrap",)


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
    preprocess(root)
    return root
