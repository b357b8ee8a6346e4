"""Reads a data set and lists its faults: in files, pairs, sizes, ids and packed files."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from filecmp import cmp
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.base.errors import UserError, warn
from utils.base.paths import read_bytes
from utils.base.progress import progress
from utils.base.threads import read_ahead
from utils.data.batches import read_all_train_ids
from utils.data.class_weights import WEIGHTS_FILE, histogram, read_noted
from utils.data.dataset import DataSet, Dataset, FoundFiles, NoImages, converted_labels
from utils.data.image_files import contradiction, decode_image, image_header, read_label
from utils.data.label_table import LabelTable
from utils.data.packed import PackedDataset, packed_path
from utils.data.prepare import current_class_weights
from utils.data.sources import require_unchanged


@contextmanager
def collecting(lines: list[str]) -> Iterator[None]:
    """Append the message of a UserError to `lines` instead of raising it."""
    try:
        yield
    except UserError as error:
        lines.append(str(error))


def check_data(data_set: DataSet, root: Path, *, workers: int) -> None:
    """Print every fault of the files and packed files; UserError if there is any."""
    files = faults = 0
    for split in data_set.splits:
        found, lines = {}, []
        with collecting(lines), suppress(NoImages):  # a split may be absent
            found = (data_set.downloaded or data_set.find)(root, split)
        before = faults
        more = split_faults(data_set, root, split, found, workers=workers)
        for line in chain(lines, more, packed_faults(data_set, root, split)):
            tqdm.write(line)  # above the progress line
            faults += 1
        for line in outdated(data_set, root, split) if faults == before else ():
            tqdm.write(line)
            faults += 1
        files += sum(map(len, found.values())) + packed_path(root, split).is_file()
        warn_of_val_images(data_set, root, split)
    if not files and not faults:
        (data_set.downloaded or data_set.find)(root, "train")  # raises what is missing, usually
        raise UserError(f"{root}: no {data_set.name} files. Give their folder with --data_root")
    if faults:
        count = "1 fault" if faults == 1 else f"{faults} faults"
        raise UserError(f"{root}: {count}, see above. Correct the files and check again")
    print(f"{root}: {files} files, no fault")


def warn_of_val_images(data_set: DataSet, root: Path, split: str) -> None:
    """Warn of val images that are also in `split`: same name, and same file or content."""
    if split in ("val", "test", *data_set.unions):
        return
    with suppress(UserError, OSError):  # one of the two is absent, or exists only packed
        train, val = (data_set.find(root, name)["image"] for name in (split, "val"))
        names = sorted(train.keys() & val.keys())
        if same := [x for x in names if train[x] == val[x] or cmp(train[x], val[x], shallow=False)]:
            what = f"{len(same)} of {len(val)} val images are in {split}, such as {same[0]}"
            warn(f"{root}: {what}. The score on val will be too high; keep them in one split")


def split_faults(
    data_set: DataSet, root: Path, split: str, found: FoundFiles, *, workers: int
) -> Iterator[str]:
    """A line for each fault of a split's files."""
    images, expected = len(found.get("image", ())), data_set.images.get(split)
    if images and expected and images != expected:
        surplus = images - expected
        what = f"{surplus} too many" if surplus > 0 else f"{-surplus} missing. Unpack them"
        yield f"{root}: {images} {split} images, {data_set.name} has {expected}: {what}"
    names = list(dict.fromkeys(name for paths in found.values() for name in paths))
    tagged = 0

    def read(name: str) -> tuple[list[str], bool]:
        return sample_faults(name, found, data_set.classes, f"{root}: {split} image {name}")

    samples = read_ahead(read, names, workers=workers, ahead=4 * workers)
    how = {"unit": "image", "label": f"check {split}", "enabled": bool(names)}
    for lines, is_tagged in progress(len(names), samples, **how):
        yield from lines
        tagged += is_tagged
    if tagged:
        what = f"{tagged} {split} images have an EXIF orientation"
        tqdm.write(f"{root}: {what}, which every command applies: labels must be upright too")


