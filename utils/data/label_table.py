"""Label tables: the ids that a data set stores, its trained classes, and their colours."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import zip_longest
from typing import Any

import cv2
import numpy as np
from cityscapesscripts.helpers.labels import labels as cityscapes_labels

ARRAYS = ("colors", "ids", "id_to_train")  # fields of LabelTable that checkpoints store
IGNORE = 255
INVALID = 254  # in `id_to_train`: the data set does not define this id
AVERAGE_SIZES = {  # mean pixels of an instance in Cityscapes' train split, from the official scorer
    "person": 3462.4756337644, "rider": 3930.4788056518, "car": 12794.0202738185,
    "truck": 27855.1264367816, "bus": 35732.1511111111, "train": 67583.7075812274,
    "motorcycle": 6298.7200839748, "bicycle": 4672.3249222261,
}  # fmt: skip
VOC_NAMES = (  # PASCAL VOC's; its id 255 is the border between objects, or void
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat",
    "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant",
    "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


@dataclass(frozen=True)
class LabelTable:
    """The K trained classes of a data set; an "id" is a number that its label files store."""

    names: tuple[str, ...]  # K, in train id order
    colors: np.ndarray  # (K,3) uint8 RGB
    ids: np.ndarray  # (K,) uint8: train id -> id
    id_to_train: np.ndarray  # (256,) uint8: id -> train id, IGNORE or INVALID
    num_ids: int  # ids are 0..num_ids-1; also the side of the confusion matrix
    # Only for data sets with categories or instances:
    categories: dict[str, tuple[int, ...]] = field(default_factory=dict)  # name -> train ids
    instance_sizes: dict[int, float] = field(default_factory=dict)  # id -> average pixels of one
    instance_categories: dict[str, tuple[int, ...]] = field(default_factory=dict)  # name -> ids
    palette: bool = False  # the label files are PNGs with a palette
    color_to_train: np.ndarray | None = None  # (2^24,) uint8: RGB of a label file -> train id
    instance_base: int = 1000  # an instance id is this times its id plus 0, 1, ...
    stuff_area: int = 2048  # pixels in an image; predicted stuff with fewer becomes void
    release: str = ""  # the download that holds the label files, for messages

    @property
    def meaning(self) -> int:
        """A checksum of the class names and of the ids or colours that stand for the classes."""
        number = zlib.crc32(repr((self.names, self.id_to_train.tolist())).encode())
        return number if self.color_to_train is None else zlib.crc32(self.color_to_train, number)

    def plain(self) -> dict[str, Any]:
        """The fields that predictions need, for a checkpoint; from_plain is the inverse."""
        names = ("num_ids", "palette", "meaning", "instance_sizes", "stuff_area")
        kept = {name: getattr(self, name) for name in names}
        return {"names": list(self.names), **kept} | {x: getattr(self, x).tolist() for x in ARRAYS}

    @classmethod
    def from_plain(cls, content: dict[str, Any]) -> "LabelTable":
        """A table without categories and colours of label files."""
        arrays = {name: np.array(content[name], np.uint8) for name in ARRAYS}
        kept = {name: content[name] for name in ("num_ids", "palette")}
        for name in ("instance_sizes", "stuff_area"):  # older checkpoints have none
            kept |= {name: content[name]} if name in content else {}
        return cls(tuple(content["names"]), **arrays, **kept)

    def difference(self, names: Sequence[str], plain: dict[str, Any] | None) -> str:
        """How this table differs from that of a checkpoint, "" if it does not. plain: None for an
        older checkpoint, which stores only the names of its classes."""
        what = "{} {} is {} in the data set and {} in the checkpoint"
        for number, pair in enumerate(zip_longest(self.names, names)):
            if pair[0] != pair[1]:
                return what.format("class", number, *(f"'{x}'" if x else "missing" for x in pair))
        if plain is None or plain["meaning"] == self.meaning:
            return ""
        for number, pair in enumerate(zip(self.id_to_train, plain["id_to_train"], strict=True)):
            if pair[0] != pair[1] and min(pair) < INVALID:
                words = (names[x] if x < INVALID else "no class" for x in pair)
                return what.format("id", number, *words)
        return "" if self.color_to_train is None else "colours of label files mean other classes"

    @property
    def num_classes(self) -> int:
        return len(self.names)

    def to_ids(self, train_ids: np.ndarray) -> np.ndarray:
        """(H,W) uint8 train ids -> (H,W) uint8 ids; pixels of no class get an ignored id."""
        ignored = np.flatnonzero(self.id_to_train[: self.num_ids] == IGNORE)
        others = np.setdiff1d(np.arange(self.num_ids), self.ids)
        table = np.full(256, ignored[0] if len(ignored) else others[-1], np.uint8)
        table[: self.num_classes] = self.ids
        return cv2.LUT(train_ids, table)

    def to_plain_ids(self, instances: np.ndarray) -> np.ndarray:
        """uint16 instance ids -> uint8 ids, same shape."""
        return ids_of_instances(instances, self.instance_base)

    @property
    def is_thing(self) -> np.ndarray:
        """(K,) bool: the classes whose instances have ids."""
        return np.isin(self.ids, [*self.instance_sizes])

    def without_instances(self) -> "LabelTable":
        """The table for labels without instance ids: scores then omit nIoU."""
        return replace(self, instance_sizes={}, instance_categories={})

    def draw(self, train_ids: np.ndarray) -> np.ndarray:
        """(H,W) uint8 train ids -> (H,W,3) uint8 RGB; ignored pixels are black."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: self.num_classes] = self.colors
        return palette[train_ids]


