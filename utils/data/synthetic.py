"""Draws the synthetic data set, with the format, file names and label ids of Cityscapes.

A scene is a list of labelled polygons (utils/data/scene.py); cityscapesscripts converts them to
ground truth.
"""

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2
import numpy as np
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import createLabelImage

from utils.base.errors import UserError
from utils.base.find import find
from utils.base.paths import make_folder, read_bytes, write_json, write_text
from utils.base.progress import progress
from utils.data.image_files import write_png
from utils.data.scene import HEIGHT, WIDTH, compose, paint

VERSION = 1  # raise it when a code change alters the pictures
CITIES = {"train": ("synthville", "mockburg"), "val": ("fakehaven",)}
SCENE_FILES = {  # folder and name ending of the files of one scene
    "image":     ("leftImg8bit", "leftImg8bit.png"),
    "ids":       ("gtFine", "gtFine_labelIds.png"),
    "instances": ("gtFine", "gtFine_instanceIds.png"),
    "color":     ("gtFine", "gtFine_color.png"),
    "polygons":  ("gtFine", "gtFine_polygons.json"),
}  # fmt: skip


def scene_files(root: Path, split: str, index: int) -> dict[str, Path]:
    city = CITIES[split][index % len(CITIES[split])]
    name = f"{city}_{index:06d}_000019"
    return {k: root / top / split / city / f"{name}_{end}" for k, (top, end) in SCENE_FILES.items()}


def write_scene(task: tuple[Path, int, str, int]) -> None:
    """Draw and write one scene; its bytes depend on seed, split and index only."""
    root, seed, split, index = task
    cv2.setNumThreads(1)
    rng = np.random.default_rng((seed, list(CITIES).index(split), index))
    shapes = compose(rng, index)
    objects = [{"label": s.label, "polygon": s.polygon} for s in shapes if s.label]
    polygons = json.dumps({"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects})
    truth = Annotation()
    truth.fromJsonText(polygons)
    pictures = {
        "image": paint(rng, shapes),
        "ids": np.asarray(createLabelImage(truth, "ids")),
        "instances": np.uint16(createInstanceImage(truth, "ids")),
        "color": np.asarray(createLabelImage(truth, "color")),
    }
    files = scene_files(root, split, index)
    for path in files.values():
        make_folder(path.parent)
    for kind, pixels in pictures.items():
        write_png(files[kind], pixels)
    write_text(files["polygons"], polygons)


def own_files(root: Path) -> set[Path]:
    """The files of scenes in `root`, recognised by name; UserError if there are other files."""
    files, own = set(), set()
    for top, ending in SCENE_FILES.values():
        files |= {path for path in find(root / top, "**/*") if path.is_file()}
        for split, cities in CITIES.items():
            for city in cities:
                own |= set(root.glob(f"{top}/{split}/{city}/{city}_??????_000019_{ending}"))
    if foreign := sorted(files - own):
        raise UserError(f"{foreign[0]}: not written by this command. Give another --data_root")
    return own


def generate(
    data_root: Path, *, train: int, val: int, seed: int = 0, workers: int, overwrite: bool = False
) -> None:
    """Write the data set. Completes an interrupted one and leaves a complete one unchanged."""
    made = {"seed": seed, "train": train, "val": val, "version": VERSION}
    marker = data_root / "synthetic.json"  # parameters of the data set
    try:
        found = json.loads(read_bytes(marker)) if marker.is_file() else {}
    except ValueError as error:
        raise UserError(f"{marker}: damaged. Give another --data_root") from error
    if found == made | {"complete": True} and not overwrite:
        print(f"{data_root}: complete already, nothing to do")
        return
    own = own_files(data_root)
    same = found in (made | {"complete": True}, made | {"complete": False})
    if own and not same and not overwrite:
        what = f"holds a synthetic data set with other parameters ({found})"
        raise UserError(f"{data_root}: {what}. Give another --data_root or --overwrite true")
    if overwrite:
        marker.unlink(missing_ok=True)  # first, so that no run completes the remains
        for path in own:
            path.unlink()
    make_folder(data_root)
    write_json(marker, made | {"complete": False})
    tasks = [
        (data_root, seed, split, index)
        for split in CITIES
        for index in range(made[split])
        if not all(path.exists() for path in scene_files(data_root, split, index).values())
    ]
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(workers, mp_context=context) as pool:
            written = pool.map(write_scene, tasks)
            for _ in progress(len(tasks), written, unit="image", label="synthetic"):
                pass
    except BrokenProcessPool as error:
        what = "a process ended early, perhaps for lack of memory"
        raise UserError(f"synthetic.py: {what}. Lower --workers and run it again") from error
    write_json(marker, made | {"complete": True})
    print(f"{data_root}: {train} train and {val} val scenes")
