"""What is written once, before training: class weights and packed files."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from utils.base.errors import UserError
from utils.base.progress import progress
from utils.base.threads import read_ahead
from utils.data.batches import read_all_train_ids
from utils.data.class_weights import WEIGHTS_FILE, histogram, write_class_weights
from utils.data.dataset import Dataset, Files
from utils.data.packed import Layout, PackedFile, pack, packed_path, part_path, require_space
from utils.data.sources import (
    Noted,
    names_below,
    note,
    read_record,
    record_of,
    stamps_of,
    unchanged,
    write_record,
)


def weigh(dataset: Dataset, root: Path, *, workers: int) -> None:
    """The class weights of a training set, from all of its labels."""
    counts, before = np.zeros(256, np.int64), stamps_of(root, label_files(dataset.files))
    for train_ids in read_all_train_ids(dataset, workers=workers):
        counts += histogram(train_ids)
    write_class_weights(root, counts, dataset.classes.names, images=len(dataset))
    note(root / WEIGHTS_FILE, root, before, dataset.classes)
    print(f"{root / 'meta'}: class_weights.json; nothing to convert, --pack true packs it")


def label_files(files: Iterable[Files]) -> Iterator[Path]:
    return filter(None, (x.train_ids or x.ids or x.instances for x in files))


def pack_split(dataset: Dataset, root: Path, split: str, *, workers: int, overwrite: bool) -> None:
    """Write the packed file of an opened split, or what an interrupted run left to write."""
    path, images = packed_path(root, split), []
    if overwrite:
        path.unlink(missing_ok=True)
    paths = [x for files in dataset.files for x in (files.image, *label_files([files]))]
    before = stamps_of(root, paths)
    sizes = read_ahead(dataset.size, range(len(dataset)), workers=workers)
    for files, size in zip(dataset.files, sizes, strict=True):
        own = names_below(root, (files.image, *label_files([files])))
        sources = {name: before[name][0] for name in own}
        images.append({"name": files.name, "size": list(size), "sources": sources})
    planes = ["image", "label" if dataset.files[0].instances is None else "instance"]
    classes = list(dataset.classes.names)
    layout = Layout({"classes": classes, "planes": planes, "images": images})
    if holds(path, layout, dataset, root, before, workers=workers):
        print(f"{path}: complete already")
        return
    partial, begun = part_path(path), {"meaning": dataset.classes.meaning, "files": before}
    if read_record(partial) != begun:  # of an interrupted run, before a source changed
        partial.unlink(missing_ok=True)
    print(f"{path}: {len(dataset)} images, {require_space(path, layout)}")
    write_record(partial, begun)
    record_of(path).unlink(missing_ok=True)  # of an older file
    pack(path, layout, dataset, workers=workers)
    note(path, root, before, dataset.classes)
    record_of(partial).unlink(missing_ok=True)


def holds(
    path: Path, layout: Layout, dataset: Dataset, root: Path, before: Noted, *, workers: int
) -> bool:
    """Whether the packed file at `path` is what packing would write."""
    try:
        packed = PackedFile(path, dataset.classes)
    except UserError:  # not there, or damaged
        return False
    if packed.layout.begin != layout.begin:
        return False
    if read_record(path) is not None:
        return before.keys() <= unchanged(path, root, dataset.classes).keys()
    with progress(len(dataset), unit="image", label=f"compare {path.stem}") as bar:
        samples = read_ahead(dataset.__getitem__, range(len(dataset)), workers=workers)
        for index, sample in enumerate(samples):  # packed before there were records
            planes = packed.planes(index).items()
            if not all(np.array_equal(sample[name], pixels) for name, pixels in planes):
                return False
            bar.update()
    note(path, root, before, dataset.classes)
    return True
