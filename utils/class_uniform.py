"""Class-uniform crops: a share of them shows a class drawn with equal chances, rare or common.

After Zhu et al. (arXiv 1812.01593), who train Cityscapes with half of the crops drawn so.
"""

from collections.abc import Iterable

import numpy as np

from utils.labels import IGNORE

CLASS_UNIFORM = 5  # keeps this random stream apart from the others
TILE = 128  # pixels; small, so that a crop over a class's centroid in a tile shows the class
STEP = 4  # every fourth pixel in both directions is looked at


def centroids(label: np.ndarray) -> np.ndarray:
    """(H,W) uint8 train ids -> (M,3) int32: class, y, x of each class's centroid in each tile."""
    y, x = np.mgrid[: label.shape[0] : STEP, : label.shape[1] : STEP]
    tile = y // TILE * (label.shape[1] // TILE + 1) + x // TILE
    cell = (tile * 256 + label[::STEP, ::STEP]).ravel()
    counts = np.bincount(cell)
    found = np.flatnonzero(counts)
    found = found[found % 256 != IGNORE]
    middle = [np.bincount(cell, axis.ravel())[found] / counts[found] for axis in (y, x)]
    return np.column_stack([found % 256, *middle]).astype(np.int32)


class ClassUniform:
    """Which image a crop is cut from, and over which pixel; a pure function of (epoch, index)."""

    def __init__(self, labels: Iterable[np.ndarray], *, share: float, seed: int) -> None:
        """From all labels of the training set, each (H,W) uint8 train ids, in its order."""
        places = np.concatenate(
            [np.insert(centroids(label), 1, image, axis=1) for image, label in enumerate(labels)]
        )
        self.places = [places[places[:, 0] == number, 1:] for number in np.unique(places[:, 0])]
        self.share = share
        self.seed = seed

    def draw(self, epoch: int, index: int) -> tuple[int, tuple[int, int] | None]:
        """Image `index` and None, or, for a share of the samples, another image and its (y, x)."""
        rng = np.random.default_rng((CLASS_UNIFORM, self.seed, epoch, index))
        if not self.places or rng.random() >= self.share:
            return index, None
        places = self.places[rng.integers(len(self.places))]
        image, y, x = places[rng.integers(len(places))].tolist()
        return image, (y, x)
