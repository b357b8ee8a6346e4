"""The archive of a test server: made whole, read again, refused where anything is wrong."""

import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import write_cityscapes

from datasets import DATASETS, build_dataset
from evaluation.submission import check_submission, write_submission
from utils.base.errors import UserError
from utils.data.image_files import write_png

SERVER = DATASETS["cityscapes"].server


@pytest.fixture
def test_split(tmp_path):
    """Two images without labels, and a folder with a prediction of each."""
    root = write_cityscapes(tmp_path / "data", train=0, val=2)
    shutil.move(root / "leftImg8bit" / "val", root / "leftImg8bit" / "test")
    dataset, folder = build_dataset("cityscapes", root, "test"), tmp_path / "labels"
    folder.mkdir()
    for number, name in enumerate(dataset.names):
        write_png(folder / f"{name}_pred_label_img.png", np.full((64, 128), 7 + number, np.uint8))
    return dataset, folder


def test_an_archive_holds_each_prediction_once(test_split, tmp_path, capsys):
    dataset, folder = test_split
    path = write_submission(folder, dataset, tmp_path / "sent", SERVER)
    assert path == tmp_path / "sent.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [f"{x}_pred_label_img.png" for x in dataset.names]
        for name in archive.namelist():
            assert archive.read(name) == (folder / name).read_bytes()
    assert "2 images, the server expects 1525" in capsys.readouterr().out


@pytest.mark.parametrize("fault", ["missing", "size", "ids", "extra", "damaged"])
def test_a_faulty_archive_is_refused(fault, test_split, tmp_path):
    dataset, folder = test_split
    path = write_submission(folder, dataset, tmp_path / "sent", SERVER)
    change_archive(path, fault)
    with pytest.raises(UserError, match=str(path)):
        check_submission(path, dataset, SERVER)


def change_archive(path: Path, fault: str) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    first = next(iter(members))
    wrong = {"size": np.full((32, 128), 7, np.uint8), "ids": np.full((64, 128), 18, np.uint8)}
    if fault == "missing":
        del members[first]
    elif fault == "extra":
        members["notes.png"] = members[first]
    elif fault == "damaged":
        members[first] = members[first][:-20]
    else:
        members[first] = cv2.imencode(".png", wrong[fault])[1].tobytes()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_a_refused_prediction_leaves_the_earlier_archive(test_split, tmp_path):
    dataset, folder = test_split
    path = write_submission(folder, dataset, tmp_path / "sent", SERVER)
    earlier = path.read_bytes()
    name = f"{dataset.names[1]}_pred_label_img.png"
    write_png(folder / name, np.full((64, 128), 3, np.uint8))  # an id that is never evaluated
    with pytest.raises(UserError, match=f"{name}: not .* label ids. Predict again"):
        write_submission(folder, dataset, tmp_path / "sent", SERVER)
    assert path.read_bytes() == earlier
    assert not [x for x in tmp_path.iterdir() if x.name.startswith(".tmp-")]
