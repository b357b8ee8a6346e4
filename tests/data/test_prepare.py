"""Train ids and ENet weights against their definitions; running it twice, half, on bad input."""

import json

import numpy as np
import pytest
from helpers import preprocess, write_cityscapes
from PIL import Image

from utils.base.errors import UserError
from utils.data.cityscapes import prepare
from utils.data.label_table import CITYSCAPES


@pytest.fixture
def root(tmp_path):
    return write_cityscapes(tmp_path)


def outputs(root):
    paths = (path for path in sorted((root / "meta").rglob("*.*")) if "sources" not in path.name)
    return {path.name: path.read_bytes() for path in paths}


def test_train_ids_and_weights_follow_their_definitions(root):
    prepare(root, workers=2, overwrite=False)
    pixels = np.zeros(19)
    total = 0
    for source in root.glob("gtFine/*/*/*labelIds.png"):
        ids = np.asarray(Image.open(source))
        name = source.name.removesuffix("_gtFine_labelIds.png")
        train_ids = np.asarray(Image.open(root / "meta" / "label_imgs" / f"{name}.png"))
        assert np.array_equal(train_ids, CITYSCAPES.id_to_train[ids])
        if "aachen" in name:
            total += ids.size
            pixels += [(train_ids == train_id).sum() for train_id in range(19)]
    stored = json.loads((root / "meta" / "class_weights.json").read_text())
    expected = dict(zip(CITYSCAPES.names, 1 / np.log(1.02 + pixels / total), strict=True))
    assert stored["class_weights"] == pytest.approx(expected, rel=1e-12)
    assert stored["images"] == 4
    assert sum(stored["pixels"].values()) + stored["ignored_pixels"] == total


def test_a_second_run_changes_nothing(root, capsys):
    preprocess(root)
    before = {path: path.stat().st_mtime_ns for path in (root / "meta").rglob("*")}
    preprocess(root)
    assert before == {path: path.stat().st_mtime_ns for path in (root / "meta").rglob("*")}
    assert "nothing to do" in capsys.readouterr().out


def test_an_interrupted_run_is_completed_to_the_same_bytes(root):
    preprocess(root)
    complete = outputs(root)
    (root / "meta" / "class_weights.json").unlink()
    for path in sorted((root / "meta" / "label_imgs").glob("*.png"))[2:]:
        path.unlink()
    prepare(root, workers=2, overwrite=False)
    assert outputs(root) == complete


def test_a_changed_label_is_converted_again(root):
    preprocess(root)
    source = sorted(root.glob("gtFine/train/*/*labelIds.png"))[0]
    Image.fromarray(np.full((64, 128), 7, np.uint8)).save(source)
    preprocess(root)
    name = source.name.removesuffix("_gtFine_labelIds.png")
    assert not np.asarray(Image.open(root / "meta" / "label_imgs" / f"{name}.png")).any()


def test_an_absent_class_gets_the_largest_weight_and_a_warning(root, capsys):
    for path in root.glob("gtFine/train/*/*labelIds.png"):
        Image.fromarray(np.full((64, 128), 7, np.uint8)).save(path)
    preprocess(root)
    weights = json.loads((root / "meta" / "class_weights.json").read_text())["class_weights"]
    assert weights["bicycle"] == pytest.approx(1 / np.log(1.02))
    assert "bicycle" in capsys.readouterr().err


@pytest.mark.parametrize(
    "pixels, message",
    [
        (np.full((64, 128), 40, np.uint8), "undefined label ids 40"),
        (np.zeros((64, 128, 3), np.uint8), "colours, not ids"),
        (np.zeros((64, 128), np.uint16), "16 bits, not ids"),
    ],
)
def test_bad_labels_are_named_and_leave_no_half_result(root, pixels, message):
    path = sorted(root.glob("gtFine/train/*/*labelIds.png"))[1]
    Image.fromarray(pixels).save(path)
    with pytest.raises(UserError, match=f"{path.name}: {message}"):
        prepare(root, workers=2, overwrite=False)
    assert not (root / "meta" / "class_weights.json").exists()
