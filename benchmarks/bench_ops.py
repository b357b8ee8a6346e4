"""The two operations without full-size logits against what peers do: F.interpolate to full size.

    python benchmarks/bench_ops.py [--root DATA_ROOT] [--checkpoint FILE ...]

Argmax: label maps of 1024x2048 from logits at a stride: made from 8 val label maps (class shares of
each cell, times 8, plus noise), outputs of trained checkpoints on val images of their own data set,
smooth random logits and white noise. Every pixel on which the two differ is counted, with the
largest gap between the two classes' logits there. Loss: value and gradient of 8 crops of 768x768 at
stride 8, and of 8 images of 1024x2048 for memory; both sides' gradients against float64.

On a CPU one thread's process time, on a GPU wall time; medians of calls in turns.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.measure import choose_device, extra_mib, machine, median_seconds, record
from datasets import build_dataset
from evaluation.inference import inference_copy, load_model, predict_logits
from model.ops.upsample_argmax import upsample_argmax, upsample_argmax_reference
from model.ops.upsample_cross_entropy import (
    upsample_cross_entropy,
    upsample_cross_entropy_reference,
)
from utils.errors import run_command
from utils.files import REPOSITORY, resolve_data_root
from utils.labels import IGNORE

SIZE = (1024, 2048)
ROUNDS = 5


def from_labels(label: np.ndarray, stride: int, noise: float) -> torch.Tensor:
    """(H,W) train ids -> (1,19,H/stride,W/stride) logits as a good network gives them."""
    size = (label.shape[1] // stride, label.shape[0] // stride)
    known = np.where(label == IGNORE, 0, label)
    shares = [
        cv2.resize((known == k).astype(np.float32), size, interpolation=cv2.INTER_AREA)
        for k in range(19)
    ]
    spread = np.random.default_rng(0).normal(0, noise, (19, size[1], size[0]))
    return torch.from_numpy(8 * np.stack(shares) + spread.astype(np.float32))[None]


def from_checkpoint(path: Path, device: torch.device) -> tuple[str, list[torch.Tensor]]:
    """The logits of 8 val images; their name says the size of the label map."""
    model, state = load_model(path)
    config = state["config"]
    dataset = build_dataset(
        config["dataset"], resolve_data_root(config["dataset"], None), "val", packed=False
    )
    network, size = inference_copy(model).to(device), dataset[0]["label"].shape
    predicted = partial(predict_logits, network, size=size, scales=config["eval_scales"])
    with torch.inference_mode():
        images = (torch.tensor(dataset[i]["image"])[None].to(device) for i in range(8))
        maps = [predicted(image).contiguous().clone() for image in images]
    return f"{config['dataset']} checkpoint, {size[0]}x{size[1]}", maps


def argmax_cases(root: Path, checkpoints: list[Path], device: torch.device) -> dict:
    """{name: (logits, size)}."""
    dataset = build_dataset("synthetic", root, "val", packed=False)
    labels = [dataset[index]["label"] for index in range(8)]
    noise = torch.Generator().manual_seed(0)
    coarse = torch.randn(4, 19, 16, 32, generator=noise)
    found = {
        "8 label maps, stride 8, noise 0.3": [from_labels(x, 8, 0.3) for x in labels],
        "8 label maps, stride 8, noise 1": [from_labels(x, 8, 1.0) for x in labels],
        "8 label maps, stride 16, noise 0.3": [from_labels(x, 16, 0.3) for x in labels],
        "smooth random logits": list(F.interpolate(coarse, (128, 256), mode="bicubic").split(1)),
        "white noise": [torch.randn(1, 19, 128, 256, generator=noise) for _ in range(4)],
    }
    cases = {name: ([x.to(device) for x in maps], SIZE) for name, maps in found.items()}
    for path in checkpoints:
        name, maps = from_checkpoint(path, device)
        cases[name] = (maps, tuple(map(int, name.split()[-1].split("x"))))
    return cases


def interpolate_then_argmax(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=False).argmax(1)


def channels_last_argmax(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The same where the network computes in channels_last, which few do by default."""
    return interpolate_then_argmax(logits.contiguous(memory_format=torch.channels_last), size)


