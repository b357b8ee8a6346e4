"""IoU of a class by the size of its objects."""

import cv2
import numpy as np

from evaluation.panoptic_quality import LIMITS
from evaluation.task import Sample
from utils.data.label_table import IGNORE, LabelTable

SIZES = ("small, below 32x32 pixels", "medium", "large, from 96x96")


def count_by_size(sample: Sample, train_ids: np.ndarray, classes: LabelTable) -> np.ndarray:
    """(K,3,3) int64: intersection, union, objects of each class and size; zeros for stuff.

    An object is an instance, or a connected region of a class in a data set without instances. A
    connected region of predicted pixels belongs to the object that it covers most, else it counts
    by its own size. So intersections and unions of the sizes add up to those of the class.
    """
    counts = np.zeros((classes.num_classes, len(SIZES), 3), np.int64)
    truth = sample["label"]
    things = [i for i, x in enumerate(classes.ids.tolist()) if x in classes.instance_sizes]
    for number in things or range(classes.num_classes):
        mine = truth == number
        found = (train_ids == number) & (truth != IGNORE)
        left, top, width, height = cv2.boundingRect((mine | found).view(np.uint8))
        if not width:
            continue
        part = (slice(top, top + height), slice(left, left + width))
        mine, found = mine[part], found[part]
        if "instance" in sample:
            objects = np.where(mine, sample["instance"][part], 0)
        else:
            objects = cv2.connectedComponents(mine.view(np.uint8))[1]
        regions = cv2.connectedComponents(found.view(np.uint8))[1]
        areas, sizes = (np.bincount(x.ravel()) for x in (objects, regions))
        areas[0] = 0  # pixels outside all objects
        kinds, homes = np.digitize(areas, LIMITS), np.digitize(sizes, LIMITS)
        both = mine & found
        pairs = regions[both].astype(np.int64) * len(areas) + objects[both]
        pairs, shared = np.unique(pairs, return_counts=True)
        region, covered = np.divmod(pairs[np.argsort(shared)], len(areas))
        homes[region] = kinds[covered]  # the object covered most comes last and stays
        false = np.bincount(regions[found & ~mine], minlength=len(sizes))
        most = {"minlength": len(SIZES)}
        hits = np.bincount(kinds[objects[both]], **most)
        union = np.bincount(kinds, areas, **most) + np.bincount(homes, false, **most)
        counts[number] = np.stack([hits, union, np.bincount(kinds[areas > 0], **most)], 1)
    return counts
