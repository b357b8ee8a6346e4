"""The data sets: which files belong to a split and what their labels mean. No augmentation here."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.archives import Member, find_members
from utils.custom import read_description
from utils.errors import UserError
from utils.files import first_folder
from utils.images import image_size, labels_of, read_ids, read_image, to_train_ids
from utils.labels import CAMVID, CITYSCAPES, LabelTable
from utils.packing import PackedFile, packed_path

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Files:
    """Where one sample lies. `label` holds train ids or ids, as the data set's `label_lut` says."""

    name: str
    image: Path | Member
    label: Path | Member | None = None
    instance: Path | Member | None = None


class SegmentationDataset:
    """Samples of one split, decoded on demand; safe to share between threads."""

    source = "image files"

    def __init__(
        self, files: list[Files], classes: LabelTable, *, label_lut: np.ndarray | None
    ) -> None:
        self.files = files
        self.names = [x.name for x in files]
        self.has_labels = files[0].label is not None or files[0].instance is not None
        self.classes = classes
        self.label_lut = label_lut  # (256,) uint8, or None where label files hold train ids already
        self.checked = label_lut is None  # preprocessing has seen every label file

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> np.ndarray:
        """(H,W,3) uint8 RGB."""
        return read_image(self.files[index].image)

    def label(self, index: int) -> np.ndarray:
        """(H,W) uint8 train ids or 255; UserError where it has not its image's size."""
        label = self.truth(index)["label"]
        self.require_size(index, label, self.size(index))
        return label

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of the image; its pixels are not read."""
        return image_size(self.files[index].image)

    def truth(self, index: int) -> dict[str, np.ndarray]:
        """{"label": ...[, "instance": ...]} as in a sample; {} where there are none."""
        files = self.files[index]
        if files.instance is not None:
            instance = read_ids(files.instance, np.uint16)
            return {
                "instance": instance,
                "label": labels_of(instance, self.classes, files.instance),
            }
        if files.label is None:
            return {}
        label, lut = read_ids(files.label, np.uint8), self.label_lut
        return {"label": label if lut is None else to_train_ids(label, lut, files.label)}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": (H,W,3) uint8 RGB, "label": (H,W) uint8 train ids or 255, "name": str
        [, "instance": (H,W) uint16 instance ids, val split of sets that have them]}."""
        sample = {"image": self.image(index), "name": self.names[index], **self.truth(index)}
        if "label" in sample:
            self.require_size(index, sample["label"], sample["image"].shape[:2])
        return sample

    def require_size(self, index: int, label: np.ndarray, size: tuple[int, int]) -> None:
        if label.shape != size:
            path = self.files[index].instance or self.files[index].label
            raise UserError(
                f"{path}: {label.shape} pixels, its image has {size}. Give both the same size"
            )


class PackedDataset:
    """The same samples, as views of a packed file; only the pixels that are used are read."""

    has_labels = checked = True

    def __init__(self, packed: PackedFile, classes: LabelTable) -> None:
        self.packed = packed
        self.names = packed.names()
        self.classes = classes
        self.source = f"packed file {packed.path}"

    def __len__(self) -> int:
        return len(self.packed)

    def image(self, index: int) -> np.ndarray:
        """(H,W,3) uint8 RGB, read only."""
        return self.packed.planes(index)["image"]

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of the image."""
        return self.image(index).shape[:2]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """As SegmentationDataset's; image, label and instance are read only."""
        planes = self.packed.planes(index)
        return {"name": self.names[index], **planes, "label": self.label(index)}

    def label(self, index: int) -> np.ndarray:
        """(H,W) uint8 train ids or 255, read only."""
        planes = self.packed.planes(index)
        if "label" in planes:
            return planes["label"]
        return labels_of(planes["instance"], self.classes, self.packed.path)


