"""Every fault of a data set, found by reading it: files, pairs, sizes, ids, packed files."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from filecmp import cmp
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm

from utils.base.errors import UserError, warn
from utils.base.paths import read_bytes
from utils.base.progress import progress
from utils.base.threads import read_ahead
from utils.data.batches import read_all_train_ids
from utils.data.class_weights import histogram, read_pixels
from utils.data.dataset import DataSet, Dataset, FoundFiles, NoImages, converted_labels
from utils.data.image_files import contradiction, decode_image, image_header, read_label
from utils.data.label_table import LabelTable
from utils.data.packed import PackedFile, packed_path
from utils.data.prepare import require_current_weights
from utils.data.sources import require_unchanged


def check_data(data_set: DataSet, root: Path, *, workers: int) -> None:
    """Print every fault of the files and the packed files; UserError if there is one."""
    files = faults = 0
    for split in data_set.splits:
        found, lines = {}, []
        try:
            found = (data_set.downloaded or data_set.find)(root, split)
        except NoImages:  # not every split must be there
            pass
        except UserError as error:  # two files of one name, say
            lines = [str(error)]
        path = packed_path(root, split)
        lines = chain(lines, split_faults(data_set, root, split, found, workers=workers))
        before = faults
        for line in chain(lines, packed_faults(data_set, root, split)):
            tqdm.write(line)  # above the progress line
            faults += 1
        for line in outdated(data_set, root, split) if faults == before else ():
            tqdm.write(line)
            faults += 1
        files += sum(map(len, found.values())) + path.is_file()
        warn_of_val_images(data_set, root, split)
    if not files and not faults:
        raise UserError(f"{root}: no {data_set.name} files. Name their folder with --data_root")
    if faults:
        raise UserError(f"{root}: {faults} faults, listed above. Correct them and check again")
    print(f"{root}: {files} files, no fault")


def warn_of_val_images(data_set: DataSet, root: Path, split: str) -> None:
    """A warning on images of val that are in `split` too: of one name, and one file or equal."""
    if split in ("val", "test", *data_set.unions):
        return
    with suppress(UserError, OSError):  # one of the two is not there, or only packed
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
    tagged: list[str] = []

    def read(name: str) -> list[str]:
        sample = f"{root}: {split} image {name}"
        return sample_faults(name, found, data_set.classes, sample, tagged)

    with progress(len(names), unit="image", label=f"check {split}", enabled=bool(names)) as bar:
        for lines in read_ahead(read, names, workers=workers, ahead=4 * workers):
            yield from lines
            bar.update()
    if tagged:
        what = f"{len(tagged)} {split} images have an EXIF orientation"
        tqdm.write(f"{root}: {what}, which every command follows: labels must be upright too")


def sample_faults(
    name: str, found: FoundFiles, classes: LabelTable, sample: str, tagged: list[str]
) -> list[str]:
    """A line for each fault of one sample; `tagged` collects images with an EXIF orientation."""
    lines, sizes, planes = [], {}, {}
    for kind, paths in found.items():
        if name not in paths:
            lines.append(f"{sample} has no {kind} file")
            continue
        path = paths[name]
        try:
            if kind == "image":
                content = read_bytes(path)
                sizes[path] = decode_image(content, path).shape[:2]
                if image_header(content, path)[1] != 1:
                    tagged.append(name)
            else:
                planes[kind] = read_label(path, kind, classes)
                sizes[path] = planes[kind]["label"].shape
        except UserError as error:
            lines.append(str(error))
    for path, (height, width) in sizes.items():
        first = next(iter(sizes.values()))
        if (height, width) != first:
            lines.append(f"{path}: {width} x {height} pixels, its image {first[1]} x {first[0]}")
    if not lines and {"ids", "instances"} <= planes.keys():
        lines += contradiction(found["ids"][name], planes["instances"]["instance"])
    return lines


def packed_faults(data_set: DataSet, root: Path, split: str) -> Iterator[str]:
    """A line for each fault of a packed file, where there is one."""
    path = packed_path(root, split)
    if not path.is_file():
        return
    try:
        packed = PackedFile(path, data_set.classes)
    except UserError as error:
        yield str(error)
        return
    with progress(len(packed.names), unit="image", label=f"check {path.name}") as bar:
        for name in packed.damaged():
            if name:
                advice = "--pack true --overwrite true writes it again"
                yield f"{path}: image {name} damaged (checksum); {advice}"
            bar.update()


def outdated(data_set: DataSet, root: Path, split: str) -> Iterator[str]:
    """A line for each derived file that was made from other files or ids; reads all sources."""
    labels, path = converted_labels(root, split), packed_path(root, split)
    how = {"advice": data_set.prepare_again(root), "thorough": True}
    attempts = []
    if data_set.prepare is not None:
        attempts.append(partial(require_unchanged, labels, root, data_set.classes, **how))
    if path.is_file():
        packed = PackedFile(path, data_set.classes)
        attempts.append(partial(packed.require_current, data_set, root, split, thorough=True))
    if split == "train":
        attempts.append(partial(require_current_weights, data_set, root, thorough=True))
    for attempt in attempts:
        try:
            attempt()
        except UserError as error:
            yield str(error)


def require_labels(
    train_set: Dataset, val_set: Dataset, root: Path, *, workers: int, enabled: bool
) -> None:
    """Read the labels that nobody has read yet; UserError for one that is faulty, and where fewer
    than two classes have training pixels or none has val pixels: such a training looks perfect.

    A training class without a pixel is named on stderr. enabled: whether this process speaks.
    """
    for split, dataset, least in (("training", train_set, 2), ("val", val_set, 1)):
        names, shown = dataset.classes.names, enabled and not dataset.checked
        labels = read_all_train_ids(dataset, workers=workers, enabled=shown)
        counts = (histogram(train_ids)[: len(names)] for train_ids in labels)
        if not dataset.checked:
            pixels = sum(counts)
        elif split == "val":  # its first labelled image is enough
            pixels = next(filter(np.any, counts), np.zeros(len(names)))
        elif (pixels := read_pixels(root, dataset.classes)) is None:
            continue
        absent = [name for name, number in zip(names, pixels, strict=True) if not number]
        if len(names) - len(absent) < least:
            known = ", ".join(name for name in names if name not in absent) or "no class"
            what = f"{split} pixels of {known} only; 255 is ignored where no class has it"
            advice = "Check the ids in the label files and the description of the data set"
            raise UserError(f"{root}: {what}. {advice}")
        if absent and enabled and split == "training":
            print(f"warning: no training pixel of {', '.join(absent)}", file=sys.stderr)
