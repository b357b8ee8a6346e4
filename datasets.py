"""The data sets and the samples of their splits, without augmentation.

A data set of folders and ids needs no code: configs/datasets/<name>.yaml describes it.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.base.errors import UserError
from utils.base.paths import read_names, resolve_data_folder, to_path
from utils.data import cityscapes, coco, coco_panoptic, voc
from utils.data.dataset import DataSet, Dataset, Files, NoImages, converted_labels
from utils.data.described import described_data_set, described_names
from utils.data.image_files import image_size, read_image, read_label
from utils.data.label_table import LabelTable
from utils.data.packed import PackedDataset, packed_path
from utils.data.sources import require_unchanged

# The data sets that need code; find_data_set adds those that a YAML file describes.
DATASETS: dict[str, DataSet] = {
    "cityscapes": cityscapes.DATA_SET,
    "synthetic": cityscapes.SYNTHETIC,
    "voc": voc.DATA_SET,
    "coco": coco.COCO,
    "coco_2014": coco.COCO_2014,
    "coco_panoptic": coco_panoptic.COCO_PANOPTIC,
}


def data_set_names() -> list[str]:
    return [*DATASETS, *described_names()]


def find_data_set(name: str, root: Path) -> DataSet:
    """The data set `name`; root/dataset.yaml describes "custom". UserError for an unknown name."""
    if name in DATASETS:
        return DATASETS[name]
    if name not in described_names():
        known = ", ".join(data_set_names())
        raise UserError(f"--dataset {name}: unknown data set. Give one of {known}")
    return described_data_set(name, root)


def resolve_data_root(name: str, data_root: Path | None) -> Path:
    """Absolute path of `data_root`, or of the data set's default folder."""
    variable = DATASETS[name].variable if name in DATASETS else None
    return resolve_data_folder(name, data_root, variable)


def build_dataset(
    name: str,
    root: Path,
    split: str,
    *,
    packed: bool = True,
    fine_repeats: int = 1,
    instances: bool = False,
) -> Dataset:
    """The samples of a split of data set `name` below `root`.

    packed: read the packed file of utils/preprocess_data.py if it exists.
    instances: with "instance" also in the training splits; a packed file without it is not read.
    fine_repeats: how often train_extra contains each of its finely labelled images.
    """
    data_set = find_data_set(name, root)
    known = (*data_set.splits, *data_set.unions)
    if split not in known:
        raise UserError(f"--split {split}: not in {name}. Give one of {', '.join(known)}")
    if split in data_set.unions:
        first, *others = (
            build_dataset(name, root, part, packed=packed, instances=instances)
            for part in data_set.unions[split]
        )
        repeats = fine_repeats if split == "train_extra" else 1
        return JoinedDataset([*[first] * repeats, *others])
    require_unchanged(converted_labels(root, split), data_set, root)
    path = packed_path(root, split)
    if packed and path.is_file():
        packed_set = PackedDataset(path, data_set.classes)
        packed_set.require_current(data_set, root, split)
        if not instances or "instance" in packed_set.layout.planes:
            return packed_set
    return SegmentationDataset(data_set.files(root, split, instances=instances), data_set.classes)


def listed(dataset: Dataset, path: Path) -> Dataset:
    """The images of `dataset` that a text file lists: in each line a name or the path of an image,
    perhaps followed by that of its label. UserError for other names."""
    places = {name: place for place, name in enumerate(dataset.names)}
    names = [name_in(line, places) for line in read_names(path)]
    if not names:
        raise UserError(f"{path}: empty. List the names of images")
    if missing := [name for name in names if name not in places]:
        what = f"{len(missing)} of {len(names)} names are not in the split, such as {missing[0]}"
        raise UserError(f"{path}: {what}. Correct them, or give another --split")
    part = JoinedDataset([dataset])
    part.names, part.places = names, [(dataset, places[name]) for name in names]
    return part


def name_in(line: str, known: Collection[str]) -> str:
    """The image that a line of a list means: one of `known`, or else the line itself."""
    for text in (line, line.split()[0]):  # names may contain spaces
        stem = Path(text).stem
        for name in (text, Path(text).name, stem, stem.removesuffix("_leftImg8bit")):
            if name in known:
                return name
    return line


def with_others(dataset: Dataset, also: Sequence[str], *, instances: bool = False) -> Dataset:
    """The samples of `dataset`, then those of the train splits of `also`: names of data sets with
    the same classes, or NAME=FOLDER."""
    parts = [dataset]
    for spec in also:
        name, _, folder = spec.partition("=")
        if name not in data_set_names():
            known = ", ".join(data_set_names())
            raise UserError(f"--also {spec}: unknown data set. Give names among {known}")
        root = resolve_data_root(name, to_path(folder) if folder else None)
        try:
            parts.append(build_dataset(name, root, "train", instances=instances))
        except NoImages as error:
            raise UserError(f"--also {spec}: no images below {root}. Give {name}=FOLDER") from error
        if what := parts[-1].classes.difference(dataset.classes.names, None):
            what = what.replace("the data set", name).replace("the checkpoint", "--dataset")
            raise UserError(f"--also {spec}: {what}. Give data sets with the same classes")
    return JoinedDataset(parts) if also else dataset


class SegmentationDataset(Dataset):
    """Samples of one split, decoded from their files on demand."""

    source = "image files"

    def __init__(self, files: list[Files], classes: LabelTable) -> None:
        self.files = files
        self.names = [x.name for x in files]
        kinds = ("instances", "train_ids", "ids")  # best first: ids follow from instances
        self.kind = next((kind for kind in kinds if getattr(files[0], kind)), None)
        self.classes = classes.without_instances() if self.kind == "ids" else classes
        self.has_labels = self.kind is not None
        self.checked = files[0].train_ids is not None  # preprocessing has read every label file

    def image(self, index: int) -> np.ndarray:
        return read_image(self.files[index].image)

    def size(self, index: int) -> tuple[int, int]:
        return image_size(self.files[index].image)

    def train_ids(self, index: int) -> np.ndarray:
        return self.truth(index, self.size(index))["label"]

    def truth(self, index: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
        """A sample's "label" and "instance", if they exist; UserError if their size differs."""
        if self.kind is None:
            return {}
        path = getattr(self.files[index], self.kind)
        planes = read_label(path, self.kind, self.classes)
        if planes["label"].shape != size:
            what = f"{planes['label'].shape} pixels, its image has {size}"
            raise UserError(f"{path}: {what}. Give both the same size")
        return planes

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = self.image(index)
        return {"image": image, "name": self.names[index], **self.truth(index, image.shape[:2])}


class JoinedDataset(Dataset):
    """Splits with the same classes, one after the other; a split may occur several times."""

    def __init__(self, parts: list[Dataset]) -> None:
        self.places = [(part, index) for part in parts for index in range(len(part))]
        self.names = [name for part in parts for name in part.names]
        self.classes = parts[0].classes
        self.checked = all(part.checked for part in parts)
        self.has_labels = all(part.has_labels for part in parts)
        self.source = " and ".join(dict.fromkeys(part.source for part in parts))

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, place = self.places[index]
        return part[place]

    def image(self, index: int) -> np.ndarray:
        part, place = self.places[index]
        return part.image(place)

    def size(self, index: int) -> tuple[int, int]:
        part, place = self.places[index]
        return part.size(place)

    def train_ids(self, index: int) -> np.ndarray:
        part, place = self.places[index]
        return part.train_ids(place)
