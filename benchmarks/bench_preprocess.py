"""Compare conversion to train ids and class weights with fregu856/deeplabv3's method.

    python benchmarks/bench_preprocess.py [--root SYNTHETIC_SET]

The peer maps each image with np.vectorize, writes it, reads it again and counts each class by
comparison; here the ignored train id is 255 instead of 19. Both sides convert train and val, timed
as process CPU time of one thread. Pixels must be identical and weights equal within 1e-12.
"""

import contextlib
import io
import json
import sys
import tempfile
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # else it would replace another folder
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import cv2
import numpy as np
from cityscapesscripts.helpers.labels import labels

from benchmarks import measure
from benchmarks.render import table, times
from datasets import DATASETS
from utils.base.errors import run_command
from utils.data.class_weights import WEIGHTS_FILE

ENDING = "_gtFine_labelIds.png"
map_ids = np.vectorize({x.id: x.trainId if x.trainId >= 0 else 255 for x in labels}.get)


def peer(root: Path, written: Path, _: int) -> np.ndarray:
    """fregu856's conversion; returns the class weights."""
    pixels, total = np.zeros(19, np.int64), 0
    for split in ("train", "val"):
        for path in (root / "gtFine" / split).glob(f"*/*{ENDING}"):
            file = str(written / f"{path.name.removesuffix(ENDING)}.png")
            cv2.imwrite(file, map_ids(cv2.imread(str(path), -1)).astype(np.uint8))
            if split == "train":
                train_ids = cv2.imread(file, -1)
                pixels += [np.sum(np.equal(train_ids, train_id)) for train_id in range(19)]
                total += train_ids.size
    return 1 / np.log(1.02 + pixels / total)


def ours(root: Path, _: int) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        DATASETS["synthetic"].prepare(root, workers=1, overwrite=True)


def main() -> None:
    given = measure.options(__doc__, root=measure.SYNTHETIC, rounds=3)
    measure.one_thread()
    with tempfile.TemporaryDirectory() as root, tempfile.TemporaryDirectory() as written:
        root, written = Path(root), Path(written)
        for kind in ("leftImg8bit", "gtFine"):
            (root / kind).symlink_to((given.root / kind).resolve())
        sides = {"ours": partial(ours, root), "np.vectorize": partial(peer, root, written)}
        seconds = measure.median_seconds(sides, given.rounds)
        weights = json.loads((root / WEIGHTS_FILE).read_text("utf-8"))["class_weights"]
        np.testing.assert_allclose([*weights.values()], peer(root, written, 0), rtol=1e-12)
        files = [*written.iterdir()]
        for path in files:
            both = (path, root / "meta" / "label_imgs" / path.name)
            assert np.array_equal(*(cv2.imread(str(x), -1) for x in both)), path.stem
    print(f"{measure.machine(measure.CPU)}, {len(files)} images, pixels and weights equal\n")
    row = [f"{1e3 * value / len(files):.1f}" for value in seconds.values()]
    row.append(times(seconds["np.vectorize"] / seconds["ours"]))
    print(table([["ms per image", *seconds, "gain"], ["conversion", *row]]))


if __name__ == "__main__":
    run_command(main)
