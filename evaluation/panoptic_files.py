"""Reads and writes segments: COCO's panoptic format; also reads Cityscapes' instance ids.

The format: a JSON file and, in the folder of the same name, an RGB PNG per image with segment ids
R + 256 G + 65536 B; 0 is void (cocodataset.org, format-data).
"""

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from evaluation.panoptic_quality import Category, PanopticCounts, Segments, count_segments
from utils.base.errors import UserError
from utils.base.find import find
from utils.base.paths import make_folder, read_bytes, write_json
from utils.base.progress import progress
from utils.base.threads import read_ahead
from utils.data.cityscapes import find_instances, first_folder
from utils.data.class_weights import histogram
from utils.data.image_files import decode, png_header, read_ids, recode, write_png
from utils.data.label_table import CITYSCAPES, INVALID, LabelTable

DAMAGED = "Replace the damaged file"
RGB = 2  # colour type, PNG specification section 11.2.2
MOST = 1 << 24  # segment ids
Read = Callable[[], Segments]


def categories_of(classes: LabelTable) -> list[Category]:
    """The categories of a data set; things are its classes with instances."""
    pairs = zip(classes.ids.tolist(), classes.names, strict=True)
    return [Category(number, name, number in classes.instance_sizes) for number, name in pairs]


def cityscapes_truth(root: Path, split: str) -> dict[str, Read]:
    """Image name, <city>_<sequence>_<frame> -> its true segments."""
    found = find_instances(root, split)
    if not found:
        what = f"{first_folder(root, 'gtFine', split)}: no */*_gtFine_instanceIds.png"
        raise UserError(f"{what}. Give the data set's folder with --data_root")
    return {name: partial(read_instances, path) for name, path in found.items()}


def read_instances(path: Path) -> Segments:
    try:
        return of_instances(read_ids(path, np.uint16, advice=DAMAGED), CITYSCAPES)
    except ValueError as error:
        raise UserError(f"{path}: {error}. Restore the file") from error


def of_instances(instances: np.ndarray, classes: LabelTable) -> Segments:
    """(H,W) uint16 instance ids -> segments, as csCreatePanopticImgs makes them: ignored classes
    are void, a group of things without instance ids is a crowd. ValueError for undefined ids."""
    numbers = np.flatnonzero(histogram(instances)).astype(np.uint16)
    ids = classes.to_plain_ids(numbers).ravel()
    train_ids = classes.id_to_train[ids]
    if (train_ids == INVALID).any():
        raise ValueError(f"undefined ids {some(numbers[train_ids == INVALID])}")
    kept = train_ids < classes.num_classes
    table = np.zeros(1 << 16, np.uint16)
    table[numbers[kept]] = np.arange(1, kept.sum() + 1)
    crowd = (numbers < classes.instance_base) & np.isin(ids, [*classes.instance_sizes])
    return Segments(cv2.LUT(instances, table), train_ids[kept].astype(np.int64), crowd[kept])


def find_predictions(folder: Path) -> Path:
    """The JSON file in a folder, or `folder` itself if it is a file."""
    if folder.is_file():
        return folder
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. Give another one with --predictions")
    found = sorted(find(folder, "*.json"))
    if not found:
        advice = "Write COCO's panoptic format: a JSON file, and PNGs in the folder of its name"
        raise UserError(f"{folder}: no JSON file. {advice}")
    if len(found) > 1:
        raise UserError(f"{folder}: {len(found)} JSON files. Give one: --predictions {found[0]}")
    return found[0]


def read_format(
    path: Path, categories: list[Category] | None = None
) -> tuple[dict[str, Read], list[Category]]:
    """Image id -> its segments, and the categories: those of the file if none are given."""
    try:
        content = json.loads(read_bytes(path))
        if categories is None:
            own = content["categories"]
            categories = [Category(x["id"], str(x["name"]), bool(x["isthing"])) for x in own]
        places = {category.id: place for place, category in enumerate(categories)}
        if not content["annotations"] or len(places) < len(categories):
            raise ValueError("no annotations, or a category twice")
        found: dict[str, Read] = {}
        for image in content["annotations"]:
            name = str(image["image_id"])
            if name in found:
                raise UserError(f"{path}: image {name} occurs twice. Write it once")
            numbers, own = [], image["segments_info"]
            for x in own:
                if x["category_id"] not in places:
                    what = f"segment {x['id']} of image {name} has the category {x['category_id']}"
                    known = ", ".join(map(str, places))
                    raise UserError(f"{path}: {what}. Give ids of categories: {known}")
                numbers.append(x["id"])
            if not all(0 < x < MOST for x in numbers) or not len({*numbers}) == len(own) < 65535:
                what = f"image {name} has the segment ids {some(np.sort(numbers))}"
                raise UserError(f"{path}: {what}. Give each segment its own id, from 1 to 2^24 - 1")
            segments = np.array([places[x["category_id"]] for x in own], np.int64)
            crowd = np.array([bool(x.get("iscrowd", 0)) for x in own], bool)
            file = folder_of(path) / image["file_name"]
            found[name] = partial(read_segments, file, np.array(numbers, np.int64), segments, crowd)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"not COCO's panoptic format ({error!r:.80})"
        raise UserError(f"{path}: {what}. Write image_id, file_name, segments_info") from error
    return found, categories


