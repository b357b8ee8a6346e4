"""How a training meets a GPU: found, refused, its arithmetic; torch.cuda is played by the tests."""

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run, tiny
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from evaluation import transfer
from evaluation.transfer import to_device, to_host
from utils.base import environment
from utils.base.environment import lacks_to_build, nvidia_gpus, usual_workers, why_no_gpu
from utils.base.errors import UserError, out_of_memory
from utils.data.batches import copied_ahead
from utils.data.label_table import VOC
from utils.training import distributed, logger
from utils.training.distributed import World
from utils.training.run import build_run

GPU = World(0, 1, torch.device("cuda", 0))


class Properties:
    def __init__(self, major: int) -> None:
        self.major = major


@pytest.fixture
def one_gpu(monkeypatch):
    """A GPU as PyTorch sees it; that it computes nothing is as with an old card."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


@pytest.mark.parametrize("major, dtype", [(7, torch.float16), (8, torch.bfloat16)])
def test_turing_gets_fp16_and_ampere_bf16(major, dtype, one_gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties(major))
    assert GPU.amp_dtype("auto") is dtype
    assert GPU.amp_dtype("fp32") is None


def test_fp16_taken_by_itself_scales_the_loss(cityscapes_root, tmp_path):
    class OldGpu(World):
        def amp_dtype(self, _precision: str) -> torch.dtype:
            return torch.float16

    config = tiny(cityscapes_root, tmp_path)
    assert build_run(config, VOC, OldGpu(0, 1, torch.device("cpu")), None).scaler
    assert build_run(config, VOC, World(0, 1, torch.device("cpu")), None).scaler is None


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)


def test_what_lacks_to_build_is_said_and_goes_without(no_compiler, capsys):
    assert lacks_to_build("C").startswith("a C compiler")
    assert GPU.use_compile(None) is False
    assert "not compiled (lacks a C++ compiler (sudo apt install g++))" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"--compile true: needs a C\+\+ compiler"):
        GPU.use_compile(True)
    assert World(1, 2, GPU.device).use_compile(None) is False
    assert not capsys.readouterr().err, "said once, not by each process"


def test_python_s_headers_are_needed_too(monkeypatch, tmp_path):
    assert lacks_to_build("C++") is None
    monkeypatch.setattr(environment.sysconfig, "get_path", lambda _: str(tmp_path))
    package = f"python3.{sys.version_info.minor}-dev"
    assert lacks_to_build("C") == f"Python.h (sudo apt install {package})"


def test_a_compiler_that_the_user_names_must_exist(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    assert lacks_to_build("C") and lacks_to_build("C++") is None


def test_a_kernel_that_cannot_be_built_gives_way_to_the_reference():
    """As here, where no GPU is; said once."""
    script = """
from model.ops.bilinear import loaded
from model.ops import upsample_argmax, upsample_cross_entropy
for _ in range(2):
    assert loaded(upsample_argmax.load_kernel) is None
    assert loaded(upsample_cross_entropy.load_kernel) is None
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2],
                          env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, check=False)  # fmt: skip
    assert done.returncode == 0 and done.stderr.count("without Triton") == 2, done.stderr


class TwoGpus(World):
    on_gpu = True  # SyncBatchNorm can be converted anywhere, but not used


def test_synchronized_norms_keep_their_momentum_and_stay_frozen(cityscapes_root, tmp_path):
    changes = {"sync_bn": True, "bn_momentum": (0.05, 0.01), "freeze_bn": True}
    config = tiny(cityscapes_root, tmp_path, **changes)
    model = build_run(config, VOC, TwoGpus(0, 2, torch.device("cpu")), None).model
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.SyncBatchNorm)}
    assert len(norms) == 27 and not any(type(m) is nn.BatchNorm2d for m in model.modules())
    for name, norm in norms.items():
        assert norm.momentum == (0.05 if name.startswith("backbone.") else 0.01)
        assert not norm.training and not norm.weight.requires_grad


def test_synchronized_norms_are_refused_on_a_cpu_and_not_compiled(
    cityscapes_root, tmp_path, capsys
):
    config = tiny(cityscapes_root, tmp_path, sync_bn=True)
    with pytest.raises(UserError, match="--sync_bn true: .* Leave it out"):
        build_run(config, VOC, World(0, 2, torch.device("cpu")), None)
    assert GPU.use_compile(None, sync_bn=True) is False
    assert "not compiled (--sync_bn true)" in capsys.readouterr().err
    assert GPU.use_compile(None) is GPU.use_compile(True, sync_bn=True) is True


