"""Upsampled argmax against what peers do: F.interpolate to full size, then argmax.

    python benchmarks/bench_ops.py [DATA_ROOT] [CHECKPOINT ...]

1024x2048 label maps from logits at a stride: made from 8 val label maps (class shares of each cell,
times 8, plus noise), outputs of trained checkpoints on val images, smooth random logits and white
noise. Process CPU time of one thread, medians of 5 interleaved rounds. Every pixel on which the two
differ is counted, with the largest gap between the two classes' logits there.
"""

import statistics
import sys
import time
import tracemalloc
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from datasets import build_dataset
from evaluation.inference import load_model, predict_logits
from model.ops.upsample_argmax import upsample_argmax
from utils.errors import run_command
from utils.files import REPOSITORY
from utils.labels import IGNORE

SIZE = (1024, 2048)


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


def cases(root: Path, checkpoints: list[Path]) -> dict[str, list[torch.Tensor]]:
    dataset = build_dataset("synthetic", root, "val")
    labels = [dataset[index]["label"] for index in range(8)]
    noise = torch.Generator().manual_seed(0)
    coarse = torch.randn(4, 19, 16, 32, generator=noise)
    found = {
        "8 label maps, stride 8, noise 0.3": [from_labels(x, 8, 0.3) for x in labels],
        "8 label maps, stride 8, noise 1": [from_labels(x, 8, 1.0) for x in labels],
        "8 label maps, stride 16, noise 0.3": [from_labels(x, 16, 0.3) for x in labels],
    }
    for path in checkpoints:
        model, meta = load_model(path)
        scales = meta["config"]["eval_scales"]
        with torch.inference_mode():
            found[f"{path.parts[-3]} checkpoint, {len(labels)} images"] = [
                predict_logits(
                    model, torch.tensor(dataset[i]["image"])[None], size=SIZE, scales=scales
                ).clone()
                for i in range(len(labels))
            ]
    found["smooth random logits"] = list(F.interpolate(coarse, (128, 256), mode="bicubic").split(1))
    found["white noise"] = [torch.randn(1, 19, 128, 256, generator=noise) for _ in range(4)]
    return found


def peer(logits: torch.Tensor) -> torch.Tensor:
    return F.interpolate(logits, SIZE, mode="bilinear", align_corners=False).argmax(1)


def fregu856(logits: torch.Tensor) -> np.ndarray:
    """Upsampled in PyTorch, argmax in numpy."""
    return np.argmax(F.interpolate(logits, SIZE, mode="bilinear").numpy(), axis=1)


def difference(logits: torch.Tensor) -> tuple[int, float]:
    """Pixels on which the two differ, and the largest gap in logits there."""
    full = F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)
    best, expected = full.max(1)
    found = upsample_argmax(logits, SIZE)
    gap = best - full.gather(1, found.long()[:, None])[:, 0]
    different = found != expected
    return int(different.sum()), float(gap[different].max()) if different.any() else 0.0


def main() -> None:
    given = [Path(word) for word in sys.argv[1:]]
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    print(f"torch {torch.__version__}, numpy {np.__version__}, one thread, {SIZE[0]}x{SIZE[1]}\n")
    print(f"{'ms per image':<40} {'torch':>7} {'numpy':>7} {'ours':>7} {'gain':>7}  differing, gap")
    root = given[0] if given else REPOSITORY / "data" / "synthetic"
    for name, maps in cases(root, given[1:]).items():
        sides = {"torch": peer, "numpy": fregu856, "ours": lambda x: upsample_argmax(x, SIZE)}
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(5):
            for logits in maps:
                for side, work in sides.items():
                    begin = time.process_time()
                    work(logits)
                    seconds[side].append(time.process_time() - begin)
        torch_ms, numpy_ms, ours = (1e3 * statistics.median(seconds[side]) for side in sides)
        found = [difference(logits) for logits in maps]
        count, gap = sum(n for n, _ in found), max(g for _, g in found)
        gains = f"{torch_ms:7.1f} {numpy_ms:7.1f} {ours:7.1f} {torch_ms / ours:6.1f}x"
        print(f"{name:<40} {gains}  {count} of {len(maps) * SIZE[0] * SIZE[1]}, {gap:.1e}")
    tracemalloc.start()
    upsample_argmax(maps[0], SIZE)
    extra = tracemalloc.get_traced_memory()[1] / 2**20
    full = 19 * SIZE[0] * SIZE[1] * 4 / 2**20
    print(
        f"\nextra memory on white noise {extra:.1f} MiB, of full-size logits alone {full:.0f} MiB"
    )


if __name__ == "__main__":
    run_command(main)
