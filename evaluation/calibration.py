"""How far the confidence of a prediction can be trusted: reliability and calibration error."""

from typing import IO

import numpy as np
import torch

from evaluation.task import Sample
from evaluation.transfer import to_device
from model.ops.upsample_argmax import upsample_argmax
from model.ops.upsample_confidence import upsample_confidence
from utils.data.label_table import IGNORE

BINS = 15


class Calibration:
    """Histogram of confidences for each predicted class, of one image after the other."""

    def __init__(self) -> None:
        # Sums of pixels, right ones, confidences; 256 because a network may also predict void.
        self.counts = np.zeros((3, 256, BINS))

    def add(self, sample: Sample, logits: torch.Tensor) -> None:
        """(1,K,h,w) logits of an image."""
        truth = to_device(sample["label"], logits.device)
        train_ids = upsample_argmax(logits, truth.shape)[0]
        confidence = upsample_confidence(logits, truth.shape)[0]
        known = truth != IGNORE
        # Bins (0, 1/15], (1/15, 2/15], ... as in Guo et al., ICML 2017, section 2.
        cell = (BINS * confidence).ceil().long().clamp(1, BINS) - 1 + BINS * train_ids.long()
        weights = (known, train_ids == truth, confidence)
        for counts, weight in zip(self.counts, weights, strict=True):
            found = torch.bincount(cell[known], weight[known].double(), counts.size)
            counts += found.view(-1, BINS).cpu().numpy()

    def error(self, class_: int | None = None) -> float:
        """Expected calibration error (Guo et al., eq. 3), of one predicted class or of all: mean
        distance of confidence and accuracy over the bins, weighted by their pixels; nan: none."""
        counts = self.counts.sum(1) if class_ is None else self.counts[:, class_]
        pixels, right, confidence = counts
        return np.abs(right - confidence).sum() / pixels.sum() if pixels.any() else float("nan")


def plot_reliability(calibration: Calibration, file: IO[bytes]) -> None:
    """A PNG: accuracy of each bin over its mean confidence, and the share of its pixels."""
    from matplotlib.figure import Figure  # slow import; unlike pyplot it needs no screen

    counts = calibration.counts.sum(1)
    pixels = counts[0]
    _, accuracy, confidence = counts[:, pixels > 0] / pixels[pixels > 0]
    figure = Figure(figsize=(5, 5.6), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=[4, 1])
    above.plot([0, 1], [0, 1], color="gray", linewidth=1, label="perfect")
    above.plot(confidence, accuracy, marker="o", label="this network")
    above.set(ylabel="accuracy", ylim=(0, 1), xlim=(0, 1))
    above.legend(frameon=False)
    below.bar(np.arange(BINS) / BINS, pixels / max(1, pixels.sum()), 1 / BINS, align="edge")
    below.set(xlabel="confidence", ylabel="share of pixels")
    figure.savefig(file, dpi=130, format="png")