def test_a_gpu_that_is_not_seen_is_no_reason_to_train_on_the_cpu(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(environment, "GPU_FILES", (tmp_path,))  # exists
    with pytest.raises(UserError, match="--device auto: .*Give --device cpu, or "):
        distributed.start("auto")
    assert distributed.start("cpu").device.type == "cpu"
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert distributed.start("auto").device.type == "cpu"
        with pytest.raises(UserError, match="--device cuda: "):
            distributed.start("cuda")


def test_an_old_driver_is_named(monkeypatch, tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'Tesla T4, 535.1, 15360 MiB'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvidia_gpus.cache_clear()
    try:
        gpu = {"name": "Tesla T4", "driver_version": "535.1", "memory.total": "15360 MiB"}
        assert nvidia_gpus() == (gpu,)
        assert why_no_gpu("13.0")[0].startswith("driver 535.1 is too old for CUDA 13.0, which")
        assert why_no_gpu("12.6")[0] == "PyTorch cannot use the GPU"
        assert why_no_gpu(None)[0] == "this PyTorch is built for CPUs"
    finally:
        nvidia_gpus.cache_clear()


def test_a_gpu_that_does_not_compute_is_one_line(one_gpu):
    with pytest.raises(UserError, match=r"GPU 0 does not compute \(.*--device cpu"):
        distributed.start("auto")


def test_more_processes_than_gpus_are_one_line(one_gpu, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match="finds 1 GPUs. Give torchrun --nproc-per-node 1"):
        distributed.start("auto")


@pytest.mark.parametrize(
    "message",
    ["CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
     "cuDNN error: CUDNN_STATUS_ALLOC_FAILED", "GET was unable to find an engine to execute this",
     "CUDA out of memory. Tried to allocate 2 GiB",
     "NCCL Error 1: unhandled cuda error, Cuda failure 2 'out of memory'"],
)  # fmt: skip
def test_every_library_s_word_for_too_little_memory(message):
    assert out_of_memory(RuntimeError(message))
    assert not out_of_memory(RuntimeError("CUDNN_STATUS_EXECUTION_FAILED"))


def test_the_environment_is_described_where_cuda_cannot_be_asked(one_gpu, monkeypatch):
    """In a fork whose parent has asked for CUDA, and without the headless build of OpenCV."""

    def refuse(_: int) -> str:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")

    monkeypatch.setattr(torch.cuda, "get_device_name", refuse)
    monkeypatch.setattr(logger, "PACKAGES", ("torch", "not-installed"))
    described = logger.describe_environment()
    assert described["gpus"] == [] and described["packages"]["not-installed"] is None


def test_a_gpu_s_state_stands_in_the_row_where_it_is_known(monkeypatch):
    assert logger.device_state(torch.device("cpu")).keys() == {"memory_gib"}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 2**31)
    assert logger.device_state(GPU.device) == {"memory_gib": 2.0}  # no driver here
    monkeypatch.setattr(torch.cuda, "utilization", lambda _: 97)
    monkeypatch.setattr(torch.cuda, "temperature", lambda _: 61)
    state = logger.device_state(GPU.device)
    assert state == {"memory_gib": 2.0, "gpu_utilization": 97, "gpu_temperature": 61}
    assert state.keys() < set(logger.COLUMNS)


def test_workers_are_the_cores_of_a_process(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    assert usual_workers() == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert usual_workers() == 8
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(2))
    assert usual_workers() == 1


class Stream:
    """As torch.cuda's, for one thread."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def wait_stream(self, _other):
        pass


class OnTheWay:
    def to(self, _device):
        return self

    def tensors(self):
        return []


def test_a_batch_is_handed_over_before_the_next_one_is_read(monkeypatch):
    for name in ("Stream", "stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: Stream())
    read = []

    def batches():
        for number in range(3):
            read.append(number)
            yield OnTheWay()

    for number, _ in enumerate(copied_ahead(batches(), GPU.device)):
        assert read == [*range(number + 1)]


def test_copies_to_and_from_a_gpu_are_under_way_at_once(monkeypatch):
    """On fake tensors; only reading the result waits."""
    waited = []

    class Event:
        def __init__(self, *, blocking: bool) -> None:
            assert blocking

        def record(self, stream: str) -> None:
            assert stream == "current"

        def synchronize(self) -> None:
            waited.append(True)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: "current")
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(transfer, "pinned", torch.tensor)  # such memory is not there as a fake
    with FakeTensorMode(allow_non_fake_inputs=True):
        there = to_device(np.zeros((4, 6, 3), np.uint8), GPU.device)
        assert there.device == GPU.device and there.dtype == torch.uint8
        fetch = to_host(there)
        assert not waited
        with pytest.raises(RuntimeError, match="numpy"):  # a fake has no values
            fetch()
    assert waited


def test_the_default_device_still_trains_here(cityscapes_root, tmp_path):
    """No GPU, no /dev/nvidiactl: auto is the CPU."""
    if torch.cuda.is_available() or any(path.exists() for path in environment.GPU_FILES):
        pytest.skip("a GPU is here")
    config = tiny(cityscapes_root, tmp_path, steps=1)
    done = run(
        "train.py", "--data_root", config.data_root, "--log_root", tmp_path, "--steps", 1,
        "--output_stride", 32, "--backbone_weights", "null", "--crop", "[32,64]",
        "--batch_size", 2, "--workers", 0, "--run_name", "run",
    )  # fmt: skip
    assert done.returncode == 0 and "1 x cpu" in done.stdout
