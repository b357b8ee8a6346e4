"""The shipped descriptions on tiny trees in the layouts of the downloads; ids restated here."""

import json
import shutil
from itertools import product

import numpy as np
import pytest
from helpers import assert_same_bits, exact_rows, fails, final_state, run, tiny, train
from PIL import Image

from datasets import build_dataset, find_data_set
from evaluation import semantic
from evaluation.metrics import compute_scores
from utils.data.label_table import CITYSCAPES, IGNORE
from utils.training.checkpoint import step_files

STUFF_UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
STUFF = [number for number in range(182) if number not in STUFF_UNUSED]
TO_CITYSCAPES = {  # ids of Mapillary Vistas 1.2, in the order of Cityscapes' train ids
    0: (7, 8, 10, 13, 14, 23, 24), 1: (2, 9, 11, 15), 2: (17,), 3: (6,), 4: (3,), 5: (44, 45, 47),
    6: (48,), 7: (46, 49, 50), 8: (30,), 9: (29,), 10: (27,), 11: (19,), 12: (20, 21, 22),
    13: (55,), 14: (61,), 15: (54,), 16: (58,), 17: (57,), 18: (52,),
}  # fmt: skip
MAPILLARY = {"train": "training", "val": "validation"}
SETS = {  # image and label of a sample, {id in the file: train id}, files that must not be read
    "ade20k": (
        lambda split, n: (f"images/{MAPILLARY[split]}/ADE_{split}_{n:08d}.jpg",
                          f"annotations/{MAPILLARY[split]}/ADE_{split}_{n:08d}.png"),
        {0: IGNORE, **{number: number - 1 for number in range(1, 151)}}, (),
    ),
    "coco_stuff": (
        lambda split, n: (f"images/{split}2017/{n:012d}.jpg",
                          f"annotations/{split}2017/{n:012d}.png"),
        {255: IGNORE, **{number: place for place, number in enumerate(STUFF)}}, (),
    ),
    "bdd100k": (
        lambda split, n: (f"images/10k/{split}/{n:08x}-1.jpg",
                          f"labels/sem_seg/masks/{split}/{n:08x}-1.png"),
        {255: IGNORE, **{number: number for number in range(19)}},
        ("labels/sem_seg/colormaps/train/00000000-1.png", "images/100k/train/00000009-1.jpg"),
    ),
    "bdd100k_2018": (
        lambda split, n: (f"seg/images/{split}/{n:08x}-1.jpg",
                          f"seg/labels/{split}/{n:08x}-1_train_id.png"),
        {255: IGNORE, **{number: number for number in range(19)}},
        ("seg/color_labels/train/00000000-1_train_color.png",),
    ),
    "acdc": (
        lambda split, n: (
            f"rgb_anon/{('fog', 'night', 'rain', 'snow')[n]}/{split}/GOPR{n}/G{n}_rgb_anon.png",
            f"gt/{('fog', 'night', 'rain', 'snow')[n]}/{split}/GOPR{n}/G{n}_gt_labelTrainIds.png",
        ),
        {255: IGNORE, **{number: number for number in range(19)}},
        ("rgb_anon/fog/train_ref/GOPR0/G0_rgb_ref_anon.png",
         "gt/fog/train/GOPR0/G0_gt_labelColor.png", "gt/fog/train/GOPR0/G0_gt_labelIds.png"),
    ),
    "mapillary": (
        lambda split, n: (f"{MAPILLARY[split]}/images/{n}abc.jpg",
                          f"{MAPILLARY[split]}/v1.2/labels/{n}abc.png"),
        {65: IGNORE, **{number: number for number in range(65)}},
        ("training/v2.0/labels/0abc.png", "training/v1.2/instances/0abc.png"),
    ),
    "mapillary_cityscapes": (
        lambda split, n: (f"{MAPILLARY[split]}/images/{n}abc.jpg",
                          f"{MAPILLARY[split]}/v1.2/labels/{n}abc.png"),
        dict.fromkeys(range(66), IGNORE)
        | {number: train for train, numbers in TO_CITYSCAPES.items() for number in numbers}, (),
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=SETS)
def tree(request, tmp_path_factory):
    """Name, folder and table of a set; every label holds all ids, in blocks of 4x4 pixels."""
    place, table, others = SETS[request.param]
    root = tmp_path_factory.mktemp(request.param)
    ids = np.resize(np.array([*table], np.uint8), (12, 16)).repeat(4, 0).repeat(4, 1)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(4):
            for path, pixels in zip(place(split, number), (None, ids), strict=True):
                store(root / path, rng.integers(0, 256, (48, 64, 3)) if pixels is None else pixels)
    for path in others:
        store(root / path, np.full((10, 10), 200))
    return request.param, root, table


def store(path, pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.uint8(pixels)).save(path)


def test_ids_become_the_train_ids_of_the_table_below(tree):
    name, root, table = tree
    for split in ("train", "val"):
        dataset = build_dataset(name, root, split)
        assert len(dataset) == 4
        expected = np.resize(np.array([*table.values()], np.uint8), (12, 16))
        assert (dataset[1]["label"][::4, ::4] == expected).all()


FULL_ADE = "images/ADE/training/street/ADE_train_00000001"
WRONG = {  # data set, its files with their pixels, what is said
    "ADE20K in full": (
        "ade20k", {f"{FULL_ADE}.jpg": 0, f"{FULL_ADE}_seg.png": 0},
        ("no train images", "ADEChallengeData2016.zip (not the full ADE20K)"),
    ),
    "masks of ADE20K in full": (
        "ade20k", {"images/training/a.jpg": 0, "annotations/training/a.png": np.zeros((8, 8, 3))},
        ("a.png: colours, not ids", "ADEChallengeData2016.zip"),
    ),
    "Mapillary 2.0 as 1.2": (
        "mapillary", {"training/images/a.jpg": 0, "training/v1.2/labels/a.png": 100},
        ("a.png: undefined label ids 100", "Mapillary Vistas 1.2 (not 2.0)"),
    ),
    "Mapillary 2.0": (
        "mapillary_cityscapes", {"training/images/a.jpg": 0, "training/v2.0/labels/a.png": 1},
        ("1 of 1 train label files missing", "Unpack all of Mapillary Vistas 1.2 (not 2.0)"),
    ),
    "colours of BDD100K": (
        "bdd100k", {"images/10k/train/a.jpg": 0,
                    "labels/sem_seg/masks/train/a.png": np.zeros((8, 8, 4))},
        ("a.png: colours, not ids", "masks/, not colormaps/"),
    ),
    "a missing half of BDD100K": (
        "bdd100k", {"images/10k/train/a.jpg": 0, "images/10k/train/b.jpg": 0,
                    "labels/sem_seg/masks/train/a.png": 0},
        ("1 of 2 train label files missing (b)", "bdd100k_sem_seg_labels_trainval.zip"),
    ),
    "COCO-Stuff with other ids": (
        "coco_stuff", {"images/train2017/1.jpg": 0, "annotations/train2017/1.png": 182},
        ("1.png: undefined label ids 182", "stuffthingmaps_trainval2017.zip"),
    ),
    "label ids of ACDC": (
        "acdc", {"rgb_anon/fog/train/G/a_rgb_anon.png": np.zeros((8, 8, 3)),
                 "gt/fog/train/G/a_gt_labelTrainIds.png": 26},
        ("undefined label ids 26", "gt_trainval.zip"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "files", "words"), WRONG.values(), ids=WRONG)
def test_a_wrong_release_is_one_line_that_names_the_right_one(tmp_path, name, files, words):
    for path, pixels in files.items():
        store(tmp_path / path, np.broadcast_to(pixels, np.shape(pixels) or (8, 8)))
    data = ("--dataset", name, "--data_root", tmp_path)
    fails(run("utils/preprocess_data.py", *data), *words)
    assert not (tmp_path / "meta" / "class_weights.json").exists()


def test_sets_with_cityscapes_classes_have_its_names_and_colours():
    for name in ("bdd100k", "bdd100k_2018", "acdc", "mapillary_cityscapes", "kitti"):
        classes = find_data_set(name, None).classes
        assert classes.names == CITYSCAPES.names
        assert np.array_equal(classes.colors, CITYSCAPES.colors)


def test_it_is_checked_packed_trained_scored_and_predicted(tree, tmp_path):
    name, root, _ = tree
    data = ("--dataset", name, "--data_root", root)
    for more in (("--check", "true"), ("--pack", "true")):
        done = run("utils/preprocess_data.py", *data, *more)
        assert done.returncode == 0, done.stderr
    logs = ("--log_root", tmp_path)
    done = run(
        "train.py", *data, *logs, "--run_name", "run", "--backbone_weights", "null", "--crop",
        "[32,32]", "--batch_size", 2, "--steps", 1, "--warmup_steps", 0, "--output_stride", 32,
        "--device", "cpu", "--workers", 1,
    )  # fmt: skip
    assert done.returncode == 0 and "packed file" in done.stdout + done.stderr, done.stderr
    for command in ("evaluation/eval_on_val_for_metrics.py", "predict.py"):
        more = () if command.startswith("eval") else ("--split", "val")
        done = run(command, *logs, "--checkpoint", "run", *more)
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "predictions" / "labels").rglob("*.png"))) == 4


