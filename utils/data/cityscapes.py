"""Cityscapes (cityscapes-dataset.com; Cordts et al., CVPR 2016), also drawn scenes in its format.

Its label ids become train ids once (utils/preprocess_data.py); val reads instance ids, from which
label ids and train ids follow.
"""

import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from utils.base.errors import UserError
from utils.base.find import find_named
from utils.base.paths import make_folder
from utils.base.progress import progress
from utils.base.threads import read_ahead
from utils.data.class_weights import WEIGHTS_FILE, histogram, write_class_weights
from utils.data.dataset import (
    DataSet,
    FoundFiles,
    NoImages,
    Server,
    complete_files,
    converted_labels,
    train_id_path,
)
from utils.data.image_files import contradiction, read_ids, read_train_ids, write_png
from utils.data.label_table import CITYSCAPES
from utils.data.sources import names_below, noting, unchanged, up_to_date

FOLDERS = {  # split -> folder of its images and labels, kind of its labels
    "train": ("train", "gtFine"),
    "val": ("val", "gtFine"),
    "test": ("test", "gtFine"),
    "coarse": ("train_extra", "gtCoarse"),
}
ENDINGS = {"ids": "labelIds", "instances": "instanceIds"}
PUBLISHED_BROKEN = "troisdorf_000000_000073"  # image of train_extra
UNPACK = "Unpack gtFine"


def first_folder(root: Path, kind: str, split: str) -> Path:
    """`root/kind/split`, or the nested layout that the Cityscapes zips unpack to."""
    nested = root / f"{kind}_trainvaltest" / kind / split
    return nested if nested.is_dir() else root / kind / split


def find(root: Path, split: str) -> FoundFiles:
    """What training and evaluation read: of train the files that prepare writes, of val instance
    ids, or label ids where no instance ids were unpacked."""
    if split == "train":
        images = find_images(root, split)
        return {"image": images, "train_ids": {x: train_id_path(root, x) for x in images}}
    found = downloaded(root, split)
    if "instances" in found:
        del found["ids"]
    return found


def downloaded(root: Path, split: str) -> FoundFiles:
    """Images, label ids, instance ids unless none were unpacked, and what prepare wrote of them."""
    kinds = {"test": (), "coarse": ("ids",)}.get(split, ("ids", "instances"))
    images = find_images(root, split)
    found = {"image": images} | {kind: find_labels(root, split, kind) for kind in kinds}
    if found.get("ids") and not found.get("instances", True):
        del found["instances"]
    names = images | found.get("ids", {})
    written = {x: path for x in names if (path := train_id_path(root, x)).is_file()}
    return found | ({"train_ids": written} if split == "train" and written else {})


def find_files(root: Path, split: str, top: str, ending: str) -> dict[str, Path]:
    """Image name -> file of the split, sorted; `top`: leftImg8bit, gtFine or gtCoarse."""
    paths = find_named(first_folder(root, top, FOLDERS[split][0]), f"*/{{name}}_{ending}.png")
    paths.pop(PUBLISHED_BROKEN, None)
    return paths


def find_images(root: Path, split: str) -> dict[str, Path]:
    images = find_files(root, split, "leftImg8bit", "leftImg8bit")
    if not images:
        folder = first_folder(root, "leftImg8bit", FOLDERS[split][0])
        raise NoImages(
            f"{root}: no images {folder}/*/*_leftImg8bit.png. "
            "Name the data set's folder with --data_root, or try without data: make demo"
        )
    return images


def find_labels(root: Path, split: str, kind: str) -> dict[str, Path]:
    """Label files; kind: ids or instances."""
    labels = FOLDERS[split][1]
    return find_files(root, split, labels, f"{labels}_{ENDINGS[kind]}")


def prepare(root: Path, *, workers: int, overwrite: bool) -> bool:
    """Write train ids of train and val below root/meta, and the class weights of train."""
    labels: dict[str, dict[str, Path]] = {}
    for split in ("train", "val"):
        found = {"image": find_images(root, split), "ids": find_labels(root, split, "ids")}
        labels[split] = {x.name: x.ids for x in complete_files(found, root, split, UNPACK)}
    sources = labels["train"] | labels["val"]
    outputs = {name: train_id_path(root, name) for name in sources}
    records, pending = {}, set(sources if overwrite else ())
    for split, paths in labels.items():
        derived = converted_labels(root, split)
        made = {path: outputs[name] for name, path in paths.items()}
        known, old = up_to_date(derived, root, made, CITYSCAPES)
        records[split] = noting(derived, root, paths.values(), CITYSCAPES, known=known)
        pending |= {name for name, path in paths.items() if path in old}
    weights, weighed = root / WEIGHTS_FILE, [outputs[name] for name in labels["train"]]
    noted = unchanged(weights, root, CITYSCAPES)
    if not (noted or {}).keys() >= {*names_below(root, weighed)}:  # a converted label was changed
        pending |= labels["train"].keys() if noted else set()
    elif not pending and weights.is_file():
        print(f"{root / 'meta'}: up to date, nothing to do")
        return True
    make_folder(train_id_path(root, "").parent)
    instances, contradicting = find_labels(root, "val", "instances"), []

    def convert(name: str) -> np.ndarray:
        """Write one image's train ids if it is pending; their (256,) int64 pixel counts."""
        if name not in pending:
            return histogram(read_ids(outputs[name], np.uint8))
        train_ids = read_train_ids(sources[name], CITYSCAPES)
        write_png(outputs[name], train_ids, filtered=False)
        with suppress(UserError):  # a damaged file: evaluation and --check name it
            if name in instances:
                ids = read_ids(instances[name], np.uint16)
                contradicting.extend(contradiction(sources[name], ids))
        return histogram(train_ids)

    total = np.zeros(256, np.int64)
    counts = read_ahead(convert, sources, workers=workers, ahead=2 * workers)
    bar = progress(len(sources), unit="image", label="preprocess")
    with records["train"], records["val"], bar:
        for name, count in zip(sources, counts, strict=True):
            if name in labels["train"]:
                total += count
            bar.update()
    with noting(weights, root, weighed, CITYSCAPES):
        write_class_weights(root, total, CITYSCAPES.names, images=len(weighed))
    print(f"{root / 'meta'}: {len(pending)} label images, class_weights.json")
    if contradicting:
        what = f"{len(contradicting)} such files; scores follow instanceIds"
        print(f"warning: {contradicting[0]}; {what}", file=sys.stderr)
    return True


DATA_SET = DataSet(
    "cityscapes",
    CITYSCAPES,
    find,
    splits=tuple(FOLDERS),
    unions={"trainval": ("train", "val"), "train_extra": ("train", "coarse")},
    images={"train": 2975, "val": 500, "test": 1525},
    variable="CITYSCAPES_DATASET",
    hints={
        "train": "Run python utils/preprocess_data.py first",
        "val": UNPACK,
        "coarse": "Unpack gtCoarse",
    },
    downloaded=downloaded,
    prepare=prepare,
    server=Server(1525, ".zip", "{}_pred_label_img.png"),
)
SYNTHETIC = replace(DATA_SET, name="synthetic", images={}, variable=None)
