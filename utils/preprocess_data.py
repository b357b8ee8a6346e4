"""Convert Cityscapes label ids to train ids and compute the ENet class weights; run once.

    python utils/preprocess_data.py                         $CITYSCAPES_DATASET or data/cityscapes
    python utils/preprocess_data.py --data_root /data/cityscapes
    python utils/preprocess_data.py --dataset synthetic

Writes <data_root>/meta/label_imgs/<img_id>.png for train and val, and meta/class_weights.json.
A second run does nothing; an interrupted one goes on where it stopped.
"""

import math
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

if __name__ == "__main__":  # run by path, Python looks for modules in utils/ first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np

from datasets import Files, cityscapes_label_ids, read_ids, to_train_ids, train_id_path
from utils.config import check, parse
from utils.errors import UserError, run_command
from utils.files import make_folder, resolve_data_root, write_json
from utils.labels import CITYSCAPES
from utils.loader import read_ahead
from utils.progress import progress

SPLITS = ("train", "val")


@dataclass(frozen=True)
class PreprocessConfig:
    """Options of preprocess_data.py."""

    dataset: Literal["cityscapes", "synthetic"] = "cityscapes"
    """Data set whose label ids are converted."""
    data_root: Path | None = None
    """Folder of the data set. Default: $CITYSCAPES_DATASET for cityscapes, else data/<dataset>."""
    workers: int = os.cpu_count() or 1
    """Threads that convert images."""
    overwrite: bool = False
    """Convert again what is there already."""

    def __post_init__(self) -> None:
        check(self, "workers", lambda workers: workers >= 1, "at least 1")


def preprocess(root: Path, *, workers: int, overwrite: bool) -> None:
    """Train ids of train and val below root/meta, and the class weights of train."""
    files = {split: cityscapes_label_ids(root, split) for split in SPLITS}
    weights_file = root / "meta" / "class_weights.json"
    every = [x for split in SPLITS for x in files[split]]
    pending = [x for x in every if overwrite or not is_current(x, root)]
    if not pending and weights_file.is_file():
        print(f"{root / 'meta'}: up to date, nothing to do")
        return
    make_folder(train_id_path(root, "").parent)
    work = partial(convert, root=root, redo={x.name for x in pending})
    counts = {split: np.zeros(256, np.int64) for split in SPLITS}
    with progress(len(every), unit="image", label="preprocess") as bar:
        for split in SPLITS:
            for count in read_ahead(work, files[split], workers=workers, ahead=2 * workers):
                counts[split] += count
                bar.update()
    write_json(weights_file, class_weights(counts["train"], images=len(files["train"])))
    print(f"{root / 'meta'}: {len(pending)} label images, class_weights.json")


def is_current(files: Files, root: Path) -> bool:
    """Whether the train ids were written after their source was."""
    try:
        return train_id_path(root, files.name).stat().st_mtime >= files.label.stat().st_mtime
    except FileNotFoundError:
        return False


def convert(files: Files, *, root: Path, redo: set[str]) -> np.ndarray:
    """Write one image's train ids if it is in `redo`; their (256,) int64 pixel counts."""
    path = train_id_path(root, files.name)
    if files.name in redo:
        train_ids = to_train_ids(
            read_ids(files.label, np.uint8), CITYSCAPES.id_to_train, files.label
        )
        write_png(path, train_ids)
    else:
        train_ids = read_ids(path, np.uint8)
    return cv2.calcHist([train_ids], [0], None, [256], [0, 256]).ravel().astype(np.int64)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        temporary.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}). Free the place") from error


def class_weights(counts: np.ndarray, *, images: int) -> dict[str, object]:
    """(256,) pixel counts -> ENet's weights 1 / ln(1.02 + p), arXiv 1606.02147 section 5.2.

    p is the class's share of all pixels, ignored ones included.
    """
    names, total = CITYSCAPES.names, counts.sum()
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


def main() -> None:
    config = parse(PreprocessConfig, __doc__)
    root = resolve_data_root(config.dataset, config.data_root)
    preprocess(root, workers=config.workers, overwrite=config.overwrite)


if __name__ == "__main__":
    run_command(main)
