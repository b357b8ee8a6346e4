"""Finds the CPU cores, compilers and NVIDIA GPUs of this machine without importing torch."""

import ctypes
import os
import shlex
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path
from shutil import which

# One of these exists if the NVIDIA driver has found a GPU; the second one is WSL's.
GPU_FILES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
DRIVERS = {"12": 525, "13": 580}  # CUDA -> oldest driver that it supports (CUDA release notes)
OTHER_BUILD = "install PyTorch for another CUDA: https://pytorch.org/get-started/previous-versions"


def usual_workers() -> int:
    """Default number of threads that read images: this process's share of the cores, at most 16."""
    able = getattr(os, "sched_getaffinity", None)  # Linux only; a job may own a part of the cores
    cores = len(able(0)) if able else os.cpu_count() or 1
    return max(1, min(16, cores // max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))))


def keep_memory() -> None:
    """Tell glibc to keep freed memory for the next training step or image, instead of giving it
    back to the system, which must clear it again. Does nothing without glibc, or with a GPU."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt") and not any(path.exists() for path in GPU_FILES):
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30) or libc.mallopt(M_MMAP_THRESHOLD, 1 << 25)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


@cache
def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bfloat16 itself; on others bf16 is slower than fp32."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def lacks_to_build(language: str) -> str | None:
    """What compiling extensions in "C" (Triton) or "C++" (torch.compile) lacks here, or None."""
    variable, *names = {"C": ("CC", "gcc", "clang"), "C++": ("CXX", "g++", "clang++")}[language]
    chosen = shlex.split(os.environ.get(variable, ""))
    if not any(map(which, chosen[:1] or [*names, "cl"])):
        return f"a {language} compiler (sudo apt install g++)"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        version = ".".join(map(str, sys.version_info[:2]))
        return f"Python.h (sudo apt install python{version}-dev)"
    return None


@cache
def nvidia_gpus() -> tuple[dict[str, str], ...]:
    """name, driver_version and memory.total of each GPU from nvidia-smi; () without a GPU."""
    names = ("name", "driver_version", "memory.total")
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    lines = [line.split(", ") for line in done.stdout.splitlines()]
    return tuple(dict(zip(names, line, strict=False)) for line in lines)


def why_no_gpu(cuda: str | None) -> tuple[str, str] | None:
    """Why PyTorch, built for `cuda`, sees no GPU, and the remedy; None without a visible GPU."""
    drivers = [gpu["driver_version"] for gpu in nvidia_gpus()]
    there = drivers or any(path.exists() for path in GPU_FILES)
    if not there or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    if cuda is None:
        return "this PyTorch is built for CPUs", OTHER_BUILD
    needed = DRIVERS.get(cuda.split(".")[0], 0)
    if drivers and int(drivers[0].split(".")[0]) < needed:
        what = f"driver {drivers[0]} is too old for CUDA {cuda}, which needs {needed} or newer"
        return what, f"update the NVIDIA driver, or {OTHER_BUILD}"
    return "PyTorch cannot use the GPU", "run nvidia-smi; if it fails, restart the machine"
