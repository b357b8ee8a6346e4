"""Export a checkpoint as one file for other programs: ONNX, or PyTorch's .pt2.

    python export.py                                   best checkpoint of the newest run, as ONNX
    python export.py --checkpoint RUN --format pt2 --output model.pt2
    python export.py --checkpoint RUN --logits true    logits instead of train ids
    python export.py --checkpoint RUN --half true      ONNX in float16, half the size

Input `images`: float32 (N,3,H,W), RGB, (pixel - mean) / std, any N, H and W (.pt2: from
64 pixels on). Output `labels`: uint8 (N,H,W) train ids, or `logits`: float32 (N,K,H,W). A panoptic
network has a second output `maps`, from which evaluation/grouping.py makes segments
(docs/panoptic.md). The file also holds mean, standard deviation, and the classes with ids and
colours. export.py writes no file if more than 0.1 % of the pixels of val images (1 % with --half)
differ from this repository's prediction. Needs: pip install onnx onnxscript onnxruntime.
"""

import json
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

if __name__ == "__main__":  # PYTHONSAFEPATH keeps this folder out of sys.path
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch

from evaluation.exported import Plain, compare, halve, write_onnx, write_pt2
from evaluation.inference import Predictor
from evaluation.trained import PredictionOptions, Trained
from model.normalize import IMAGENET_MEAN, IMAGENET_STD
from utils.base.errors import UserError, run_command
from utils.base.parser import check, parse
from utils.base.paths import require_file_name, whole

AGREEMENT = {"fp32": 0.999, "fp16": 0.99}  # share of pixels that must have the same class
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class ExportConfig(PredictionOptions):
    """Options of export.py."""

    format: Literal["onnx", "pt2"] = "onnx"
    """onnx, or pt2 for torch.export.load."""
    logits: bool = False
    """Output logits at the size of the images instead of train ids."""
    half: bool = False
    """Weights and arithmetic in float16; images and logits stay float32. Only for onnx."""
    output: Path | None = None
    """File to write. Default: model.onnx or model.pt2 in the run's folder; beside a checkpoint that
    belongs to no run, its own name with that ending."""
    images: int = 8
    """Number of val images on which the file is compared with this repository's prediction."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "images", lambda images: images >= 1, "at least 1")
        check(self, "half", lambda half: not half or self.format == "onnx", "false for pt2")


def main() -> None:
    config = parse(ExportConfig, __doc__)
    if config.format == "onnx" and (missing := [x for x in ONNX_PACKAGES if find_spec(x) is None]):
        needed = " ".join(ONNX_PACKAGES)
        raise UserError(f"export.py: {missing[0]} is missing. pip install {needed}")
    trained = Trained.open(config)
    if getattr(trained.model, "dynamic", False):
        what = f"{trained.state['network']['name']} has no ONNX or pt2 form (torchvision's NMS"
        raise UserError(f"export.py: {what}, deformable convolution). Export another network")
    scales = trained.options["scales"]
    if len(scales) > 1 or config.flip or config.crop:
        raise UserError("export.py: predicts at one scale. Give one --scales, no --flip, no --crop")
    default = trained.run / "model" if trained.run else trained.path
    path = config.output or default.with_suffix(f".{config.format}")
    require_file_name(path)
    dataset = trained.dataset("val")
    plain = Plain(trained.model.cpu(), scale=scales[0], logits=config.logits)
    classes, outputs = trained.classes, trained.state["network"]["num_classes"]
    every = np.arange(outputs, dtype=np.uint8)[None]
    names = [*classes.names, *["void"] * (outputs - classes.num_classes)]  # fregu856's network
    facts = {
        "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "order": "RGB", "scale": scales[0],
        "classes": names, "ids": classes.to_ids(every)[0].tolist(),
        "things": [*classes.instance_sizes], "stuff_area": classes.stuff_area,
        "colors": classes.draw(every)[0].tolist(), "step": trained.state["step"],
    }  # fmt: skip
    places = np.linspace(0, len(dataset) - 1, min(config.images, len(dataset)))
    samples = [dataset[int(place)] for place in places.round()]
    how = {"task": trained.task, "classes": dataset.classes, **trained.options}
    predictor = Predictor(plain.model, device=torch.device("cpu"), **how)
    with whole(path) as temporary:
        write = {"onnx": write_onnx, "pt2": write_pt2}[config.format]
        kind = "fp32"
        runners = {kind: write(plain, temporary, {k: json.dumps(v) for k, v in facts.items()})}
        sizes = {kind: temporary.stat().st_size}
        if config.half:
            kind = "fp16"
            runners[kind] = halve(temporary)
            sizes[kind] = temporary.stat().st_size
        results = compare(runners, predictor, samples, dataset.classes)
        if (same := results[kind].same) < AGREEMENT[kind]:
            what = f"not written, only {same:.3%} of the pixels agree with predict.py"
            raise UserError(f"{path}: {what}. Please report this with the output of pip freeze")
    height, width = samples[0]["label"].shape
    print(f"{path}: {kind}, compared on {len(samples)} val images of {width}x{height} on the CPU")
    print(f"{'':<12}{'MiB':>8}{'ms':>8}{'same pixels':>14}{'mIoU':>8}")
    for name, (same, milliseconds, miou) in results.items():
        size = f"{sizes[name] / 2**20:.1f}" if name in sizes else ""
        print(f"{name:<12}{size:>8}{milliseconds:>8.0f}{same:>14.3%}{miou:>8.3f}")


if __name__ == "__main__":
    run_command(main)
