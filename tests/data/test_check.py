"""The check of a data set: every fault is one line that names the file, and none is invented."""

import itertools
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
from helpers import run, tiny, train, write_cityscapes
from PIL import Image

from datasets import build_dataset, find_data_set
from utils.base.errors import UserError
from utils.data.check import check_data, warn_of_val_images
from utils.data.packed import packed_path
from utils.data.prepare import pack_split


@pytest.fixture
def root(cityscapes_root, tmp_path):
    return shutil.copytree(cityscapes_root, tmp_path / "tree")


def check(root, capsys, data_set="synthetic") -> list[str]:
    """The lines that the check prints, the error that it ends with among them."""
    if isinstance(data_set, str):
        data_set = find_data_set(data_set, root)
    capsys.readouterr()
    try:
        check_data(data_set, root, workers=2)
    except UserError as error:
        print(error)
    return capsys.readouterr().out.splitlines()


def one(root, pattern):
    return sorted(root.glob(pattern))[1]


def flip(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def relabel(path) -> None:
    """Another id at one pixel, which is defined too."""
    ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    ids[3, 5] ^= 1
    cv2.imwrite(str(path), ids)


def write(content: bytes):
    return lambda path: path.write_bytes(content)


def draw(pixels: np.ndarray):
    return lambda path: cv2.imwrite(str(path), pixels)


IMAGES, IDS, INSTANCES = (
    "leftImg8bit/train/*/*", "gtFine/train/*/*labelIds.png", "gtFine/val/*/*instanceIds.png",
)  # fmt: skip
FAULTS = {
    "image missing": (IMAGES, lambda path: path.unlink(), "has no image file"),
    "ids missing": (IDS, lambda path: path.unlink(), "has no ids file"),
    "instances missing": (INSTANCES, lambda path: path.unlink(), "has no instances file"),
    "flipped bit of an image": (IMAGES, flip, "not a whole PNG"),
    "flipped bit of ids": (IDS, flip, "not a whole PNG"),
    "flipped bit of instances": (INSTANCES, flip, "not a whole PNG"),
    "cut image": (IMAGES, cut, "not a whole PNG"),
    "cut ids": (IDS, cut, "not a whole PNG"),
    "empty": (IMAGES, write(b""), "not a whole PNG"),
    "empty ids": (IDS, write(b""), "not a whole PNG"),
    "web page": (IMAGES, write(b"<html>401</html>"), "not a whole PNG"),
    "colours": (IDS, draw(np.zeros((64, 128, 3), np.uint8)), "colours, not ids"),
    "16 bits image": (IMAGES, draw(np.zeros((64, 128, 3), np.uint16)), "16 bits per channel"),
    "16 bits ids": (IDS, draw(np.zeros((64, 128), np.uint16)), "16 bits, not ids"),
    "other size": (
        IDS, draw(np.zeros((32, 128), np.uint8)), "128 x 32 pixels, its image 128 x 64",
    ),
    "undefined ids": (IDS, draw(np.full((64, 128), 77, np.uint8)), "undefined label ids 77"),
    "undefined instances": (
        INSTANCES, draw(np.full((64, 128), 40_001, np.uint16)), "undefined label ids 40",
    ),
    "ids of val that are not the instances'": (
        "gtFine/val/*/*labelIds.png", relabel, "row 3, column 5",
    ),
    "ids of train that are not the instances'": (IDS, relabel, "column 5, 1 such pixels"),
    "flipped bit of train ids": ("meta/label_imgs/aachen*.png", flip, "not a whole PNG"),
    "a folder": (IDS, lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_line_that_names_the_file(root, capsys, fault):
    pattern, edit, message = FAULTS[fault]
    assert check(root, capsys)[-1] == f"{root}: 25 files, no fault"
    path = one(root, pattern)
    edit(path)
    lines = check(root, capsys)
    assert len(lines) == 2 and message in lines[0], lines
    assert path.name.rsplit("_", 1 + ("gtFine" in pattern))[0] in lines[0]
    if "missing" not in fault:
        assert lines[0].startswith(f"{path}: ")
    assert lines[1].startswith(f"{root}: 1 fault, see above.")


def test_faults_of_one_image_and_of_several_are_all_listed(root, capsys):
    """Each file of a sample is read, whatever is wrong with the others."""
    paths = [one(root, pattern) for pattern in (IMAGES, IDS, "gtFine/train/*/*instanceIds.png")]
    for path in paths:
        flip(path)
    other = one(root, INSTANCES)
    other.unlink()
    lines = check(root, capsys)
    assert [line.split(": ")[0] for line in lines[:3]] == [str(path) for path in paths]
    assert other.name.rsplit("_", 2)[0] in lines[3] and "4 faults" in lines[4] and len(lines) == 5


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_damaged_packed_file_is_one_line(root, capsys, split):
    dataset = build_dataset("synthetic", root, split, packed=False)
    pack_split(dataset, root, split, workers=1, overwrite=False)
    assert check(root, capsys)[-1] == f"{root}: 26 files, no fault"
    path = packed_path(root, split)
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[len(content) // 2] ^= 1
    path.write_bytes(damaged)
    lines = check(root, capsys)
    assert len(lines) == 2 and lines[0].startswith(f"{path}: image {dataset.names[1]} is damaged")
    path.write_bytes(content[:-64])
    lines = check(root, capsys)
    assert len(lines) == 2 and lines[0].startswith(f"{path}: ") and "bytes instead of" in lines[0]


def test_what_was_packed_before_a_file_changed_is_one_line(root, capsys):
    """As training refuses it."""
    dataset = build_dataset("synthetic", root, "train", packed=False)
    pack_split(dataset, root, "train", workers=1, overwrite=False)
    path = one(root, IMAGES)
    path.write_bytes(path.read_bytes() + b"comment")
    lines = check(root, capsys)
    assert len(lines) == 2 and f"{path}: changed" in lines[0], lines
    with pytest.raises(UserError, match="changed, new"):
        build_dataset("synthetic", root, "train")


def test_instance_ids_that_nobody_unpacked_are_no_fault(root, capsys):
    """But some of them are; without label ids there is nothing to score with."""
    paths = sorted(root.glob("gtFine/*/*/*instanceIds.png"))
    paths[-1].unlink()
    assert "1 fault" in check(root, capsys)[-1]
    with pytest.raises(UserError, match="1 of 3 val label files missing"):
        build_dataset("synthetic", root, "val")
    expected = build_dataset("synthetic", root, "train")[0]["label"]
    for path in paths[:-1]:
        path.unlink()
    assert check(root, capsys) == [f"{root}: 18 files, no fault"]
    for packed in (False, True):
        dataset = build_dataset("synthetic", root, "val")
        sample = dataset[0]
        assert not dataset.classes.instance_sizes and "instance" not in sample
        assert sample["label"].max() == 255 and len(np.unique(sample["label"])) > 5
        if not packed:
            pack_split(dataset, root, "val", workers=1, overwrite=False)
    assert np.array_equal(build_dataset("synthetic", root, "train")[0]["label"], expected)
    packed_path(root, "val").unlink()
    for path in root.glob("gtFine/val/*/*labelIds.png"):
        path.unlink()
    with pytest.raises(UserError, match="3 of 3 val label files missing.*Unpack gtFine"):
        build_dataset("synthetic", root, "val")


def test_a_wrong_number_of_images_is_one_line(root, capsys):
    """Of a data set whose numbers are known; a split that is not there at all is no fault."""
    synthetic = find_data_set("synthetic", root)
    assert len(check(root, capsys, replace(synthetic, images={"train": 4, "val": 3}))) == 1
    for known, words in ((5, "has 5: 1 missing"), (2, "has 2: 2 too many")):
        lines = check(root, capsys, replace(synthetic, images={"train": known, "test": 9}))
        assert len(lines) == 2 and lines[0].startswith(f"{root}: 4 train images, synthetic {words}")
        assert "1 fault" in lines[1]
    assert find_data_set("cityscapes", root).images == {"train": 2975, "val": 500, "test": 1525}


DESCRIPTION = """
images: images/{split}/{name}.*
labels: labels/{split}/{name}.png
classes: {road: 7, sky: [8, 9]}
ignore: [0]
"""


def write_described(root, text: str = DESCRIPTION, *, splits=("train", "val")):
    """Three JPEG images a split, with ids."""
    rng = np.random.default_rng(0)
    root.mkdir()
    (root / "dataset.yaml").write_text(text, encoding="utf-8")
    for split in splits:
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for number in range(3):
            ids = rng.choice([0, 7, 8, 9], (30, 40 + number)).astype(np.uint8)
            image = np.stack([ids * 20] * 3, -1)
            Image.fromarray(image).save(root / "images" / split / f"{split}{number}.jpg")
            cv2.imwrite(str(root / "labels" / split / f"{split}{number}.png"), ids)
    return root


DESCRIBED_FAULTS = {
    "cut JPEG": ("images/train/train1.jpg", cut, "not a whole PNG or JPEG"),
    "JPEG with an empty end": (
        "images/train/train1.jpg",
        lambda path: path.write_bytes(path.read_bytes()[:-90] + bytes(90)),
        "not a whole PNG or JPEG",
    ),
    "undefined ids": (
        "labels/val/val2.png", draw(np.full((30, 42), 6, np.uint8)), "undefined label ids 6",
    ),
    "other size": (
        "labels/val/val2.png", draw(np.full((30, 41), 7, np.uint8)),
        "41 x 30 pixels, its image 42 x 30",
    ),
    "second image": (
        "images/val/val1.png", draw(np.zeros((30, 41, 3), np.uint8)), "a second file named val1",
    ),
    "image missing": ("images/val/val0.jpg", lambda path: path.unlink(), "no image file"),
    "label missing": ("labels/val/val0.png", lambda path: path.unlink(), "no ids file"),
}  # fmt: skip


@pytest.mark.parametrize("fault", DESCRIBED_FAULTS)
def test_each_fault_of_a_described_set_is_one_line(tmp_path, capsys, fault):
    root = write_described(tmp_path / "data")
    assert check(root, capsys, "custom") == [f"{root}: 12 files, no fault"]
    name, edit, message = DESCRIBED_FAULTS[fault]
    edit(root / name)
    lines = check(root, capsys, "custom")
    assert len(lines) == 2 and message in lines[0] and (root / name).stem in lines[0], lines
    assert "1 fault" in lines[1]


@pytest.mark.parametrize("change", [
    ("labels/{split}/", "labels/*/"),
    ("images/{split}/{name}.*\n", "images/*/{name}.*\nlists: '{split}.txt'\n"),
])  # fmt: skip
def test_labels_of_other_splits_are_no_fault(tmp_path, capsys, change):
    """All of them in one place: a split's are those of its images."""
    text = DESCRIPTION.replace("labels/{split}/", "labels/*/").replace(*change)
    root = write_described(tmp_path / "data", text)
    for split in ("train", "val"):
        (root / f"{split}.txt").write_text("\n".join(f"{split}{i}" for i in range(3)))
    assert check(root, capsys, "custom") == [f"{root}: 12 files, no fault"]
    (root / "labels" / "val" / "val1.png").unlink()
    lines = check(root, capsys, "custom")
    assert len(lines) == 2 and "val image val1 has no ids file" in lines[0], lines


def test_an_image_that_is_listed_and_not_there_is_one_line(tmp_path, capsys):
    text = DESCRIPTION.replace("classes:", "lists: '{split}.txt'\nclasses:")
    root = write_described(tmp_path / "data", text)
    (root / "train.txt").write_text("train0\ntrain9\n")
    cv2.imwrite(str(root / "labels" / "train" / "train9.png"), np.full((30, 40), 7, np.uint8))
    lines = check(root, capsys, "custom")
    assert len(lines) == 2 and "train9" in lines[0] and "1 fault" in lines[1], lines


def test_images_without_labels_are_no_fault_of_a_test_split(tmp_path, capsys):
    root = write_described(tmp_path / "data", splits=("train", "val", "test"))
    shutil.rmtree(root / "labels" / "test")
    assert check(root, capsys, "custom") == [f"{root}: 15 files, no fault"]


@pytest.mark.parametrize("name", ["synthetic", "cityscapes", "voc", "camvid"])
def test_an_empty_folder_says_so(tmp_path, name):
    with pytest.raises(UserError, match="no .*--data_root"):
        check_data(find_data_set(name, tmp_path), tmp_path, workers=1)


def test_what_was_downloaded_is_checked_before_it_is_prepared(tmp_path, capsys):
    root = write_cityscapes(tmp_path)
    assert check(root, capsys) == [f"{root}: 21 files, no fault"]
    assert not (root / "meta").exists()


SHARED = {  # val's images as those of train; how many are the same
    "one file": (lambda train, val: val.symlink_to(train), 1),
    "a copy": (shutil.copy, 1),
    "another image of its name": (lambda _, val: draw(np.ones((30, 40, 3), np.uint8))(val), 0),
    "one of its size": (lambda train, val: val.write_bytes(train.read_bytes()[:-1] + b"?"), 0),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("case", SHARED)
def test_images_of_val_that_are_trained_on_are_said(case, packed, tmp_path, capsys):
    """A warning, no fault: at --check and at the start of a training."""
    make, number = SHARED[case]
    for split, kind in itertools.product(("train", "val"), ("i", "l")):
        (tmp_path / kind / split).mkdir(parents=True)
        for name in ("a", split):
            draw(np.zeros((30, 40), np.uint8))(tmp_path / kind / split / f"{name}.png")
    text = "images: i/{split}/{name}.png\nlabels: l/{split}/{name}.png\nclasses: [a, b]\n"
    (tmp_path / "dataset.yaml").write_text(text)
    train, val = (tmp_path / "i" / split / "a.png" for split in ("train", "val"))
    val.unlink()
    make(train, val)
    data_set = find_data_set("custom", tmp_path)
    if packed and number:
        for split in ("train", "val"):
            dataset = build_dataset("custom", tmp_path, split, packed=False)
            pack_split(dataset, tmp_path, split, workers=1, overwrite=False)
    capsys.readouterr()
    warn_of_val_images(data_set, tmp_path, "train")
    line = f"warning: {tmp_path}: 1 of 2 val images are in train, such as a. The score on val"
    found = capsys.readouterr().err
    assert found.startswith(line) and found.count("\n") == 1 if number else found == ""
    for split in ("val", "test", "trainval"):
        warn_of_val_images(data_set, tmp_path, split)
    assert capsys.readouterr().err == ""


def test_a_training_says_that_it_trains_on_val(cityscapes_root, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    for name in ("train", "val"):
        (lists / f"{name}.txt").write_text("aachen_000001_000019\n")
    text = f"""
        images: leftImg8bit/train/*/{{name}}_leftImg8bit.png
        labels: gtFine/train/*/{{name}}_gtFine_labelIds.png
        lists: {lists}/{{split}}.txt
        classes: {{a: {[*range(1, 20)]}, b: {[0, *range(20, 34)]}}}
    """
    root = shutil.copytree(cityscapes_root, tmp_path / "data")
    shutil.rmtree(root / "meta")  # of cityscapes
    (root / "dataset.yaml").write_text("\n".join(map(str.strip, text.splitlines())))
    config = tiny(root, tmp_path / "logs", dataset="custom", class_weights=False, steps=1)
    config = replace(config, warmup_steps=0, batch_size=2)
    for command in (["train.py"], ["utils/preprocess_data.py", "--check", "true"]):
        done = train(config) if command == ["train.py"] else run(
            *command, "--dataset", "custom", "--data_root", root
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        assert done.stderr.count("1 of 1 val images are in train, such as aachen_0") == 1
