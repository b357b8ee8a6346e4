"""Compare argmax and loss without full-size logits with F.interpolate to full size, as peers do.

    python benchmarks/bench_ops.py [--root SYNTHETIC_SET] [--checkpoints RUN_OR_FILE ...]

Argmax: of logits made from val labels, of outputs of trained checkpoints on val images of their own
data set, and of noise. Counts the pixels that differ, and reports the largest gap between the
logits of both classes there. Loss: value and gradient; compares gradients with float64.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # else it would replace another folder
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks import measure
from datasets import build_dataset
from evaluation.trained import PredictionOptions, Trained
from model.ops import upsample_argmax as argmax
from model.ops import upsample_cross_entropy as loss
from utils.base.errors import UserError, run_command
from utils.data.label_table import IGNORE

DEVICE = measure.choose_device()
IMAGES, SIZE = 8, (1024, 2048)
Size = tuple[int, int]


def full_size(logits: torch.Tensor, size: Size) -> torch.Tensor:
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def argmax_cases(given: argparse.Namespace) -> dict[str, tuple[list[torch.Tensor], Size]]:
    """{case: (logits of some images, size of their label maps)}."""
    dataset = build_dataset("synthetic", given.root, "val", packed=False)
    labels = [dataset.train_ids(index) for index in range(min(IMAGES, len(dataset)))]
    noise = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    coarse = noise(4, 19, 16, 32)
    maps = {
        f"{len(labels)} label maps, stride {stride}, noise {spread:g}": [
            measure.likely_logits(train_ids, stride, spread) for train_ids in labels
        ]
        for stride, spread in ((8, 0.3), (8, 1.0), (16, 0.3))
    }
    maps["smooth random logits"] = [*F.interpolate(coarse, (128, 256), mode="bicubic").split(1)]
    maps["white noise"] = [noise(1, 19, 128, 256) for _ in range(4)]
    cases = {name: ([logits.to(DEVICE) for logits in made], SIZE) for name, made in maps.items()}
    for checkpoint in given.checkpoints:
        try:
            trained = Trained.open(PredictionOptions(checkpoint=checkpoint, precision="fp32"))
            dataset, predictor = trained.dataset("val"), trained.predictor()
        except UserError as error:
            print(f"checkpoint {checkpoint} left out: {error}")
            continue
        size, images = dataset.size(0), map(dataset.image, range(min(IMAGES, len(dataset))))
        made = [predictor.logits(image, size=size).contiguous().clone() for image in images]
        cases[f"{trained.state['config']['dataset']} checkpoint, {size[0]}x{size[1]}"] = made, size
    return cases


def measured(case: str, work: dict[str, Callable], calls: list[tuple], rounds: int) -> dict:
    """Milliseconds, gain and memory of every side, called with each of `calls` in turn."""
    each = len(calls)
    sides = {side: lambda n, call=call: call(*calls[n % each]) for side, call in work.items()}
    how = {"warm_up": each, "at_once": 10 if DEVICE.type == "cuda" else 1, "device": DEVICE}
    seconds = measure.median_seconds(sides, rounds * each, **how)
    row = {"case": case, "ms": {side: round(1e3 * value, 3) for side, value in seconds.items()}}
    for side in ("torch", "ours"):
        row[f"extra_mib_{side}"] = round(measure.extra_mib(partial(sides[side], 0), DEVICE), 1)
    return {**row, "gain": round(seconds["torch"] / seconds["ours"], 2)}


def argmax_figures(given: argparse.Namespace) -> list[dict]:
    channels_last = {"memory_format": torch.channels_last}  # few networks return it by default
    rows, work = [], {
        "torch": lambda x, size: full_size(x, size).argmax(1),
        "torch CL": lambda x, size: full_size(x.contiguous(**channels_last), size).argmax(1),
        "numpy": lambda x, size: np.argmax(full_size(x, size).cpu().numpy(), axis=1),  # fregu856's
        "ours": argmax.upsample_argmax,
    }  # fmt: skip
    if DEVICE.type == "cuda":
        work["compiled"] = torch.compile(argmax.upsample_argmax_reference)
    for case, (maps, size) in argmax_cases(given).items():
        row = measured(case, work, [(logits, size) for logits in maps], given.rounds)
        row |= {"differing_pixels": 0, "of_pixels": len(maps) * size[0] * size[1]}
        gaps = [torch.zeros(1, device=DEVICE)]
        for logits in maps:
            full, ours = full_size(logits, size), argmax.upsample_argmax(logits, size)
            best, expected = full.max(1)
            gap = best - full.gather(1, ours.long()[:, None])[:, 0]
            gaps.append(gap[ours != expected])
            row["differing_pixels"] += gaps[-1].numel()
        rows.append(row | {"largest_gap": float(torch.cat(gaps).max())})
    return rows


def gradient(op: Callable, logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor):
    """Gradient of the mean loss by the logits."""
    logits = logits.detach().requires_grad_()
    loss_sum, weight_sum = op(logits, labels, class_weights=weights)
    (loss_sum / weight_sum).backward()
    return logits.grad


def loss_figures(given: argparse.Namespace) -> list[dict]:
    ops = {"torch": loss.upsample_cross_entropy_reference, "ours": loss.upsample_cross_entropy}
    if DEVICE.type == "cuda":
        ops["compiled"] = torch.compile(ops["torch"])
    work, rows = {side: partial(gradient, op) for side, op in ops.items()}, []
    generator = torch.Generator().manual_seed(0)
    for size, stride in ((given.crop, 8), (given.crop, 16), (given.size, 8)):
        small, blocks = ([max(1, length // side) for length in size] for side in (stride, 40))
        logits = 3 * torch.randn(given.batch, 19, *small, generator=generator).to(DEVICE)
        labels = torch.randint(0, 21, (given.batch, 1, *blocks), generator=generator)
        labels = F.interpolate(labels.float(), tuple(size))[:, 0].byte().to(DEVICE)
        labels = labels.masked_fill(labels > 18, IGNORE)  # blocks of 40 pixels, a tenth ignored
        weights = 1 + torch.rand(19, generator=generator).to(DEVICE)
        case = f"{given.batch} x {size[0]}x{size[1]}, stride {stride}"
        row = measured(case, work, [(logits, labels, weights)], given.rounds)
        exact = work["torch"](logits[:1].double(), labels[:1], weights.double())
        for side in ("torch", "ours"):
            error = work[side](logits[:1], labels[:1], weights) - exact
            row[f"gradient_error_{side}"] = float(error.norm() / exact.norm())
        rows.append(row)
    return rows


def main() -> None:
    given = measure.options(
        __doc__, root=measure.SYNTHETIC, checkpoints=("demo", "camvid"), crop=(768, 768), size=SIZE,
        batch=8, rounds=5, results=measure.RESULTS,
    )  # fmt: skip
    measure.one_thread()
    measure.record(given.results, "argmax", argmax_figures(given))
    measure.record(given.results, "loss", loss_figures(given))


if __name__ == "__main__":
    run_command(main)