def fregu856(logits: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    """Upsampled in PyTorch, argmax in numpy."""
    return np.argmax(F.interpolate(logits, size, mode="bilinear").cpu().numpy(), axis=1)


def difference(logits: torch.Tensor, size: tuple[int, int]) -> tuple[int, float]:
    """Pixels on which the two differ, and the largest gap in logits there."""
    full = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    best, expected = full.max(1)
    found = upsample_argmax(logits, size)
    gap = best - full.gather(1, found.long()[:, None])[:, 0]
    different = found != expected
    return int(different.sum()), float(gap[different].max()) if different.any() else 0.0


def bench_argmax(root: Path, checkpoints: list[Path], device: torch.device) -> list[dict]:
    work = {
        "torch": interpolate_then_argmax,
        "torch CL": channels_last_argmax,
        "numpy": fregu856,
        "ours": upsample_argmax,
    }
    if device.type == "cuda":
        work["compiled"] = torch.compile(upsample_argmax_reference)
    rows = []
    print(f"{'argmax, ms per image':<42} {'  '.join(f'{side:>8}' for side in work)}   gain")
    for name, (maps, size) in argmax_cases(root, checkpoints, device).items():
        sides = {
            side: lambda n, call=call, maps=maps, size=size: call(maps[n % len(maps)], size)
            for side, call in work.items()
        }
        seconds = median_seconds(sides, ROUNDS * len(maps), warm_up=len(maps), device=device)
        found = [difference(logits, size) for logits in maps]
        row = {
            "case": name,
            "ms": {side: round(1e3 * value, 3) for side, value in seconds.items()},
            "gain": round(seconds["torch"] / seconds["ours"], 2),
            "differing_pixels": sum(count for count, _ in found),
            "of_pixels": len(maps) * size[0] * size[1],
            "largest_gap": max(gap for _, gap in found),
        }
        for side in ("torch", "ours"):
            row[f"extra_mib_{side}"] = round(extra_mib(partial(sides[side], 0), device), 1)
        rows.append(row)
        print(
            f"{name:<42} {'  '.join(f'{1e3 * s:8.2f}' for s in seconds.values())} "
            f"{row['gain']:5.1f}x  {row['differing_pixels']} of {row['of_pixels']} differ, "
            f"gap {row['largest_gap']:.1e}; {row['extra_mib_ours']} of "
            f"{row['extra_mib_torch']} MiB"
        )
    return rows


def loss_and_gradient(op: Callable, logits: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
    """The gradient of the mean loss."""
    logits = logits.detach().requires_grad_()
    loss_sum, weight_sum = op(logits, rest[0], class_weights=rest[1])
    (loss_sum / weight_sum).backward()
    return logits.grad


def loss_inputs(images: int, size: tuple[int, int], stride: int, device: torch.device) -> list:
    """Logits, labels of 40-pixel blocks of which a tenth is ignored, class weights."""
    noise = torch.Generator().manual_seed(0)
    small = [length // stride for length in size]
    logits = 3 * torch.randn(images, 19, *small, generator=noise)
    blocks = torch.randint(0, 21, (images, 1, *(length // 40 for length in size)), generator=noise)
    labels = F.interpolate(blocks.float(), size)[:, 0].byte()
    weights = 1 + torch.rand(19, generator=noise)
    return [x.to(device) for x in (logits, labels.masked_fill(labels > 18, IGNORE), weights)]


def gradient_error(op: Callable, logits: torch.Tensor, *rest: torch.Tensor) -> float:
    """Relative to the reference in float64."""
    labels, weights = rest
    exact = loss_and_gradient(
        upsample_cross_entropy_reference, logits.double(), labels, weights.double()
    )
    return float((loss_and_gradient(op, logits, *rest) - exact).norm() / exact.norm())


def bench_loss(device: torch.device) -> list[dict]:
    work = {"torch": upsample_cross_entropy_reference, "ours": upsample_cross_entropy}
    if device.type == "cuda":
        work["compiled"] = torch.compile(upsample_cross_entropy_reference)
    rows = []
    print(f"\n{'loss and gradient, ms':<42} {'  '.join(f'{side:>8}' for side in work)}   gain")
    for images, size, stride in (
        (8, (768, 768), 8), (8, (768, 768), 16), (8, (1024, 2048), 8),
    ):  # fmt: skip
        name = f"{images} x {size[0]}x{size[1]}, stride {stride}"
        inputs = loss_inputs(images, size, stride, device)
        sides = {
            side: lambda _, op=op, inputs=inputs: loss_and_gradient(op, *inputs)
            for side, op in work.items()
        }
        seconds = median_seconds(sides, ROUNDS, device=device)
        few = (inputs[0][:1], inputs[1][:1], inputs[2])
        row = {
            "case": name,
            "ms": {side: round(1e3 * value, 2) for side, value in seconds.items()},
            "gain": round(seconds["torch"] / seconds["ours"], 2),
            **{
                f"extra_mib_{side}": round(extra_mib(partial(sides[side], 0), device), 1)
                for side in work
            },
            **{f"gradient_error_{side}": gradient_error(op, *few) for side, op in work.items()},
        }
        rows.append(row)
        print(
            f"{name:<42} {'  '.join(f'{1e3 * s:8.1f}' for s in seconds.values())} "
            f"{row['gain']:5.1f}x  {row['extra_mib_ours']} of {row['extra_mib_torch']} MiB, "
            f"gradient error {row['gradient_error_ours']:.1e} of {row['gradient_error_torch']:.1e}"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, default=REPOSITORY / "data" / "synthetic")
    parser.add_argument("--checkpoint", type=Path, action="append", help="default: demo, camvid")
    given = parser.parse_args()
    runs = (REPOSITORY / "training_logs" / run for run in ("demo", "camvid"))
    usual = [path for run in runs if (path := run / "checkpoints" / "best.pth").is_file()]
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    device = choose_device()
    print(f"{machine(device)}, torch {torch.__version__}, numpy {np.__version__}\n")
    record("argmax", bench_argmax(given.root, given.checkpoint or usual, device), device)
    record("loss", bench_loss(device), device)


if __name__ == "__main__":
    run_command(main)
