"""Draw a synthetic data set in Cityscapes format, to try every command without the real one.

python utils/synthetic.py
python utils/synthetic.py --data_root data/synthetic --train 64 --val 12 --seed 0 --workers 4
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # run by path, Python looks for modules in utils/ first
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

from utils.base.errors import run_command
from utils.base.lock import hold
from utils.base.parser import check, parse
from utils.base.paths import REPOSITORY
from utils.data.synthetic import generate


@dataclass(frozen=True)
class SyntheticConfig:
    """Options of synthetic.py."""

    data_root: Path = REPOSITORY / "data" / "synthetic"
    """Folder of the new data set; missing folders are created."""
    train: int = 64
    """Number of scenes in the train split."""
    val: int = 12
    """Number of scenes in the val split."""
    seed: int = 0
    """Seed of the random scenes."""
    workers: int = os.cpu_count() or 1
    """Processes that draw scenes."""
    overwrite: bool = False
    """Replace an existing synthetic data set; other files are never removed."""

    def __post_init__(self) -> None:
        check(self, "train val workers", lambda value: value >= 1, "at least 1")
        check(self, "seed", lambda seed: seed >= 0, "at least 0")


def main() -> None:
    config = parse(SyntheticConfig, __doc__)
    with hold(config.data_root):
        generate(**vars(config))


if __name__ == "__main__":
    run_command(main)
