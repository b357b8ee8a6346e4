"""COCO's photos with the classes of VOC, as in torchvision's reference training.

Masks are drawn once from the instances in annotations/ (Lin et al., ECCV 2014; cocodataset.org).
Pixels of several instances are ignored, crowds are drawn like instances. Training leaves out images
with at most 1,000 pixels of the classes; val keeps all images.
"""

import json
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask

from utils.base.errors import UserError
from utils.base.find import find_named
from utils.base.paths import make_folder, read_bytes, read_names, write_text
from utils.data.dataset import DataSet, FoundFiles, NoImages, train_id_path
from utils.data.label_table import IGNORE, VOC
from utils.data.sources import convert

CATEGORIES = (  # ids of VOC's classes 1, 2, ...
    5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72,
)  # fmt: skip
LEAST = 1000  # pixels, as the sum of the annotations' `area`
FARTHEST = 100_000  # pixels, of coordinates and sides
MASK_BYTES = 4096  # of a mask on the disk, roughly
Objects = list[tuple[int, Any]]  # train id and `segmentation` of each instance of an image


def find(root: Path, split: str, *, year: int) -> FoundFiles:
    """Images and converted masks of train or val, in the list that prepare writes."""
    listing = root / "meta" / f"{split}{year}.txt"
    if not listing.is_file():
        require_instances(root, split, year)
        name = "coco" if year == 2017 else f"coco_{year}"
        advice = f"Run python utils/preprocess_data.py --dataset {name}"
        raise UserError(f"{listing}: missing. {advice}")
    names = read_names(listing)
    masks = {x: train_id_path(root, x) for x in names}
    return {"image": images_of(root, f"{split}{year}", names), "train_ids": masks}


def downloaded(root: Path, split: str, *, year: int) -> FoundFiles:
    """As find; before prepare the images of the instances file."""
    if (root / "meta" / f"{split}{year}.txt").is_file():
        return find(root, split, year=year)
    found = read_instances(require_instances(root, split, year), split)
    return {"image": images_of(root, f"{split}{year}", found)}


def images_of(root: Path, folder: str, names: Iterable[str]) -> dict[str, Path]:
    place = next((x for x in (root, root / "images") if (x / folder).is_dir()), root) / folder
    images = find_named(place, "{name}.jpg")
    return {x: images.get(x, place / f"{x}.jpg") for x in names}


def require_instances(root: Path, split: str, year: int) -> Path:
    """The instances file of train or val; NoImages if there is none."""
    path = root / "annotations" / f"instances_{split}{year}.json"
    if split == "test" or not path.is_file():
        what = f"{path}: not found. Unpack COCO's images and annotations of {year} there"
        raise NoImages(f"{what}; docs/datasets.md shows the folders")
    return path


def require_new(path: Path, images: Iterable[str], names: set[str]) -> None:
    """UserError if val has an image of a name in train; adds the images to `names`."""
    if twice := names.intersection(images):
        what = f"image {min(twice)} is in train, too, with another mask of the same name"
        raise UserError(f"{path}: {what}. Rename it in the file and on the disk")
    names.update(images)


def prepare(root: Path, *, workers: int, overwrite: bool, year: int) -> bool:
    """Draw the masks of train and val below root/meta."""
    names: set[str] = set()
    make_folder(root / "meta")
    for split in ("train", "val"):
        path = require_instances(root, split, year)
        images = read_instances(path, split)
        require_new(path, images, names)
        write_text(root / "meta" / f"{split}{year}.txt", "\n".join(images) + "\n")
        gib, free = len(images) * MASK_BYTES / 2**30, shutil.disk_usage(root).free / 2**30
        print(f"{path}: {len(images):,} masks, about {gib:.1f} GiB, {free:.1f} GiB free")

        def read(name: str, images: dict = images, path: Path = path) -> np.ndarray:
            try:
                return draw(*images[name])
            except UserError:
                raise
            except Exception as error:  # pycocotools raises any type
                what = f"{path}: the instances of image {name} cannot be drawn ({error})"
                raise UserError(f"{what}. Download the file again") from error

        labels = dict.fromkeys(images, path)
        convert(root, split, labels, VOC, read, workers=workers, overwrite=overwrite)
    return False


