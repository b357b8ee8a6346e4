"""The data sets: which files belong to a split and what their labels mean. No augmentation here."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from utils.cityscapes import cityscapes_files, labelled_files, zipped_files
from utils.custom import read_description
from utils.errors import UserError
from utils.images import image_size, labels_of, read_ids, read_image, to_train_ids
from utils.labels import CAMVID, CITYSCAPES, VOC, LabelTable
from utils.listing import Files, find_images, require_labels
from utils.packing import PackedFile, packed_path
from utils.voc import voc_samples

SPLITS = ("train", "val", "test")
MORE_SPLITS = {
    "cityscapes": ("train_extra",),
    "synthetic": ("train_extra",),
    "voc": ("trainaug",),
}


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
    """Several splits of one data set, one after the other; a split may come more than once."""

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
    """Cityscapes' fine annotations; also the synthetic data set, which has its format."""
    return SegmentationDataset(cityscapes_files(root, split), CITYSCAPES, label_lut=None)


def cityscapes_coarse(root: Path) -> SegmentationDataset:
    """Cityscapes' train_extra, 19,998 images with coarse annotations; ids are read as they are."""
    files = labelled_files(root, "train_extra", kind="gtCoarse")
    return SegmentationDataset(files, CITYSCAPES, label_lut=CITYSCAPES.id_to_train)


def zipped_cityscapes(archives: list[Path], split: str) -> SegmentationDataset:
    """Cityscapes train or val inside the official zip archives."""
    files = zipped_files(archives, split)
    return SegmentationDataset(files, CITYSCAPES, label_lut=CITYSCAPES.id_to_train)


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


def voc(root: Path, split: str) -> SegmentationDataset:
    """PASCAL VOC 2012 or 2007, 21 classes; trainaug is train and SBD's labels of other images."""
    files = [Files(*sample) for sample in voc_samples(root, split)]
    augmented = "Run python utils/preprocess_data.py --dataset voc first, or complete the list"
    require_labels(files, augmented if split == "trainaug" else "Unpack SegmentationClass")
    return SegmentationDataset(files, VOC, label_lut=VOC.id_to_train)


DATASETS: dict[str, Callable[[Path, str], SegmentationDataset]] = {
    "cityscapes": cityscapes,
    "synthetic": cityscapes,
    "camvid": camvid,
    "voc": voc,
    "custom": custom,
}
LABEL_TABLES = {"cityscapes": CITYSCAPES, "synthetic": CITYSCAPES, "camvid": CAMVID, "voc": VOC}


def label_table(name: str, root: Path) -> LabelTable:
    """The classes of data set `name`; a custom one's stand in its dataset.yaml."""
    return LABEL_TABLES.get(name) or read_description(root).label_table()


def build_dataset(
    name: str, root: Path, split: str, *, packed: bool = True, fine_repeats: int = 1
) -> Dataset:
    """Data set `name` of DATASETS below `root`; `split` is train, val, test, trainval or one of
    MORE_SPLITS.

    Where utils/preprocess_data.py packed the split, the packed file is read, unless told not to.
    fine_repeats: how often train_extra holds each finely labelled image.
    """
    if split == "trainval":
        return JoinedDataset([build_dataset(name, root, x, packed=packed) for x in SPLITS[:2]])
    splits = (*SPLITS, *MORE_SPLITS.get(name, ()))
    if name not in DATASETS or split not in splits:
        raise ValueError(f"no data set {name!r} split {split!r}; have {list(DATASETS)} x {splits}")
    if split == "train_extra":
        fine = build_dataset(name, root, "train", packed=packed)
        return JoinedDataset([*[fine] * fine_repeats, cityscapes_coarse(root)])
    path = packed_path(root, split)
    if not packed or not path.is_file():
        return DATASETS[name](root, split)
    classes = label_table(name, root)
    opened = PackedFile(path, classes)
    opened.require_current(root)
    return PackedDataset(opened, classes)
