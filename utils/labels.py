"""Label tables: which ids a data set stores, which classes are trained, how they are drawn."""

import os
from dataclasses import dataclass
from types import ModuleType

import cv2
import numpy as np
from cityscapesscripts.helpers.labels import labels as cityscapes_labels

IGNORE = 255
INVALID = 254  # marks, in `id_to_train`, an id that the data set does not define


@dataclass(frozen=True)
class LabelTable:
    """A data set's classes. K trained classes; "id" is the number stored in the set's own files."""

    names: tuple[str, ...]  # K, in train id order
    colors: np.ndarray  # (K,3) uint8 RGB
    ids: np.ndarray  # (K,) uint8: train id -> id
    id_to_train: np.ndarray  # (256,) uint8: id -> train id, IGNORE or INVALID
    num_ids: int  # ids are 0..num_ids-1: the side of the confusion matrix
    categories: dict[str, tuple[int, ...]]  # name -> train ids; empty where the set has none
    instance_sizes: dict[int, float]  # id -> average pixels of an instance, where classes have them
    instance_categories: dict[str, tuple[int, ...]]  # name -> ids, where all of them have instances
    palette: bool = False  # the set's own label files are PNGs with a palette

    @property
    def num_classes(self) -> int:
        return len(self.names)

    def to_ids(self, labels: np.ndarray) -> np.ndarray:
        """(H,W) uint8 train ids -> (H,W) uint8 ids; all that is no class becomes an ignored id."""
        ignored = np.flatnonzero(self.id_to_train[: self.num_ids] == IGNORE)
        table = np.full(256, ignored[0] if len(ignored) else self.num_ids - 1, np.uint8)
        table[: self.num_classes] = self.ids
        return cv2.LUT(labels, table)

    def draw(self, labels: np.ndarray) -> np.ndarray:
        """(H,W) uint8 train ids -> (H,W,3) uint8 RGB; ignored pixels are black."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: self.num_classes] = self.colors
        return palette[labels]


def voc_palette() -> np.ndarray:
    """(256,3) uint8 RGB of the PASCAL VOC development kit: bits of the index, spread."""
    index = np.arange(256)[:, None] >> 3 * np.arange(8)  # groups of three bits, lowest first
    bits = index[:, :, None] >> np.arange(3) & 1
    return (bits << 7 - np.arange(8)[:, None]).sum(1).astype(np.uint8)


def label_ids(instances: np.ndarray) -> np.ndarray:
    """Cityscapes instance ids, uint16 (id * 1000 + k, or a plain id) -> uint8 ids, same shape."""
    return cv2.LUT(instances, LABEL_OF_INSTANCE)


def official_scorer() -> ModuleType:
    """cityscapesScripts' evalPixelLevelSemanticLabeling, whatever the environment holds."""
    export = os.environ.pop("CITYSCAPES_EXPORT_DIR", None)  # read at import; not there: ValueError
    try:
        from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling
    finally:
        if export is not None:
            os.environ["CITYSCAPES_EXPORT_DIR"] = export
    return evalPixelLevelSemanticLabeling


def _cityscapes() -> LabelTable:
    trained = sorted(
        (x for x in cityscapes_labels if 0 <= x.trainId < 255), key=lambda x: x.trainId
    )
    id_to_train = np.full(256, INVALID, np.uint8)
    for label in cityscapes_labels:
        if label.id >= 0:
            id_to_train[label.id] = label.trainId if label in trained else IGNORE
    categories: dict[str, tuple[int, ...]] = {}
    for label in trained:
        categories[label.category] = (*categories.get(label.category, ()), label.trainId)
    sizes = official_scorer().args.avgClassSize
    members = {
        name: [x for x in cityscapes_labels if x.category == name and x.id >= 0]
        for name in categories
    }
    return LabelTable(
        names=tuple(label.name for label in trained),
        colors=np.array([label.color for label in trained], np.uint8),
        ids=np.array([label.id for label in trained], np.uint8),
        id_to_train=id_to_train,
        num_ids=1 + max(label.id for label in cityscapes_labels),
        categories=categories,
        instance_sizes={x.id: sizes[x.name] for x in trained if x.hasInstances},
        instance_categories={
            name: tuple(label.id for label in group)
            for name, group in members.items()
            if all(label.hasInstances for label in group)
        },
    )


def _camvid() -> LabelTable:
    """The 11 classes of the SegNet split (Badrinarayanan et al., 2017); id 11 is void."""
    classes = {
        "sky":         (128, 128, 128),
        "building":    (128,   0,   0),
        "pole":        (192, 192, 128),
        "road":        (128,  64, 128),
        "pavement":    ( 60,  40, 222),
        "tree":        (128, 128,   0),
        "sign":        (192, 128, 128),
        "fence":       ( 64,  64, 128),
        "car":         ( 64,   0, 128),
        "pedestrian":  ( 64,  64,   0),
        "bicyclist":   (  0, 128, 192),
    }  # fmt: skip
    return _plain(tuple(classes), np.array(list(classes.values()), np.uint8), void=11)


def _voc() -> LabelTable:
    """PASCAL VOC's background and 20 objects; 255 is the border between objects, or void."""
    names = (
        "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
        "motorbike person pottedplant sheep sofa train tvmonitor"
    )
    return _plain(tuple(names.split()), voc_palette()[:21], void=IGNORE, palette=True)


def _plain(
    names: tuple[str, ...], colors: np.ndarray, *, void: int, palette: bool = False
) -> LabelTable:
    """Ids are train ids; `void` is ignored."""
    id_to_train = np.full(256, INVALID, np.uint8)
    id_to_train[: len(names)] = np.arange(len(names))
    id_to_train[void] = IGNORE
    return LabelTable(
        names=names,
        colors=colors,
        ids=np.arange(len(names), dtype=np.uint8),
        id_to_train=id_to_train,
        num_ids=len(names) + 1,
        categories={},
        instance_sizes={},
        instance_categories={},
        palette=palette,
    )


_NUMBERS = np.arange(1 << 16)
LABEL_OF_INSTANCE = np.where(_NUMBERS < 1000, np.minimum(_NUMBERS, 255), _NUMBERS // 1000)
LABEL_OF_INSTANCE = LABEL_OF_INSTANCE.astype(np.uint8)
CITYSCAPES = _cityscapes()
CAMVID = _camvid()
VOC = _voc()
