"""Draw a synthetic data set in Cityscapes format, to try every command without the real one.

    python utils/synthetic.py
    python utils/synthetic.py --data_root data/synthetic --train 64 --val 12 --seed 0 --workers 4

A scene is a list of labelled polygons (utils/synthetic_scene.py); cityscapesscripts turns it into
ground truth.
"""

import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run by path, Python looks for modules in utils/ first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import createLabelImage

from utils.errors import UserError, run_command
from utils.files import REPOSITORY
from utils.parser import check, parse
from utils.progress import progress
from utils.synthetic_scene import HEIGHT, WIDTH, compose, paint

VERSION = 1  # of the pictures: raise it when a change alters them
SPLITS = {"train": ("synthville", "mockburg"), "val": ("fakehaven",)}  # cities
FILES = {  # folder and name ending of the files of one scene
    "image":     ("leftImg8bit", "leftImg8bit.png"),
    "ids":       ("gtFine", "gtFine_labelIds.png"),
    "instances": ("gtFine", "gtFine_instanceIds.png"),
    "color":     ("gtFine", "gtFine_color.png"),
    "polygons":  ("gtFine", "gtFine_polygons.json"),
}  # fmt: skip


def scene_files(root: Path, split: str, index: int) -> dict[str, Path]:
    city = SPLITS[split][index % len(SPLITS[split])]
    name = f"{city}_{index:06d}_000019"
    return {k: root / top / split / city / f"{name}_{end}" for k, (top, end) in FILES.items()}


def own_files(root: Path, made: dict[str, Any]) -> set[Path]:
    """Every file of the data set with these parameters."""
    scenes = [(split, index) for split in SPLITS for index in range(made[split])]
    return {path for scene in scenes for path in scene_files(root, *scene).values()}


def save(path: Path, content: bytes) -> None:
    """Write the whole file or nothing."""
    temporary = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        problem = f"{path}: {error.strerror}. Free space there or choose another --data_root"
        raise UserError(problem) from error


def png(image: np.ndarray) -> bytes:
    """(H,W), (H,W,3) BGR or (H,W,4) BGRA -> the content of a PNG file."""
    return cv2.imencode(".png", image)[1].tobytes()


def write_scene(task: tuple[Path, int, str, int]) -> None:
    """Draw and write one scene; its bytes depend on seed, split and index only."""
    root, seed, split, index = task
    cv2.setNumThreads(1)
    rng = np.random.default_rng((seed, list(SPLITS).index(split), index))
    shapes = compose(rng, index)
    objects = [{"label": s.label, "polygon": s.polygon} for s in shapes if s.label]
    polygons = json.dumps({"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects})
    truth = Annotation()
    truth.fromJsonText(polygons)
    color = np.asarray(createLabelImage(truth, "color"))
    contents = {
        "image": png(cv2.cvtColor(paint(rng, shapes), cv2.COLOR_RGB2BGR)),
        "ids": png(np.asarray(createLabelImage(truth, "ids"))),
        "instances": png(np.uint16(createInstanceImage(truth, "ids"))),
        "color": png(cv2.cvtColor(color, cv2.COLOR_RGBA2BGRA)),
        "polygons": polygons.encode(),
    }
    for kind, path in scene_files(root, split, index).items():
        save(path, contents[kind])


def write_marker(root: Path, made: dict[str, Any], complete: bool) -> None:
    save(root / "synthetic.json", json.dumps(made | {"complete": complete}).encode())


def read_marker(root: Path) -> tuple[dict[str, Any], bool]:
    """Parameters of the data set in `root` and whether it is complete; {} where there is none."""
    marker = root / "synthetic.json"
    try:
        made = json.loads(marker.read_text("utf-8"))
        own_files(root, made)
        return made, made.pop("complete")
    except (FileNotFoundError, NotADirectoryError):
        return {}, False
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{marker}: damaged. Choose another --data_root") from error


def make_room(root: Path, found: dict[str, Any], made: dict[str, Any], overwrite: bool) -> None:
    """Refuse a folder with anything but our own scenes; with `overwrite` remove those."""
    tops = sorted({root / top for top, _ in FILES.values()})
    if not found and any(top.exists() for top in tops):
        problem = "holds images that this command did not write"
        raise UserError(f"{root}: {problem}. Choose another --data_root")
    if found not in ({}, made) and not overwrite:
        problem = f"holds a synthetic data set with other parameters ({found})"
        raise UserError(f"{root}: {problem}. Choose another --data_root or --overwrite true")
    own = own_files(root, found) if found else set()
    files = {path for top in tops for path in top.rglob("[!.]*") if path.is_file()}
    if foreign := sorted(files - own):
        raise UserError(f"{foreign[0]}: not written by this command. Choose another --data_root")
    if overwrite and found:
        write_marker(root, found, complete=False)
        for path in own:
            path.unlink(missing_ok=True)


def generate(
    data_root: Path, *, train: int, val: int, seed: int = 0, workers: int, overwrite: bool = False
) -> None:
    """Write the data set; an interrupted one is completed, a complete one left as it is."""
    made = {"seed": seed, "train": train, "val": val, "version": VERSION}
    found, complete = read_marker(data_root)
    if found == made and complete and not overwrite:
        print(f"{data_root}: complete already, nothing to do")
        return
    make_room(data_root, found, made, overwrite)
    write_marker(data_root, made, complete=False)
    scenes = [(split, index) for split in SPLITS for index in range(made[split])]
    tasks = [
        (data_root, seed, *scene)
        for scene in scenes
        if not all(path.exists() for path in scene_files(data_root, *scene).values())
    ]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        written = pool.map(write_scene, tasks)
        with progress(len(tasks), unit="image", label="synthetic") as bar:
            for _ in written:
                bar.update()
    write_marker(data_root, made, complete=True)


@dataclass(frozen=True)
class SyntheticConfig:
    """Options of synthetic.py."""

    data_root: Path = REPOSITORY / "data" / "synthetic"
    """Folder to write; missing folders are made."""
    train: int = 64
    """Scenes of the train split."""
    val: int = 12
    """Scenes of the val split."""
    seed: int = 0
    """Another seed draws other scenes."""
    workers: int = os.cpu_count() or 1
    """Processes that draw."""
    overwrite: bool = False
    """Replace a synthetic data set with other parameters; never removes other files."""

    def __post_init__(self) -> None:
        for name, least in {"train": 1, "val": 1, "seed": 0, "workers": 1}.items():
            check(self, name, lambda value, least=least: value >= least, f"at least {least}")


def main() -> None:
    generate(**vars(parse(SyntheticConfig, __doc__)))


if __name__ == "__main__":
    run_command(main)
