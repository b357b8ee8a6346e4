"""One process per GPU, started by torchrun; without torchrun a world of one."""

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
    """This process's place among `size` processes, and its device."""

    rank: int
    size: int
    device: torch.device
    launch: str = ""  # what torchrun calls it, the same in all processes and after restarts
    restarted: bool = False  # by torchrun, after one of the processes had failed

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def amp_dtype(self, precision: str) -> torch.dtype | None:
        """What autocast computes in; precision as in Config. None for float32."""
        if precision == "auto":
            native = self.on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
            precision = "bf16" if native else "fp16" if self.on_gpu else "fp32"
        return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": None}[precision]

    def use_compile(self, wanted: bool | None, *, sync_bn: bool = False) -> bool:
        """Whether to use torch.compile; None: on a GPU that has what it needs, without sync_bn."""
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
    """Choose the device (auto, cpu, cuda) and join the process group that torchrun announced."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    chosen = torch.device("cpu")
    if device != "cpu" and torch.cuda.is_available():
        chosen = usable_gpu(int(os.environ.get("LOCAL_RANK", "0")))
    elif device != "cpu" and ((why := why_no_gpu(torch.version.cuda)) or device == "cuda"):
        what, advice = why or ("PyTorch sees no GPU", "see python utils/doctor.py")
        raise UserError(f"--device {device}: {what}. Give --device cpu, or {advice}")
    if size > 1:
        join("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    rank, restarts = (int(os.environ.get(x, 0)) for x in ("RANK", "TORCHELASTIC_RESTART_COUNT"))
    launch = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    launch = "" if launch == "none" else launch[:8]
    return World(rank, size, chosen, launch, restarted=restarts > 0)


def usable_gpu(number: int) -> torch.device:
    """This process's GPU, once it has computed something; UserError where it cannot."""
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
    """The process group that the environment announces; UserError where that is impossible."""
    place = ":".join(os.environ.get(name, "(unset)") for name in ("MASTER_ADDR", "MASTER_PORT"))
    try:
        socket.getaddrinfo(os.environ.get("MASTER_ADDR"), None)  # torch would try for ten minutes
        dist.init_process_group(backend, timeout=timedelta(minutes=10))
    except (OSError, RuntimeError, ValueError) as error:
        what = f"process {os.environ.get('RANK')} cannot join there ({str(error).splitlines()[0]})"
        advice = "Start with torchrun, or check MASTER_ADDR and MASTER_PORT"
        raise UserError(f"{place}: {what}. {advice}") from error


def stop(world: World) -> None:
    if world.size > 1:
        dist.destroy_process_group()


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """A context that computes in `dtype`, or as it is for None."""
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def sum_over_ranks(values: torch.Tensor, world: World) -> torch.Tensor:
    """In place; a world of one leaves `values` alone."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def gather_over_ranks(value: Any, world: World) -> list[Any]:
    """Every process's value, by rank."""
    if world.size == 1:
        return [value]
    values = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def require_same(value: Any, what: str, world: World) -> None:
    """UserError where a process has another `value`, which must have a definite repr."""
    hashes = gather_over_ranks(hashlib.sha256(repr(value).encode()).hexdigest(), world)
    other = [str(rank) for rank, found in enumerate(hashes) if found != hashes[0]]
    if other:
        found = f"process {', '.join(other)} has other than process 0"
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
    """A stop was asked for while waiting; raised where StopRequest.interrupting allows it."""


class StopRequest:
    """A signal asks for a stop at the next safe place; Ctrl-C once more stops at once."""

    NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")  # the latter not on Windows

    def __init__(self, world: World) -> None:
        self.world = world
        self.signal: int | None = None
        self.waiting = False

    def __enter__(self) -> "StopRequest":
        wanted = [x for x in signal.Signals if x.name in self.NAMES]
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
        """Within, a signal raises Interrupted; not where other processes wait for this one."""
        self.waiting = self.world.size == 1
        try:
            if self.waiting and self.signal is not None:
                raise Interrupted
            yield
        finally:
            self.waiting = False

    def requested(self) -> bool:
        """Whether any process was asked; all of them must call this at the same place.

        The signal then counts for all. A number on the host: nobody waits for a GPU here.
        """
        if self.world.size > 1:
            number = torch.tensor(self.signal or 0)
            dist.all_reduce(number, dist.ReduceOp.MAX)
            self.signal = int(number) or None
        return self.signal is not None
