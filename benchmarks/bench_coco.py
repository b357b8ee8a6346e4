"""Compare the conversion of COCO's instances to masks with torchvision's reference transform.

    python benchmarks/bench_coco.py

The peer decodes every part of an instance to a mask of its own, stacks them, as torchvision's
references/segmentation does, and saves the result with Pillow; two processes share the images. Ours
is `preprocess_data.py --dataset coco` with two threads. 500 made images of 480x640 with 2 to 14
polygons of 12 to 60 corners. Wall time, in turns; the masks must be equal.
"""

import contextlib
import io
import json
import resource
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # else it would replace another folder
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import cv2
import numpy as np
import torch
from PIL import Image
from pycocotools import mask

from benchmarks import measure
from benchmarks.render import table, times
from utils.base.errors import run_command
from utils.data.coco import CATEGORIES, COCO

HEIGHT, WIDTH = 480, 640


def made(images: int) -> dict:
    """The content of an instances file."""
    rng, annotations = np.random.default_rng(0), []
    for number in range(images):
        for _ in range(int(rng.integers(2, 15))):
            corners = int(rng.integers(12, 61))
            angles = np.sort(rng.random(corners)) * 2 * np.pi
            radius = rng.uniform(10, 120) * rng.uniform(0.8, 1.2, corners)
            x, y = rng.uniform(0, WIDTH), rng.uniform(0, HEIGHT)
            points = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1)
            polygon = points.clip(0, (WIDTH - 1, HEIGHT - 1)).round(2).ravel().tolist()
            annotations.append({
                "image_id": number, "category_id": int(rng.choice(CATEGORIES)), "iscrowd": 0,
                "segmentation": [polygon], "area": 5000.0,
            })  # fmt: skip
    names = [f"{number:012d}.jpg" for number in range(images)]
    size = {"height": HEIGHT, "width": WIDTH}
    entries = [{"id": number, "file_name": name, **size} for number, name in enumerate(names)]
    return {"images": entries, "annotations": annotations}


def reference(annotations: list[dict], path: Path) -> None:
    torch.set_num_threads(1)
    masks, classes = [], []
    for one in annotations:
        decoded = mask.decode(mask.frPyObjects(one["segmentation"], HEIGHT, WIDTH))
        masks.append(torch.as_tensor(decoded, dtype=torch.uint8).any(dim=2))
        classes.append(CATEGORIES.index(one["category_id"]) + 1)
    masks, classes = torch.stack(masks), torch.as_tensor(classes, dtype=torch.uint8)
    target = (masks * classes[:, None, None]).max(dim=0)[0]
    target[masks.sum(0) > 1] = 255
    Image.fromarray(target.numpy()).save(path)


def peer(content: dict, folder: Path, pool: ProcessPoolExecutor, _: int) -> None:
    own: dict[int, list[dict]] = {entry["id"]: [] for entry in content["images"]}
    for one in content["annotations"]:
        own[one["image_id"]].append(one)
    paths = [folder / f"{Path(x['file_name']).stem}.png" for x in content["images"]]
    list(pool.map(reference, own.values(), paths, chunksize=25))


def ours(root: Path, _: int) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        COCO.prepare(root, workers=2, overwrite=True)


def main() -> None:
    given = measure.options(__doc__, images=500, rounds=3)
    content, val = made(given.images), made(1)
    val["images"][0]["file_name"] = "val.jpg"
    with (
        tempfile.TemporaryDirectory() as root, tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(2) as pool,
    ):  # fmt: skip
        root, folder = Path(root), Path(folder)
        (root / "annotations").mkdir()
        for split, part in (("train", content), ("val", val)):
            path = root / "annotations" / f"instances_{split}2017.json"
            path.write_text(json.dumps(part), encoding="utf-8")
        sides = {"ours": partial(ours, root), "torchvision": partial(peer, content, folder, pool)}
        seconds = measure.median_seconds(sides, given.rounds, wall=True)
        for path in folder.iterdir():
            both = (path, root / "meta" / "label_imgs" / path.name)
            assert np.array_equal(*(cv2.imread(str(x), -1) for x in both)), path.stem
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{measure.machine(measure.CPU)}, {given.images} images, masks equal, {peak:.0f} MiB\n")
    row = [f"{1e3 * value / given.images:.1f}" for value in seconds.values()]
    row.append(times(seconds["torchvision"] / seconds["ours"]))
    print(table([["ms per image", *seconds, "gain"], ["conversion", *row]]))


if __name__ == "__main__":
    run_command(main)
