"""COCO's panoptic files: preparation, samples, and UPSNet through the commands."""

import json

import cv2
import numpy as np
import pytest
from helpers import fails, run

from datasets import build_dataset, find_data_set
from utils.base.errors import UserError
from utils.data.coco_panoptic import BASE, CLASSES
from utils.data.label_table import IGNORE

PERSON, CAR, ROAD, SKY = 1, 3, 149, 187
SIZE = (72, 96)


def write_tree(root, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Three train and two val images with segments; returns ids of classes by image name."""
    truth = {}
    (root / "annotations").mkdir(parents=True)
    for split, numbers in (("train", (1, 2, 3)), ("val", (4, 5))):
        folder = root / "annotations" / f"panoptic_{split}2017"
        (root / f"{split}2017").mkdir()
        folder.mkdir()
        entries = []
        for number in numbers:
            name = f"{number:012d}"
            segments = np.zeros(SIZE, np.int64)
            segments[40:], segments[:30] = 70_000 + number, 300
            segments[45:65, 10:30], segments[20:60, 40:60] = 2**24 - 2, 5
            segments[50:70, 70:90], segments[10:20, 80:] = 9, 1000
            info = [(70_000 + number, ROAD, 0), (300, SKY, 0), (2**24 - 2, CAR, 0)]
            info += [(5, PERSON, 0), (9, CAR, 0), (1000, PERSON, 1)]
            rgb = np.stack([segments % 256, segments // 256 % 256, segments // 65536], -1)
            cv2.imwrite(str(folder / f"{name}.png"), rgb[..., ::-1].astype(np.uint8))
            ids = np.zeros(SIZE, np.uint8)
            for segment, category, _ in info:
                ids[segments == segment] = category
            image = (ids[..., None] * np.array([1, 2, 3]) + rng.integers(0, 30, (*SIZE, 3))) % 256
            cv2.imwrite(str(root / f"{split}2017" / f"{name}.jpg"), image.astype(np.uint8))
            rows = [{"id": x, "category_id": y, "iscrowd": z, "area": 1} for x, y, z in info]
            entries.append({"image_id": number, "file_name": f"{name}.png", "segments_info": rows})
            truth[name] = ids
        categories = [
            {"id": x, "name": y, "isthing": int(x in CLASSES.instance_sizes)}
            for x, y in zip(CLASSES.ids.tolist(), CLASSES.names, strict=True)
        ]
        content = {"annotations": entries, "categories": categories}
        (root / "annotations" / f"panoptic_{split}2017.json").write_text(json.dumps(content))
    return truth


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    truth = write_tree(root, np.random.default_rng(0))
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
    assert len(weights) == 133


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
    done = run("evaluation/score.py", "--panoptic", "true", "--predictions", found, "--truth",
               root / "annotations" / "panoptic_val2017.json", "--json", tmp_path / "s.json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "s.json").read_text())["All"] == scores["panoptic"]["All"]


def test_faults_of_the_files_are_one_line(tmp_path):
    write_tree(tmp_path, np.random.default_rng(0))
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
    path.write_text(json.dumps([1]))
    fails(run(*command), "not COCO's panoptic file")
    path.unlink()
    fails(run(*command), "panoptic_val2017.json: not found", "Unpack COCO's images")
    assert find_data_set("coco_panoptic", tmp_path).images == {"train": 118287, "val": 5000}
