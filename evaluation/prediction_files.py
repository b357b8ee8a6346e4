"""Match, check and count predictions for Cityscapes, made by any program: a label id PNG each."""

from functools import partial
from pathlib import Path

import numpy as np

from evaluation.counts import Counts, count_pixels
from utils.base.errors import UserError
from utils.base.find import find
from utils.base.paths import read_bytes
from utils.base.progress import progress
from utils.base.threads import read_ahead
from utils.data.cityscapes import find_files, find_instances, first_folder
from utils.data.image_files import GREY, png_header, read_ids
from utils.data.label_table import CITYSCAPES

Pair = tuple[Path, Path]  # prediction, truth from find_truth
DAMAGED = "Replace the damaged file"
IDS = "7, 8, 11, 12, 13, 17, 19 to 28, 31, 32, 33"
CONVERT = f"Save label ids: train ids 0 to 18 are label ids {IDS}, in this order"


def find_truth(root: Path, split: str) -> dict[str, Path]:
    """Image name, <city>_<sequence>_<frame> -> its instance ids, else its label ids."""
    if found := find_instances(root, split) or find_files(root, split, "ids"):
        return found
    what = f"{first_folder(root, 'gtFine', split)}: no */*_gtFine_labelIds.png"
    raise UserError(f"{what}. Give the data set's folder with --data_root")


def match_predictions(folder: Path, truth: dict[str, Path], *, subset: bool = False) -> list[Pair]:
    """Pair every image with its prediction, found by name in any sub-folder, as the official scorer
    does; subset: skip images without a prediction."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. Give another one with --predictions")
    found: dict[str, Path] = {}
    extra = []
    for path in find(folder, "**/*.png"):
        name = "_".join(path.stem.split("_")[:3])
        if name in found:
            raise UserError(f"{path}: duplicate of {found[name]} for image {name}. Keep one")
        if name in truth:
            found[name] = path
        else:
            extra.append(path)
    missing = [name for name in truth if name not in found]
    if missing and not (subset and found):
        count = f"{len(missing)} of {len(truth)} images have no prediction {missing[0]}*.png"
        raise UserError(f"{folder}: {count}. Write one label id PNG per image")
    if extra:
        count = f"{extra[0]}: belongs to no image of the split ({len(extra)} such files)"
        raise UserError(f"{count}. Move it out of {folder}, or give its --split")
    return [(found[name], path) for name, path in truth.items() if name in found]


def check_header(pair: Pair) -> None:
    """UserError unless the prediction is a one-channel 8-bit PNG of its truth's size."""
    prediction, truth = (png_header(read_bytes(path), path, advice=DAMAGED) for path in pair)
    if prediction.color != GREY or prediction.bits != 8:
        advice = "Save label ids as a one-channel 8-bit PNG"
        raise UserError(f"{pair[0]}: {prediction.kind}, not label ids. {advice}")
    if prediction.size != truth.size:
        sizes = " instead of ".join(f"{w} x {h}" for h, w in (prediction.size, truth.size))
        raise UserError(f"{pair[0]}: {sizes} pixels. Upsample predictions with nearest neighbour")


def count_pair(pair: Pair, *, border: int) -> Counts:
    """Counts of one image; UserError if its pixels are not label ids."""
    prediction = read_ids(pair[0], np.uint8, advice=DAMAGED)
    truth = read_ids(pair[1], np.uint16, advice=DAMAGED)
    largest, known = int(prediction.max()), CITYSCAPES.num_ids - 1
    if largest > known:
        hint = CONVERT if largest == 255 else "Write label ids"
        raise UserError(f"{pair[0]}: id {largest}, but label ids are 0 to {known}. {hint}")
    try:
        return count_pixels(truth, prediction, CITYSCAPES, border=border)
    except ValueError as error:
        raise UserError(f"{pair[1]}: {error}. Restore the file") from error


def holds_train_ids(confusion: np.ndarray) -> bool:
    """Whether predictions use ids outside the classes and match the truth better as train ids."""
    used, ids = np.flatnonzero(confusion.sum(0)), CITYSCAPES.ids
    if used.max() >= len(ids) or set(used.tolist()) <= {0, *ids.tolist()}:
        return False
    return confusion[ids, np.arange(len(ids))].sum() > confusion[ids, ids].sum()


def count_pairs(pairs: list[Pair], *, border: int = 0, workers: int = 1) -> Counts:
    """Counts of all pairs; each of `workers` threads holds one pair of images in memory."""
    counts: list[Counts] = []
    confusion = np.zeros((CITYSCAPES.num_ids,) * 2, np.int64)
    how = {"workers": workers, "ahead": workers, "describe": lambda pair: str(pair[0])}
    parts = read_ahead(partial(count_pair, border=border), pairs, **how)
    with progress(len(pairs), unit="image", label="score") as bar:
        for pair, part in zip(pairs, parts, strict=True):
            counts.append(part)
            confusion += part.confusion
            if holds_train_ids(confusion):
                raise UserError(f"{pair[0]}: train ids, but the score needs label ids. {CONVERT}")
            bar.update()
    return Counts.total(counts)
