"""Confidence interval of a mean IoU: bootstrap over the images (Efron, 1979)."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from utils.data.label_table import LabelTable

DRAWS = 2000


@dataclass(frozen=True)
class ImageCounts:
    """Pixels of each class in each image."""

    hits: np.ndarray  # (N,K) int64, correctly predicted
    union: np.ndarray  # (N,K) int64, hits + false positives + false negatives

    @classmethod
    def of(cls, confusion: np.ndarray, classes: LabelTable) -> "ImageCounts":
        """Of one image, from its (ids,ids) matrix; skips ignored pixels, as the score does."""
        ids = classes.ids
        evaluated = confusion[ids]  # rows: truth
        hits = evaluated[np.arange(len(ids)), ids]
        union = evaluated.sum(1) + evaluated[:, ids].sum(0) - hits
        return cls(hits[None], union[None])

    @classmethod
    def joined(cls, parts: list["ImageCounts"]) -> "ImageCounts":
        hits, union = zip(*((part.hits, part.union) for part in parts), strict=True)
        return cls(np.concatenate(hits), np.concatenate(union))

    def miou(self, weights: np.ndarray | None = None) -> np.ndarray:
        """(...,N) weights of the images -> (...) mean IoU over the classes that occur."""
        weights = np.ones(len(self.hits)) if weights is None else weights
        hits, union = weights @ self.hits.astype(float), weights @ self.union.astype(float)
        present = (union > 0).sum(-1)
        with np.errstate(invalid="ignore"):
            return (hits / np.maximum(union, 1)).sum(-1) / present


@dataclass(frozen=True)
class Estimate:
    """A value, its 95 % interval, and the two-sided p-value of the hypothesis that it is zero."""

    value: float
    low: float
    high: float
    p: float


@lru_cache(maxsize=4)
def draw_weights(images: int, draws: int) -> np.ndarray:
    """(draws,N) float64: how often each draw of N images with replacement holds each image."""
    even = np.full(images, 1 / images)
    return np.random.default_rng(0).multinomial(images, even, size=draws).astype(np.float64)


def estimate(one: ImageCounts, minus: ImageCounts | None = None, *, draws: int = DRAWS) -> Estimate:
    """mIoU of `one`, or its difference to `minus`, another network on the same images (paired: both
    use the same draws). Percentile interval; p: twice the share of draws beyond zero."""
    weights = draw_weights(len(one.hits), draws)
    value, drawn = one.miou(), one.miou(weights)
    if minus is not None:
        value, drawn = value - minus.miou(), drawn - minus.miou(weights)
    drawn = drawn[np.isfinite(drawn)]  # a draw of images without labels has no mIoU
    drawn = drawn if len(drawn) else np.array([np.nan])
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()
    beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
    return Estimate(float(value), low, high, min(1.0, 2 * (beyond + 1) / (len(drawn) + 1)))
