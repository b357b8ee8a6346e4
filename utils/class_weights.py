"""ENet's class weights, from the pixels of the training labels to the loss (arXiv 1606.02147)."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from utils.errors import UserError
from utils.files import make_folder, write_json
from utils.labels import LabelTable


def write_class_weights(
    root: Path, counts: np.ndarray, names: Sequence[str], *, images: int
) -> None:
    """From (256,) pixel counts of `images` label files: root/meta/class_weights.json."""
    make_folder(root / "meta")
    write_json(root / "meta" / "class_weights.json", class_weights(counts, names, images=images))


def class_weights(counts: np.ndarray, names: Sequence[str], *, images: int) -> dict[str, object]:
    """(256,) pixel counts -> ENet's weights 1 / ln(1.02 + p), arXiv 1606.02147 section 5.2.

    p is the class's share of all pixels, ignored ones included.
    """
    total = counts.sum()
    pixels = dict(zip(names, counts.tolist(), strict=False))
    absent = [name for name in names if pixels[name] == 0]
    if absent:
        print(f"warning: no training pixel of {', '.join(absent)}", file=sys.stderr)
    return {
        "class_weights": {name: 1 / math.log(1.02 + pixels[name] / total) for name in names},
        "pixels": pixels,
        "ignored_pixels": int(total - sum(pixels.values())),
        "images": images,
    }


def read_class_weights(root: Path, classes: LabelTable) -> torch.Tensor:
    """The (K,) float32 ENet class weights that utils/preprocess_data.py wrote."""
    path = root / "meta" / "class_weights.json"
    try:
        weights = json.loads(path.read_text(encoding="utf-8"))["class_weights"]
        return torch.tensor([weights[name] for name in classes.names])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: no class weights, or of other classes. Run utils/preprocess_data.py with the "
            "same --dataset and --data_root, or train with --class_weights false"
        ) from error
