"""Convert label ids to train ids and compute the ENet class weights; run once per data set.

    python utils/preprocess_data.py                         $CITYSCAPES_DATASET or data/cityscapes
    python utils/preprocess_data.py --data_root /data/cityscapes
    python utils/preprocess_data.py --dataset synthetic
    python utils/preprocess_data.py --pack true             also pack: training decodes no PNGs
    python utils/preprocess_data.py --check true            list every fault of the data

Writes <data_root>/meta/label_imgs/<img_id>.png for train and val, and meta/class_weights.json;
--pack also writes <data_root>/packed/train.pack and val.pack (25 and 5 GB for Cityscapes). Training
reads the train ids of train. Evaluation reads instance ids, so the train ids of val are for other
programs. A second run converts and packs nothing again; an interrupted run resumes where it
stopped.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # run by path, Python looks for modules in utils/ first
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

from datasets import build_dataset, find_data_set, resolve_data_root
from utils.base.errors import run_command
from utils.base.lock import hold
from utils.base.parser import check, parse
from utils.data.check import check_data
from utils.data.prepare import pack_split, weigh


@dataclass(frozen=True)
class PreprocessConfig:
    """Options of preprocess_data.py."""

    dataset: str = "cityscapes"
    """Data set: one of datasets.py, one of configs/datasets/, or custom. Labels of cityscapes,
    synthetic, coco, coco_panoptic and the SBD part of voc are converted. The others need only class
    weights, because training reads their label files directly."""
    data_root: Path | None = None
    """Folder of the data set. Default: $CITYSCAPES_DATASET for cityscapes, else data/<dataset>."""
    workers: int = os.cpu_count() or 1
    """Threads that convert images."""
    overwrite: bool = False
    """Convert and pack again what already exists."""
    pack: bool = False
    """Also write the train and val images into packed files: training then reads the same pixels
    without decoding. They take as much disk space as uncompressed images."""
    instances: bool = False
    """With --pack true: also pack the instance ids of train, which panoptic networks learn from."""
    check: bool = False
    """Only look for faults: read every file and list those that are missing, are damaged, have a
    wrong size, or contain undefined ids."""

    def __post_init__(self) -> None:
        check(self, "workers", lambda workers: workers >= 1, "at least 1")
        check(self, "instances", lambda wanted: self.pack or not wanted, "given with --pack true")


def main() -> None:
    config = parse(PreprocessConfig, __doc__)
    name, options = config.dataset, {"workers": config.workers, "overwrite": config.overwrite}
    root = resolve_data_root(name, config.data_root)
    data_set = find_data_set(name, root)
    if config.check:
        check_data(data_set, root, workers=config.workers)
        return
    with hold(root / "meta"):
        if data_set.prepare is None or not data_set.prepare(root, **options):
            weigh(build_dataset(name, root, "train", packed=False), root, workers=config.workers)
        if config.pack:
            for split in ("train", "val"):
                how = {"packed": False, "instances": config.instances}
                pack_split(build_dataset(name, root, split, **how), root, split, **options)


if __name__ == "__main__":
    run_command(main)
