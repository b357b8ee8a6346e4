"""The data sets: which files belong to a split and what their labels mean. No augmentation here."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from utils.errors import UserError
from utils.files import PALETTE, first_folder, read_grey, read_png_header
from utils.labels import CAMVID, CITYSCAPES, INVALID, LabelTable, label_ids

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Files:
    """Where one sample lies. `label` holds train ids or ids, as the data set's `label_lut` says."""

    name: str
    image: Path
    label: Path | None = None
    instance: Path | None = None


class SegmentationDataset:
    """Samples of one split, decoded on demand; safe to share between threads."""

    def __init__(
        self, files: list[Files], classes: LabelTable, *, label_lut: np.ndarray | None
    ) -> None:
        self.files = files
        self.classes = classes
        self.label_lut = label_lut  # (256,) uint8, or None where label files hold train ids already

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": (H,W,3) uint8 RGB, "label": (H,W) uint8 train ids or 255, "name": str
        [, "instance": (H,W) uint16 instance ids, val split of sets that have them]}."""
        files = self.files[index]
        sample: dict[str, Any] = {"image": read_image(files.image), "name": files.name}
        if files.instance is not None:
            sample["instance"] = read_ids(files.instance, np.uint16)
            ids = label_ids(sample["instance"])
            sample["label"] = to_train_ids(ids, self.classes.id_to_train, files.instance)
        elif files.label is not None:
            label = read_ids(files.label, np.uint8)
            lut = self.label_lut
            sample["label"] = label if lut is None else to_train_ids(label, lut, files.label)
        for kind in ("label", "instance"):
            if kind in sample and sample[kind].shape != sample["image"].shape[:2]:
                raise UserError(
                    f"{getattr(files, kind) or files.instance}: {sample[kind].shape} pixels, its "
                    f"image has {sample['image'].shape[:2]}. Give both the same size"
                )
        return sample


def read_image(path: Path) -> np.ndarray:
    """PNG or JPEG file -> (H,W,3) uint8 RGB. EXIF rotation is ignored: labels have none."""
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.fromfile(path, np.uint8), flags)
    except (OSError, cv2.error) as error:
        raise UserError(f"{path}: cannot be read ({error}). Restore the file") from error
    if image is None:
        raise UserError(f"{path}: not a whole PNG or JPEG image. Replace the damaged file")
    return image


def read_ids(path: Path, dtype: type) -> np.ndarray:
    """One-channel PNG -> (H,W) ids; palette files give their indices (cv2 would give colours)."""
    if read_png_header(path).color != PALETTE:
        return read_grey(path, dtype)
    try:
        with Image.open(path) as image:
            image.verify()  # checksums; an image that was verified must be opened again
        with Image.open(path) as image:
            return np.asarray(image).astype(dtype)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not a whole PNG image. Replace the damaged file") from error


def to_train_ids(ids: np.ndarray, lut: np.ndarray, path: Path) -> np.ndarray:
    """(H,W) uint8 ids -> (H,W) uint8 train ids; UserError names ids that `lut` leaves undefined."""
    train_ids = cv2.LUT(ids, lut)
    if (train_ids == INVALID).any():
        found = ", ".join(map(str, np.unique(ids[train_ids == INVALID])))
        raise UserError(f"{path}: undefined label ids {found}. Give the data set's own id files")
    return train_ids


def cityscapes(root: Path, split: str) -> SegmentationDataset:
    """Cityscapes fine annotations (cityscapes-dataset.com), flat or as the zips unpack.

    Train labels are the files that utils/preprocess_data.py writes; val reads instance ids, from
    which label ids and train ids follow; test has images only.
    """
    images, labels = (first_folder(root, name, split) for name in ("leftImg8bit", "gtFine"))
    files = []
    for image in find_images(images, "*/*_leftImg8bit.png", root):
        name = image.name.removesuffix("_leftImg8bit.png")
        instance = labels / image.parent.name / f"{name}_gtFine_instanceIds.png"
        label = train_id_path(root, name)
        found = {"train": {"label": label}, "val": {"instance": instance}, "test": {}}[split]
        files.append(Files(name, image, **found))
    hint = {"train": "Run python utils/preprocess_data.py first", "val": "Unpack gtFine"}
    require_labels(files, hint.get(split, ""))
    return SegmentationDataset(files, CITYSCAPES, label_lut=None)


def train_id_path(root: Path, name: str) -> Path:
    """Where the train ids of a Cityscapes image lie once preprocessed."""
    return root / "meta" / "label_imgs" / f"{name}.png"


def cityscapes_label_ids(root: Path, split: str) -> list[Files]:
    """Every image of a split with its `*_gtFine_labelIds.png`: what preprocessing converts."""
    images, labels = (first_folder(root, name, split) for name in ("leftImg8bit", "gtFine"))
    files = []
    for image in find_images(images, "*/*_leftImg8bit.png", root):
        name = image.name.removesuffix("_leftImg8bit.png")
        label = labels / image.parent.name / f"{name}_gtFine_labelIds.png"
        files.append(Files(name, image, label))
    require_labels(files, "Unpack gtFine")
    return files


def camvid(root: Path, split: str) -> SegmentationDataset:
    """CamVid in the SegNet layout: <split>/*.png or *.jpg beside <split>annot/*.png, 11 classes."""
    files = [
        Files(image.stem, image, root / f"{split}annot" / f"{image.stem}.png")
        for image in find_images(root / split, "*.[pj][np]g", root)
    ]
    require_labels(files, f"Put it into {split}annot")
    return SegmentationDataset(files, CAMVID, label_lut=CAMVID.id_to_train)


def find_images(folder: Path, pattern: str, root: Path) -> list[Path]:
    """Sorted image files of a split; UserError when there are none."""
    images = sorted(folder.glob(pattern))
    if not images:
        raise UserError(
            f"{root}: no images {folder / pattern}. "
            "Name the data set's folder with --data_root, or try without data: make demo"
        )
    return images


def require_labels(files: list[Files], hint: str) -> None:
    """UserError naming the first images whose label or instance file is missing."""
    wanted = [path for x in files for path in (x.label, x.instance) if path is not None]
    missing = [path for path in wanted if not path.is_file()]
    if missing:
        first = ", ".join(path.name for path in missing[:3])
        count = f"{len(missing)} of {len(wanted)} label files missing"
        raise UserError(f"{missing[0].parent}: {count} ({first}). {hint}")


DATASETS: dict[str, Callable[[Path, str], SegmentationDataset]] = {
    "cityscapes": cityscapes,
    "synthetic": cityscapes,
    "camvid": camvid,
}


def build_dataset(name: str, root: Path, split: str) -> SegmentationDataset:
    """Data set `name` of DATASETS below `root`; `split` is train, val or test."""
    if name not in DATASETS or split not in SPLITS:
        raise ValueError(f"no data set {name!r} split {split!r}; have {list(DATASETS)} x {SPLITS}")
    return DATASETS[name](root, split)


def read_class_weights(root: Path, classes: LabelTable) -> torch.Tensor:
    """The (K,) float32 ENet class weights that utils/preprocess_data.py wrote."""
    path = root / "meta" / "class_weights.json"
    try:
        weights = json.loads(path.read_text(encoding="utf-8"))["class_weights"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: no class weights. Run python utils/preprocess_data.py, "
            "or train with --class_weights false"
        ) from error
    return torch.tensor([weights[name] for name in classes.names])
