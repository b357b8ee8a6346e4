"""Convert another project's checkpoint into a run that every command accepts.

    python utils/convert_checkpoint.py pretrained_models/model_13_2_2_2_epoch_580.pth
    python evaluation/eval_on_val_for_metrics.py --checkpoint model_13_2_2_2_epoch_580

Supported: DeepLabV3 of torchvision, mmsegmentation, fregu856 (and PSG), chenxi116, VainF and SMP
(segmentation_models_pytorch); DeepLabV3+ of VainF, mmsegmentation, SMP; FCN of torchvision and
mmsegmentation; FPN of mmsegmentation and SMP; PSPNet of semseg and mmsegmentation; PSANet of
semseg. docs/published_checkpoints.md lists files and their scores.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

if __name__ == "__main__":  # run by path, Python looks for modules in utils/ first
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

from datasets import DATASETS, find_data_set, resolve_data_root
from model.convert import Converted, convert
from utils.base.errors import UserError, run_command
from utils.base.find import listing
from utils.base.lock import hold
from utils.base.parser import chosen, parse
from utils.base.paths import resolve_log_root
from utils.training.checkpoint import read_tensors, save_checkpoint
from utils.training.config import Config, plain

VOID_OUTPUT = 20  # outputs of fregu856's Cityscapes network; the last one is void


@dataclass(frozen=True)
class ConvertConfig:
    """Options of convert_checkpoint.py."""

    file: str | None = field(default=None, metadata={"help": "Checkpoint of the other project."})
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


def state_of(found: Converted, config: ConvertConfig) -> dict[str, object]:
    """The entries of a train.py checkpoint that evaluation needs."""
    outputs = found.network["num_classes"]
    classes = outputs - (outputs == VOID_OUTPUT)
    known = (x.name for x in DATASETS.values() if x.classes.num_classes == classes)
    name = config.dataset or next(known, None)
    if name is None:
        raise UserError(f"{config.file}: {outputs} classes. Give the data set with --dataset")
    root = resolve_data_root(name, config.data_root)
    table = find_data_set(name, root).classes
    names = list(table.names)
    if len(names) not in (outputs, classes):
        what = f"{outputs} classes, {name} has {len(names)}"
        raise UserError(f"{config.file}: {what}. Give another --dataset")
    return {
        "step": 0,
        "network": found.network,
        "model": found.weights,
        "config": plain(Config(dataset=name, data_root=root, class_weights=False)),
        "classes": names,
        "label_table": table.plain(),
        "source": f"{found.source}: {Path(config.file).name}",
    }


def main() -> None:
    config = parse(ConvertConfig, __doc__)
    if config.file is None:
        raise UserError("convert_checkpoint.py: no file. Give the path of the checkpoint")
    folder = resolve_log_root(config.log_root) / (config.run_name or Path(config.file).stem)
    with hold(folder):
        if listing(folder):
            raise UserError(f"{folder}: exists. Give another --run_name")
        write_run(folder, config)


def write_run(folder: Path, config: ConvertConfig) -> None:
    file = Path(config.file)
    tensors = read_tensors(file)
    try:
        found = convert(tensors, **chosen(config, "output_stride align_corners"))
    except ValueError as error:
        raise UserError(f"{file}: {error}. Load what fits: train.py --init_from {file}") from error
    path = save_checkpoint(folder / "checkpoints", state_of(found, config))
    network = found.network
    stride = f" at stride {network['output_stride']}" if "output_stride" in network else ""
    what = f"{network['name']}, {network['backbone']}{stride}, {network['num_classes']} classes"
    print(f"{found.source}'s {what}: {path}")
    print(f"next: python evaluation/eval_on_val_for_metrics.py --checkpoint {folder.name}")


if __name__ == "__main__":
    run_command(main)
