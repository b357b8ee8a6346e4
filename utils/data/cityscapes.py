"""Cityscapes (cityscapes-dataset.com; Cordts et al., CVPR 2016) and synthetic scenes in its format.

utils/preprocess_data.py converts label ids to train ids once. The val split reads instance ids
instead, because label ids and train ids follow from them.
"""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from utils.base.errors import UserError, warn
from utils.base.find import find_named
from utils.base.threads import read_ahead
from utils.data.class_weights import WEIGHTS_FILE, histogram, read_noted, write_class_weights
from utils.data.dataset import DataSet, FoundFiles, NoImages, Server, complete_files, train_id_path
from utils.data.image_files import contradiction, read_ids, read_train_ids
from utils.data.label_table import CITYSCAPES
from utils.data.sources import compare, convert, noting

FOLDERS = {  # split -> folder of its images and labels, kind of its labels
    "train": ("train", "gtFine"),
    "val": ("val", "gtFine"),
    "test": ("test", "gtFine"),
    "coarse": ("train_extra", "gtCoarse"),
}
ENDINGS = {"image": "", "ids": "_labelIds", "instances": "_instanceIds"}
PUBLISHED_BROKEN = "troisdorf_000000_000073"  # image of train_extra
UNPACK = "Unpack gtFine"


def first_folder(root: Path, kind: str, split: str) -> Path:
    """`root/kind/split`, or that folder in the layout of the unpacked Cityscapes zip files."""
    nested = root / f"{kind}_trainvaltest" / kind / split
    return nested if nested.is_dir() else root / kind / split


def find(root: Path, split: str) -> FoundFiles:
    """Files that training and evaluation read: the train ids that prepare writes for train, the
    instance ids of val, or label ids if no instance ids were unpacked."""
    if split == "train":
        images = find_files(root, split, "image")
        return {"image": images, "train_ids": {x: train_id_path(root, x) for x in images}}
    found = downloaded(root, split)
    if "instances" in found:
        del found["ids"]
    return found


def downloaded(root: Path, split: str) -> FoundFiles:
    """Images, label ids, instance ids if any were unpacked, and train ids that prepare wrote."""
    kinds = {"test": ("image",), "coarse": ("image", "ids")}.get(split, ENDINGS)
    found = {kind: find_files(root, split, kind) for kind in kinds}
    if found.get("ids") and not found.get("instances", True):
        del found["instances"]
    paths = {x: train_id_path(root, x) for x in found["image"] | found.get("ids", {})}
    written = {x: path for x, path in paths.items() if split == "train" and path.is_file()}
    return found | ({"train_ids": written} if written else {})


def find_files(root: Path, split: str, kind: str) -> dict[str, Path]:
    """Image name -> file of the split, sorted; kind: one of ENDINGS. NoImages without an image."""
    part, labels = FOLDERS[split]
    top = "leftImg8bit" if kind == "image" else labels
    folder, ending = first_folder(root, top, part), f"{top}{ENDINGS[kind]}.png"
    paths = find_named(folder, f"*/{{name}}_{ending}")
    paths.pop(PUBLISHED_BROKEN, None)
    if kind == "image" and not paths:
        raise NoImages(
            f"{root}: no images {folder}/*/*_{ending}. "
            "Give the data set's folder with --data_root, or try without data: make demo"
        )
    return paths


def find_instances(root: Path, split: str) -> dict[str, Path]:
    """find_files of the instance ids; UserError if some images have none, but label ids."""
    found, ids = (find_files(root, split, kind) for kind in ("instances", "ids"))
    if missing := [name for name in ids if found and name not in found]:
        what = f"{len(missing)} of {len(ids)} images have no instanceIds, first {missing[0]}"
        raise UserError(f"{first_folder(root, 'gtFine', split)}: {what}. {UNPACK} again")
    return found


def prepare(root: Path, *, workers: int, overwrite: bool) -> bool:
    """Write train ids of train and val below root/meta, and the class weights of train."""
    labels: dict[str, dict[str, Path]] = {}
    for split in ("train", "val"):
        found = {kind: find_files(root, split, kind) for kind in ("image", "ids")}
        labels[split] = {x.name: x.ids for x in complete_files(found, root, split, UNPACK)}
    instances = find_files(root, "val", "instances")
    weights, outputs = root / WEIGHTS_FILE, {x: train_id_path(root, x) for x in labels["train"]}
    changed, _ = compare(weights, root, CITYSCAPES, outputs.values())
    contradicting: list[str] = []

    def read(name: str) -> np.ndarray:
        path = labels["train"].get(name) or labels["val"][name]
        with suppress(UserError):  # evaluation and --check report a damaged file
            if name in instances:
                contradicting.extend(contradiction(path, read_ids(instances[name], np.uint16)))
        return read_train_ids(path, CITYSCAPES)

    written: dict[str, np.ndarray] = {}
    for split, paths in labels.items():
        again = overwrite or (split == "train" and bool(changed))  # a converted label changed
        how = {"workers": workers, "overwrite": again}
        written |= convert(root, split, paths, CITYSCAPES, read, **how)
    known = read_noted(root, CITYSCAPES, "class_weights") is not None
    if not written and changed == [] and known:
        print(f"{root / 'meta'}: up to date, nothing to do")
        return True

    def count(name: str) -> np.ndarray:
        """(256,) int64 pixel counts."""
        return written[name] if name in written else histogram(read_ids(outputs[name], np.uint8))

    with noting(weights, root, outputs.values(), CITYSCAPES):
        total = sum(read_ahead(count, outputs, workers=workers, ahead=2 * workers))
        write_class_weights(root, total, CITYSCAPES.names, images=len(outputs))
    print(f"{root / 'meta'}: {len(written)} label images, class_weights.json")
    if contradicting:
        warn(f"{contradicting[0]}; {len(contradicting)} such files; scores use instanceIds")
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
        "train": "Run python utils/preprocess_data.py with the same --dataset and --data_root",
        "val": UNPACK,
        "coarse": "Unpack gtCoarse",
    },
    downloaded=downloaded,
    prepare=prepare,
    server=Server(1525, ".zip", "{}_pred_label_img.png"),
)
SYNTHETIC = replace(DATA_SET, name="synthetic", images={}, variable=None)
