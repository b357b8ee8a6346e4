"""COCO's masks against torchvision's reference transform, restated; then through the commands."""

import json
import shutil

import numpy as np
import pytest
from helpers import fails, run
from PIL import Image
from pycocotools import mask

from datasets import build_dataset, find_data_set
from utils.data import coco
from utils.data.label_table import IGNORE

# references/segmentation of torchvision: COCO's category ids in the order of VOC's classes
CAT_LIST = [0, 5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72]


def reference(annotations: list[dict], height: int, width: int) -> np.ndarray:
    """Each part of each instance decoded to a mask of its own; the maximum; overlaps are 255."""
    masks, classes = [], []
    for one in annotations:
        if one["category_id"] not in CAT_LIST:
            continue
        decoded = mask.decode(mask.frPyObjects(one["segmentation"], height, width))
        decoded = decoded[..., None] if decoded.ndim < 3 else decoded
        masks.append(decoded.any(2))
        classes.append(CAT_LIST.index(one["category_id"]))
    if not masks:
        return np.zeros((height, width), np.uint8)
    stacked = np.stack(masks)
    target = (stacked * np.array(classes)[:, None, None]).max(0)
    target[stacked.sum(0) > 1] = 255
    return target.astype(np.uint8)


def annotated(rng: np.random.Generator, number: int) -> tuple[dict, list[dict]]:
    """An image of 64x80 and its instances: polygons of one or two parts, crowds, overlaps."""
    image = {"id": number, "file_name": f"{number:012d}.jpg", "height": 64, "width": 80}
    annotations = []
    for _ in range(int(rng.integers(1, 9))):
        category = int(rng.choice([*CAT_LIST[1:], 13, 90]))  # two are none of VOC's classes
        if rng.random() < 0.25:
            ends = np.sort(rng.choice(np.arange(1, 64 * 80), 6, replace=False))
            counts = np.diff([0, *ends, 64 * 80]).tolist()
            segmentation, crowd = {"counts": counts, "size": [64, 80]}, 1
        else:
            parts = range(int(rng.integers(1, 3)))
            segmentation = [(rng.random(2 * int(rng.integers(3, 9))) * 70).tolist() for _ in parts]
            crowd = 0
        rle = mask.frPyObjects(segmentation, 64, 80)
        area = float(mask.area(mask.merge(rle) if isinstance(rle, list) else rle))
        annotations.append({
            "id": 1000 * number + len(annotations), "image_id": number, "iscrowd": crowd,
            "category_id": category, "segmentation": segmentation, "area": area,
        })  # fmt: skip
    return image, annotations


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Twenty images a split, one without instances, one with instances of few pixels."""
    root, rng = tmp_path_factory.mktemp("coco"), np.random.default_rng(0)
    (root / "annotations").mkdir()
    for split, first in (("train", 0), ("val", 100)):
        (root / f"{split}2017").mkdir()
        images, annotations = [], []
        for number in range(first, first + 20):
            image, found = annotated(rng, number)
            if number % 20 == 3:
                found = []
            if number % 20 == 4:
                found = [found[0] | {"category_id": 1, "area": 1000.0}]
            images.append(image)
            annotations += found
            pixels = rng.integers(0, 256, (64, 80, 3), np.uint8)
            Image.fromarray(pixels).save(root / f"{split}2017" / image["file_name"])
        content = {"images": images, "annotations": annotations, "categories": []}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root


def test_images_and_annotations_are_checked_before_the_masks_are_drawn(root, tmp_path):
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    (path,) = tmp_path.glob("train2017/*00.jpg")
    path.unlink()
    check = ("utils/preprocess_data.py", "--dataset", "coco", "--check", "true", "--data_root")
    done = run(*check, tmp_path)
    fails(done, "2 faults")  # and 4,980 val images
    assert f"{path}: cannot be read" in done.stdout and "4980 missing" in done.stdout, done.stdout
    (tmp_path / "annotations" / "instances_train2017.json").unlink()
    fails(run(*check, tmp_path), "1 fault")
    fails(run(*check, tmp_path / "none"), "Unpack COCO's images and annotations of 2017 there")


def entries(segmentation: object, names: tuple[str, ...] = ("a.jpg",)) -> dict:
    images = [{"id": i, "file_name": x, "height": 4, "width": 4} for i, x in enumerate(names)]
    one = {"category_id": 1, "area": 2000, "segmentation": segmentation}
    return {"images": images, "annotations": [one | {"image_id": i} for i in range(len(names))]}


WHOLE = {"size": [4, 4], "counts": [1, 15]}


@pytest.mark.parametrize(
    ("train", "val", "words"),
    [
        (entries([[float("nan"), 0, 3, 0, 3, 3]]), entries(WHOLE), "a cannot be drawn"),
        (entries([[0, 0, 1e9, 0, 3, 3]]), entries(WHOLE), "a cannot be drawn"),
        (entries([[0, 0, 3, 0, 3, 3, 1]]), entries(WHOLE), "a cannot be drawn"),
        (entries({"size": [2, 4], "counts": [1, 7]}), entries(WHOLE), "a cannot be drawn"),
        (entries({"size": [4, 4], "counts": [1, 7]}), entries(WHOLE), "a cannot be drawn"),
        (entries(WHOLE, ("x/a.jpg", "y/a.jpg")), entries(WHOLE), "two images with the same file"),
        (entries(WHOLE), entries(WHOLE), "image a is in train, too"),
        ({"images": [], "annotations": []}, entries(WHOLE), "no image with enough pixels"),
    ],
)
def test_what_would_be_drawn_wrongly_is_refused(tmp_path, train, val, words):
    (tmp_path / "annotations").mkdir()
    for split, content in (("train", train), ("val", val)):
        path = tmp_path / "annotations" / f"instances_{split}2017.json"
        path.write_text(json.dumps(content))
    fails(run("utils/preprocess_data.py", "--dataset", "coco", "--data_root", tmp_path), words)


def test_masks_are_those_of_torchvisions_reference(root):
    coco.COCO.prepare(root, workers=2, overwrite=False)
    for split in ("train", "val"):
        content = json.loads(coco.require_instances(root, split, 2017).read_text())
        expected = {}
        for image in content["images"]:
            own = [x for x in content["annotations"] if x["image_id"] == image["id"]]
            area = sum(x["area"] for x in own if x["category_id"] in CAT_LIST)
            if split == "val" or area > 1000:
                expected[image["file_name"][:-4]] = reference(own, 64, 80)
        dataset = build_dataset("coco", root, split)
        assert dataset.names == [*expected]
        assert len(dataset) == 20 if split == "val" else len(dataset) < 19
        found = [dataset[index]["label"] for index in range(len(dataset))]
        assert all((a == b).all() for a, b in zip(found, expected.values(), strict=True))
        assert any((x == IGNORE).any() for x in found) and len(np.unique(found)) > 15
    assert find_data_set("coco", root).classes.names == find_data_set("voc", root).classes.names


def test_compressed_masks_are_drawn_too():
    _, annotations = annotated(np.random.default_rng(5), 0)
    shapes = [x["segmentation"] for x in annotations]
    merged = [mask.frPyObjects(x, 64, 80) for x in shapes]
    merged = [mask.merge(x) if isinstance(x, list) else x for x in merged]
    packed = [{**x, "counts": x["counts"].decode()} for x in merged]
    both = [coco.draw([*enumerate(x, 1)], (64, 80)) for x in (shapes, packed)]
    assert np.array_equal(*both) and both[0].any()


def test_it_is_prepared_packed_trained_scored_and_predicted(root, tmp_path):
    data = ("--dataset", "coco", "--data_root", root)
    done = run("utils/preprocess_data.py", *data, "--pack", "true", "--overwrite", "true")
    assert done.returncode == 0 and "20 masks, about" in done.stdout, done.stderr
    before = sorted((root / "meta" / "label_imgs").iterdir())
    times = [path.stat().st_mtime_ns for path in before]
    assert run("utils/preprocess_data.py", *data).returncode == 0  # draws nothing again
    assert [path.stat().st_mtime_ns for path in before] == times
    assert run("utils/preprocess_data.py", *data, "--check", "true").returncode == 2  # 5,000 val
    done = run(
        "train.py", *data, "--log_root", tmp_path, "--run_name", "run", "--backbone_weights",
        "null", "--crop", "[32,32]", "--batch_size", 2, "--steps", 1, "--warmup_steps", 0,
        "--output_stride", 32, "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for command in ("evaluation/eval_on_val_for_metrics.py", "predict.py"):
        more = () if command.startswith("eval") else ("--split", "val")
        done = run(command, "--log_root", tmp_path, "--checkpoint", "run", *more)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "not an instances file of COCO"),
        ('{"info": {}, "images": []}', "not an instances file of COCO"),
        ('{"images": [], "annotations": [{"category_id": 1, "image_id": 7, "segmentation": []}]}',
         "not an instances file of COCO"),
        ('{"images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 4}], "annotations": '
         '[{"category_id": 1, "image_id": 1, "area": 2000, "segmentation": [7]}]}',
         "image a cannot be drawn"),
        ('{"images": [{"id": 1, "file_name": "a.jpg", "height": 4, "width": 4}], "annotations": '
         '[{"category_id": 1, "image_id": 1, "area": 2000, "segmentation": "abc"}]}',
         "image a cannot be drawn"),
    ],
)  # fmt: skip
def test_damaged_annotations_are_one_line(tmp_path, content, words):
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations" / "instances_train2017.json"
    data = ("--dataset", "coco", "--data_root", tmp_path)
    fails(run("utils/preprocess_data.py", *data), f"{path}: not found. Unpack COCO's images")
    fails(run("train.py", *data, "--backbone_weights", "null"), "not found. Unpack COCO's images")
    path.write_text(content)
    fails(run("utils/preprocess_data.py", *data), str(path), words)
    fails(run("train.py", *data, "--backbone_weights", "null"), "un python utils/preprocess_data")
