"""ENet's class weights, computed from the pixels of the training labels (arXiv 1606.02147)."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from utils.base.paths import make_folder, write_json
from utils.data.label_table import LabelTable

WEIGHTS_FILE = Path("meta") / "class_weights.json"  # below the data set's folder
EXACT = 1 << 24  # pixels up to which the float32 counts of cv2.calcHist are exact


def write_class_weights(
    root: Path, counts: np.ndarray, names: Sequence[str], *, images: int
) -> None:
    """(256,) pixel counts of `images` label files -> root/meta/class_weights.json.

    ENet's weights are 1 / ln(1.02 + p), arXiv 1606.02147 section 5.2; p is the share of the class
    in all pixels, including ignored ones.
    """
    total = counts.sum()
    pixels = dict(zip(names, counts.tolist(), strict=False))
    if absent := [name for name in names if pixels[name] == 0]:
        print(f"warning: no training pixel of {', '.join(absent)}", file=sys.stderr)
    make_folder(root / "meta")
    content = {
        "class_weights": {name: 1 / math.log(1.02 + pixels[name] / total) for name in names},
        "pixels": pixels,
        "ignored_pixels": int(total - sum(pixels.values())),
        "images": images,
    }
    write_json(root / WEIGHTS_FILE, content)


def read_noted(root: Path, classes: LabelTable, what: str) -> np.ndarray | None:
    """(K,) float "pixels" or "class_weights" from class_weights.json; None if the file is missing,
    damaged, or of other classes."""
    try:
        content = json.loads((root / WEIGHTS_FILE).read_text(encoding="utf-8"))[what]
        return np.array([content[name] for name in classes.names], float)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def histogram(cells: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """(H,W) uint8 or uint16 -> int64 count of each value, exact for an image of any size."""
    size = 1 << 8 * cells.itemsize
    counts = np.zeros(size, np.int64)
    rows = max(1, EXACT // cells.shape[1])
    for top in range(0, len(cells), rows):
        part = slice(top, top + rows)
        inside = None if mask is None else mask[part]
        found = cv2.calcHist([cells[part]], [0], inside, [size], [0, size])
        counts += found.ravel().astype(np.int64)
    return counts
