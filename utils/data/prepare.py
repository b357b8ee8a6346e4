"""Writes the class weights and packed files of a data set, once before training."""

import json
from contextlib import suppress
from pathlib import Path

import numpy as np

from utils.base.errors import UserError
from utils.base.paths import read_bytes, to_path
from utils.base.threads import read_ahead
from utils.data import sources
from utils.data.batches import read_all_train_ids
from utils.data.class_weights import WEIGHTS_FILE, histogram, read_noted, write_class_weights
from utils.data.dataset import DataSet, Dataset
from utils.data.packed import Layout, PackedDataset, pack, packed_path, part_path, require_space


def weigh(dataset: Dataset, root: Path, *, workers: int) -> None:
    """Write the class weights of a training set, computed from all of its labels."""
    counts = np.zeros(256, np.int64)
    labels = [path for files in dataset.files for path in files.paths[1:]]
    with sources.noting(root / WEIGHTS_FILE, root, labels, dataset.classes):
        for train_ids in read_all_train_ids(dataset, workers=workers):
            counts += histogram(train_ids)
        write_class_weights(root, counts, dataset.classes.names, images=len(dataset))
    print(f"{root / 'meta'}: class_weights.json. To pack: --pack true")


def current_class_weights(data_set: DataSet, root: Path, *, thorough: bool = False) -> np.ndarray:
    """(K,) float32 ENet class weights; UserError if they are missing, or if labels or the meaning
    of ids changed since they were computed. thorough: see compare in utils/data/sources.py."""
    labels = []
    with suppress(UserError):  # the label files may have been deleted
        found = data_set.find(root, "train")
        labels = [x for kind in found if kind != "image" for x in found[kind].values()]
    path = root / WEIGHTS_FILE
    sources.require_unchanged(path, data_set, root, labels, thorough=thorough)
    if (weights := read_noted(root, data_set.classes, "class_weights")) is None:
        raise UserError(
            f"{path}: missing, damaged or of other classes. Run python utils/preprocess_data.py "
            "with the same --dataset and --data_root, or train with --class_weights false"
        )
    return weights.astype(np.float32)


def chosen_class_weights(choice: bool | str | Path, data_set: DataSet, root: Path) -> np.ndarray:
    """(K,) float32 class weights: those of the data set for True, else those of a JSON file, in
    which each class has a positive weight; UserError for another file."""
    if choice is True:
        return current_class_weights(data_set, root)
    names = data_set.classes.names
    try:
        content = json.loads(read_bytes(to_path(choice)))
        content = content.get("class_weights", content)  # also as preprocess_data.py writes them
        weights = np.array([content.get(name) for name in names], np.float32)
        valid = np.isfinite(weights) & (weights > 0)
        if len(content) > len(names) or weights.shape != (len(names),) or not valid.all():
            raise ValueError
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        what = f"does not give each class a positive weight: {', '.join(names[:3])}, ..."
        raise UserError(f"{choice}: {what}. Write them as JSON, by name") from error
    return weights


def pack_split(dataset: Dataset, root: Path, split: str, *, workers: int, overwrite: bool) -> None:
    """Write the packed file of an opened split, or resume an interrupted run."""
    path, images = packed_path(root, split), []
    if overwrite:
        path.unlink(missing_ok=True)
    paths = [path for files in dataset.files for path in files.paths]
    with sources.noting(path, root, paths, dataset.classes) as (changed, noted):
        sizes = read_ahead(dataset.size, range(len(dataset)), workers=workers)
        for files, size in zip(dataset.files, sizes, strict=True):
            bytes_of = {x: noted[x][0] for x in (sources.name_below(root, y) for y in files.paths)}
            images.append({"name": files.name, "size": list(size), "sources": bytes_of})
        first, planes = dataset.files[0], ["image"]
        planes += ["label"] if first.train_ids or first.instances is None else []
        planes += ["instance"] if first.instances else []
        classes = list(dataset.classes.names)
        layout = Layout({"classes": classes, "planes": planes, "images": images})
        with suppress(UserError):  # missing or damaged
            if changed == [] and PackedDataset(path, dataset.classes).layout.begin == layout.begin:
                print(f"{path}: complete already")
                return
        print(f"{path}: {len(dataset)} images, {require_space(path, layout)}")
        part = part_path(path)  # from an interrupted run
        if sources.read_record(part) != (dataset.classes.meaning, noted):
            part.unlink(missing_ok=True)
            sources.write_record(part, dataset.classes, noted)
        pack(path, layout, dataset, workers=workers)
    sources.record_of(part).unlink()
