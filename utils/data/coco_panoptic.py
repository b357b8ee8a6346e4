"""COCO's panoptic segmentation: 80 things and 53 kinds of stuff (Kirillov et al., CVPR 2019).

The published files are a JSON file and RGB PNGs of segment ids per split. Preparation writes from
them train ids, and instance ids: the class's id for stuff and crowds, else 256 times it plus 1, 2,
... for the instances.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from utils.base.errors import UserError
from utils.base.paths import make_folder, read_bytes, read_names, write_text
from utils.data.coco import HINT, images_of, require_new
from utils.data.dataset import DataSet, FoundFiles, NoImages, train_id_path
from utils.data.image_files import read_image, recode, write_png
from utils.data.label_table import IGNORE, INVALID, LabelTable, voc_palette
from utils.data.sources import convert

YEAR = 2017
BASE = 256  # of instance ids
# Id and name of each class (cocodataset.org, panoptic categories).
THINGS = """
1 person, 2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat, 10
traffic light, 11 fire hydrant, 13 stop sign, 14 parking meter, 15 bench, 16 bird, 17 cat, 18
dog, 19 horse, 20 sheep, 21 cow, 22 elephant, 23 bear, 24 zebra, 25 giraffe, 27 backpack, 28
umbrella, 31 handbag, 32 tie, 33 suitcase, 34 frisbee, 35 skis, 36 snowboard, 37 sports ball,
38 kite, 39 baseball bat, 40 baseball glove, 41 skateboard, 42 surfboard, 43 tennis racket, 44
bottle, 46 wine glass, 47 cup, 48 fork, 49 knife, 50 spoon, 51 bowl, 52 banana, 53 apple, 54
sandwich, 55 orange, 56 broccoli, 57 carrot, 58 hot dog, 59 pizza, 60 donut, 61 cake, 62
chair, 63 couch, 64 potted plant, 65 bed, 67 dining table, 70 toilet, 72 tv, 73 laptop, 74
mouse, 75 remote, 76 keyboard, 77 cell phone, 78 microwave, 79 oven, 80 toaster, 81 sink, 82
refrigerator, 84 book, 85 clock, 86 vase, 87 scissors, 88 teddy bear, 89 hair drier, 90
toothbrush
"""
STUFF = """
92 banner, 93 blanket, 95 bridge, 100 cardboard, 107 counter, 109 curtain, 112 door-stuff, 118
floor-wood, 119 flower, 122 fruit, 125 gravel, 128 house, 130 light, 133 mirror-stuff, 138
net, 141 pillow, 144 platform, 145 playingfield, 147 railroad, 148 river, 149 road, 151 roof,
154 sand, 155 sea, 156 shelf, 159 snow, 161 stairs, 166 tent, 168 towel, 171 wall-brick, 175
wall-stone, 176 wall-tile, 177 wall-wood, 178 water-other, 180 window-blind, 181 window-other,
184 tree-merged, 185 fence-merged, 186 ceiling-merged, 187 sky-other-merged, 188
cabinet-merged, 189 table-merged, 190 floor-other-merged, 191 pavement-merged, 192
mountain-merged, 193 grass-merged, 194 dirt-merged, 195 paper-merged, 196 food-other-merged,
197 building-other-merged, 198 rock-merged, 199 wall-other-merged, 200 rug-merged
"""


def _table() -> LabelTable:
    things, stuff = (
        [line.strip().split(" ", 1) for line in text.replace("\n", " ").split(",")]
        for text in (THINGS, STUFF)
    )
    ids = np.array([number for number, _ in (*things, *stuff)], np.uint8)
    id_to_train = np.full(256, INVALID, np.uint8)
    id_to_train[ids], id_to_train[0] = np.arange(len(ids)), IGNORE
    return LabelTable(
        names=tuple(name for _, name in (*things, *stuff)),
        colors=voc_palette()[ids],
        ids=ids,
        id_to_train=id_to_train,
        num_ids=int(ids.max()) + 1,
        # Nobody has published average sizes, so there is no nIoU.
        instance_sizes=dict.fromkeys(ids[: len(things)].tolist(), float("nan")),
        instance_base=BASE,
        stuff_area=4096,
    )


CLASSES = _table()


def find(root: Path, split: str) -> FoundFiles:
    """Images, train ids of train and instance ids of val, as prepare writes them."""
    found = downloaded(root, split)
    if "instances" not in found:
        listing = listing_of(root, split)
        advice = "Run python utils/preprocess_data.py --dataset coco_panoptic"
        raise UserError(f"{listing}: missing. {advice}")
    del found["instances" if split == "train" else "train_ids"]
    return found


def downloaded(root: Path, split: str) -> FoundFiles:
    """As find, with both kinds of labels; before prepare the images of the JSON file."""
    listing = listing_of(root, split)
    if not listing.is_file():
        names = [*read_segments_file(require_segments(root, split))]
        return {"image": images_of(root, f"{split}{YEAR}", names)}
    names = read_names(listing)
    return {
        "image": images_of(root, f"{split}{YEAR}", names),
        "train_ids": {x: train_id_path(root, x) for x in names},
        "instances": {x: instance_path(root, x) for x in names},
    }


def listing_of(root: Path, split: str) -> Path:
    return root / "meta" / f"panoptic_{split}{YEAR}.txt"


def instance_path(root: Path, name: str) -> Path:
    return root / "meta" / "instance_imgs" / f"{name}.png"


def require_segments(root: Path, split: str) -> Path:
    """The JSON file of train or val; NoImages if there is none."""
    path = root / "annotations" / f"panoptic_{split}{YEAR}.json"
    if split == "test" or not path.is_file():
        what = f"{path}: not found. Unpack COCO's images and panoptic annotations of {YEAR} there"
        raise NoImages(f"{what}; docs/datasets.md shows the folders")
    return path


def read_segments_file(path: Path) -> dict[str, dict[str, Any]]:
    """Image name -> its entry of `annotations`."""
    try:
        entries = json.loads(read_bytes(path))["annotations"]
        named = {Path(x["file_name"]).stem: x for x in entries}
        for entry in entries:
            for segment in entry["segments_info"]:
                number, _, _ = (segment[x] for x in ("category_id", "id", "iscrowd"))
                if CLASSES.id_to_train[number] >= INVALID:
                    raise ValueError(f"category {number}")
        if not entries or len(named) < len(entries):
            raise ValueError("no image, or one twice")
        return named
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        what = f"not COCO's panoptic file ({error!r:.120})"
        raise UserError(f"{path}: {what}. Unpack panoptic_annotations_trainval again") from error


def prepare(root: Path, *, workers: int, overwrite: bool) -> bool:
    """Write the train ids and instance ids of train and val below root/meta."""
    names: set[str] = set()
    make_folder(instance_path(root, "").parent)
    for split in ("train", "val"):
        path = require_segments(root, split)
        entries = read_segments_file(path)
        require_new(path, entries, names)
        write_text(listing_of(root, split), "\n".join(entries) + "\n")
        missing = any(not instance_path(root, x).is_file() for x in entries)
        files = {x: path.with_suffix("") / entry["file_name"] for x, entry in entries.items()}

        def read(name: str, entries: dict = entries, files: dict = files) -> np.ndarray:
            instances = instance_ids(files[name], entries[name])
            write_png(instance_path(root, name), instances, filtered=False)
            return cv2.LUT(CLASSES.to_plain_ids(instances), CLASSES.id_to_train)

        again = overwrite or missing  # convert looks at train ids only
        how = {"workers": workers, "overwrite": again, "common": [path]}
        convert(root, split, files, CLASSES, read, **how)
    return False


def instance_ids(path: Path, entry: dict[str, Any]) -> np.ndarray:
    """A PNG of segment ids R + 256 G + 65536 B and its segments -> (H,W) uint16 instance ids."""
    seen: Counter[int] = Counter()
    ids = {0: 0}
    for segment in entry["segments_info"]:
        number = segment["category_id"]
        if number in CLASSES.instance_sizes and not segment["iscrowd"]:
            seen[number] += 1
            number = BASE * number + seen[number]
        ids[segment["id"]] = number
    if seen and max(seen.values()) >= BASE:
        raise UserError(f"{path}: more than {BASE - 1} instances of a class. Leave the image out")

    def ids_of(numbers: np.ndarray) -> np.ndarray:
        if unknown := [x for x in numbers.tolist() if x not in ids]:
            what = f"segment {unknown[0]} is not in the JSON file"
            raise UserError(f"{path}: {what}. Unpack panoptic_annotations_trainval again")
        return np.array([ids[x] for x in numbers.tolist()], np.uint16)

    return recode(read_image(path), ids_of)


COCO_PANOPTIC = DataSet(
    "coco_panoptic", CLASSES, find, images={"train": 118287, "val": 5000},
    hints=dict.fromkeys(("train", "val"), HINT.format("coco_panoptic")),
    prepare=prepare, downloaded=downloaded,
)  # fmt: skip
