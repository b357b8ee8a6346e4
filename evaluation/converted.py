"""Checkpoints of other projects as runs of this repository."""

import re
from pathlib import Path
from typing import Any

from datasets import DATASETS, find_data_set, resolve_data_root
from model.convert import Converted, convert
from utils.base.errors import UserError
from utils.base.lock import hold
from utils.training.checkpoint import read_tensors, save_checkpoint, step_files
from utils.training.config import Config, plain
from utils.training.published import HUB, PRETRAINED, find_published, published_file
from utils.training.run import remove_leftovers

VOID_OUTPUT = 20  # outputs of fregu856's Cityscapes network; the last one is void
REFUSED = {  # in names of mmsegmentation's files; the keys are those of the usual networks
    "mg124": "Multi-Grid with the dilations 1, 2, 4 is",
    "fcn_d6": "dilated convolutions in the head of FCN are",
}


def state_of(
    found: Converted, file: Path, *, dataset: str | None = None, data_root: Path | None = None
) -> dict[str, Any]:
    """The entries of a train.py checkpoint that evaluation needs. dataset: that of the training;
    default: cityscapes for 19 or 20 classes, voc for 21."""
    outputs = found.network["num_classes"]
    classes = outputs - (outputs == VOID_OUTPUT)
    known = (x.name for x in DATASETS.values() if x.classes.num_classes == classes)
    name = dataset or next(known, None)
    if name is None:
        raise UserError(f"{file}: {outputs} classes. Give the data set with --dataset")
    root = resolve_data_root(name, data_root)
    table = find_data_set(name, root).classes
    names = list(table.names)
    if len(names) not in (outputs, classes):
        what = f"{outputs} classes, {name} has {len(names)}"
        raise UserError(f"{file}: {what}. Give another --dataset")
    return {
        "step": 0,
        "network": found.network,
        "model": found.weights,
        "config": plain(Config(dataset=name, data_root=root, class_weights=False)),
        "classes": names,
        "label_table": table.plain(),
        "source": f"{found.source}: {file.name}",
    }


def convert_file(folder: Path, spec: str, *, how: dict[str, Any], **data: Any) -> Path:
    """Convert a file, or that of hub:NAME, downloaded if it is missing, into the run `folder`;
    returns the checkpoint, of which it prints a summary.

    how: options of convert(); data: those of state_of. UserError if the file cannot be converted.
    """
    network, file = None, Path(spec)
    if spec.startswith(HUB):
        network, file = find_published(spec)[0], published_file(spec)
        if how.get("align_corners") is None:
            how = how | {"align_corners": network.align_corners}
    for mark, what in REFUSED.items():
        if mark in file.name:
            advice = f"Take a file without {mark} in its name"
            raise UserError(f"{file}: {what} not supported. {advice}")
    stride = re.search(r"r\d+b?-d(16|32)_", file.name)  # mmsegmentation's names; usually d8
    if stride and how.get("output_stride") is None:
        how = how | {"output_stride": int(stride[1])}
    tensors = read_tensors(file)
    if isinstance(tensors, dict) and {"model", "config"} <= tensors.keys():
        raise UserError(f"{file}: a checkpoint of train.py. Give it to --checkpoint as it is")
    try:
        found = convert(tensors, **how)
    except ValueError as error:
        raise UserError(f"{file}: {error}. Load what fits: train.py --init_from {file}") from error
    path = save_checkpoint(folder / "checkpoints", state_of(found, file, **data))
    own = found.network
    at = f" at stride {own['output_stride']}" if "output_stride" in own else ""
    what = f"{own['name']}, {own['backbone']}{at}, {own['num_classes']} classes"
    print(f"{found.source}'s {what}: {path}")
    if network is not None:
        print(f"published: {network.miou} % mIoU on {network.data}")
    return path


def published_run(spec: str) -> Path:
    """hub:NAME -> checkpoint in pretrained_models/NAME/, downloaded and converted if missing.
    With hub:NAME@DIGITS the file is compared with them first."""
    network, digits = find_published(spec)
    folder = PRETRAINED / network.name
    if digits:
        published_file(spec)
    if not step_files(folder / "checkpoints"):
        with hold(folder, wait=True):
            remove_leftovers(folder)
            if not step_files(folder / "checkpoints"):  # another process may have converted it
                return convert_file(folder, spec, how={})
    return step_files(folder / "checkpoints")[-1]
