"""The synthetic data set is a real Cityscapes tree: every check goes through its files."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.csHelpers import getCsFileInfo
from cityscapesscripts.helpers.labels import id2label, name2label
from cityscapesscripts.preparation.json2instanceImg import createInstanceImage
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from helpers import fails, preprocess, run
from PIL import Image

from utils.base.errors import UserError
from utils.data.scene import compose, index_map
from utils.data.synthetic import CITIES, SCENE_FILES, generate, scene_files

SCENES = {"train": 6, "val": 8}
EVALUATED = {id for id, label in id2label.items() if 0 <= label.trainId < 255}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic")
    generate(root, **SCENES, workers=2)
    return root


def read(root, kind, split, index):
    return np.asarray(Image.open(scene_files(root, split, index)[kind]))


def files_of(root):
    return sorted(path for path in root.rglob("*") if path.is_file())


def tree_hashes(root):
    files = [path for path in files_of(root) if path.name != "synthetic.json"]
    return {p.relative_to(root): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_names_are_those_of_cityscapes(root):
    files = [path for path in files_of(root) if path.name != "synthetic.json"]
    assert len(files) == sum(SCENES.values()) * len(SCENE_FILES)
    for path in files:
        info = getCsFileInfo(path.name)
        top, split, city = path.relative_to(root).parts[:-1]
        assert (info.city, info.type, info.ext) == (city, top, path.suffix[1:])
        assert len(info.sequenceNb) == len(info.frameNb) == 6 and split in SCENES
    cities = {split: {p.name for p in (root / "gtFine" / split).iterdir()} for split in SCENES}
    assert not cities["train"] & cities["val"]
    assert cities == {split: set(CITIES[split]) for split in SCENES}


def test_image_modes_and_sizes(root):
    modes = {"image": "RGB", "ids": "L", "instances": "I;16", "color": "RGBA"}
    for kind, mode in modes.items():
        image = Image.open(scene_files(root, "val", 0)[kind])
        assert (image.mode, image.size) == (mode, (2048, 1024))


@pytest.mark.parametrize("index", range(3))
def test_truth_is_what_cityscapesscripts_draws(root, index):
    truth = Annotation()
    truth.fromJsonFile(str(scene_files(root, "val", index)["polygons"]))
    ids = read(root, "ids", "val", index)
    np.testing.assert_array_equal(ids, createLabelImage(truth, "ids"))
    np.testing.assert_array_equal(
        read(root, "color", "val", index), createLabelImage(truth, "color")
    )
    instances = read(root, "instances", "val", index)
    np.testing.assert_array_equal(instances, createInstanceImage(truth, "ids"))
    to_train = np.array([id2label[id].trainId for id in range(34)])
    np.testing.assert_array_equal(to_train[ids], createLabelImage(truth, "trainIds"))
    np.testing.assert_array_equal(np.where(instances < 1000, instances, instances // 1000), ids)


def test_preprocessing_gives_the_train_ids_of_cscreatetrainidlabelimgs(tmp_path):
    generate(tmp_path, train=1, val=1, workers=1)
    preprocess(tmp_path)
    command = Path(sys.executable).with_name("csCreateTrainIdLabelImgs")
    environment = {**os.environ, "CITYSCAPES_DATASET": str(tmp_path)}
    subprocess.run([command], env=environment, check=True, capture_output=True)
    official = sorted(tmp_path.glob("gtFine/*/*/*_gtFine_labelTrainIds.png"))
    assert len(official) == 2
    for path in official:
        name = path.name.removesuffix("_gtFine_labelTrainIds.png")
        ours = Image.open(tmp_path / "meta" / "label_imgs" / f"{name}.png")
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(Image.open(path)))


def test_instances_single_and_group(root):
    seen = np.unique(np.stack([read(root, "instances", "val", index) for index in range(6)]))
    assert {26000, 24000, 24001, 26, 24} <= set(seen.tolist())


def test_painted_details_stay_inside_their_thing(root):
    shapes = compose(np.random.default_rng((0, 1, 2)), 2)
    ids = []
    for shape in shapes:
        label = name2label.get(shape.label) or name2label.get(shape.label.removesuffix("group"))
        ids.append(label.id if label and label.id >= 0 else ids[-1])
    np.testing.assert_array_equal(np.array(ids)[index_map(shapes)], read(root, "ids", "val", 2))


@pytest.mark.parametrize("split", SCENES)
def test_every_class_is_there_often_enough(root, split):
    labels = [read(root, "ids", split, index) for index in range(6)]
    shares = np.stack([np.bincount(image.ravel(), minlength=34) / image.size for image in labels])
    assert ((shares > 0.002).sum(0)[sorted(EVALUATED)] >= 2).all()
    assert (shares.mean(0)[sorted(EVALUATED)] >= 0.003).all()
    assert len(set(np.flatnonzero(shares.any(0)).tolist()) - EVALUATED) >= 4


def test_classes_share_colours(root):
    """In each pair at least a fifth of the colour histogram (3 bits per channel) is common."""
    pairs = "building-truck wall-bus person-rider road-sidewalk vegetation-terrain car-motorcycle"
    seen = np.zeros((34, 512))
    for index in range(6):
        bins = (read(root, "image", "val", index)[::4, ::4] >> 5) @ np.array([64, 8, 1])
        np.add.at(seen, (read(root, "ids", "val", index)[::4, ::4], bins), 1)
    for pair in pairs.split():
        first, second = (seen[name2label[name].id] for name in pair.split("-"))
        shared = np.minimum(first / first.sum(), second / second.sum()).sum()
        assert shared > 0.2, (pair, shared)


def test_bytes_depend_on_seed_and_index_only(root, tmp_path):
    generate(tmp_path / "same", train=2, val=1, workers=1)
    same, large = tree_hashes(tmp_path / "same"), tree_hashes(root)
    assert same == {path: large[path] for path in same}
    generate(tmp_path / "other", train=1, val=1, seed=1, workers=2)
    other = tree_hashes(tmp_path / "other")
    assert all(other[path] != large[path] for path in other)
    assert len({large[path] for path in large}) == len(large)


def test_complete_set_is_left_alone_and_an_interrupted_one_is_completed(root, capsys):
    before = {path: path.stat().st_mtime_ns for path in files_of(root)}
    generate(root, **SCENES, workers=2)
    assert capsys.readouterr().out.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in files_of(root)} == before
    hashes, marker = tree_hashes(root), root / "synthetic.json"
    marker.write_text(marker.read_text().replace("true", "false"))
    scene_files(root, "val", 3)["ids"].unlink()
    generate(root, **SCENES, workers=2)
    assert tree_hashes(root) == hashes and json.loads(marker.read_text())["complete"]
    untouched = scene_files(root, "val", 2)["image"]
    assert untouched.stat().st_mtime_ns == before[untouched]


def test_other_parameters_are_refused_and_overwritten_on_request(tmp_path):
    generate(tmp_path, train=1, val=1, workers=1)
    with pytest.raises(UserError, match=r"--overwrite true"):
        generate(tmp_path, train=1, val=2, workers=1)
    foreign = tmp_path / "gtFine" / "val" / "fakehaven" / "mine.png"
    foreign.touch()
    with pytest.raises(UserError, match=r"mine\.png.*another --data_root"):
        generate(tmp_path, train=1, val=2, workers=1, overwrite=True)
    assert len(files_of(tmp_path)) == 2 * len(SCENE_FILES) + 2
    foreign.unlink()
    generate(tmp_path, train=2, val=1, seed=1, workers=1, overwrite=True)
    assert len(files_of(tmp_path)) == 3 * len(SCENE_FILES) + 1
    (tmp_path / "synthetic.json").unlink()  # as a kill in the middle of a replacement leaves it
    with pytest.raises(UserError, match=r"--overwrite true"):
        generate(tmp_path, train=2, val=1, seed=1, workers=1)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_others_is_never_touched(tmp_path, overwrite):
    image = tmp_path / "leftImg8bit" / "train" / "aachen" / "aachen_000000_000019_leftImg8bit.png"
    image.parent.mkdir(parents=True)
    image.touch()
    with pytest.raises(UserError, match="another --data_root"):
        generate(tmp_path, train=1, val=1, workers=1, overwrite=overwrite)
    assert files_of(tmp_path) == [image]


def test_a_damaged_marker_is_an_error_for_the_user(tmp_path):
    (tmp_path / "synthetic.json").write_text("{")
    with pytest.raises(UserError, match=r"synthetic\.json: damaged"):
        generate(tmp_path, train=1, val=1, workers=1)


def test_command_works_from_any_directory(tmp_path):
    command = ("utils/synthetic.py", "--data_root", "set", "--train", 1)
    done = run(*command, "--val", 1, "--workers", 2, cwd=tmp_path, fork=False)
    assert done.returncode == 0 and "2/2" in done.stderr, done.stderr
    assert len(files_of(tmp_path / "set")) == 2 * len(SCENE_FILES) + 1
    fails(run(*command, "--val", 0, cwd=tmp_path), "--val must be at least 1, got 0")
