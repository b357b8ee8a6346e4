"""KITTI's shipped description on a tiny tree in its layout: Cityscapes' ids, lists of its own."""

import numpy as np
import pytest
from PIL import Image

from datasets import build_dataset, find_data_set
from utils.base.errors import UserError
from utils.data.described import SHIPPED
from utils.data.label_table import CITYSCAPES, IGNORE


@pytest.fixture
def root(tmp_path):
    """training/ with all 200 names, as data_semantics.zip unpacks."""
    label = np.array([[7, 8, 26], [0, 33, 255]], np.uint8).repeat(8, 0).repeat(8, 1)
    for folder, pixels in (("image_2", np.stack([label] * 3, -1)), ("semantic", label)):
        (tmp_path / "training" / folder).mkdir(parents=True)
        for number in range(200):
            Image.fromarray(pixels).save(tmp_path / "training" / folder / f"{number:06d}_10.png")
    return tmp_path


def test_its_lists_cut_val_out_of_the_training_images(root):
    train, val = (build_dataset("kitti", root, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (160, 40) and not {*train.names} & {*val.names}
    assert val.names[:2] == ["000000_10", "000005_10"]
    with pytest.raises(UserError, match=r"no test images .*testing/image_2/\*.png"):
        build_dataset("kitti", root, "test")


def test_its_ids_and_colours_are_cityscapes(root):
    classes = find_data_set("kitti", root).classes
    assert classes.names == CITYSCAPES.names and np.array_equal(classes.colors, CITYSCAPES.colors)
    assert np.array_equal(classes.ids, CITYSCAPES.ids)
    assert np.array_equal(classes.id_to_train[:34], CITYSCAPES.id_to_train[:34])
    expected = [[0, 1, 13], [IGNORE, 18, IGNORE]]
    assert build_dataset("kitti", root, "val")[0]["label"][::8, ::8].tolist() == expected


def test_the_lists_name_every_image_once():
    names = [(SHIPPED / f"kitti_{split}.txt").read_text().split() for split in ("train", "val")]
    assert sorted(names[0] + names[1]) == [f"{number:06d}_10" for number in range(200)]
