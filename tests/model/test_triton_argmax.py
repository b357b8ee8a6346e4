"""The Triton kernel without a GPU: its arithmetic by Triton's interpreter, its compilation."""

import os
import subprocess
import sys

import pytest
import torch

from model.ops.upsample_argmax import upsample_argmax, upsample_argmax_reference
from utils.base.paths import REPOSITORY

pytest.importorskip("triton")

INTERPRETED = """
import torch
from model.ops.triton_argmax import triton_argmax
from model.ops.upsample_argmax import upsample_argmax_reference
generator = torch.Generator().manual_seed(0)
for small, large in (((3, 4), (24, 32)), ((7, 20), (19, 131)), ((9, 11), (4, 5)), ((1, 1), (7, 5))):
    logits = torch.randn(2, 5, *small, generator=generator)
    strided = logits.to(memory_format=torch.channels_last)
    for align_corners in (False, True):
        for values in (logits, strided, logits.bfloat16(), logits[:, 1:, :, :]):
            found = triton_argmax(values, large, align_corners=align_corners)
            expected = upsample_argmax_reference(values, large, align_corners=align_corners)
            assert found.dtype == torch.uint8 and found.shape == expected.shape
            assert (found != expected).sum() <= 1, (small, large, align_corners)
ties = torch.zeros(1, 4, 2, 2)
ties[:, 2:] = 1
assert (triton_argmax(ties, (16, 16), align_corners=False) == 2).all()
ties[:, 1, 0, 0] = ties[:, 3, 1, 1] = float("nan")
ties[:, 2, 0, 1] = float("inf")
expected = upsample_argmax_reference(ties, (16, 16))
assert torch.equal(triton_argmax(ties, (16, 16), align_corners=False), expected)
assert expected.unique().tolist() == [1, 3]
"""

COMPILED = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from model.ops.triton_argmax import COLUMNS, ROWS, kernel
constants = {"ROWS": ROWS, "COLUMNS": COLUMNS}
kinds = {"labels": "*u8", **dict.fromkeys(constants, "constexpr")}
kinds |= dict.fromkeys(("scale_y", "scale_x", "shift_y", "shift_x"), "fp32")
for logits, capability in (("*fp32", 80), ("*bf16", 90)):
    signature = {name: kinds.get(name, "i32") for name in kernel.arg_names} | {"logits": logits}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32))
    assert len(compiled.asm["cubin"]) > 1000
"""


@pytest.mark.parametrize(
    "script, environment", [(INTERPRETED, {"TRITON_INTERPRET": "1"}), (COMPILED, {})],
    ids=["interpreted", "compiled"],
)  # fmt: skip
def test_kernel(script, environment, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(
    "small, large", [((128, 256), (1024, 2048)), ((97, 97), (769, 769)), ((23, 23), (360, 360))]
)
def test_kernel_on_a_gpu(small, large, align_corners, dtype):
    logits = torch.randn(2, 19, *small, device="cuda").to(dtype)
    found = upsample_argmax(logits, large, align_corners=align_corners)
    expected = upsample_argmax_reference(logits, large, align_corners=align_corners)
    assert (found != expected).float().mean() < 1e-5
