"""Data on which a training looks perfect because there is nothing to learn: one line before it."""

import numpy as np
import pytest
from helpers import TRAIN, fails, preprocess, run, write_cityscapes
from PIL import Image

DESCRIPTION = """images: images/{split}/{name}.png
labels: labels/{split}/{name}.png
"""


def write_masks(root, description: str, train: tuple[int, ...], val: tuple[int, ...]) -> None:
    """Two images a split; stripes of these ids."""
    for split, ids in (("train", train), ("val", val)):
        for number in range(2):
            label = np.resize(np.array(ids, np.uint8).repeat(8), (64, 64))
            image = np.random.default_rng(number).integers(0, 256, (64, 64, 3), np.uint8)
            for folder, pixels in (("images", image), ("labels", label)):
                path = root / folder / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    (root / "dataset.yaml").write_text(DESCRIPTION + description)


def train(root, tmp_path):
    where = ["--dataset", "custom", "--data_root", root, "--log_root", tmp_path / "logs"]
    return run("train.py", *TRAIN, *where, "--class_weights", "false")


MASKS = "classes: [background, object]\n"
CASES = {  # description, ids of train, ids of val, words
    "masks of 0 and 255": (MASKS, (0, 255), (0, 255), "training pixels of background only; 255 is"),
    "one class": ("classes: [road]\n", (0,), (0,), "training pixels of road only"),
    "one class that has pixels": (MASKS, (1,), (0, 1), "training pixels of object only"),
    "all ignored": (MASKS, (255,), (255,), "training pixels of no class only"),
    "all ignored by name": (MASKS + "ignore: [7]\n", (7,), (0, 1), "training pixels of no class"),
    "nothing to score": (MASKS, (0, 1), (255,), "val pixels of no class only"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_nothing_to_learn_is_one_line(name, packed, tmp_path):
    description, in_train, in_val, words = CASES[name]
    root = tmp_path / "data"
    write_masks(root, description, in_train, in_val)
    if packed:
        options = ["--dataset", "custom", "--data_root", root, "--pack", "true"]
        done = run("utils/preprocess_data.py", *options)
        assert done.returncode == 0, done.stderr
    fails(train(root, tmp_path), str(root), words)
    assert not [*tmp_path.glob("logs/*/*.csv")], "nothing of a run is left"


@pytest.mark.parametrize(
    "description, ids",
    [("classes: {background: 0, object: 255}\n", (0, 255)), (MASKS, (0, 1, 255))],
    ids=["255 is a class", "255 is ignored"],
)
def test_two_classes_are_enough(description, ids, tmp_path):
    write_masks(tmp_path / "data", description, ids, ids)
    done = train(tmp_path / "data", tmp_path)
    assert done.returncode == 0 and "no training pixel" not in done.stderr, done.stderr
    assert "best mIoU 1.0000" not in done.stdout


def test_a_class_without_training_pixels_is_named_once(tmp_path):
    write_masks(tmp_path / "data", "classes: [a, b, rare, c, never]\n", (0, 1, 3), (0, 1, 2))
    done = train(tmp_path / "data", tmp_path)
    assert done.returncode == 0
    assert done.stderr.count("warning: no training pixel of rare, never\n") == 1


def test_cityscapes_without_a_trained_class_is_one_line(tmp_path):
    """Labels of id 0 alone, "unlabeled", as where a script wrote black images."""
    root = write_cityscapes(tmp_path / "data")
    for path in root.glob("gtFine/*/*/*.png"):
        label = np.array(Image.open(path))
        Image.fromarray(np.zeros_like(label)).save(path)
    preprocess(root)
    done = run("train.py", *TRAIN, "--data_root", root, "--log_root", tmp_path / "logs")
    fails(done, "training pixels of no class only")