def folder_of(path: Path) -> Path:
    """The folder of the PNGs of a JSON file."""
    return path.with_suffix("") if path.with_suffix("").is_dir() else path.parent


def read_segments(
    path: Path, numbers: np.ndarray, categories: np.ndarray, crowd: np.ndarray
) -> Segments:
    """The segments of a PNG of segment ids; UserError unless it holds exactly `numbers`."""
    content = read_bytes(path)
    header = png_header(content, path, advice=DAMAGED)
    if header.color != RGB or header.bits != 8:
        advice = "Save segment ids R + 256 G + 65536 B as an 8-bit RGB PNG"
        raise UserError(f"{path}: {header.kind}, not segment ids. {advice}")
    pixels = decode(content, cv2.IMREAD_COLOR_RGB, path, what="PNG", advice=DAMAGED)

    def places_of(present: np.ndarray) -> np.ndarray:
        if len(other := np.setdiff1d(present, [0, *numbers])):
            swapped = (other & 255) << 16 | other & 0xFF00 | other >> 16
            advice = "List every segment in segments_info"
            if np.isin(swapped, numbers).all():
                advice = "Red and blue are exchanged: R is the lowest byte"
            raise UserError(f"{path}: segment ids {some(other)} are not in the JSON file. {advice}")
        if len(absent := np.setdiff1d(numbers, present)):
            what = f"segment ids {some(absent)} of the JSON file have no pixels"
            raise UserError(f"{path}: {what}. Leave them out of segments_info")
        places = np.argsort(numbers) + 1
        return np.pad(places, (len(present) - len(places), 0))  # void is first, if there is any

    return Segments(recode(pixels, places_of), categories, crowd)


class SegmentWriter:
    """Writes predictions in COCO's panoptic format: folder/panoptic/*.png, folder/panoptic.json.

    Ids as in Cityscapes: id of the class for stuff, 1000 times that plus 1, 2, ... for things.
    """

    def __init__(self, folder: Path, classes: LabelTable) -> None:
        self.path, self.classes = folder / "panoptic.json", classes
        self.images: dict[str, dict[str, Any]] = {}  # entries of the JSON file

    def add(self, name: str, segments: Segments) -> None:
        """Write the PNG file of an image; any thread may call this."""
        ids = self.classes.ids[segments.categories].astype(int).tolist()
        numbers, seen = [0], Counter()
        for label in ids:
            seen[label] += 1
            thing = label in self.classes.instance_sizes
            numbers.append(1000 * label + seen[label] if thing else label)
        colors = np.array(numbers, "<u4").view(np.uint8).reshape(-1, 4)[:, :3]
        file = f"{name}_panoptic.png"
        path = self.path.with_suffix("") / file
        make_folder(path.parent)
        write_png(path, colors[segments.numbers])
        areas = histogram(segments.numbers)[1:]
        rows = zip(numbers[1:], ids, areas.tolist(), strict=False)
        own = [{"id": x, "category_id": y, "area": area, "iscrowd": 0} for x, y, area in rows]
        self.images[name] = {"file_name": file, "segments_info": own}

    def finish(self, images: dict[str, dict[str, Any]]) -> None:
        """Write the JSON file for the entries of all processes."""
        numbered = len({int(name) for name in images if name.isdecimal()}) == len(images)
        rows = [
            {"image_id": int(name) if numbered else name, **images[name]} for name in sorted(images)
        ]  # numbers as in COCO's truth
        write_json(self.path, {"annotations": rows})


def some(numbers: np.ndarray) -> str:
    more = ", ..." if len(numbers) > 3 else ""
    return ", ".join(map(str, numbers[:3].tolist())) + more


def match(
    truth: dict[str, Read], predictions: dict[str, Read], path: Path
) -> dict[str, tuple[Read, Read]]:
    """Image -> true and predicted segments; UserError unless both have the same images."""
    if missing := [name for name in truth if name not in predictions]:
        what = f"{len(missing)} of {len(truth)} images are missing, such as {missing[0]}"
        raise UserError(f"{path}: {what}. Write one entry of annotations per image")
    if extra := [name for name in predictions if name not in truth]:
        what = f"{len(extra)} images do not belong to the split, such as {extra[0]}"
        raise UserError(f"{path}: {what}. Leave them out, or give their --split")
    return {name: (read, predictions[name]) for name, read in truth.items()}


def count_pair(item: tuple[str, tuple[Read, Read]], *, categories: int) -> PanopticCounts:
    name, (truth, predicted) = item[0], (read() for read in item[1])
    if truth.numbers.shape != predicted.numbers.shape:
        sizes = (f"{w} x {h}" for h, w in (predicted.numbers.shape, truth.numbers.shape))
        what = f"image {name}: {' instead of '.join(sizes)} pixels"
        raise UserError(f"{what}. Upsample predictions with nearest neighbour")
    return count_segments(truth, predicted, categories)


def count_all(
    pairs: dict[str, tuple[Read, Read]], categories: list[Category], *, workers: int
) -> PanopticCounts:
    """Counts of all images; each of `workers` threads holds one pair in memory."""
    how = {"workers": workers, "ahead": workers, "describe": lambda item: f"image {item[0]}"}
    parts = read_ahead(partial(count_pair, categories=len(categories)), pairs.items(), **how)
    with progress(len(pairs), unit="image", label="score") as bar:
        counts = []
        for part in parts:
            counts.append(part)
            bar.update()
    return PanopticCounts.total(counts)
