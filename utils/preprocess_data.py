"""Convert Cityscapes label ids to train ids and compute the ENet class weights; run once.

    python utils/preprocess_data.py                         $CITYSCAPES_DATASET or data/cityscapes
    python utils/preprocess_data.py --data_root /data/cityscapes
    python utils/preprocess_data.py --dataset synthetic
    python utils/preprocess_data.py --pack true             also pack: trains without decoding PNGs
    python utils/preprocess_data.py --zip leftImg8bit_trainvaltest.zip --zip gtFine_trainvaltest.zip
    python utils/preprocess_data.py --check true            every fault of the data in one list

Writes <data_root>/meta/label_imgs/<img_id>.png for train and val, and meta/class_weights.json;
packed, <data_root>/packed/train.pack and val.pack (25 and 5 GB for Cityscapes). --zip packs from
the archives without unpacking them. A second run does nothing; an interrupted one goes on where it
stopped.
"""

import os
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # run by path, Python looks for modules in utils/ first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np

from datasets import (
    MORE_SPLITS,
    SegmentationDataset,
    build_dataset,
    label_table,
    zipped_cityscapes,
)
from datasets import SPLITS as DATA_SPLITS
from evaluation.counts import histogram
from utils.archives import Member
from utils.cityscapes import labelled_files, train_id_path
from utils.class_weights import write_class_weights
from utils.config import DatasetName
from utils.custom import read_description
from utils.errors import UserError, run_command
from utils.files import first_folder, make_folder, resolve_data_root, write_png
from utils.images import image_size, labels_of, read_ids, read_image, to_train_ids
from utils.integrity import check_packed, check_split
from utils.labels import CITYSCAPES
from utils.listing import Files
from utils.loader import read_ahead, read_labels
from utils.lock import hold
from utils.packing import PackedFile, is_packed, make_header, pack, packed_path, require_space
from utils.parser import check, parse
from utils.progress import progress
from utils.voc import convert_sbd, has_split, voc_samples

SPLITS = ("train", "val")  # what is converted and packed
CONVERTED = ("cityscapes", "synthetic")  # the data sets whose label ids become train ids
COUNTS = {"cityscapes": {"train": 2975, "val": 500, "test": 1525}}  # images


@dataclass(frozen=True)
class PreprocessConfig:
    """Options of preprocess_data.py."""

    dataset: DatasetName = "cityscapes"
    """Data set; cityscapes and synthetic are converted, and the SBD part of voc; of the others only
    the class weights are computed: their files hold ids that training reads as they are."""
    data_root: Path | None = None
    """Folder of the data set. Default: $CITYSCAPES_DATASET for cityscapes, else data/<dataset>."""
    workers: int = os.cpu_count() or 1
    """Threads that convert images."""
    overwrite: bool = False
    """Convert and pack again what is there already."""
    pack: bool = False
    """Also write the train and val images into packed files, from which training reads crops
    without decoding; the same pixels, as much disk as uncompressed images take."""
    zip: list[Path] = field(default_factory=list)
    """Official archives to pack from, one --zip each; nothing is unpacked."""
    check: bool = False
    """Only look for faults: files missing or of the wrong kind, size, structure or checksum."""
    decode: bool = False
    """With --check: decode every file and compare the ids too."""

    def __post_init__(self) -> None:
        check(self, "workers", lambda workers: workers >= 1, "at least 1")
        if self.zip and self.dataset not in CONVERTED:
            raise ValueError("--zip takes the archives of cityscapes only")


def preprocess(root: Path, *, workers: int, overwrite: bool) -> None:
    """Train ids of train and val below root/meta, and the class weights of train."""
    files = {split: labelled_files(root, split) for split in SPLITS}
    weights_file = root / "meta" / "class_weights.json"
    every = [x for split in SPLITS for x in files[split]]
    pending = [x for x in every if overwrite or not is_current(x, root)]
    if not pending and weights_file.is_file():
        print(f"{root / 'meta'}: up to date, nothing to do")
        return
    make_folder(train_id_path(root, "").parent)
    work = partial(convert, root=root, redo={x.name for x in pending})
    counts = {split: np.zeros(256, np.int64) for split in SPLITS}
    with progress(len(every), unit="image", label="preprocess") as bar:
        for split in SPLITS:
            for count in read_ahead(work, files[split], workers=workers, ahead=2 * workers):
                counts[split] += count
                bar.update()
    write_class_weights(root, counts["train"], CITYSCAPES.names, images=len(files["train"]))
    print(f"{root / 'meta'}: {len(pending)} label images, class_weights.json")


def is_current(files: Files, root: Path) -> bool:
    """Whether the train ids were written after their source was."""
    try:
        return train_id_path(root, files.name).stat().st_mtime >= files.label.stat().st_mtime
    except FileNotFoundError:
        return False


def convert(files: Files, *, root: Path, redo: set[str]) -> np.ndarray:
    """Write one image's train ids if it is in `redo`; their (256,) int64 pixel counts."""
    path = train_id_path(root, files.name)
    if files.name in redo:
        train_ids = to_train_ids(
            read_ids(files.label, np.uint8), CITYSCAPES.id_to_train, files.label
        )
        write_png(path, train_ids)
    else:
        train_ids = read_ids(path, np.uint8)
    return histogram(train_ids)


def weigh(name: str, root: Path, *, workers: int) -> None:
    """The class weights of a data set whose label files need no conversion."""
    dataset = build_dataset(name, root, "train", packed=False)
    counts = np.zeros(256, np.int64)
    for label in read_labels(dataset, workers=workers):
        counts += histogram(label)
    write_class_weights(root, counts, dataset.classes.names, images=len(dataset))
    print(f"{root / 'meta'}: class_weights.json; nothing to convert, --pack true packs it")


