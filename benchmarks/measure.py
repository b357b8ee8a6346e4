"""Helpers of all benchmarks: options, timing of several sides, memory, results per machine."""

import argparse
import copy
import ctypes
import gc
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import trange

from benchmarks.render import figure_rows, table
from evaluation.official import official_scorer
from model import MODELS
from utils.base.environment import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, cpu_has_bf16
from utils.base.paths import REPOSITORY, make_folder, write_json
from utils.data.label_table import IGNORE
from utils.training.logger import describe_environment

RESULTS = REPOSITORY / "benchmarks" / "results"
SEMANTIC = tuple(name for name in MODELS if MODELS[name].task == "semantic")
SYNTHETIC = REPOSITORY / "data" / "synthetic"
PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless")
CPU = torch.device("cpu")
Sides = dict[str, Callable[[int], object]]


def options(doc: str, **defaults: Any) -> argparse.Namespace:
    """Parse the command line: one option per default, of its type; a tuple takes several values."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=doc, formatter_class=formatter)
    for name, default in defaults.items():
        several = isinstance(default, tuple)
        kind = {"type": type(default[0] if several else default), "nargs": "*" if several else None}
        how = {"action": "store_true"} if default is False else kind
        parser.add_argument(f"--{name}", default=default, help=f"default: {default}", **how)
    return parser.parse_args()


def one_thread() -> None:
    """Use one thread, so that CPU time of the process equals the time of the work."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def median_seconds(
    sides: Sides,
    calls: int,
    *,
    warm_up: int = 1,
    at_once: int = 1,
    device: torch.device = CPU,
    wall: bool = False,
) -> dict[str, float]:
    """Median seconds of side(number), number = 0, 1, ..., calling all sides in turn.

    CPU: process CPU time, because other processes disturb it least; GPU, and with wall: wall time,
    which counts several processes. at_once: calls
    between waits for the device, because in training, too, the host runs ahead of the device.
    """
    clock = time.perf_counter if wall or device.type == "cuda" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in trange(-warm_up, calls, leave=False, unit="round", disable=None):
        for name, side in sides.items():
            wait_for(device)
            begin = clock()
            for _ in range(at_once):
                side(max(number, 0))
            wait_for(device)
            if number >= 0:
                seconds[name].append((clock() - begin) / at_once)
    return {name: statistics.median(values) for name, values in seconds.items()}


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def usual_malloc() -> None:
    """Undo keep_memory: glibc's own thresholds after it has freed blocks of 32 MiB or more."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
    libc.mallopt(M_TRIM_THRESHOLD, 64 << 20)


def extra_mib(work: Callable[[], object], device: torch.device = CPU) -> float:
    """Peak memory of `work` beyond the memory in use before it, in MiB; on a CPU only on Linux.

    Measures the second call, because the first one may compile and try algorithms.
    """
    work()
    wait_for(device)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        ctypes.CDLL(None).malloc_trim(0)  # else reuse of freed memory stays hidden
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = peak_mib(device)
    work()
    wait_for(device)
    return peak_mib(device) - before


def peak_mib(device: torch.device) -> float:
    """Peak memory of this process in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def likely_logits(train_ids: np.ndarray, stride: int, noise: float) -> torch.Tensor:
    """(H,W) -> (1,19,h,w) like a good network's logits: 8 * class shares of each cell + noise."""
    size = (train_ids.shape[1] // stride, train_ids.shape[0] // stride)
    known = np.where(train_ids == IGNORE, 0, train_ids)
    masks = ((known == number).astype(np.float32) for number in range(19))
    shares = [cv2.resize(mask, size, interpolation=cv2.INTER_AREA) for mask in masks]
    spread = np.random.default_rng(0).normal(0, noise, (19, *size[::-1]))
    return torch.from_numpy(8 * np.stack(shares) + spread.astype(np.float32))[None]


def referee(predictions: list[Path], instances: list[Path], *, niou: bool = True) -> dict:
    """Results of the official scorer, without its output."""
    scorer = official_scorer()
    args = copy.copy(scorer.args)
    args.quiet, args.JSONOutput, args.evalInstLevelScore = True, False, niou
    truths = [str(path).replace("_instanceIds", "_labelIds") for path in instances]
    return scorer.evaluateImgLists([*map(str, predictions)], truths, args)


def optional_peer(module: str) -> ModuleType | None:
    """Import a package that only benchmarks need; None, with a message, if it is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError:
        print(f"{module} left out: pip install -r benchmarks/requirements.txt")


def choose_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine(device: torch.device) -> str:
    """Name of the GPU, or name and number of cores of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    cores = f"{len(os.sched_getaffinity(0))} cores" + ("" if cpu_has_bf16() else " without bf16")
    return f"{[*names, 'CPU'][0]}, {cores}, no GPU"


def versions(*packages: str) -> dict[str, str]:
    """Versions of the packages and, with a GPU, of driver, CUDA, NCCL and cuDNN."""
    found = {package: version(package) for package in (*PACKAGES, *packages)}
    described = describe_environment()
    if described["gpus"]:
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
        found |= {"NVIDIA driver": described["driver"], "CUDA": described["cuda"], "NCCL": nccl}
        found["cuDNN"] = described["cudnn"]
    return found


def record(folder: Path, section: str, figures: list[dict], *packages: str) -> None:
    """Print figures as a table; replace older ones of the section in folder/<machine>.json."""
    name = machine(choose_device())
    path = folder / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"machine": name}
    held[section] = {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions(*packages),
        "figures": figures,
    }
    make_folder(folder)
    write_json(path, held)
    print(f"\n{name}\n\n{table(figure_rows(figures))}-> {path}")
