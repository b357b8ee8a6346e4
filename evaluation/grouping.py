"""Semantic classes, heat of centers and offsets -> segments (Panoptic-DeepLab, section 3.3).

Needs only NumPy, OpenCV and cityscapesscripts, so it also serves programs that run an exported
network.
"""

import cv2
import numpy as np

from evaluation.panoptic_quality import Segments
from utils.data.class_weights import histogram

THRESHOLD = 0.1  # least heat of a center
MOST = 200  # centers
AT_ONCE = 1 << 11  # pixels whose distances to all centers are computed together


def group(
    train_ids: np.ndarray,
    heat: np.ndarray,
    offset: np.ndarray,
    *,
    things: np.ndarray,
    stuff_area: int = 2048,
) -> Segments:
    """(H,W) uint8 train ids, (h,w) and (2,h,w) float32 maps of the network -> segments.

    things: (K,) bool. stuff_area: stuff with fewer pixels becomes void. heat: 0 except at centers.
    offset: y and x, in pixels of the maps. A pixel of a thing belongs to the center that is nearest
    to the pixel plus its offset; most pixels of the instance decide its class. Without a center all
    things are void.
    """
    size, classes = train_ids.shape, len(things)
    scales = [full / small for full, small in zip(size, heat.shape, strict=True)]
    centers = find_centers(heat, scales)
    is_thing = np.zeros(256, bool)
    is_thing[:classes] = things & (len(centers) > 0)
    places = np.nonzero(is_thing[train_ids])
    maps = zip(places, offset, scales, strict=True)
    targets = np.stack([x + scale * resized(part, size)[places] for x, part, scale in maps], 1)
    own = nearest(targets, centers)

    votes = np.bincount(own * classes + train_ids[places], minlength=len(centers) * classes)
    votes = votes.reshape(len(centers), classes)
    areas = histogram(train_ids)[:classes]
    stuff = np.flatnonzero(~things & (areas >= max(1, stuff_area)))
    kept = np.flatnonzero(votes.any(1))
    table = np.zeros(256, np.uint16)
    table[stuff] = np.arange(1, len(stuff) + 1)
    numbers = cv2.LUT(train_ids, table)
    number_of = np.zeros(len(centers), np.uint16)
    number_of[kept] = len(stuff) + np.arange(1, len(kept) + 1)
    numbers[places] = number_of[own]
    categories = np.concatenate([stuff, votes[kept].argmax(1)])
    return Segments(numbers, categories, np.zeros(len(categories), bool))


def find_centers(heat: np.ndarray, scales: list[float]) -> np.ndarray:
    """(h,w) float32 -> (n,2) float32 y and x, times `scales`; the highest come first. Adjacent
    pixels are one center: they have the same heat."""
    centers = cv2.connectedComponentsWithStats((heat > THRESHOLD).astype(np.uint8))[3][1:, ::-1]
    heights = heat[tuple(np.rint(centers).astype(int).T)]
    highest = centers[np.argsort(-heights, kind="stable")[:MOST]]
    return ((highest + 0.5) * scales - 0.5).astype(np.float32)


def nearest(points: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """(p,2), (n,2) -> (p,) int64: the nearest center; memory does not grow with p."""
    own = np.zeros(len(points), np.int64)
    lines = np.column_stack([-2 * centers, (centers**2).sum(1)]).astype(np.float32).T
    for start in range(0, len(points), AT_ONCE):
        part = points[start : start + AT_ONCE]
        ones = np.ones((len(part), 1), np.float32)
        own[start : start + AT_ONCE] = (np.hstack([part, ones], dtype=np.float32) @ lines).argmin(1)
    return own


def resized(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return cv2.resize(values, size[::-1], interpolation=cv2.INTER_LINEAR)