def pack_data(
    name: str, root: Path, archives: list[Path], *, workers: int, overwrite: bool = False
) -> None:
    """Packed files of train and val, and from archives the class weights."""
    for split in SPLITS:
        if archives:
            dataset = zipped_cityscapes(archives, split)
        else:
            dataset = build_dataset(name, root, split, packed=False)
        path = packed_path(root, split)
        if overwrite:
            path.unlink(missing_ok=True)
        pack_split(dataset, path, root, workers=workers)
    if archives:
        train = PackedFile(packed_path(root, "train"), CITYSCAPES)
        counts = np.zeros(256, np.int64)
        for index in range(len(train)):
            counts += histogram(train.planes(index)["label"])
        write_class_weights(root, counts, CITYSCAPES.names, images=len(train))


def pack_split(dataset: SegmentationDataset, path: Path, root: Path, *, workers: int) -> None:
    """Write a split's packed file, or what an interrupted run left to write."""
    sizes = list(read_ahead(image_size, [x.image for x in dataset.files], workers=workers))
    planes = ["image", "label" if dataset.files[0].instance is None else "instance"]
    sources = [source_sizes(files, root) for files in dataset.files]
    header = make_header(dataset.names, sizes, sources, planes, dataset.classes)
    if is_packed(path, header):
        print(f"{path}: complete already")
        return
    needed, free = (count / 2**30 for count in require_space(path, header))
    print(f"{path}: {len(dataset)} images, {needed:.1f} GiB to write, {free:.1f} GiB free")
    read = partial(read_ahead, dataset.__getitem__, workers=workers, ahead=2 * workers)
    with progress(len(dataset), unit="image", label=f"pack {path.stem}") as bar:
        pack(path, header, read, on_image=lambda done: bar.update(done - bar.n))


def source_sizes(files: Files, root: Path) -> dict[str, int]:
    """Bytes of the files a sample comes from, by their path below `root`."""
    found = (path for path in (files.image, files.label, files.instance) if path is not None)
    return dict(
        (path.info.filename, path.size)
        if isinstance(path, Member)
        else (path.relative_to(root).as_posix(), path.stat().st_size)
        for path in found
    )


def find_all(name: str, root: Path, split: str) -> dict[str, dict[str, Path]]:
    """Every file of a split, whether it has its counterparts or not: kind -> image name -> path."""
    if name == "custom":
        described = read_description(root)
        return {kind: described.find(f"{kind}s", root, split) for kind in ("image", "label")}
    if name == "voc":
        samples = voc_samples(root, split) if has_split(root, split) else []
        kinds = {"image": {x[0]: x[1] for x in samples}, "label": {x[0]: x[2] for x in samples}}
        return kinds if all(kinds["label"].values()) else {"image": kinds["image"]}
    if name == "camvid":
        folders = {"image": (root / split, "*.[pj][np]g", 0)}
        folders["label"] = (root / f"{split}annot", "*.png", 0)
    else:
        kind = "gtCoarse" if split == "train_extra" else "gtFine"
        images, labels = (first_folder(root, name, split) for name in ("leftImg8bit", kind))
        folders = {"image": (images, "*/*_leftImg8bit.png", 1)}
        if split != "test":
            folders["label"] = (labels, f"*/*_{kind}_labelIds.png", 2)
        if kind == "gtFine" and split != "test":
            folders["instance"] = (labels, "*/*_gtFine_instanceIds.png", 2)
    return {
        kind: {path.stem.rsplit("_", words)[0]: path for path in sorted(folder.glob(pattern))}
        for kind, (folder, pattern, words) in folders.items()
    }


def check_data(name: str, root: Path, *, decode: bool, workers: int) -> None:
    """Print every fault of the files and the packed files; UserError if there is one."""
    classes = label_table(name, root)
    decoders = {
        "image": read_image,
        "label": lambda path: to_train_ids(read_ids(path, np.uint8), classes.id_to_train, path),
        "instance": lambda path: labels_of(read_ids(path, np.uint16), classes, path),
    }
    files = found = 0
    for split in (*DATA_SPLITS, *MORE_SPLITS.get(name, ())):
        by_kind, packed = find_all(name, root, split), packed_path(root, split)
        images, expected = len(by_kind["image"]), COUNTS.get(name, {}).get(split)
        if images and expected and images != expected:
            found += 1
            print(f"{root}: {images} {split} images, {name} has {expected}")
        found += check_split(split, by_kind, decoders if decode else {}, workers=workers)
        files += sum(map(len, by_kind.values()))
        if packed.is_file():
            files += 1
            found += check_packed(packed, classes)
    if not files:
        raise UserError(f"{root}: no {name} files. Name the data set's folder with --data_root")
    if found:
        raise UserError(f"{root}: {found} faults, listed above. Replace these files")
    print(f"{root}: {files} files, no fault")


def main() -> None:
    config = parse(PreprocessConfig, __doc__)
    root = resolve_data_root(config.dataset, config.data_root)
    if config.check:
        check_data(config.dataset, root, decode=config.decode, workers=config.workers)
        return
    with hold(root / "meta"):
        if not config.zip and config.dataset in CONVERTED:
            preprocess(root, workers=config.workers, overwrite=config.overwrite)
        elif not config.zip:
            if config.dataset == "voc":
                convert_sbd(root, workers=config.workers, overwrite=config.overwrite)
            weigh(config.dataset, root, workers=config.workers)
        if config.pack or config.zip:
            options = {"workers": config.workers, "overwrite": config.overwrite}
            pack_data(config.dataset, root, config.zip, **options)


if __name__ == "__main__":
    run_command(main)