def read_instances(path: Path, split: str) -> dict[str, tuple[Objects, tuple[int, int]]]:
    """Image name -> its instances of the classes and its height and width; for train only images
    whose instances have more than LEAST pixels together."""
    try:
        content = json.loads(read_bytes(path))
        images = {x["id"]: x for x in content["images"]}
        classes = {number: train_id for train_id, number in enumerate(CATEGORIES, 1)}
        objects: dict[int, Objects] = {number: [] for number in images}
        areas = dict.fromkeys(images, 0.0)
        for x in content["annotations"]:
            if (train_id := classes.get(x["category_id"])) is not None:
                objects[x["image_id"]].append((train_id, x["segmentation"]))
                areas[x["image_id"]] += x["area"]
        if not all(area >= 0 for area in areas.values()):
            raise ValueError("an area below 0 or nan")
        kept = [number for number in images if split != "train" or areas[number] > LEAST]
        sizes = {number: (images[number]["height"], images[number]["width"]) for number in kept}
        if not kept:
            raise ValueError("no image with enough pixels of the classes")
        names = [Path(images[number]["file_name"]).stem for number in kept]
        if len({*names}) < len(names):
            raise ValueError("two images with the same file name")
        return {name: (objects[x], sizes[x]) for name, x in zip(names, kept, strict=True)}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"not an instances file of COCO ({error!r:.120})"
        raise UserError(f"{path}: {what}. Unpack annotations_trainval again") from error


def require_drawable(objects: Objects, size: tuple[int, int]) -> None:
    """ValueError for what pycocotools would crash with or draw wrongly."""
    if not 0 < min(size) <= max(size) <= FARTHEST:
        raise ValueError(f"size {size}")
    for _, shape in objects:
        if isinstance(shape, dict):
            counts = shape["counts"]
            whole = isinstance(counts, str) or sum(counts) == size[0] * size[1]
            if tuple(shape["size"]) != size or not whole:
                raise ValueError("a run-length code of another size")
        elif any(len(x) % 2 or not np.abs(x).max() <= FARTHEST for x in shape):
            raise ValueError("a polygon with an odd or too large number")


def draw(objects: Objects, size: tuple[int, int]) -> np.ndarray:
    """(H,W) uint8 train ids: the class where one instance lies, IGNORE where several do, else 0."""
    require_drawable(objects, size)
    label = np.zeros(size[::-1], np.uint8)  # transposed: COCO's masks run down the columns
    for train_id, segmentation in objects:
        packed = isinstance(segmentation, dict) and isinstance(segmentation["counts"], str)
        found = segmentation if packed else mask.frPyObjects(segmentation, *size)
        whole = mask.merge(found) if isinstance(found, list) else found
        left, top, width, height = mask.toBbox(whole).astype(int).tolist()
        part = (slice(left, left + width), slice(top, top + height))
        inside, labels = mask.decode(whole).T.view(bool)[part], label[part]
        again = inside & (labels > 0)
        np.copyto(labels, train_id, where=inside)
        np.copyto(labels, IGNORE, where=again)
    return cv2.transpose(label)


HINT = "Unpack all images (.jpg), then run python utils/preprocess_data.py --dataset {}"


def data_set(name: str, year: int, images: dict[str, int]) -> DataSet:
    return DataSet(
        name, VOC, partial(find, year=year), images=images,
        hints=dict.fromkeys(("train", "val"), HINT.format(name)),
        prepare=partial(prepare, year=year), downloaded=partial(downloaded, year=year),
    )  # fmt: skip


COCO = data_set("coco", 2017, {"val": 5000})
COCO_2014 = data_set("coco_2014", 2014, {"val": 40504})
