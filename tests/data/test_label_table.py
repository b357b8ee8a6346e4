"""Label tables against cityscapesScripts' own, and how pixels go from ids to classes and back."""

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import id2label, trainId2label

from datasets import find_data_set
from utils.data.label_table import CITYSCAPES, IGNORE, INVALID, VOC, ids_of_instances


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


def test_camvid_has_eleven_classes_and_void(tmp_path):
    camvid = find_data_set("camvid", tmp_path).classes
    assert camvid.num_classes == 11 and camvid.num_ids == 12
    assert camvid.id_to_train[:13].tolist() == [*range(11), IGNORE, INVALID]
    assert camvid.names[3] == "road" and camvid.colors[3].tolist() == [128, 64, 128]


@pytest.mark.parametrize("table", [CITYSCAPES, VOC], ids=["cityscapes", "voc"])
def test_train_ids_come_back_from_their_ids(table):
    train_ids = np.array([[*range(table.num_classes), IGNORE]], np.uint8)
    ids = table.to_ids(train_ids)
    assert (ids < table.num_ids).all() and len(np.unique(ids)) == table.num_classes + 1
    kinds = table.id_to_train[ids]
    assert np.array_equal(kinds[:, :-1], train_ids[:, :-1]) and kinds[0, -1] >= INVALID


def test_instance_ids_hold_their_class():
    instances = np.array([[0, 7, 26, 24000, 26001, 33999]], np.uint16)
    assert ids_of_instances(instances).tolist() == [[0, 7, 26, 24, 26, 33]]


def test_drawing_gives_the_palette_and_black_where_ignored():
    labels = np.array([[0, 13, IGNORE]], np.uint8)
    assert CITYSCAPES.draw(labels).tolist() == [[[128, 64, 128], [0, 0, 142], [0, 0, 0]]]
