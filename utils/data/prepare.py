"""What is written once, before training: class weights and packed files."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from utils.base.errors import UserError
from utils.base.threads import read_ahead
from utils.data.batches import read_all_train_ids
from utils.data.class_weights import (
    WEIGHTS_FILE,
    histogram,
    read_class_weights,
    write_class_weights,
)
from utils.data.dataset import DataSet, Dataset, Files
from utils.data.packed import Layout, PackedFile, pack, packed_path, part_path, require_space
from utils.data.sources import names_below, noting, require_unchanged, unchanged


def weigh(dataset: Dataset, root: Path, *, workers: int) -> None:
    """The class weights of a training set, from all of its labels."""
    counts = np.zeros(256, np.int64)
    with noting(root / WEIGHTS_FILE, root, label_files(dataset.files), dataset.classes):
        for train_ids in read_all_train_ids(dataset, workers=workers):
            counts += histogram(train_ids)
        write_class_weights(root, counts, dataset.classes.names, images=len(dataset))
    print(f"{root / 'meta'}: class_weights.json; nothing to convert, --pack true packs it")


def require_current_weights(data_set: DataSet, root: Path, *, thorough: bool = False) -> None:
    """UserError where the labels that were weighed, or what ids mean, have changed."""
    labels = None
    with suppress(UserError):  # unpacked files may be gone
        found = data_set.find(root, "train")
        labels = [x for kind in found if kind != "image" for x in found[kind].values()]
    how = {"sources": labels, "thorough": thorough, "advice": data_set.prepare_again(root)}
    require_unchanged(root / WEIGHTS_FILE, root, data_set.classes, **how)


def current_class_weights(data_set: DataSet, root: Path) -> np.ndarray:
    """read_class_weights; UserError where they are outdated."""
    require_current_weights(data_set, root)
    return read_class_weights(root, data_set.classes)


def label_files(files: Iterable[Files]) -> Iterator[Path]:
    return filter(None, (x.train_ids or x.ids or x.instances for x in files))


def pack_split(dataset: Dataset, root: Path, split: str, *, workers: int, overwrite: bool) -> None:
    """Write the packed file of an opened split, or what an interrupted run left to write."""
    path, images = packed_path(root, split), []
    if overwrite:
        path.unlink(missing_ok=True)
    sources = [x for files in dataset.files for x in (files.image, *label_files([files]))]
    sizes = read_ahead(dataset.size, range(len(dataset)), workers=workers)
    for files, size in zip(dataset.files, sizes, strict=True):
        own = (files.image, *label_files([files]))
        bytes_of = {x: (root / x).stat().st_size for x in names_below(root, own)}
        images.append({"name": files.name, "size": list(size), "sources": bytes_of})
    planes = ["image", "label" if dataset.files[0].instances is None else "instance"]
    classes = list(dataset.classes.names)
    layout = Layout({"classes": classes, "planes": planes, "images": images})
    with suppress(UserError):  # not there, or damaged
        same = PackedFile(path, dataset.classes).layout.begin == layout.begin
        noted = unchanged(path, root, dataset.classes) or {}  # none: perhaps of other files
        if same and noted.keys() >= {*names_below(root, sources)}:
            print(f"{path}: complete already")
            return
    print(f"{path}: {len(dataset)} images, {require_space(path, layout)}")
    with noting(path, root, sources, dataset.classes, partial=part_path(path)):
        pack(path, layout, dataset, workers=workers)
