"""One process per GPU, started by torchrun; without torchrun a single process."""

import hashlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist

from utils.base.environment import OTHER_BUILD, lacks_to_build, why_no_gpu
from utils.base.errors import UserError


@dataclass(frozen=True)
class World:
    """The rank of this process among `size` processes, and its device."""

    rank: int
    size: int
    device: torch.device
    launch: str = ""  # torchrun's id of the run, the same in all processes and after restarts
    restarted: bool = False  # torchrun restarted all processes after one of them failed

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def amp_dtype(self, precision: str) -> torch.dtype | None:
        """The dtype for autocast, None for float32; precision as in Config."""
        if precision == "auto":
            native = self.on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
            precision = "bf16" if native else "fp16" if self.on_gpu else "fp32"
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[precision]

    def use_compile(self, wanted: bool | None, *, sync_bn: bool = False) -> bool:
        """Whether to use torch.compile. None: on a GPU, if nothing is missing, without sync_bn."""
        if wanted is False or (wanted is None and not self.on_gpu):
            return False
        lacks = lacks_to_build("C++")
        if self.on_gpu and not lacks:
            lacks = lacks_to_build("C") or (None if find_spec("triton") else "Triton")
        if wanted and lacks:
            raise UserError(f"--compile true: needs {lacks}. Install it, or leave --compile out")
        why = f"lacks {lacks}" if lacks else "--sync_bn true" if sync_bn and not wanted else ""
        if why and self.is_main:
            print(f"the network is not compiled ({why}): training is slower", file=sys.stderr)
        return not why


def start(device: str) -> World:
    """Choose the device (auto, cpu, cuda) and join torchrun's process group, if there is one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = torch.device("cpu")
    if device != "cpu" and torch.cuda.is_available():
        chosen = usable_gpu(int(os.environ.get("LOCAL_RANK", "0")))
    elif device != "cpu" and ((why := why_no_gpu(torch.version.cuda)) or device == "cuda"):
        what, advice = why or ("PyTorch sees no GPU", "type python utils/doctor.py")
        raise UserError(f"--device {device}: {what}. Give --device cpu, or {advice}")
    if size > 1:
        join("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    rank, restarts = (int(os.environ.get(x, 0)) for x in ("RANK", "TORCHELASTIC_RESTART_COUNT"))
    launch = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    launch = "" if launch == "none" else launch[:8]
    return World(rank, size, chosen, launch, restarted=restarts > 0)


def usable_gpu(number: int) -> torch.device:
    """The GPU of this process, after a test computation; UserError if that fails."""
    count = torch.cuda.device_count()
    if number >= count:
        what = f"process {number} of this host finds {count} GPUs"
        raise UserError(f"--device: {what}. Give torchrun --nproc-per-node {count}")
    chosen = torch.device("cuda", number)
    try:
        torch.cuda.set_device(chosen)
        torch.ones(1, device=chosen).add_(1).item()
    except RuntimeError as error:
        what = f"GPU {number} does not compute ({str(error).splitlines()[0]})"
        raise UserError(f"--device: {what}. Give --device cpu, or {OTHER_BUILD}") from error
    return chosen


def join(backend: str) -> None:
    """Join the process group of the environment variables; UserError if that fails."""
    place = ":".join(os.environ.get(name, "(unset)") for name in ("MASTER_ADDR", "MASTER_PORT"))
    try:
        socket.getaddrinfo(os.environ.get("MASTER_ADDR"), None)  # torch would retry for ten minutes
        dist.init_process_group(backend, timeout=timedelta(minutes=10))
    except (OSError, RuntimeError, ValueError) as error:
        what = f"process {os.environ.get('RANK')} cannot join there ({str(error).splitlines()[0]})"
        advice = "Start with torchrun, or check MASTER_ADDR and MASTER_PORT"
        raise UserError(f"{place}: {what}. {advice}") from error


def stop(world: World) -> None:
    if world.size > 1:
        dist.destroy_process_group()


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """A context that computes in `dtype`, or without autocast if `dtype` is None."""
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def sum_over_ranks(values: torch.Tensor, world: World) -> torch.Tensor:
    """Sum `values` over all processes, in place."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def gather_over_ranks(value: Any, world: World) -> list[Any]:
    """The values of all processes, in order of rank."""
    if world.size == 1:
        return [value]
    values = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def gather_images(values: dict[int, Any], world: World) -> list[Any]:
    """Image index -> value, of all processes -> all values in the order of the images."""
    found = {index: x for part in gather_over_ranks(values, world) for index, x in part.items()}
    return [found[index] for index in sorted(found)]


def require_same(value: Any, what: str, world: World) -> None:
    """UserError if processes have different values, compared by repr."""
    hashes = gather_over_ranks(hashlib.sha256(repr(value).encode()).hexdigest(), world)
    other = [str(rank) for rank, found in enumerate(hashes) if found != hashes[0]]
    if other:
        found = f"process {', '.join(other)} differs from process 0"
        raise UserError(f"{what}: {found}. Give all hosts the same files and options")


def copy_buffers_from_main(model: torch.nn.Module, world: World) -> None:
    """BatchNorm statistics differ between processes; evaluation needs one set."""
    if world.size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def wait_for_all(world: World) -> None:
    if world.size > 1:
        dist.barrier()


class Interrupted(Exception):
    """A signal requested a stop within StopRequest.interrupting."""


class StopRequest:
    """A signal requests a stop at the next safe point; a further Ctrl-C stops at once."""

    NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")  # Windows lacks the last two

    def __init__(self, world: World) -> None:
        self.world = world
        self.signal: int | None = None
        self.waiting = False

    def __enter__(self) -> "StopRequest":
        wanted = [x for x in signal.Signals if x.name in self.NAMES]
        if wanted[0].name == "SIGHUP" and signal.getsignal(wanted[0]) == signal.SIG_IGN:  # nohup
            del wanted[0]
        self.previous = {number: signal.signal(number, self.note) for number in wanted}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def note(self, number: int, _frame: object) -> None:
        self.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self.waiting:
            raise Interrupted

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """In this context a signal raises Interrupted, unless other processes wait for this one."""
        self.waiting = self.world.size == 1
        try:
            if self.waiting and self.signal is not None:
                raise Interrupted
            yield
        finally:
            self.waiting = False

    def requested(self) -> bool:
        """Whether any process received a signal; all processes must call this at the same point.

        Afterwards all processes have the signal. The tensor is on the CPU: no GPU is waited for.
        """
        if self.world.size > 1:
            number = torch.tensor(self.signal or 0)
            dist.all_reduce(number, dist.ReduceOp.MAX)
            self.signal = int(number) or None
        return self.signal is not None
