"""A whole evaluation against fregu856/deeplabv3's script and the official scorer; its parts.

    python benchmarks/bench_eval.py [DATA_ROOT]

From images on disk to the official score and a PNG of label ids per image, the network's time left
out: both sides get the same stored logits, made from the val labels. The peer is restated: it reads
image and label with OpenCV, halves them, computes the loss there, upsamples to 1024x2048, takes
np.argmax and maps train ids with np.vectorize; then csEvalPixelLevelSemanticLabeling's functions
score the files. Ours is evaluation/evaluate.py with the writer of eval_on_val_for_metrics.py, from
a packed val set and from image files. Process CPU time of one thread, medians of rounds in turns.

Then evaluate with its network, DeepLabV3-ResNet18 at stride 8 and full size: every part's share.
"""

import contextlib
import copy
import io
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import patch

sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from benchmarks.bench_ops import from_labels
from benchmarks.measure import choose_device, machine, median_seconds, pack_into, record, wait_for
from datasets import Dataset, SegmentationDataset, build_dataset
from evaluation import evaluate as evaluation
from evaluation.official import largest_difference, official_results
from evaluation.visualize import save_png
from model import build_model
from utils.distributed import World
from utils.errors import run_command
from utils.files import REPOSITORY
from utils.labels import CITYSCAPES, IGNORE, official_scorer
from utils.transforms import IMAGENET_MEAN, IMAGENET_STD

ROUNDS = 3
SIZE, HALF = (1024, 2048), (512, 1024)
to_ids = np.vectorize(dict(enumerate(CITYSCAPES.ids)).get)


class Stored(nn.Module):
    """A network that knows its answers: the nth call gives the nth image's logits."""

    def __init__(self, logits: list[torch.Tensor]) -> None:
        super().__init__()
        self.logits = iter(logits)

    def __deepcopy__(self, _: dict) -> "Stored":
        return self

    def forward(self, _: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": next(self.logits)}


def ours(dataset: Dataset, logits: list[torch.Tensor], folder: Path, _: int = 0) -> object:
    world = World(0, 1, choose_device())

    def write(name: str, _counts: object, labels: np.ndarray) -> None:
        save_png(folder / f"{name}_pred_label_img.png", dataset.classes.to_ids(labels))

    with contextlib.redirect_stderr(io.StringIO()):  # its progress line
        return evaluation.evaluate(Stored(logits), dataset, world=world, workers=0, on_image=write)


def fregu856(
    dataset: SegmentationDataset, logits: list[torch.Tensor], folder: Path, _: int = 0
) -> dict:
    """Its evaluation script, then the official scorer's results."""
    for files, of_image in zip(dataset.files, logits, strict=True):
        image = cv2.resize(
            cv2.imread(str(files.image), -1), HALF[::-1], interpolation=cv2.INTER_NEAREST
        )
        image = (image / 255.0 - np.array(IMAGENET_MEAN) / 255) / (np.array(IMAGENET_STD) / 255)
        torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))
        ids = cv2.imread(str(files.instance).replace("_instanceIds", "_labelIds"), -1)
        label = CITYSCAPES.id_to_train[cv2.resize(ids, HALF[::-1], interpolation=cv2.INTER_NEAREST)]
        outputs = F.interpolate(of_image, HALF, mode="bilinear")
        F.cross_entropy(outputs, torch.from_numpy(label)[None].long(), ignore_index=IGNORE)
        full = F.interpolate(outputs, SIZE, mode="bilinear").cpu().numpy()
        predicted = np.argmax(full, axis=1).astype(np.uint8)[0]
        cv2.imwrite(str(folder / f"{files.name}_pred_label_img.png"), to_ids(predicted))
    return official(dataset, folder)


