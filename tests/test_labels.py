"""Label tables against cityscapesScripts' own."""

import numpy as np
from cityscapesscripts.helpers.labels import id2label, trainId2label

from utils.labels import CAMVID, CITYSCAPES, IGNORE, INVALID


def test_cityscapes_ids_follow_the_official_table():
    assert CITYSCAPES.num_classes == 19
    for label_id in range(34):
        official = id2label[label_id].trainId
        assert CITYSCAPES.id_to_train[label_id] == (official if 0 <= official < 255 else IGNORE)
    assert (CITYSCAPES.id_to_train[34:] == INVALID).all()
    for train_id in range(19):
        label = trainId2label[train_id]
        assert CITYSCAPES.names[train_id] == label.name
        assert CITYSCAPES.ids[train_id] == label.id
        assert tuple(CITYSCAPES.colors[train_id]) == label.color


def test_cityscapes_categories_hold_each_class_once():
    members = sorted(index for group in CITYSCAPES.categories.values() for index in group)
    assert members == list(range(19))
    assert CITYSCAPES.categories["flat"] == (0, 1)


def test_camvid_has_eleven_classes_and_void():
    assert CAMVID.num_classes == 11
    assert CAMVID.id_to_train[:13].tolist() == [*range(11), IGNORE, INVALID]


def test_drawing_gives_the_palette_and_black_where_ignored():
    labels = np.array([[0, 13, IGNORE]], np.uint8)
    assert CITYSCAPES.draw(labels).tolist() == [[[128, 64, 128], [0, 0, 142], [0, 0, 0]]]
