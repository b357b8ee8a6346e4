"""Class-uniform crops: a share of the crops shows a class that is drawn with equal probabilities.

After Zhu et al. (arXiv 1812.01593), who draw half of the Cityscapes crops this way.
"""

from collections.abc import Iterable

import numpy as np

from utils.data.augment import Stream
from utils.data.label_table import IGNORE

TILE = 128  # pixels; small, so that a crop over a class's centroid in a tile shows the class
STEP = 4  # only every fourth pixel in both directions counts


def centroids(train_ids: np.ndarray) -> np.ndarray:
    """(H,W) uint8 train ids -> (M,3) int32: class, y, x of each class's centroid in each tile."""
    y, x = np.mgrid[: train_ids.shape[0] : STEP, : train_ids.shape[1] : STEP]
    tile = y // TILE * (train_ids.shape[1] // TILE + 1) + x // TILE
    cell = (tile * 256 + train_ids[::STEP, ::STEP]).ravel()
    counts = np.bincount(cell)
    present = np.flatnonzero(counts)
    present = present[present % 256 != IGNORE]
    middle = [np.bincount(cell, axis.ravel())[present] / counts[present] for axis in (y, x)]
    return np.column_stack([present % 256, *middle]).astype(np.int32)


class ClassUniform:
    """Draws a crop's image and the pixel it must contain: a pure function of (epoch, index)."""

    def __init__(self, train_ids: Iterable[np.ndarray], *, share: float, seed: int) -> None:
        """train_ids: all labels of the training set in its order, each (H,W) uint8."""
        places = np.concatenate(
            [np.insert(centroids(x), 1, image, axis=1) for image, x in enumerate(train_ids)]
        )
        self.places = [places[places[:, 0] == number, 1:] for number in np.unique(places[:, 0])]
        self.share, self.seed = share, seed

    def draw(self, epoch: int, index: int) -> tuple[int, tuple[int, int] | None]:
        """(`index`, None), or for a share of the samples another image and its pixel (y, x)."""
        rng = np.random.default_rng((Stream.CLASS_UNIFORM, self.seed, epoch, index))
        if not self.places or rng.random() >= self.share:
            return index, None
        places = self.places[rng.integers(len(self.places))]
        image, y, x = places[rng.integers(len(places))].tolist()
        return image, (y, x)
