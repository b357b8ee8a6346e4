"""Pictures in the right colours, legends that hold everything."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from datasets import build_dataset, find_data_set
from evaluation.task import TASKS
from evaluation.visualize import (
    ContactSheet,
    error_map,
    legend,
    overlay,
    panel_size,
    panels,
    sheet_row,
    with_legend,
)
from utils.data.image_files import write_png
from utils.data.label_table import CITYSCAPES, IGNORE

SEMANTIC = TASKS["semantic"]


def test_pictures_have_palette_colours_in_rgb_order(tmp_path):
    train_ids = np.full((4, 6), 11, np.uint8)  # person: (220, 20, 60)
    write_png(tmp_path / "p.png", CITYSCAPES.draw(train_ids))
    assert np.asarray(Image.open(tmp_path / "p.png"))[0, 0].tolist() == [220, 20, 60]
    mixed = overlay(np.zeros((4, 6, 3), np.uint8), CITYSCAPES.draw(train_ids))
    assert mixed[0, 0].tolist() == [143, 13, 39]


def test_error_map_marks_wrong_right_and_ignored():
    truth, prediction = np.array([[0, 1, IGNORE]], np.uint8), np.array([[0, 2, 3]], np.uint8)
    colors = error_map(truth, prediction)[0].tolist()
    assert colors == [[255, 255, 255], [220, 30, 30], [0, 0, 0]]


def test_a_contact_sheet_shows_images_spread_over_the_set(cityscapes_root, tmp_path):
    dataset = build_dataset("cityscapes", cityscapes_root, "val")
    sheet = ContactSheet(dataset, SEMANTIC, images=2)
    for index in reversed(range(len(dataset))):  # threads finish in any order
        sheet.add(dataset[index], None, dataset[index]["label"])
    sheet.save(tmp_path / "samples" / "sheet.png")
    picture = cv2.imread(str(tmp_path / "samples" / "sheet.png"))
    assert picture.shape[1] == 4 * 480 and len(sheet.rows) == 2
    first = sheet.rows[dataset.names[0]]
    truth, prediction = first[:, 480:960], first[:, 960:1440]
    assert np.array_equal(picture[36:][: len(first), :, ::-1], first)
    inside = prediction.any(2) & truth.any(2)
    assert np.array_equal(truth[inside], prediction[inside])


@pytest.mark.parametrize("name", ["cityscapes", "camvid", "voc"])
@pytest.mark.parametrize("size", [(48, 60), (360, 480), (1024, 2048), (900, 400)])
def test_legends_hold_every_class_at_any_size(name, size):
    classes = find_data_set(name, Path()).classes
    image, train_ids = np.zeros((*size, 3), np.uint8), np.zeros(panel_size(size), np.uint8)
    below = with_legend(image, classes)[size[0] :]
    four = panels(image, classes.draw(train_ids), classes)
    height, width = panel_size(size)
    assert four.shape == (2 * height, 2 * width, 3) and height % 2 == width % 2 == 0
    for key in (below, four[height:, width:], legend(classes, width=1920)):
        for color in classes.colors:
            assert (key == color).all(-1).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 1000), (1000, 1), (3, 5000), (5000, 3), (7, 11)])
def test_pictures_of_any_shape_are_drawn(shape):
    image, label = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8)
    row = sheet_row({"image": image, "label": label}, label, CITYSCAPES, SEMANTIC)
    assert 1 <= row.shape[0] <= 4 * 480 and row.shape[1] == 4 * 480
    assert with_legend(overlay(image, image), CITYSCAPES).shape[0] > shape[0]
    assert panels(image, np.zeros((*panel_size(shape), 3), np.uint8), CITYSCAPES).min() >= 0
