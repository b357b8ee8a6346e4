"""Images with noise, blur, bad weather or digital faults, as benchmarks of robustness use them.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness", ICLR 2019; the package
imagecorruptions-imaug draws them for images of any size.
"""

import os
from concurrent.futures import Executor
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stdout
from io import StringIO
from typing import Any
from zlib import crc32

import numpy as np

from utils.base.errors import UserError
from utils.data.dataset import Dataset

PACKAGE = "imagecorruptions-imaug"  # other packages' images differ: scores name it
KINDS = {
    "noise": ("gaussian_noise", "impulse_noise", "shot_noise", "speckle_noise"),
    "blur": ("motion_blur", "defocus_blur", "glass_blur", "gaussian_blur"),
    "weather": ("snow", "spatter", "fog", "frost"),
    "digital": ("brightness", "contrast", "saturate", "jpeg_compression"),
}
CORRUPTIONS = tuple(name for names in KINDS.values() for name in names)
SEEDED = ("impulse_noise", "glass_blur")  # do not use NumPy's global random numbers


def corrupted(image: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
    """(H,W,3) uint8 RGB -> the corrupted image; the same for the same seed. Not for threads: most
    corruptions use NumPy's global random numbers."""
    from imagecorruptions import corrupt

    np.random.seed(seed)
    with redirect_stdout(StringIO()):  # it prints when snow is one pixel too small
        return corrupt(image, severity, name, **({"seed": seed} if name in SEEDED else {}))


class Corrupted(Dataset):
    """A data set whose images, at least 32x32, are corrupted by the processes of `pool`."""

    def __init__(self, dataset: Dataset, name: str, severity: int, pool: Executor) -> None:
        self.dataset, self.pool, self.how = dataset, pool, (name, severity)
        self.names, self.classes = dataset.names, dataset.classes

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.dataset[index]
        name, image = sample["name"], sample["image"]
        try:
            image = self.pool.submit(corrupted, image, *self.how, crc32(os.fsencode(name))).result()
        except BrokenProcessPool as error:
            what = "a process ended early, perhaps for lack of memory"
            raise UserError(f"robustness.py: {what}. Lower --workers") from error
        return sample | {"image": image}