def test_what_another_release_holds_is_one_line(tmp_path):
    """RGB masks as in the full ADE20K; ids beyond the table as in Mapillary Vistas 2.0."""
    for name, pixels in (("ade20k", np.zeros((48, 64, 3))), ("mapillary", np.full((48, 64), 120))):
        for split in ("train", "val"):
            image, label = SETS[name][0](split, 0)
            store(tmp_path / name / image, np.zeros((48, 64, 3)))
            store(tmp_path / name / label, pixels)
        data = ("--dataset", name, "--data_root", tmp_path / name)
        fails(run("utils/preprocess_data.py", *data), str(tmp_path / name))


def test_a_cityscapes_training_with_bdd100k_resumes_and_is_scored_on_acdc(
    cityscapes_root, tmp_path
):
    for name in ("bdd100k", "acdc", "ade20k"):
        place, table, _ = SETS[name]
        ids = np.resize(np.array([*table], np.uint8), (12, 16)).repeat(4, 0).repeat(4, 1)
        for split, number in product(("train", "val"), range(3)):
            image, label = place(split, number)
            store(tmp_path / name / image, np.full((48, 64, 3), 40 * number))
            store(tmp_path / name / label, ids)
    also = f"bdd100k={tmp_path / 'bdd100k'}"
    options = {"also": (also,), "steps": 4, "save_every": 2, "log_root": tmp_path}
    done = train(tiny(cityscapes_root, **options, run_name="whole"))
    assert "7 train and 3 val" in done.stdout and "bdd100k=" in done.stdout
    shutil.copytree(tmp_path / "whole", tmp_path / "half", symlinks=True)
    step_files(tmp_path / "half" / "checkpoints")[-1].unlink()
    train(tiny(cityscapes_root, **options, run_name="half", resume="auto"))
    assert exact_rows(tmp_path / "half") == exact_rows(tmp_path / "whole")
    assert_same_bits(final_state(tmp_path / "half"), final_state(tmp_path / "whole"))
    alone = train(tiny(cityscapes_root, **options | {"also": ()}, run_name="alone"))
    assert "4 train and 3 val" in alone.stdout
    assert exact_rows(tmp_path / "alone") != exact_rows(tmp_path / "whole")

    names = build_dataset("cityscapes", cityscapes_root, "train").names[:2]
    (tmp_path / "half.txt").write_text("\n".join(names))
    more = {"train_list": tmp_path / "half.txt", "run_name": "some", "steps": 1}
    some = train(tiny(cityscapes_root, **options | more))
    assert "5 train and 3 val" in some.stdout, some.stderr

    on = ("--checkpoint", "whole", "--log_root", tmp_path)
    done = run("evaluation/eval_on_val_for_metrics.py", *on, "--dataset", "acdc",
               "--data_root", tmp_path / "acdc")  # fmt: skip
    assert done.returncode == 0 and "on 3 images" in done.stdout, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.endswith("    1 images")]
    assert [line[0] for line in lines] == ["fog", "night", "rain"]
    scores = json.loads((tmp_path / "model_eval_val" / "scores.json").read_text())
    for index, name in enumerate(("fog", "night", "rain")):
        label = build_dataset("acdc", tmp_path / "acdc", "val")[index]["label"]
        path = next((tmp_path / "model_eval_val_for_metrics").glob(f"G{index}_*.png"))
        predicted = np.asarray(Image.open(path))
        one = semantic.count({"label": label}, predicted, find_data_set("acdc", None).classes)
        expected = compute_scores(one, find_data_set("acdc", None).classes).miou
        assert scores["groups"][name] == pytest.approx(expected, rel=1e-12)
    done = run("evaluation/eval_on_val_for_metrics.py", *on, "--dataset", "ade20k",
               "--data_root", tmp_path / "ade20k")  # fmt: skip
    fails(done, "trained on other classes than ade20k")
    done = run("train.py", "--data_root", cityscapes_root, "--log_root", tmp_path, "--also",
               f"[ade20k={tmp_path / 'ade20k'}]", "--backbone_weights", "null")  # fmt: skip
    fails(done, "--also ade20k=", "class 0 is 'wall' in ade20k and 'road' in --dataset")
    done = run("train.py", "--data_root", cityscapes_root, "--log_root", tmp_path, "--also",
               f"[synthetic={tmp_path / 'none'}]", "--backbone_weights", "null")  # fmt: skip
    fails(done, "--also synthetic=", "no images below", "Give synthetic=FOLDER")
