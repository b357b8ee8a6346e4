"""Convert another project's checkpoint into a run that every command accepts.

    python utils/convert_checkpoint.py pretrained_models/model_13_2_2_2_epoch_580.pth
    python evaluation/eval_on_val_for_metrics.py --checkpoint model_13_2_2_2_epoch_580
    python utils/convert_checkpoint.py hub:                     names of published networks
    python utils/convert_checkpoint.py hub:deeplabv3_resnet50_cityscapes

Supported: DeepLabV3 of torchvision, mmsegmentation, fregu856 (and PSG), chenxi116, VainF and SMP
(segmentation_models_pytorch); DeepLabV3+ of VainF, mmsegmentation, SMP; FCN of torchvision and
mmsegmentation; FPN of mmsegmentation and SMP; PSPNet of semseg and mmsegmentation; PSANet of
semseg. docs/published_checkpoints.md lists files and their scores.
"""

import sys
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Literal

if __name__ == "__main__":  # run by path, Python looks for modules in utils/ first
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

from evaluation.converted import convert_file
from utils.base.errors import UserError, run_command
from utils.base.find import listing
from utils.base.lock import hold
from utils.base.parser import chosen, parse
from utils.base.paths import resolve_log_root
from utils.training.published import HUB, find_published, published


@dataclass(frozen=True)
class ConvertConfig:
    """Options of convert_checkpoint.py."""

    file: str | None = field(
        default=None, metadata={"help": "Checkpoint of the other project, or hub:NAME."}
    )
    run_name: str | None = None
    """Name of the new folder in --log_root. Default: the file name without its extension."""
    log_root: Path | None = None
    """Folder of all runs. Default: training_logs/."""
    dataset: str | None = None
    """Data set of the training. Default: cityscapes for 19 or 20 classes, voc for 21."""
    data_root: Path | None = None
    """Folder of the data set. Default: $CITYSCAPES_DATASET for cityscapes, else data/<dataset>."""
    output_stride: Literal[8, 16, 32] | None = None
    """Output stride of the training, not stored in the file. Default: the project's usual one."""
    align_corners: bool | None = None
    """Upsample logits with align_corners=True. Default: the setting of the source project."""


def main() -> None:
    config = parse(ConvertConfig, __doc__)
    spec = config.file
    if spec is None:
        raise UserError("convert_checkpoint.py: no file. Give the path of the checkpoint")
    if spec == HUB:
        print_published()
        return
    name = find_published(spec)[0].name if spec.startswith(HUB) else Path(spec).stem
    how = chosen(config, "output_stride align_corners")
    folder = resolve_log_root(config.log_root) / (config.run_name or name)
    with hold(folder):
        if listing(folder):
            raise UserError(f"{folder}: exists. Give another --run_name")
        convert_file(folder, spec, how=how, **chosen(config, "dataset data_root"))
    print(f"next: python evaluation/eval_on_val_for_metrics.py --checkpoint {folder.name}")


def print_published() -> None:
    """The names of all published networks, under their project and protocol."""
    for (project, data), group in groupby(published().values(), lambda x: (x.project, x.data)):
        print(f"\n{project}, mIoU in per cent on {data}:")
        for network in group:
            print(f"  {HUB}{network.name:<52}{network.miou:>6.2f}")


if __name__ == "__main__":
    run_command(main)