def sample_faults(
    name: str, found: FoundFiles, classes: LabelTable, sample: str
) -> tuple[list[str], bool]:
    """A line for each fault of one sample, and whether its image has an EXIF orientation."""
    lines, planes, first, tagged = [], {}, None, False
    for kind, paths in found.items():
        if name not in paths:
            advice = "Add it, or remove the sample's other files"
            if kind == "train_ids":
                advice = "Run python utils/preprocess_data.py again, without --check"
            lines.append(f"{sample} has no {kind} file. {advice}")
            continue
        path = paths[name]
        with collecting(lines):
            if kind == "image":
                content = read_bytes(path)
                size = decode_image(content, path).shape[:2]
                tagged = image_header(content, path)[1] != 1
            else:
                planes[kind] = read_label(path, kind, classes)
                size = planes[kind]["label"].shape
            first = first or size
            if size != first:
                what = f"{size[1]} x {size[0]} pixels, its image {first[1]} x {first[0]}"
                lines.append(f"{path}: {what}")
    if not lines and {"ids", "instances"} <= planes.keys():
        lines += contradiction(found["ids"][name], planes["instances"]["instance"])
    return lines, tagged


def packed_faults(data_set: DataSet, root: Path, split: str) -> Iterator[str]:
    """A line for each fault of a split's packed file, if there is such a file."""
    path = packed_path(root, split)
    if not path.is_file():
        return
    try:
        packed = PackedDataset(path, data_set.classes)
    except UserError as error:
        yield str(error)
        return
    how = {"unit": "image", "label": f"check {path.name}"}
    for name in filter(None, progress(len(packed.names), packed.damaged(), **how)):
        advice = "Pack again: --pack true --overwrite true"
        yield f"{path}: image {name} is damaged (checksum). {advice}"


def outdated(data_set: DataSet, root: Path, split: str) -> list[str]:
    """A line for each derived file that does not fit its sources or ids; reads all sources."""
    lines: list[str] = []
    with collecting(lines):
        require_unchanged(converted_labels(root, split), data_set, root, thorough=True)
    with collecting(lines):
        if (path := packed_path(root, split)).is_file():
            packed = PackedDataset(path, data_set.classes)
            packed.require_current(data_set, root, split, thorough=True)
    with collecting(lines):
        if split == "train" and (root / WEIGHTS_FILE).is_file():
            current_class_weights(data_set, root, thorough=True)
    return lines


def require_labels(
    train_set: Dataset, val_set: Dataset, root: Path, *, workers: int, enabled: bool
) -> None:
    """Read the labels that are not yet checked. UserError for a faulty one, and if fewer than two
    classes have training pixels or no class has val pixels: such a training would look perfect.

    Warns of classes without training pixels. enabled: whether this process prints.
    """
    for split, dataset, least in (("training", train_set, 2), ("val", val_set, 1)):
        names, shown = dataset.classes.names, enabled and not dataset.checked
        labels = read_all_train_ids(dataset, workers=workers, enabled=shown)
        counts = (histogram(train_ids)[: len(names)] for train_ids in labels)
        if not dataset.checked:
            pixels = sum(counts)
        elif split == "val":  # its first labelled image is enough
            pixels = next(filter(np.any, counts), np.zeros(len(names)))
        elif (pixels := read_noted(root, dataset.classes, "pixels")) is None:
            continue
        present = [name for name, number in zip(names, pixels, strict=True) if number]
        if len(present) < least:
            known = ", ".join(present) or "no class"
            what = f"{split} pixels of {known} only; 255 is ignored unless a class has id 255"
            advice = "Check the ids in the label files and the description of the data set"
            raise UserError(f"{root}: {what}. {advice}")
        absent = [name for name in names if name not in present]
        if absent and enabled and split == "training":
            print(f"warning: no training pixel of {', '.join(absent)}", file=sys.stderr)
