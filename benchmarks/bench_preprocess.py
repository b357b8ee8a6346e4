"""Label ids to train ids and class weights: this project against fregu856/deeplabv3's way.

    python benchmarks/bench_preprocess.py [DATA_ROOT] [IMAGES]

The peer maps each image with np.vectorize, writes it, reads every written image again and counts
each class by comparing. Its code is restated here with 255, not 19, as the ignored train id. Both
sides read the same label files, encoded by Pillow as cityscapesScripts does it, and write PNGs;
process CPU time of one thread, one image at a time in turns. Pixels must be identical and the
weights equal within 1e-12.
"""

import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np
from cityscapesscripts.helpers.labels import labels
from PIL import Image

from utils.cityscapes import labelled_files, train_id_path
from utils.class_weights import class_weights
from utils.errors import run_command
from utils.files import REPOSITORY
from utils.labels import CITYSCAPES
from utils.listing import Files
from utils.preprocess_data import convert

TRAIN_ID = {label.id: label.trainId if label.trainId >= 0 else 255 for label in labels}
map_ids = np.vectorize(TRAIN_ID.get)


def peer(files: Files, folder: Path) -> np.ndarray:
    """fregu856's steps for one image; its (19,) pixel counts."""
    path = folder / f"{files.name}.png"
    cv2.imwrite(str(path), map_ids(cv2.imread(str(files.label), -1)).astype(np.uint8))
    written = cv2.imread(str(path), -1)
    return np.array([np.sum(np.equal(written, train_id)) for train_id in range(19)])


def main() -> None:
    given = sys.argv[1:]
    root = Path(given[0]) if given else REPOSITORY / "data" / "synthetic"
    files = labelled_files(root, "train")[: int(given[1]) if given[1:] else 24]
    cv2.setNumThreads(0)
    pixels = [np.zeros(19, np.int64), np.zeros(256, np.int64)]
    seconds: tuple[list[float], list[float]] = ([], [])
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = Path(folder) / "theirs", Path(folder) / "ours"
        theirs.mkdir()
        train_id_path(ours, "").parent.mkdir(parents=True)
        for source in files:
            one = Files(source.name, source.image, Path(folder) / source.label.name)
            Image.open(source.label).save(one.label)
            for side, work in enumerate((
                lambda one=one: peer(one, theirs),
                lambda one=one: convert(one, root=ours, redo={one.name}),
            )):  # fmt: skip
                begin = time.process_time()
                counts = work()
                seconds[side].append(time.process_time() - begin)
                pixels[side] += counts
            written = [theirs / f"{one.name}.png", train_id_path(ours, one.name)]
            assert np.array_equal(*(cv2.imread(str(path), -1) for path in written)), one.name
    total = pixels[1].sum()
    expected = 1 / np.log(1.02 + pixels[0] / total)
    weighed = class_weights(pixels[1], CITYSCAPES.names, images=len(files))
    found = list(weighed["class_weights"].values())
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    print(f"opencv {version('opencv-python-headless')}, numpy {version('numpy')}")
    slow, fast = (1e3 * statistics.median(times) for times in seconds)
    print(f"{len(files)} images, median CPU ms per image, pixels and weights equal")
    print(f"np.vectorize way {slow:.1f}, ours {fast:.1f}: {slow / fast:.1f} x")


if __name__ == "__main__":
    run_command(main)
