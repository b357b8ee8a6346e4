"""Writes the files of a run except its checkpoints, and its progress line."""

import csv
import os
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
from utils.base.errors import UserError
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
COLUMNS += ("memory_gib", "gpu_utilization", "gpu_temperature", "pq")  # empty if unknown


class RunLogger:
    """All output of a run except its checkpoints; only the main process sets `enabled`.

    The progress line, metrics.csv, curves.png, samples/, results.json and TensorBoard events.
    """

    def __init__(
        self, folder: Path, config: Config, *, start: int, total: int, enabled: bool
    ) -> None:
        """Drops the rows of an interrupted run after step `start`."""
        self.folder, self.config, self.enabled = folder, config, enabled
        self.start, self.begin = start, time.perf_counter()
        self.bar = progress(total, start=start, unit="step", label="train", enabled=enabled)
        self.hinted = False  # whether the hint about slow data was printed
        if not enabled:
            return
        self.rows = [row for row in read_metrics(folder) if int(row["step"]) <= start]
        write_json(folder / "environment.json", describe_environment())  # first: says who began it
        write_config(config, folder / "config.yaml")
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
        """Print a line above the progress line, on stdout, or on stderr if `error`."""
        if self.enabled:
            self.bar.write(text, file=sys.stderr if error else sys.stdout)

    def show(self, row: dict[str, float]) -> None:
        """Show the values of a row in the progress line."""
        busy = f", GPU {row['gpu_utilization']:.0f} %" if "gpu_utilization" in row else ""
        self.bar.set_postfix_str(
            f"loss {row['loss']:.3f}, lr {row['lr']:.1e}, {row['images_per_second']:.1f} img/s, "
            f"data wait {row['data_wait']:.0%}{busy}, {row['memory_gib']:.1f} GiB",
            refresh=False,
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write one row of metrics.csv and one TensorBoard point per value."""
        if not self.enabled:
            return
        self.rows.append({"step": step, **values})
        path = self.folder / "metrics.csv"
        with writing(path), path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS).writerow(self.rows[-1])
        points = [Summary.Value(tag=name, simple_value=x) for name, x in values.items()]
        self.events.add(step=step, summary=Summary(value=points))

    def results(self, step: int, scores: dict[str, Any], facts: dict[str, Any]) -> None:
        """Write the latest evaluation and its origin to results.json, and plot the curves so far.

        facts: of the run. `seconds`: run time of this process, which began after step `start`.
        """
        if self.enabled:
            origin = {
                "step": step,
                "start": self.start,
                "seconds": time.perf_counter() - self.begin,
                **facts,
                "config": plain(self.config),
                "environment": describe_environment(),
            }
            write_json(self.folder / "results.json", {**scores, **origin})
            plot_curves(self.rows, self.folder / "curves.png")


class Events:
    """A run's TensorBoard file, written without a thread: the thread of PyTorch's SummaryWriter
    reports an error, such as a full disk, late or never."""

    def __init__(self, folder: Path, *, start: int) -> None:
        """Makes TensorBoard hide the points after step `start` in older files."""
        self.path = folder / f"events.out.tfevents.{time.time_ns()}"
        self.add(step=start + 1, file_version="brain.Event:2")
        self.add(step=start + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, **fields: Any) -> None:
        event = Event(wall_time=time.time(), **fields)
        with writing(self.path), self.path.open("ab") as file:
            RecordWriter(file).write(event.SerializeToString())


class StepClock:
    """Images per second, and share of time spent waiting for data, between two readings."""

    def __init__(self, images: int) -> None:
        """images: number trained on so far."""
        self.restart(images)

    def restart(self, images: int) -> None:
        """Begin again, for example after an evaluation, with this number of images trained on."""
        self.images, self.since, self.waited = images, time.perf_counter(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begin

    def read(self, images: int) -> dict[str, float]:
        """images: number trained on so far, all processes."""
        seconds = time.perf_counter() - self.since
        speed, wait = (images - self.images) / seconds, self.waited / seconds
        self.restart(images)
        return {"images_per_second": speed, "data_wait": wait}


def peak_memory_gib(device: torch.device) -> float:
    """Peak memory so far: of the GPU, or of the process if `device` is the CPU (0 if unknown)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if resource is None:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def device_state(device: torch.device) -> dict[str, float]:
    """Peak memory and, for a GPU, load in per cent and temperature in degrees Celsius if known."""
    state: dict[str, float] = {"memory_gib": peak_memory_gib(device)}
    if device.type == "cuda":
        with suppress(Exception):  # NVML fails for parts of a GPU (MIG), for example
            state["gpu_utilization"] = torch.cuda.utilization(device)
            state["gpu_temperature"] = torch.cuda.temperature(device)
    return state


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Rows of metrics.csv with values as strings, "" for a missing value; skips a row that a power
    cut truncated. [] without the file. UserError for a file that another program changed."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if not {"step"} <= {*(rows.fieldnames or COLUMNS)} <= {*COLUMNS}:
            what = f"its columns are not those of train.py ({', '.join(rows.fieldnames)})"
            raise UserError(f"{path}: {what}. Restore it, or delete it")
        whole_rows = [row for row in rows if None not in row.values()]
    if odd := [row["step"] for row in whole_rows if not row["step"].isdecimal()]:
        raise UserError(f"{path}: {odd[0]!r} is no step. Restore the file, or delete it")
    return whole_rows


def describe_environment() -> dict[str, Any]:
    """Versions and hardware, to interpret the results of a run.

    Unknown values stay empty, so that this record never stops a training.
    """
    # None for a missing package, for example if opencv-python replaces its headless build.
    packages = {x: next((y.version for y in distributions(name=x)), None) for x in PACKAGES}
    gpus, cudnn = [], None
    with suppress(RuntimeError, AssertionError):  # raised in a fork whose parent used CUDA
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        cudnn = torch.backends.cudnn.version()  # raises if a GPU is too old
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "gpus": gpus,
        "driver": nvidia_gpus()[0]["driver_version"] if gpus and nvidia_gpus() else None,
        "cuda": torch.version.cuda,
        "cudnn": cudnn,
        "cpu_threads": torch.get_num_threads(),
        "launch": os.environ.get("TORCHELASTIC_RUN_ID"),
        "command": sys.argv,
    }
