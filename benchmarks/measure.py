"""What the benchmarks share: sides timed in turns, memory, and a file of results per machine."""

import ctypes
import gc
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import trange

from datasets import PackedDataset, SegmentationDataset
from utils.files import REPOSITORY, write_json
from utils.images import image_size
from utils.packing import PackedFile, make_header, pack

RESULTS = REPOSITORY / "benchmarks" / "results"
PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless")
CPU = torch.device("cpu")


def median_seconds(
    sides: dict[str, Callable[[int], object]],
    calls: int,
    *,
    warm_up: int = 1,
    device: torch.device = CPU,
) -> dict[str, float]:
    """Median seconds of side(number), number = 0, 1, ..., all sides in turns.

    On a CPU the process's own time, which a busy machine disturbs least; on a GPU wall time, the
    device idle before and after.
    """
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in trange(-warm_up, calls, leave=False, unit="round", disable=None):
        for name, side in sides.items():
            wait_for(device)
            begin = clock()
            side(max(number, 0))
            wait_for(device)
            if number >= 0:
                seconds[name].append(clock() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def extra_mib(work: Callable[[], object], device: torch.device = CPU) -> float:
    """Peak memory during `work` above what was in use before, MiB; on a CPU only under Linux."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        wait_for(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # or memory freed before would be used again unseen
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident_mib("VmHWM")
    work()
    return resident_mib("VmHWM") - before


def resident_mib(kind: str) -> float:
    """VmRSS, now, or VmHWM, the peak."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split(f"{kind}:")[1].split()[0]) / 1024


def pack_into(folder: Path, dataset: SegmentationDataset) -> PackedDataset:
    """A packed copy of `dataset`."""
    sizes = [image_size(files.image) for files in dataset.files]
    truth = "label" if dataset.files[0].instance is None else "instance"
    sources: list[dict[str, int]] = [{}] * len(dataset)
    header = make_header(dataset.names, sizes, sources, ["image", truth], dataset.classes)
    path = folder / "set.pack"
    pack(path, header, lambda indices: map(dataset.__getitem__, indices), on_image=lambda _: None)
    return PackedDataset(PackedFile(path, dataset.classes), dataset.classes)


def choose_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine(device: torch.device) -> str:
    """The GPU's name, or the CPU's and its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0))
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    return f"{names[0] if names else 'CPU'}, {cores} cores, no GPU"


def record(
    section: str, content: Any, device: torch.device, packages: tuple[str, ...] = ()
) -> None:
    """Put a benchmark's figures into results/<machine>.json, in place of its older ones."""
    name = machine(device)
    path = RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"machine": name}
    held[section] = {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "versions": {package: version(package) for package in (*PACKAGES, *packages)},
        "figures": content,
    }
    write_json(path, held)
    print(f"-> {path.relative_to(REPOSITORY)}")
