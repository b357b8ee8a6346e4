"""How sure a mean IoU is: images drawn again with replacement (Efron, 1979)."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from utils.data.label_table import LabelTable

DRAWS = 2000


@dataclass(frozen=True)
class ImageCounts:
    """Pixels of each class in each image: hits, and hits with both kinds of errors."""

    hits: np.ndarray  # (N,K) int64
    union: np.ndarray  # (N,K) int64

    @classmethod
    def of(cls, confusions: list[np.ndarray], classes: LabelTable) -> "ImageCounts":
        """From an (ids,ids) confusion per image; ignored pixels are left out, as in the score."""
        ids = classes.ids
        evaluated = np.stack(confusions)[:, ids]  # rows: truth
        hits = evaluated[:, np.arange(len(ids)), ids]
        union = evaluated.sum(2) + evaluated[:, :, ids].sum(1) - hits
        return cls(hits, union)

    def miou(self, weights: np.ndarray | None = None) -> np.ndarray:
        """(...,N) how often each image counts -> (...) mean IoU over the classes that occur."""
        weights = np.ones(len(self.hits)) if weights is None else weights
        hits, union = weights @ self.hits.astype(float), weights @ self.union.astype(float)
        present = (union > 0).sum(-1)
        with np.errstate(invalid="ignore"):
            return (hits / np.maximum(union, 1)).sum(-1) / present


@dataclass(frozen=True)
class Estimate:
    """A figure, its 95 % interval, and the two-sided p-value of its being zero."""

    value: float
    low: float
    high: float
    p: float


@lru_cache(maxsize=4)
def draw_weights(images: int, draws: int) -> np.ndarray:
    """(draws,N): how often each of N images was drawn."""
    even = np.full(images, 1 / images)
    return np.random.default_rng(0).multinomial(images, even, size=draws).astype(np.float64)


def estimate(one: ImageCounts, minus: ImageCounts | None = None, *, draws: int = DRAWS) -> Estimate:
    """mIoU of a data set's images, as a sample of all such images, minus that of another network on
    the same ones, drawn together. Percentile interval; p follows from the share beyond zero."""
    weights = draw_weights(len(one.hits), draws)
    value, drawn = one.miou(), one.miou(weights)
    if minus is not None:
        value, drawn = value - minus.miou(), drawn - minus.miou(weights)
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
    beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return Estimate(float(value), low, high, min(1.0, 2 * (beyond + 1) / (len(drawn) + 1)))
