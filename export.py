"""A checkpoint as one file for other programs: ONNX, or PyTorch's own .pt2.

    python export.py                                   best checkpoint of the newest run, as ONNX
    python export.py --checkpoint RUN --format pt2 --output model.pt2
    python export.py --checkpoint RUN --logits true    logits instead of train ids

images: float32 (N,3,H,W), RGB, (pixel - mean) / std, any N, H and W; labels: uint8 (N,H,W) train
ids, or logits: float32 (N,K,H,W). Mean, standard deviation, classes, their ids and colours stand
in the file. It is compared with this repository's prediction on val images, and refused where
more than 0.1 % of the pixels differ. Needs: pip install onnx onnxscript onnxruntime.
"""

import json
import logging
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from evaluation.inference import Predictor, Trained, inference_copy
from utils.config import PredictionOptions
from utils.errors import UserError, run_command
from utils.parser import check, parse
from utils.progress import progress
from utils.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize

AGREEMENT = 0.999  # share of pixels that must have the same class
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
EXAMPLE = (2, 3, 257, 385)  # of the trace: nothing in it is special
Runner = Callable[[torch.Tensor], np.ndarray]  # (N,3,H,W) -> what the file gives out


@dataclass(frozen=True)
class ExportConfig(PredictionOptions):
    """Options of export.py."""

    format: Literal["onnx", "pt2"] = "onnx"
    """ONNX, or what torch.export.load reads."""
    logits: bool = False
    """Give out logits at the images' size instead of train ids."""
    output: Path | None = None
    """File to write. Default: beside the checkpoint, model.onnx or model.pt2."""
    images: int = 8
    """Val images on which the file is compared with this repository's prediction."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "images", lambda images: images >= 1, "at least 1")


class Plain(nn.Module):
    """The network with its upsampling, in plain PyTorch: what other programs run.

    scale: the size, as a factor, at which the network sees an image, as in evaluation.
    """

    def __init__(self, model: nn.Module, *, scale: float, logits: bool) -> None:
        super().__init__()
        self.model = inference_copy(model).to(memory_format=torch.contiguous_format)
        self.scale, self.logits = Fraction(scale).limit_denominator(1000), logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N,3,H,W) normalised -> (N,H,W) uint8 train ids, or (N,K,H,W) logits."""
        height, width = images.shape[-2:]
        up, down = self.scale.numerator, self.scale.denominator
        seen = images
        if self.scale != 1:
            size = [(2 * length * up + down) // (2 * down) for length in (height, width)]
            seen = F.interpolate(images, size, mode="bilinear", antialias=True)
        logits = F.interpolate(self.model(seen)["out"], (height, width), mode="bilinear")
        return logits if self.logits else logits.argmax(1).to(torch.uint8)


def export(config: ExportConfig) -> None:
    if config.format == "onnx" and (missing := [x for x in PACKAGES if find_spec(x) is None]):
        raise UserError(f"export.py: {missing[0]} is missing. pip install {' '.join(PACKAGES)}")
    trained = Trained.open(config)
    scales = trained.options["scales"]
    if len(scales) > 1 or config.flip or config.crop:
        raise UserError("export.py: a file predicts at one scale. Leave --flip and --crop out")
    path = config.output or trained.path.parents[1] / f"model.{config.format}"
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise UserError(f"{path}: no file in an existing folder. Name one with --output")
    dataset = trained.dataset("val")
    plain = Plain(trained.model.cpu(), scale=scales[0], logits=config.logits)
    facts = {
        "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "order": "RGB", "scale": scales[0],
        "classes": dataset.classes.names, "ids": dataset.classes.ids.tolist(),
        "colors": dataset.classes.colors.tolist(), "step": trained.state["step"],
    }  # fmt: skip
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        write = {"onnx": write_onnx, "pt2": write_pt2}[config.format]
        runner = write(plain, temporary, {key: json.dumps(value) for key, value in facts.items()})
        count = min(config.images, len(dataset))
        indices = np.linspace(0, len(dataset) - 1, count).round().astype(int)
        images = [dataset.image(index) for index in indices]
        predictor = Predictor(plain.model, device=torch.device("cpu"), **trained.options)
        share, ours, theirs = compare(runner, predictor, images)
        if share < AGREEMENT:
            what = f"only {share:.3%} of the pixels as predicted here"
            raise UserError(f"{path}: {what}, not written. Please report it, with the versions")
        size = temporary.stat().st_size / 2**20
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    height, width = images[0].shape[:2]
    print(f"{path}: {size:.1f} MiB, {share:.4%} of the pixels of {count} val images agree")
    print(f"{width}x{height} on the CPU: {theirs:.0f} ms an image, here {ours:.0f} ms")


def write_onnx(plain: Plain, path: Path, facts: dict[str, str]) -> Runner:
    import onnx

    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read at import
    import onnxruntime

    program = traced(plain)
    name = "logits" if plain.logits else "labels"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own insides
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        converted = torch.onnx.export(
            program, input_names=["images"], output_names=[name], dynamo=True, verbose=False
        )
    model = converted.model_proto
    onnx.helper.set_model_props(model, facts)
    onnx.save(model, path)
    onnx.checker.check_model(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})[0]


def write_pt2(plain: Plain, path: Path, facts: dict[str, str]) -> Runner:
    with path.open("wb") as file:
        torch.export.save(traced(plain), file, extra_files=facts)
    with path.open("rb") as file:
        network = torch.export.load(file).module()
    return torch.inference_mode()(lambda images: network(images).numpy())


def traced(plain: Plain) -> torch.export.ExportedProgram:
    """For any number and size of images."""
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    with torch.no_grad():
        return torch.export.export(
            plain.eval(), (torch.zeros(EXAMPLE),), dynamic_shapes=({**dynamic},), strict=False
        )


def compare(
    runner: Runner, predictor: Predictor, images: list[np.ndarray]
) -> tuple[float, float, float]:
    """Share of pixels with the same class; milliseconds an image of `predictor` and `runner`."""
    same = pixels = 0
    seconds: dict[bool, list[float]] = {True: [], False: []}
    with progress(len(images), unit="image", label="compare") as bar:
        for image in images:
            begin = time.perf_counter()
            labels = predictor.labels(image)
            middle = time.perf_counter()
            found = runner(normalize(torch.tensor(image)[None]))[0]
            seconds[True].append(middle - begin)
            seconds[False].append(time.perf_counter() - middle)
            found = found.argmax(0) if found.ndim == 3 else found
            same, pixels = same + int((found == labels).sum()), pixels + labels.size
            bar.update()
    ours, theirs = (1000 * float(np.median(seconds[key])) for key in (True, False))
    return same / pixels, ours, theirs


def main() -> None:
    export(parse(ExportConfig, __doc__))


if __name__ == "__main__":
    run_command(main)