def voc_palette() -> np.ndarray:
    """(256,3) uint8 RGB of the PASCAL VOC development kit, from the bits of the index."""
    index = np.arange(256)[:, None] >> 3 * np.arange(8)  # groups of three bits, lowest first
    bits = index[:, :, None] >> np.arange(3) & 1
    return (bits << 7 - np.arange(8)[:, None]).sum(1).astype(np.uint8)


def ids_of_instances(instances: np.ndarray, base: int = 1000) -> np.ndarray:
    """Instance ids, uint16 (id * base + k, or a plain id) -> uint8 ids, same shape."""
    return cv2.LUT(instances, id_of_instance(base))


@cache
def id_of_instance(base: int) -> np.ndarray:
    numbers = np.arange(1 << 16)
    return np.uint8(np.where(numbers < base, numbers.clip(max=255), numbers // base))


def _cityscapes() -> LabelTable:
    known = [label for label in cityscapes_labels if label.id >= 0]
    trained = sorted((x for x in known if x.trainId != IGNORE), key=lambda x: x.trainId)
    id_to_train = np.full(256, INVALID, np.uint8)
    id_to_train[[x.id for x in known]] = [x.trainId for x in known]
    members = {x.category: [y for y in known if y.category == x.category] for x in trained}
    categories = {name: tuple(x.trainId for x in trained if x.category == name) for name in members}
    return LabelTable(
        names=tuple(x.name for x in trained),
        colors=np.array([x.color for x in trained], np.uint8),
        ids=np.array([x.id for x in trained], np.uint8),
        id_to_train=id_to_train,
        num_ids=1 + max(x.id for x in known),
        categories=categories,
        instance_sizes={x.id: AVERAGE_SIZES[x.name] for x in trained if x.hasInstances},
        instance_categories={
            name: tuple(x.id for x in group)
            for name, group in members.items()
            if all(x.hasInstances for x in group)
        },
    )


CITYSCAPES = _cityscapes()
VOC_IDS = np.arange(len(VOC_NAMES), dtype=np.uint8)
VOC = LabelTable(
    names=VOC_NAMES,
    colors=voc_palette()[VOC_IDS],
    ids=VOC_IDS,
    id_to_train=np.uint8([*VOC_IDS, *[INVALID] * (255 - len(VOC_IDS)), IGNORE]),
    num_ids=len(VOC_IDS) + 1,
    palette=True,
)
