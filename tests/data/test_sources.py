"""Packed files, train ids and class weights never outlive a change of what they were made from."""

import json
import os
import shutil
import time

import cv2
import numpy as np
import pytest
from helpers import preprocess, write_cityscapes
from PIL import Image

from datasets import build_dataset, find_data_set
from utils.base.errors import UserError
from utils.data import cityscapes, sources
from utils.data.check import check_data
from utils.data.class_weights import WEIGHTS_FILE
from utils.data.image_files import contradiction, read_ids
from utils.data.packed import packed_path
from utils.data.prepare import current_class_weights, pack_split, weigh
from utils.data.sources import record_of

YAML = """images: images/{split}/{name}.png
labels: labels/{split}/{name}.png
lists: "{split}.txt"
"""
BEFORE = YAML + "classes: {road: 8, sky: 7}\n"


def custom(root):
    """Three images a split, all of one file size whatever their pixels are."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(3):
            for kind, shape in (("images", (32, 32, 3)), ("labels", (32, 32))):
                path = root / kind / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                store(path, rng.integers(7, 9, shape, np.uint8))
        (root / f"{split}.txt").write_text("0\n1\n")
    (root / "dataset.yaml").write_text(BEFORE)
    make("custom", root)
    return root


def store(path, pixels) -> None:
    Image.fromarray(pixels).save(path, compress_level=0)


def make(name, root) -> None:
    """As utils/preprocess_data.py --pack true."""
    data_set = find_data_set(name, root)
    if data_set.prepare is None:
        weigh(build_dataset(name, root, "train", packed=False), root, workers=1)
    else:
        data_set.prepare(root, workers=1, overwrite=False)
    for split in ("train", "val"):
        files = build_dataset(name, root, split, packed=False)
        pack_split(files, root, split, workers=1, overwrite=False)


def faults(name, root) -> list[str]:
    """What is said before a first step: of the class weights, of the packed files, of the files."""
    found, weights = [], lambda: current_class_weights(find_data_set(name, root), root)
    opened = [lambda s=s, p=p: build_dataset(name, root, s, packed=p)
              for s in ("train", "val") for p in (True, False)]  # fmt: skip
    for attempt in (weights, *opened):
        try:
            attempt()
        except UserError as error:
            found.append(str(error))
    return found


def describe(text):
    return lambda root: (root / "dataset.yaml").write_text(YAML + text)


def write(name, text):
    return lambda root: (root / name).write_text(text)


def repaint(pattern, *, date: float | None = None):
    """One pixel of the second file; size and date stay, or the date becomes an older one."""

    def edit(root):
        path = sorted(root.glob(pattern))[1]
        status = path.stat()
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        pixels[4, 4] = pixels.max() if pixels[4, 4].max() < pixels.max() else pixels.min()
        store(path, np.asarray(pixels))
        assert date or path.stat().st_size == status.st_size
        when = status.st_mtime_ns if date is None else int(date * 1e9)
        os.utime(path, ns=(when, when))

    return edit


def replaced(pattern):
    """By a file that was written elsewhere, years before."""

    def edit(root):
        path = sorted(root.glob(pattern))[1]
        other = root / "elsewhere.png"
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 7)).save(other)
        os.utime(other, (1e9, 1e9))
        shutil.move(other, path)

    return edit


CHANGES = {  # data set, what changes, the file that is named
    "ids swapped": ("custom", describe("classes: {road: 7, sky: 8}\n"), "ids meant other"),
    "id ignored": ("custom", describe("classes: {road: 8}\nignore: [7]\n"), "classes"),
    "id joins a class": ("custom", describe("classes: {road: [8, 9], sky: 7}\n"), "ids meant"),
    "a label": ("custom", repaint("labels/train/*"), "labels/train/1.png"),
    "a label of val": ("custom", repaint("labels/val/*"), "labels/val/1.png"),
    "a label, older": ("custom", replaced("labels/train/*"), "labels/train/1.png"),
    "an image": ("custom", repaint("images/train/*"), "images/train/1.png"),
    "an image, older": ("custom", replaced("images/val/*"), "images/val/1.png"),
    "a longer list": ("custom", write("train.txt", "0\n1\n2\n"), "train"),
    "a shorter list": ("custom", write("train.txt", "0\n"), "train"),
    "another order": ("custom", write("val.txt", "1\n0\n"), "val.pack: has other images than"),
    "label ids": ("cityscapes", repaint("gtFine/train/*/*labelIds.png", date=2e9), "labelIds"),
    "label ids, date kept": ("cityscapes", repaint("gtFine/train/*/*labelIds.png"), "labelIds"),
    "label ids, older": ("cityscapes", replaced("gtFine/train/*/*labelIds.png"), "labelIds"),
    "label ids of val": ("cityscapes", replaced("gtFine/val/*/*labelIds.png"), "labelIds"),
    "instance ids": ("cityscapes", repaint("gtFine/val/*/*instanceIds.png"), "instanceIds"),
    "a converted label": ("cityscapes", repaint("meta/label_imgs/aachen*", date=2e9), "label_imgs"),
    "a city's image": ("cityscapes", replaced("leftImg8bit/train/*/*"), "leftImg8bit/train"),
}  # fmt: skip


def equal_length(root):
    """PNG files without compression: an edited pixel leaves their size."""
    for path in root.rglob("*.png"):
        store(path, np.asarray(Image.open(path)))


def tree(name, root):
    if name == "custom":
        return custom(root)
    write_cityscapes(root)
    equal_length(root)
    make(name, root)
    return root


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed_before_the_first_step_and_mended(change, tmp_path, capsys):
    name, edit, words = CHANGES[change]
    root = tree(name, tmp_path)
    assert faults(name, root) == []
    edit(root)
    found = faults(name, root)
    assert found and any(words in line for line in found), found
    capsys.readouterr()
    with pytest.raises(UserError, match="fault.*, see above"):
        check_data(find_data_set(name, root), root, workers=1)
    make(name, root)
    assert faults(name, root) == []
    for split in ("train", "val"):
        packed, files = (build_dataset(name, root, split, packed=p) for p in (True, False))
        assert packed.names == files.names
        for one, other in zip(packed, files, strict=True):
            assert np.array_equal(one["image"], other["image"])
            assert np.array_equal(one["label"], other["label"])


@pytest.mark.parametrize("gone", [["images", "labels"], ["images"], ["labels"]])
@pytest.mark.parametrize("listed", [False, True])
def test_a_file_that_is_gone_from_its_folder_is_noticed(gone, listed, tmp_path):
    root = custom(tmp_path)
    if not listed:
        (root / "dataset.yaml").write_text(BEFORE.replace('lists: "{split}.txt"\n', ""))
        make("custom", root)
    assert faults("custom", root) == []
    for kind in gone:
        (root / kind / "train" / "1.png").unlink()
    with pytest.raises(UserError, match=r"(1\.png.*: changed|other images).*--pack true"):
        build_dataset("custom", root, "train")


def test_a_damaged_record_is_not_believed(tmp_path):
    root = custom(tmp_path)
    for path in root.rglob("*.sources.json"):
        path.write_bytes(path.read_bytes()[:40])
    assert sum("its record is damaged" in line for line in faults("custom", root)) == 3
    make("custom", root)
    assert faults("custom", root) == []


def touch_all(root):
    for path in root.rglob("*.*"):
        os.utime(path)


def copied(root):
    shutil.copytree(root, root.with_name("copy"), copy_function=shutil.copyfile)
    shutil.rmtree(root)
    root.with_name("copy").rename(root)


def without(*names):
    def edit(root):
        for name in names:
            for path in root.glob(name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    return edit


HARMLESS = {
    "all dates": touch_all,
    "a copy of everything": copied,
    "the sources are gone": without("images", "leftImg8bit", "gtFine", "*.txt"),
    "made before there were records": without("**/*.sources.json"),
}


@pytest.mark.parametrize("name", ["custom", "cityscapes"])
@pytest.mark.parametrize("change", HARMLESS)
def test_what_changes_no_content_is_no_fault(change, name, tmp_path, capsys):
    root = tree(name, tmp_path / "data")
    HARMLESS[change](root)
    gone, older = change == "the sources are gone", change.startswith("made before")
    assert [line for line in faults(name, root) if not (gone and "images" in line)] == []
    if not gone:
        before = packed_path(root, "train").stat().st_mtime_ns
        capsys.readouterr()
        make(name, root)
        assert capsys.readouterr().out.count("complete already") == (0 if older else 2)
        assert older or packed_path(root, "train").stat().st_mtime_ns == before
        assert record_of(packed_path(root, "val")).is_file()
        assert record_of(root / WEIGHTS_FILE).is_file()


def test_a_packed_file_without_a_record_is_not_believed(tmp_path):
    """Made before there were records: training reads it, packing makes it again."""
    root = custom(tmp_path)
    repaint("labels/train/*")(root)
    without("**/*.sources.json")(root)
    old = build_dataset("custom", root, "train")[1]["label"]
    make("custom", root)
    new = build_dataset("custom", root, "train")[1]["label"]
    assert not np.array_equal(old, new)
    assert np.array_equal(new, build_dataset("custom", root, "train", packed=False)[1]["label"])


def test_an_interrupted_packed_file_does_not_go_on_after_a_change(tmp_path):
    root = custom(tmp_path)
    path = packed_path(root, "train")
    record = json.loads(record_of(path).read_text())
    begun = {**record, "files": {name: entry[:4] for name, entry in record["files"].items()}}
    part = path.with_name("train.pack.part")
    path.rename(part)
    record_of(part).write_text(json.dumps(begun))
    repaint("labels/train/*")(root)
    make("custom", root)
    assert faults("custom", root) == []
    label = build_dataset("custom", root, "train", packed=False)[1]["label"]
    assert np.array_equal(build_dataset("custom", root, "train")[1]["label"], label)


def test_damaged_class_weights_are_computed_again(tmp_path):
    root = write_cityscapes(tmp_path)
    preprocess(root)
    path = root / WEIGHTS_FILE
    content = path.read_text()
    path.write_text("{")
    preprocess(root)
    assert path.read_text() == content


def test_label_ids_that_contradict_instance_ids_are_named(tmp_path, capsys):
    root = write_cityscapes(tmp_path)
    preprocess(root)
    assert "instanceIds" not in capsys.readouterr().err
    replaced("gtFine/val/*/*labelIds.png")(root)
    preprocess(root)
    assert "lindau_000001_000019_gtFine_labelIds.png: differs from" in capsys.readouterr().err
    (path,) = root.glob("gtFine/val/*/lindau_000001_000019_gtFine_instanceIds.png")
    cv2.imwrite(str(path), np.zeros((32, 64), np.uint16))
    labels = path.with_name(path.name.replace("instance", "label"))
    (line,) = contradiction(labels, read_ids(path, np.uint16))
    assert "labelIds.png: (64, 128) pixels, its instanceIds (32, 64)" in line


def test_a_folder_that_takes_no_changes_is_compared_every_time(tmp_path, monkeypatch):
    root = custom(tmp_path)
    touch_all(root)
    before = record_of(packed_path(root, "val")).read_bytes()
    monkeypatch.setattr("utils.data.sources.write_text", refuse)
    assert faults("custom", root) == []
    assert record_of(packed_path(root, "val")).read_bytes() == before


def refuse(path, _text):
    raise UserError(f"{path}: cannot be written (Read-only file system)")


def test_converting_goes_on_where_a_first_run_was_stopped(tmp_path, monkeypatch):
    root, written = write_cityscapes(tmp_path), []

    def write_and_stop(path, pixels, **options):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path)
        return real(path, pixels, **options)

    real = sources.write_png
    monkeypatch.setattr(sources, "write_png", write_and_stop)
    with pytest.raises(KeyboardInterrupt):
        cityscapes.prepare(root, workers=0, overwrite=False)
    first = [path.stat().st_mtime_ns for path in written]
    monkeypatch.setattr(sources, "write_png", real)
    time.sleep(0.02)
    preprocess(root)
    assert [path.stat().st_mtime_ns for path in written] == first
