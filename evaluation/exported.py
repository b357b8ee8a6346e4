"""Export a network with its upsampling to a file, and compare the file with this repository."""

import logging
import os
import time
import warnings
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from evaluation import panoptic
from evaluation.counts import Counts
from evaluation.inference import Predictor, inference_copy
from evaluation.metrics import compute_scores
from evaluation.panoptic_quality import joint_pixels
from evaluation.task import Prediction, Sample
from model.normalize import normalize
from utils.base.progress import progress
from utils.data.label_table import LabelTable

EXAMPLE = (2, 3, 257, 385)  # shape used for tracing; the exported program takes any shape
Runner = Callable[[torch.Tensor], list[np.ndarray]]  # (N,3,H,W) -> outputs of the file


class Plain(nn.Module):
    """The network with its upsampling, in plain PyTorch operations, for export.

    scale: factor by which images are resized before the network, as in evaluation.
    """

    def __init__(self, model: nn.Module, *, scale: float, logits: bool) -> None:
        super().__init__()
        self.model = inference_copy(model).to(memory_format=torch.contiguous_format)
        self.scale, self.logits = Fraction(scale).limit_denominator(1000), logits
        self.task = getattr(model, "task", "semantic")

    @property
    def names(self) -> list[str]:
        """Of the outputs."""
        first = "logits" if self.logits else "labels"
        return [first, "maps"] if self.task == "panoptic" else [first]

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """(N,3,H,W) normalised -> (N,H,W) uint8 train ids, or (N,K,H,W) logits; of a panoptic
        network also maps for evaluation/grouping.py, (N,3,h,w) heat and offset."""
        height, width = images.shape[-2:]
        if self.scale != 1:
            up, down = self.scale.as_integer_ratio()
            size = [(2 * length * up + down) // (2 * down) for length in (height, width)]
            size = [torch.sym_max(1, length) for length in size]
            rows, columns = map(resize_matrix, (height, width), size)
            images = rows @ images @ columns.T
        logits, *maps = self.model(images).values()
        logits = F.interpolate(logits, (height, width), mode="bilinear")
        first = logits if self.logits else logits.argmax(1).to(torch.uint8)
        return (first, torch.cat(maps, 1)) if maps else first


def resize_matrix(length: int, wanted: int) -> torch.Tensor:
    """(wanted,length) matrix of interpolate(mode="bilinear", antialias=True) along one side.

    All programs compute a matrix product alike, while OpenCV ignores antialias in ONNX's Resize.
    """
    step = torch.scalar_tensor(length) / wanted  # input pixels per output pixel
    pixels, centers = torch.arange(length) + 0.5, (torch.arange(wanted) + 0.5) * step
    weights = (1 - (pixels - centers[:, None]).abs() / step.clamp_min(1)).clamp_min(0)
    return weights / weights.sum(1, keepdim=True)


def write_onnx(plain: Plain, path: Path, facts: dict[str, str]) -> Runner:
    import onnx

    program = traced(plain)
    names = {"input_names": ["images"], "output_names": plain.names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        model = torch.onnx.export(program, dynamo=True, verbose=False, **names).model_proto
    onnx.helper.set_model_props(model, facts)
    onnx.save(model, path)
    onnx.checker.check_model(path)
    return open_onnx(path)


def open_onnx(path: Path) -> Runner:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read at import
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})


def halve(path: Path) -> Runner:
    """Rewrite an ONNX file: weights and arithmetic in float16, images and logits in float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), path)
    return open_onnx(path)


def write_pt2(plain: Plain, path: Path, facts: dict[str, str]) -> Runner:
    content = BytesIO()  # PyTorch would abort the process on a full disk
    torch.export.save(traced(plain), content, extra_files=facts)
    path.write_bytes(content.getbuffer())
    with path.open("rb") as file:
        network = torch.export.load(file).module()

    @torch.inference_mode()
    def run(images: torch.Tensor) -> list[np.ndarray]:
        outputs = network(images)
        several = isinstance(outputs, tuple)
        return [x.numpy() for x in (outputs if several else [outputs])]

    return run


def traced(plain: Plain) -> torch.export.ExportedProgram:
    """The program for any number and size of images."""
    shapes = (dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC),)
    images = (torch.zeros(EXAMPLE),)
    with torch.no_grad():
        return torch.export.export(plain.eval(), images, dynamic_shapes=shapes, strict=False)


class Compared(NamedTuple):
    """One way of predicting, on some images."""

    same: float  # share of pixels with predict.py's class or segment
    milliseconds: float  # median of the images
    miou: float


def compare(
    runners: dict[str, Runner], predictor: Predictor, samples: list[Sample], classes: LabelTable
) -> dict[str, Compared]:
    """Results of predict.py, then of each file."""
    task = predictor.task

    def run(runner: Runner, image: np.ndarray) -> Prediction:
        first, *maps = (output[0] for output in runner(normalize(torch.tensor(image)[None])))
        train_ids = (first.argmax(0) if first.ndim == 3 else first).astype(np.uint8)
        return panoptic.grouped(train_ids, maps[0], classes) if maps else train_ids

    def agreeing(one: Prediction, other: Prediction) -> int:
        """Pixels; segments may have other numbers."""
        if task.segments is None:
            return int((one == other).sum())
        return int(joint_pixels(task.segments(one), task.segments(other)).max(1).sum())

    sides = {"predict.py": predictor.predict}
    sides |= {name: partial(run, runner) for name, runner in runners.items()}
    rows: dict[str, list[tuple]] = {name: [] for name in sides}
    for sample in progress(len(samples), samples, unit="image", label="compare"):
        predictions = []
        for name, side in sides.items():
            begin = time.perf_counter()
            predictions.append(side(sample["image"]))
            seconds = time.perf_counter() - begin
            same = agreeing(predictions[0], predictions[-1])
            rows[name].append((same, seconds, task.count(sample, predictions[-1], classes)))
    results, pixels = {}, sum(sample["label"].size for sample in samples)
    for name, columns in rows.items():
        same, seconds, counts = zip(*columns, strict=True)
        miou = compute_scores(Counts.total(counts), classes).miou
        results[name] = Compared(float(sum(same) / pixels), 1000 * float(np.median(seconds)), miou)
    return results
