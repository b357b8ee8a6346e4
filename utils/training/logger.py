"""A run's folder: options, environment, curves, samples."""

import csv
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from utils.base.environment import nvidia_gpus
from utils.base.paths import whole, write_json, writing
from utils.base.progress import progress
from utils.training.config import Config, plain, write_config
from utils.training.plots import plot_curves

try:
    import resource
except ImportError:  # Windows
    resource = None

PACKAGES = ("torch", "torchvision", "numpy", "opencv-python-headless", "cityscapesscripts")
COLUMNS = ("step", "epoch", "loss", "lr", "images_per_second", "data_wait", "val_loss", "miou")
COLUMNS += ("memory_gib", "gpu_utilization", "gpu_temperature")  # empty where unknown


class RunLogger:
    """All that a run says and leaves beside its checkpoints; `enabled` in the main process only.

    The progress line, metrics.csv, curves.png, samples/, results.json and TensorBoard events.
    """

    def __init__(
        self, folder: Path, config: Config, *, start: int, total: int, enabled: bool
    ) -> None:
        """Rows after step `start`, left by an interrupted run, are dropped."""
        self.folder, self.config, self.enabled = folder, config, enabled
        self.start, self.begin = start, time.perf_counter()
        self.bar = progress(total, start=start, unit="step", label="train", enabled=enabled)
        self.hinted = False  # whether the hint about slow data was given
        self.rows = [row for row in read_metrics(folder) if int(row["step"]) <= start]
        if not enabled:
            return
        write_config(config, folder / "config.yaml")
        write_json(folder / "environment.json", describe_environment())
        self.events = Events(folder, start=start)
        path = folder / "metrics.csv"
        with whole(path) as fresh, fresh.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def say(self, text: str, *, error: bool = False) -> None:
        """A line above the progress line; on stderr what is no result."""
        if self.enabled:
            self.bar.write(text, file=sys.stderr if error else sys.stdout)

    def show(self, row: dict[str, float]) -> None:
        """A row's figures in the progress line."""
        busy = f", GPU {row['gpu_utilization']:.0f} %" if "gpu_utilization" in row else ""
        self.bar.set_postfix_str(
            f"loss {row['loss']:.3f}, lr {row['lr']:.1e}, {row['images_per_second']:.1f} img/s, "
            f"data wait {row['data_wait']:.0%}{busy}, {row['memory_gib']:.1f} GiB",
            refresh=False,
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """One row of metrics.csv and one TensorBoard point per value."""
        if not self.enabled:
            return
        self.rows.append({"step": step, **values})
        path = self.folder / "metrics.csv"
        with writing(path), path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writerow(self.rows[-1])
        points = [Summary.Value(tag=name, simple_value=x) for name, x in values.items()]
        self.events.add(step=step, summary=Summary(value=points))

    def results(self, step: int, scores: dict[str, Any], network: dict[str, Any]) -> None:
        """The latest evaluation to results.json, with what it came from; the curves so far.

        `seconds` are this process's, which trained from step `start`.
        """
        if self.enabled:
            origin = {
                "step": step,
                "start": self.start,
                "seconds": time.perf_counter() - self.begin,
                "network": network,
                "config": plain(self.config),
                "environment": describe_environment(),
            }
            write_json(self.folder / "results.json", {**scores, **origin})
            plot_curves(self.rows, self.folder / "curves.png")


class Events:
    """A run's file for TensorBoard, written at once: PyTorch's SummaryWriter does it in a thread,
    whose error, of a full disk say, comes later or never."""

    def __init__(self, folder: Path, *, start: int) -> None:
        """Points after step `start`, in older files, are not shown."""
        self.path = folder / f"events.out.tfevents.{time.time_ns()}"
        self.add(step=start + 1, file_version="brain.Event:2")
        self.add(step=start + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, **fields: Any) -> None:
        event = Event(wall_time=time.time(), **fields)
        with writing(self.path), self.path.open("ab") as file:
            RecordWriter(file).write(event.SerializeToString())


class StepClock:
    """Time between two readings: images per second and the share spent waiting for data."""

    def __init__(self, images: int) -> None:
        """images: number trained on so far."""
        self.images = images
        self.restart()

    def restart(self) -> None:
        """Leave out what happened since the last reading (an evaluation)."""
        self.since, self.waited = time.perf_counter(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begin

    def read(self, images: int) -> dict[str, float]:
        """images: number trained on so far, all processes."""
        seconds = time.perf_counter() - self.since
        speed, wait = (images - self.images) / seconds, self.waited / seconds
        self.images = images
        self.restart()
        return {"images_per_second": speed, "data_wait": wait}


def peak_memory_gib(device: torch.device) -> float:
    """Most memory used so far: the GPU's, or on the CPU the process's (0 where unknown)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if resource is None:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def device_state(device: torch.device) -> dict[str, float]:
    """Peak memory and, of a GPU, its load in per cent and degrees Celsius, as far as known."""
    state: dict[str, float] = {"memory_gib": peak_memory_gib(device)}
    if device.type == "cuda":
        with suppress(Exception):  # NVML's, of a GPU in parts (MIG) say: worth no training's end
            state["gpu_utilization"] = torch.cuda.utilization(device)
            state["gpu_temperature"] = torch.cuda.temperature(device)
    return state


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Rows of metrics.csv, values as strings ("" where a row has none), without one that a power
    cut left half written; [] without the file."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def describe_environment() -> dict[str, Any]:
    """Versions and hardware, to be read beside the figures of a run.

    What cannot be found out is left empty: a record never stops a training.
    """
    # None of one that is not there: opencv-python instead of its headless build, say.
    packages = {x: next((y.version for y in distributions(name=x)), None) for x in PACKAGES}
    gpus, cudnn = [], None
    with suppress(RuntimeError, AssertionError):  # of a fork whose parent has asked for CUDA
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        cudnn = torch.backends.cudnn.version()  # refuses GPUs that are too old for it
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "gpus": gpus,
        "driver": nvidia_gpus()[0]["driver_version"] if gpus and nvidia_gpus() else None,
        "cuda": torch.version.cuda,
        "cudnn": cudnn,
        "cpu_threads": torch.get_num_threads(),
        "command": sys.argv,
    }