class JoinedDataset:
    """Several splits of one data set, one after the other."""

    def __init__(self, parts: list[SegmentationDataset | PackedDataset]) -> None:
        self.places = [(part, index) for part in parts for index in range(len(part))]
        self.names = [name for part in parts for name in part.names]
        self.classes = parts[0].classes
        self.checked = all(part.checked for part in parts)
        self.source = " and ".join(dict.fromkeys(part.source for part in parts))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """As the part's."""
        part, place = self.places[index]
        return part[place]

    def label(self, index: int) -> np.ndarray:
        """As the part's."""
        part, place = self.places[index]
        return part.label(place)


Dataset = SegmentationDataset | PackedDataset | JoinedDataset


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


def custom(root: Path, split: str) -> SegmentationDataset:
    """Image and label files as <root>/dataset.yaml describes them; test may lack its labels."""
    described = read_description(root)
    classes = described.label_table()
    files = [Files(name, *pair) for name, *pair in described.samples(root, split)]
    return SegmentationDataset(files, classes, label_lut=classes.id_to_train)


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


def zipped_cityscapes(archives: list[Path], split: str) -> SegmentationDataset:
    """Cityscapes train or val inside the official zip archives, which are not unpacked."""
    kind, plane = {"train": ("labelIds", "label"), "val": ("instanceIds", "instance")}[split]
    found = [
        find_members(archives, pattern)
        for pattern in (
            f"leftImg8bit/{split}/*/*_leftImg8bit.png",
            f"gtFine/{split}/*/*_gtFine_{kind}.png",
        )
    ]
    images, labels = (
        {name.rpartition("/")[2].rsplit("_", count)[0]: member for name, member in members.items()}
        for members, count in zip(found, (1, 2), strict=True)
    )
    if missing := sorted(images.keys() - labels.keys()):
        count = f"{len(missing)} of {len(images)} {split} images have no {kind} ({missing[0]})"
        raise UserError(f"{archives[-1]}: {count}. Give gtFine_trainvaltest.zip as well")
    files = [Files(name, image, **{plane: labels[name]}) for name, image in images.items()]
    return SegmentationDataset(files, CITYSCAPES, label_lut=CITYSCAPES.id_to_train)


DATASETS: dict[str, Callable[[Path, str], SegmentationDataset]] = {
    "cityscapes": cityscapes,
    "synthetic": cityscapes,
    "camvid": camvid,
    "custom": custom,
}
LABEL_TABLES = {"cityscapes": CITYSCAPES, "synthetic": CITYSCAPES, "camvid": CAMVID}


def label_table(name: str, root: Path) -> LabelTable:
    """The classes of data set `name`; a custom one's stand in its dataset.yaml."""
    return LABEL_TABLES.get(name) or read_description(root).label_table()


def build_dataset(name: str, root: Path, split: str, *, packed: bool = True) -> Dataset:
    """Data set `name` of DATASETS below `root`; `split` is train, val, test or trainval.

    Where utils/preprocess_data.py packed the split, the packed file is read, unless told not to.
    """
    if split == "trainval":
        return JoinedDataset([build_dataset(name, root, x, packed=packed) for x in SPLITS[:2]])
    if name not in DATASETS or split not in SPLITS:
        raise ValueError(f"no data set {name!r} split {split!r}; have {list(DATASETS)} x {SPLITS}")
    path = packed_path(root, split)
    if not packed or not path.is_file():
        return DATASETS[name](root, split)
    classes = label_table(name, root)
    opened = PackedFile(path, classes)
    opened.require_current(root)
    return PackedDataset(opened, classes)


def read_class_weights(root: Path, classes: LabelTable) -> torch.Tensor:
    """The (K,) float32 ENet class weights that utils/preprocess_data.py wrote."""
    path = root / "meta" / "class_weights.json"
    try:
        weights = json.loads(path.read_text(encoding="utf-8"))["class_weights"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: no class weights. Run python utils/preprocess_data.py with the same "
            "--dataset and --data_root, or train with --class_weights false"
        ) from error
    return torch.tensor([weights[name] for name in classes.names])
