"""Run the official Cityscapes scorer on a folder of predictions, whatever numpy is installed.

    python evaluation/official.py --data_root DIR --predictions DIR --export DIR

The same as csEvalPixelLevelSemanticLabeling with CITYSCAPES_DATASET, CITYSCAPES_RESULTS and
CITYSCAPES_EXPORT_DIR set, where the plain command fails: numpy >= 2.4, and unpacked zips.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # run by path, Python looks for modules in evaluation/ first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from datasets import first_folder
from utils.config import REPOSITORY, parse, resolve_data_root
from utils.errors import UserError, run_command
from utils.logger import make_folder


@dataclass(frozen=True)
class OfficialConfig:
    """Options of official.py."""

    data_root: Path | None = None
    """Folder of the data set. Default: $CITYSCAPES_DATASET, else data/cityscapes."""
    predictions: Path = REPOSITORY / "training_logs" / "model_eval_val_for_metrics"
    """Folder with one label id image per val image, <img_id>*.png."""
    export: Path = REPOSITORY / "training_logs" / "model_eval_val"
    """Folder for the scorer's JSON file; made if missing."""


def score_officially(config: OfficialConfig) -> None:
    """Print the scorer's table and write its resultPixelLevelSemanticLabeling.json."""
    root = resolve_data_root("cityscapes", config.data_root)
    truth = first_folder(root, "gtFine", "val")
    for folder in (truth, config.predictions):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder. Check --data_root and --predictions")
    make_folder(config.export)
    # cityscapesScripts reads these while it is imported.
    os.environ["CITYSCAPES_DATASET"] = str(truth.parents[1])
    os.environ["CITYSCAPES_RESULTS"] = str(config.predictions)
    os.environ["CITYSCAPES_EXPORT_DIR"] = str(config.export)
    if not hasattr(np, "in1d"):  # gone in numpy 2.4; cityscapesScripts 2.3.0 calls it
        np.in1d = np.isin
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as scorer

    sys.argv = sys.argv[:1]
    scorer.main()


def main() -> None:
    score_officially(parse(OfficialConfig, __doc__))


if __name__ == "__main__":
    run_command(main)
