"""What is written once, before training: class weights and packed files."""

from contextlib import suppress
from pathlib import Path

import numpy as np

from utils.base.errors import UserError
from utils.base.threads import read_ahead
from utils.data.batches import read_all_train_ids
from utils.data.class_weights import histogram, write_class_weights
from utils.data.dataset import Dataset
from utils.data.packed import Layout, PackedFile, pack, packed_path, require_space


def weigh(dataset: Dataset, root: Path, *, workers: int) -> None:
    """The class weights of a training set, from all of its labels."""
    counts = np.zeros(256, np.int64)
    for train_ids in read_all_train_ids(dataset, workers=workers):
        counts += histogram(train_ids)
    write_class_weights(root, counts, dataset.classes.names, images=len(dataset))
    print(f"{root / 'meta'}: class_weights.json; nothing to convert, --pack true packs it")


def pack_split(dataset: Dataset, root: Path, split: str, *, workers: int, overwrite: bool) -> None:
    """Write the packed file of an opened split, or what an interrupted run left to write."""
    path, images = packed_path(root, split), []
    if overwrite:
        path.unlink(missing_ok=True)
    sizes = read_ahead(dataset.size, range(len(dataset)), workers=workers)
    for files, size in zip(dataset.files, sizes, strict=True):
        paths = filter(None, (files.image, files.ids, files.train_ids, files.instances))
        sources = {path.relative_to(root).as_posix(): path.stat().st_size for path in paths}
        images.append({"name": files.name, "size": list(size), "sources": sources})
    planes = ["image", "label" if dataset.files[0].instances is None else "instance"]
    classes = list(dataset.classes.names)
    layout = Layout({"classes": classes, "planes": planes, "images": images})
    with suppress(UserError):  # not there, or damaged
        if PackedFile(path, dataset.classes).layout.begin == layout.begin:
            print(f"{path}: complete already")
            return
    print(f"{path}: {len(dataset)} images, {require_space(path, layout)}")
    pack(path, layout, dataset, workers=workers)