def official(dataset: SegmentationDataset, folder: Path) -> dict:
    scorer = official_scorer()
    args = copy.copy(scorer.args)
    args.quiet, args.JSONOutput, args.evalInstLevelScore = True, False, True
    predictions = [str(folder / f"{files.name}_pred_label_img.png") for files in dataset.files]
    truths = [str(files.instance).replace("_instanceIds", "_labelIds") for files in dataset.files]
    return scorer.evaluateImgLists(predictions, truths, args)


def without_network(root: Path) -> list[dict]:
    files = build_dataset("synthetic", root, "val", packed=False)
    labels = [files[i]["label"] for i in tqdm(range(len(files)), "read", leave=False)]
    fine, coarse = ([from_labels(x, stride, 0.3) for x in labels] for stride in (8, 16))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        packed = pack_into(folder, files)
        sides: dict[str, Callable[[int], object]] = {
            "fregu856's evaluation + csEval": partial(fregu856, files, coarse, folder),
            "csEval alone": lambda _: official(files, folder),
            "ours, packed": partial(ours, packed, fine, folder),
            "ours, image files": partial(ours, files, fine, folder),
        }
        seconds = median_seconds(sides, ROUNDS)
        found = official_results(ours(packed, fine, folder))
        difference, numbers = largest_difference(found, official(files, folder))
    print(f"{len(files)} images; {numbers} results differ from the official ones by {difference:g}")
    rows = []
    for side, value in seconds.items():
        milliseconds, gain = 1e3 * value / len(files), value / seconds["ours, packed"]
        rows.append(
            {"side": side, "ms_per_image": round(milliseconds, 1), "packed_is": round(gain, 2)}
        )
        print(f"  {side:<32} {milliseconds:8.1f} ms an image {gain:7.1f}x ours, packed")
    return rows


def with_network(root: Path) -> dict:
    """Seconds of each part of an image's evaluation."""
    device = choose_device()
    whole = build_dataset("synthetic", root, "val", packed=False)
    few = whole.files[: 2 if device.type == "cpu" else None]
    files = SegmentationDataset(few, whole.classes, label_lut=None)
    seconds: dict[str, float] = defaultdict(float)

    def timed(function: Callable, name: str) -> Callable:
        def call(*arguments: object, **options: object) -> object:
            wait_for(device)
            begin = time.perf_counter()
            result = function(*arguments, **options)
            wait_for(device)
            seconds[name] += (time.perf_counter() - begin) / len(packed)
            return result

        return call

    model = build_model("deeplabv3", num_classes=19).to(device)
    parts = {
        "network": "predict_logits", "loss": "upsample_cross_entropy",
        "argmax": "upsample_argmax", "counting": "count_pixels",
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        packed = pack_into(folder, files)
        write = timed(save_png, "PNG")
        for part, function in parts.items():
            target = patch.object(evaluation, function, timed(getattr(evaluation, function), part))
            target.start()
        begin, world = time.perf_counter(), World(0, 1, device)
        evaluation.evaluate(
            model, packed, world=world, workers=0, amp=world.amp_dtype("auto"),
            on_image=lambda name, _, ids: write(folder / f"{name}.png", CITYSCAPES.to_ids(ids)),
        )  # fmt: skip
        total = (time.perf_counter() - begin) / len(packed)
        patch.stopall()
    seconds["the rest"] = total - sum(seconds.values())
    print(f"\nwith the network, {len(packed)} images, {1e3 * total:.0f} ms an image (wall time):")
    print("  " + ", ".join(f"{part} {value / total:.1%}" for part, value in seconds.items()))
    return {part: round(1e3 * value, 2) for part, value in seconds.items()}


def main() -> None:
    root = Path(sys.argv[1]) if sys.argv[1:] else REPOSITORY / "data" / "synthetic"
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    device = choose_device()
    print(f"{machine(device)}, torch {torch.__version__}, {SIZE[0]}x{SIZE[1]}")
    packages = ("cityscapesscripts",)
    record("evaluation", without_network(root), device, packages)
    record("evaluation_parts_ms", with_network(root), device, packages)


if __name__ == "__main__":
    run_command(main)
