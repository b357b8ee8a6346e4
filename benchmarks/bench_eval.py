"""Compare an evaluation with fregu856/deeplabv3's script plus the official scorer; time its parts.

    python benchmarks/bench_eval.py [--root SYNTHETIC_SET]          val must be packed

From images on disk to the official score and a PNG of label ids per image; both sides use logits
made from the labels, not a network. Then times each part of an evaluation of DeepLabV3-ResNet18.
"""

import contextlib
import io
import sys
import tempfile
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # else it would replace another folder
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import measure
from datasets import PackedDataset, SegmentationDataset, build_dataset
from evaluation.evaluate import evaluate
from evaluation.inference import Predictor
from evaluation.metrics import Scores
from evaluation.official import largest_difference, official_results
from evaluation.task import TASKS
from model import build_model
from model.normalize import IMAGENET_MEAN, IMAGENET_STD
from utils.base.errors import UserError, run_command
from utils.data.dataset import Dataset, Files
from utils.data.label_table import CITYSCAPES, IGNORE
from utils.training.distributed import World

WORLD, TASK = World(0, 1, measure.choose_device()), TASKS["semantic"]
SIZE, HALF = (1024, 2048), (512, 1024)
ENDING = "_pred_label_img.png"
to_ids = np.vectorize(dict(enumerate(CITYSCAPES.ids)).get)


def stored(logits: list[torch.Tensor]) -> nn.Module:
    """A fake network whose nth call returns the nth of `logits`."""
    network, answers = nn.Identity(), iter(logits)
    network.register_forward_hook(lambda *_: {"out": next(answers)})
    return network


def ours(dataset: Dataset, logits: list[torch.Tensor], folder: Path) -> Scores:
    def write(sample: dict, _counts: object, train_ids: np.ndarray) -> None:
        TASK.save(folder / f"{sample['name']}{ENDING}", train_ids, dataset.classes)

    with contextlib.redirect_stderr(io.StringIO()):  # hides the progress line
        return evaluate(stored(logits), dataset, world=WORLD, workers=0, on_image=write)


def fregu856(all_files: list[Files], logits: list[torch.Tensor], folder: Path) -> None:
    """Reimplementation of fregu856/deeplabv3's evaluation script, without the network."""
    shrink = partial(cv2.resize, dsize=HALF[::-1], interpolation=cv2.INTER_NEAREST)
    for files, of_image in zip(all_files, logits, strict=True):
        image = shrink(cv2.imread(str(files.image), -1))
        image = (image / 255.0 - np.array(IMAGENET_MEAN) / 255) / (np.array(IMAGENET_STD) / 255)
        torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))
        ids = cv2.imread(str(files.instances).replace("_instanceIds", "_labelIds"), -1)
        truth = torch.from_numpy(CITYSCAPES.id_to_train[shrink(ids)])[None].long()
        outputs = F.interpolate(of_image, HALF, mode="bilinear")
        F.cross_entropy(outputs, truth.to(outputs.device), ignore_index=IGNORE)
        full = F.interpolate(outputs, SIZE, mode="bilinear").cpu().numpy()
        predicted = np.argmax(full, axis=1).astype(np.uint8)[0]
        cv2.imwrite(str(folder / f"{files.name}{ENDING}"), to_ids(predicted))


def without_network(dataset: SegmentationDataset, packed: Dataset, rounds: int) -> list[dict]:
    files, train_ids = dataset.files, [*map(dataset.train_ids, range(len(dataset)))]
    fine, coarse = (
        [measure.likely_logits(x, stride, 0.3).to(WORLD.device) for x in train_ids]
        for stride in (8, 16)
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def official(_: object = None) -> dict:
            predictions = [folder / f"{x.name}{ENDING}" for x in files]
            return measure.referee(predictions, [x.instances for x in files])

        sides: measure.Sides = {
            "fregu856's evaluation + csEval": lambda _: official(fregu856(files, coarse, folder)),
            "csEval alone": official,
            "ours, packed": lambda _: ours(packed, fine, folder),
            "ours, image files": lambda _: ours(dataset, fine, folder),
        }
        seconds = measure.median_seconds(sides, rounds, device=WORLD.device)
        scores = official_results(ours(packed, fine, folder))
        difference, numbers = largest_difference(scores, official())
    print(f"{len(packed)} images; {numbers} results differ from the official by {difference:g}")
    ms = {side: round(1e3 * value / len(packed), 1) for side, value in seconds.items()}
    gains = {side: round(value / seconds["ours, packed"], 2) for side, value in seconds.items()}
    return [{"side": side, "ms_per_image": ms[side], "packed_is": gains[side]} for side in ms]


def with_network(dataset: Dataset, rounds: int) -> list[dict]:
    """Milliseconds per image of each part of an evaluation."""
    model, sample = build_model("deeplabv3", num_classes=19).to(WORLD.device), dataset[0]
    predictor = Predictor(model, device=WORLD.device, amp=WORLD.amp_dtype("auto"))
    logits = predictor.logits(sample["image"], size=SIZE)
    prediction = TASK.predict(logits, SIZE).numpy(force=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prediction.png"
        parts: measure.Sides = {
            "reading": lambda _: np.copy(dataset[0]["image"]),
            "network": lambda _: predictor.logits(sample["image"], size=SIZE),
            "loss": lambda _: TASK.losses(logits, sample, None),
            "argmax": lambda _: TASK.predict(logits, SIZE).numpy(force=True),
            "counting": lambda _: TASK.count(sample, prediction, dataset.classes),
            "PNG": lambda _: TASK.save(path, prediction, dataset.classes),
        }
        seconds = measure.median_seconds(parts, rounds, warm_up=0, device=WORLD.device)
    return [{"ms": {part: round(1e3 * value, 2) for part, value in seconds.items()}}]


def main() -> None:
    given = measure.options(__doc__, root=measure.SYNTHETIC, rounds=3, results=measure.RESULTS)
    measure.one_thread()
    dataset, packed = (build_dataset("synthetic", given.root, "val", packed=x) for x in (0, 1))
    if not isinstance(packed, PackedDataset):
        advice = "Run python utils/preprocess_data.py --dataset synthetic --pack true"
        raise UserError(f"{given.root}: val is not packed. {advice}")
    figures = without_network(dataset, packed, given.rounds)
    measure.record(given.results, "evaluation", figures, "cityscapesscripts")
    measure.record(given.results, "evaluation_parts_ms", with_network(packed, given.rounds))


if __name__ == "__main__":
    run_command(main)
