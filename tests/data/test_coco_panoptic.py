"""COCO's panoptic files: preparation, samples, and UPSNet through the commands."""

import json

import numpy as np
import pytest
from helpers import CAR, PERSON, fails, run, write_coco_panoptic

from datasets import build_dataset, find_data_set
from utils.base.errors import UserError
from utils.data.coco_panoptic import BASE, CLASSES
from utils.data.label_table import IGNORE


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    truth = write_coco_panoptic(root, np.random.default_rng(0))
    done = run("utils/preprocess_data.py", "--dataset", "coco_panoptic", "--data_root", root)
    assert done.returncode == 0, done.stderr
    return root, truth


def test_the_classes_are_those_of_coco():
    things = [*CLASSES.instance_sizes]
    assert len(things) == 80 and CLASSES.num_classes == 133
    assert CLASSES.is_thing[:80].all() and not CLASSES.is_thing[80:].any()
    assert dict(zip(CLASSES.names, CLASSES.ids.tolist(), strict=True))["teddy bear"] == 88
    assert CLASSES.names[-1] == "rug-merged" and CLASSES.ids[-1] == 200
    assert len({tuple(color) for color in CLASSES.colors.tolist()}) == 133


def test_labels_and_instances_are_those_of_the_published_files(tree):
    root, truth = tree
    for split in ("train", "val"):
        dataset = build_dataset("coco_panoptic", root, split, instances=True)
        for index, name in enumerate(dataset.names):
            sample, ids = dataset[index], truth[name]
            expected = np.where(ids > 0, CLASSES.id_to_train[ids], IGNORE)
            assert (sample["label"] == expected).all()
            numbers = sample["instance"]
            assert (CLASSES.to_plain_ids(numbers) == ids).all()
            assert set(np.unique(numbers[ids == CAR])) == {CAR * BASE + 1, CAR * BASE + 2}
            assert set(np.unique(numbers[ids == PERSON])) == {PERSON * BASE + 1, PERSON}  # a crowd
    semantic = build_dataset("coco_panoptic", root, "train")
    assert "instance" not in semantic[0] and semantic.checked
    weights = json.loads((root / "meta" / "class_weights.json").read_text())
    assert len(weights["class_weights"]) == 133


def test_lost_instance_ids_are_written_again(tree):
    root, _ = tree
    path = root / "meta" / "instance_imgs" / f"{1:012d}.png"
    before = path.read_bytes()
    path.unlink()
    done = run("utils/preprocess_data.py", "--dataset", "coco_panoptic", "--data_root", root)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() == before


def test_a_changed_json_file_is_noticed(tmp_path):
    write_coco_panoptic(tmp_path, np.random.default_rng(0))
    command = ("utils/preprocess_data.py", "--dataset", "coco_panoptic", "--data_root", tmp_path)
    assert run(*command).returncode == 0
    path = tmp_path / "annotations" / "panoptic_val2017.json"
    path.write_text(path.read_text().replace(f'"category_id": {CAR}', '"category_id": 8'))
    with pytest.raises(UserError, match="panoptic_val2017.json: changed"):
        build_dataset("coco_panoptic", tmp_path, "val", instances=True)
    assert run(*command).returncode == 0
    numbers = build_dataset("coco_panoptic", tmp_path, "val", instances=True)[0]["instance"]
    assert 8 * BASE + 1 in numbers and CAR * BASE + 1 not in numbers


def test_upsnet_trains_and_its_segments_have_the_score_of_the_json_file(tree, tmp_path):
    root, _ = tree
    log = ("--log_root", tmp_path)
    options = ["--model", "upsnet", "--dataset", "coco_panoptic", "--data_root", root, *log]
    options += [
        "--roi_loss",
        "true",
        "--semantic_layers",
        "3",
        "--crop",
        "[64,96]",
        "--device",
        "cpu",
    ]
    options += ["--batch_size", "2", "--steps", "2", "--eval_every", "2", "--run_name", "run"]
    options += ["--backbone_weights", "null", "--warmup_steps", "0", "--workers", "1"]
    done = run("train.py", *options)
    assert done.returncode == 0, done.stderr
    done = run("evaluation/eval_on_val_for_metrics.py", *log, "--checkpoint", "run")
    assert done.returncode == 0, done.stderr
    assert "mask AP" in done.stdout and "nIoU" not in done.stdout
    scores = json.loads((tmp_path / "model_eval_val" / "scores.json").read_text())
    assert scores["detection"]["boxes"].keys() == {"ap", "ap50", "ap75", "per_class"}
    found = tmp_path / "model_eval_val_panoptic"
    truth = ("--truth", root / "annotations" / "panoptic_val2017.json")
    score = ("evaluation/score.py", "--panoptic", "true", "--predictions", found, *truth)
    done = run(*score, "--json", tmp_path / "s.json")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "s.json").read_text())["All"] == scores["panoptic"]["All"]


def test_faults_of_the_files_are_one_line(tmp_path):
    write_coco_panoptic(tmp_path, np.random.default_rng(0))
    command = ("utils/preprocess_data.py", "--dataset", "coco_panoptic", "--data_root", tmp_path)
    with pytest.raises(UserError, match="Run python utils/preprocess_data.py"):
        build_dataset("coco_panoptic", tmp_path, "train")
    path = tmp_path / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    gone = content["annotations"][0]["segments_info"].pop()
    path.write_text(json.dumps(content))
    fails(run(*command), "segment 1000 is not in the JSON file", "panoptic_annotations_trainval")
    content["annotations"][0]["segments_info"].append(gone | {"category_id": 12})
    path.write_text(json.dumps(content))
    fails(run(*command), "panoptic_val2017.json", "category 12", "Unpack")
    train = json.loads((path.parent / "panoptic_train2017.json").read_text())
    path.write_text(json.dumps(train))
    fails(run(*command), "panoptic_val2017.json: image 000000000001 is in train, too", "Rename")
    path.write_text(json.dumps([1]))
    fails(run(*command), "not COCO's panoptic file")
    path.unlink()
    fails(run(*command), "panoptic_val2017.json: not found", "Unpack COCO's images")
    assert find_data_set("coco_panoptic", tmp_path).images == {"train": 118287, "val": 5000}
