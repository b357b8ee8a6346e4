"""The Triton kernels without a GPU: their arithmetic by Triton's interpreter, their compilation."""

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

LOSS = """
import itertools, torch
from model.ops.bilinear import make_pieces, narrow, widen
from model.ops.triton_cross_entropy import triton_cross_entropy
from model.ops.upsample_cross_entropy import upsample_cross_entropy_reference
generator = torch.Generator().manual_seed(0)
sizes = (((3, 4), (24, 32)), ((5, 6), (13, 70)), ((9, 11), (4, 5)), ((1, 1), (7, 5)))
classes, pairs = 5, itertools.product(range(4), (False, True), (False, True))
for number, weighted, align_corners in pairs:  # each pair of values occurs
    (small, large), label_smoothing = sizes[number], 0.2 * ((number + weighted + align_corners) % 2)
    logits = 5 * torch.randn(2, classes, *small, generator=generator)
    labels = torch.randint(0, classes + 1, (2, *large), generator=generator, dtype=torch.uint8)
    labels[labels == classes] = 255
    weights = 1 + torch.rand(classes, generator=generator) if weighted else None
    _, columns = make_pieces(logits, large, align_corners)
    how = {"label_smoothing": label_smoothing, "align_corners": align_corners}
    sums, wide = triton_cross_entropy(
        widen(logits, columns), labels, weights, ignore_index=255, wanted=True, **how
    )
    gradient = torch.zeros_like(logits)
    narrow(wide, columns, gradient)
    exact = logits.double().requires_grad_()
    expected = upsample_cross_entropy_reference(
        exact, labels, class_weights=None if weights is None else weights.double(), **how
    )
    expected[0].backward()
    torch.testing.assert_close(sums, torch.stack(expected).detach(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(gradient.double(), exact.grad, rtol=1e-4, atol=1e-4)
    again, nothing = triton_cross_entropy(
        widen(logits, columns), labels.long(), weights, ignore_index=255, wanted=False, **how
    )
    assert torch.equal(again, sums) and nothing is None
for wrong in (5, -1):
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    labels[0, 3, 3] = wrong
    how = {"ignore_index": 255, "label_smoothing": 0.0, "align_corners": False, "wanted": True}
    sums, _ = triton_cross_entropy(torch.zeros(1, 5, 2, 8), labels, None, **how)
    assert sums[0].isnan()
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
from model.ops.triton_cross_entropy import SMALL, kernel
for classes, columns, capability in ((32, 64, 80), (256, 16, 90)):
    constants = dict.fromkeys(("WEIGHTED", "SMOOTH", "WANTED"), True)
    constants |= {"KINDS": classes, "COLUMNS": columns, "SMALL": SMALL}
    floats = ("wide", "weights", "smooth", "from_top", "from_below", "losses", "counted")
    kinds = {"labels": "*u8", "starts": "*i32", **dict.fromkeys(constants, "constexpr")}
    kinds |= dict.fromkeys(floats, "*fp32") | dict.fromkeys(("scale", "shift", "kept"), "fp32")
    signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={"num_warps": max(4, classes // 32)})

    assert len(compiled.asm["cubin"]) > 1000
"""


@pytest.mark.parametrize(
    "script, environment",
    [(script, {"TRITON_INTERPRET": "1"}) for script in (INTERPRETED, LOSS)] + [(COMPILED, {})],
    ids=["interpreted", "loss interpreted", "compiled"],
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
