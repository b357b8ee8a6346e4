"""The interval of mIoU and the paired test on simulated data sets whose truth is known."""

import numpy as np
import pytest

from evaluation.bootstrap import ImageCounts, estimate

CASES, IMAGES, CLASSES = 2000, 100, 6


def simulated(rng: np.random.Generator, *, networks: int) -> list[ImageCounts]:
    """Images of very unequal difficulty and content; the networks differ by chance only."""
    union = rng.gamma(0.7, 3000, (IMAGES, CLASSES)).astype(int) + 1
    difficulty = rng.beta(5, 2, (IMAGES, CLASSES))
    quality = [np.clip(difficulty + rng.normal(0, 0.1, union.shape), 0, 1) for _ in range(networks)]
    return [ImageCounts((union * share).astype(int), union) for share in quality]


def test_the_interval_holds_the_true_miou_in_95_of_100_data_sets():
    rng = np.random.default_rng(0)
    many = [simulated(rng, networks=1)[0] for _ in range(CASES)]
    hits, union = (sum(getattr(c, name).sum(0) for c in many) for name in ("hits", "union"))
    truth = (hits / union).mean()
    found = [estimate(counts, draws=500) for counts in many]
    held = np.mean([x.low <= truth <= x.high for x in found])
    assert 0.92 <= held <= 0.98


def test_the_paired_test_finds_a_difference_that_is_none_in_5_of_100():
    rng = np.random.default_rng(1)
    found = [estimate(*simulated(rng, networks=2), draws=500) for _ in range(CASES)]
    wrong = np.mean([x.p < 0.05 for x in found])
    assert 0.03 <= wrong <= 0.07
    assert np.mean([x.low > 0 or x.high < 0 for x in found]) == pytest.approx(wrong, abs=0.01)
