"""A data set of one's own: docs/custom_data.md as written, and every mistake in one line."""

import re
import shlex
import shutil
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import REPOSITORY, TRAIN, fails, run
from PIL import Image

from datasets import DATASETS, build_dataset, data_set_names, find_data_set, resolve_data_root
from evaluation.counts import count_pixels
from evaluation.metrics import compute_scores
from evaluation.visualize import save_as_ids
from utils.base.errors import UserError
from utils.base.find import find_named
from utils.data import described
from utils.data.batches import read_all_train_ids
from utils.data.described import Description, read_description
from utils.data.label_table import IGNORE, LabelTable, voc_palette
from utils.data.prepare import pack_split

PAGE = (REPOSITORY / "docs" / "custom_data.md").read_text(encoding="utf-8")
YAML = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1]
IDS = [7, 8, 26, 27, 28, 0, 255]
COLORS = """label_colors: {road: [1, 2, 3], sidewalk: [9, 0, 3], vehicle: [200, 0, 255]}
ignore_colors: [[0, 0, 3]]
"""


@pytest.mark.parametrize(
    ("pattern", "splits"),
    [
        ("{split}/{group}/{name}.png", {"val": "sets/val"}),
        ("./{split}/{group}/{name}.png", {"val": "sets/val"}),
        ("**/{group}/{name}.png", {}),
    ],
)
def test_groups_are_the_folder_s_names_wherever_it_is(pattern, splits, tmp_path):
    for name in ("fog/a", "night/b"):
        path = tmp_path / "sets" / "val" / f"{name}.png"
        path.parent.mkdir(parents=True)
        path.touch()
    lists = {} if "{split}" in pattern else {"lists": "{split}.txt"}
    with pytest.raises(ValueError, match=r"\*\* on one side of \{group\} only"):
        Description("**/{group}/**/{split}/{name}.png", "labels/{name}.png", ["a", "b"])
    made = Description(pattern, "labels/{name}.png", ["a", "b"], splits=splits, **lists)
    assert made.groups(tmp_path, "val") == {"a": "fog", "b": "night"}


def write_set(root: Path, text: str = YAML, *, suffix: str = ".jpg") -> Path:
    """Six training and three val images of their own sizes, in the page's folders."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for number in range(count):
            label = np.repeat(rng.choice(IDS, (6, 8)), 10, 0).repeat(10 + number, 1)
            image = np.stack([label * 3] * 3, -1).astype(np.uint8)
            Image.fromarray(image).save(root / "images" / split / f"{number} b{suffix}")
            Image.fromarray(label.astype(np.uint8)).save(
                root / "labels" / split / f"{number} b.png"
            )
    (root / "dataset.yaml").write_text(text, encoding="utf-8")
    return root


def test_the_page_works_as_written(tmp_path):
    """The page's own description and commands, on tiny images, from another folder."""
    root = write_set(tmp_path / "my_data")
    logs = ["--log_root", tmp_path / "logs"]
    steps = re.findall(r"^    python (\S+) (.*)$", PAGE, re.MULTILINE)
    assert len(YAML.splitlines()) <= 10 and len(steps) == 5
    for script, words in steps[:4]:
        more = {"train.py": [*TRAIN[:-2], *logs], "evaluation/eval_on_val_for_metrics.py": logs}
        done = run(REPOSITORY / script, *shlex.split(words), *more.get(script, []), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert "no fault" in done.stdout
    written = tmp_path / "logs" / "model_eval_val_for_metrics" / "0 b_pred_label_img.png"
    assert set(np.unique(Image.open(written))) <= {7, 8, 26}
    assert np.asarray(Image.open(written)).shape == (60, 80)
    done = run(REPOSITORY / "utils" / "preprocess_data.py", "--dataset", "custom",
               "--data_root", root, "--pack", "true")  # fmt: skip
    assert done.returncode == 0, done.stderr
    for packed, plain in zip(
        build_dataset("custom", root, "val"),
        build_dataset("custom", root, "val", packed=False), strict=True,
    ):  # fmt: skip
        assert all(np.array_equal(packed[kind], plain[kind]) for kind in ("image", "label"))


def test_ids_become_classes_in_the_order_of_the_file(tmp_path):
    root = write_set(tmp_path)
    table = find_data_set("custom", root).classes
    assert table.names == ("road", "sidewalk", "vehicle") and table.num_ids == 28
    assert table.id_to_train[[7, 8, 26, 27, 28, 0, 255]].tolist() == [0, 1, 2, 2, 2, 255, 255]
    assert np.array_equal(table.colors, voc_palette()[1:4])
    sample = build_dataset("custom", root, "train")[0]
    path = root / "labels" / "train" / "0 b.png"
    assert np.array_equal(sample["label"], table.id_to_train[np.asarray(Image.open(path))])
    back = table.to_ids(np.array([[0, 1, 2, IGNORE]], np.uint8))
    assert back.tolist() == [[7, 8, 26, 0]] and table.id_to_train[0] == IGNORE


def test_colors_of_the_description_take_the_palettes_place(tmp_path):
    root = write_set(tmp_path, YAML + "colors: {sidewalk: [1, 2, 3]}\n")
    colors = find_data_set("custom", root).classes.colors.tolist()
    assert colors == [[128, 0, 0], [1, 2, 3], [128, 128, 0]]


def test_lists_of_names_and_any_suffix(tmp_path):
    write_set(tmp_path / "train", suffix=".png")
    text = """
        images: train/images/train/{name}.*
        labels: train/labels/train/{name}.png
        lists: "{split}.txt"
        ignore: [7, 8, 255]
        classes: [a, b]
    """
    (tmp_path / "dataset.yaml").write_text("\n".join(map(str.strip, text.splitlines())))
    with pytest.raises(UserError, match=r"val.txt: missing or empty"):
        build_dataset("custom", tmp_path, "val")
    (tmp_path / "val.txt").write_text("\n \n")
    with pytest.raises(UserError, match=r"val.txt: missing or empty"):
        build_dataset("custom", tmp_path, "val")
    (tmp_path / "val.txt").write_text("3 b\n9 b\n\n")
    with pytest.raises(UserError, match=r"1 of 2 val image files missing \(9 b\)"):
        build_dataset("custom", tmp_path, "val")
    (tmp_path / "val.txt").write_text(" 3 b\r\n")
    dataset = build_dataset("custom", tmp_path, "val")
    assert dataset.names == ["3 b"]
    with pytest.raises(UserError, match=r"3 b.png: undefined label ids 26, 27, 28.*dataset.yaml"):
        dataset.train_ids(0)
    (tmp_path / "test.txt").write_text("5 b")
    assert build_dataset("custom", tmp_path, "test").has_labels
    (tmp_path / "train" / "labels" / "train" / "5 b.png").unlink()
    assert not build_dataset("custom", tmp_path, "test").has_labels
    (tmp_path / "train" / "images" / "train" / "3 b.jpg").touch()
    with pytest.raises(UserError, match="a second file named 3 b"):
        build_dataset("custom", tmp_path, "val")


def test_a_test_split_may_lack_its_labels(tmp_path):
    root = write_set(tmp_path)
    (root / "images" / "val").rename(root / "images" / "test")
    dataset = build_dataset("custom", root, "test")
    assert len(dataset) == 3 and not dataset.has_labels and "label" not in dataset[0]
    with pytest.raises(UserError, match=r"dataset.yaml: no val images"):
        build_dataset("custom", root, "val")
    (root / "labels" / "test").mkdir()
    (root / "labels" / "val" / "1 b.png").rename(root / "labels" / "test" / "1 b.png")
    with pytest.raises(UserError, match=r"2 of 3 test label files missing \(0 b, 2 b\)"):
        build_dataset("custom", root, "test")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("classes:\n", "clases:\n"), "clases"),
        (("images: images/{split}/{name}.jpg\n", ""), "images"),
        (("{name}.jpg", "image.jpg"), "{name}"),
        (("images/{split}", "images"), "{split}"),
        (("road: 7", "road: seven"), "seven"),
        (("road: 7", "road: 8"), "ids [8] are given twice"),
        (("[0, 255]", "[0, 26]"), "ids [26] are given twice"),
        (("road: 7", "road: 256"), "each class must have an id from 0 to 255"),
        (("road: 7", "road: -1"), "each class must have an id from 0 to 255"),
        (("road: 7", "road: []"), "each class must"),
        (("[0, 255]", "[0, 256]"), "ignore and"),
        (("ignore: [0", "colors: {bus: [1, 2, 3]}\nignore: [0"), "bus"),
        (("ignore: [0", "colors: {road: [1, 2, 300]}\nignore: [0"), "values of colours must"),
        (("ignore: [", "ignore: [[["), "dataset.yaml"),
        (("images: images", "images: /images"), "relative to the data set's folder"),
        (
            ("  road: 7\n  sidewalk: 8\n  vehicle: [26, 27, 28]", "  [road, bus, road]"),
            "a class occurs twice",
        ),
        (("classes:", "colors: &a {}\nlists: *a\nclasses:"), "aliases"),
        (("classes:", "!!python/object:os.system classes:"), "dataset.yaml"),
    ],
)
def test_a_mistake_in_the_description_is_one_line(tmp_path, change, words):
    assert YAML.count(change[0]) == 1
    refused(write_set(tmp_path, YAML.replace(*change)), words)


def refused(root: Path, words: str) -> None:
    with pytest.raises(UserError, match=re.escape("dataset.yaml: ")) as error:
        build_dataset("custom", root, "train")
    assert words in " ".join(str(error.value).split())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("splits: {training: train}", "splits contains unknown splits: training"),
        ("splits: [train]", "splits"),
        ("label_colors: {road: [1, 2, 3]}", "label_colors lacks sidewalk, vehicle"),
        (COLORS.replace("sidewalk", "bus"), "label_colors contains unknown classes: bus"),
        (COLORS.replace("[9, 0", "[1, 2"), "a colour is given twice"),  # by two classes
        (COLORS.replace("[0, 0", "[1, 2"), "a colour is given twice"),  # and ignored
        (COLORS.replace("[9, ", "[999, "), "values of colours must be from 0 to 255"),
        (COLORS.replace("[[0, ", "[[-1, "), "values of colours must be from 0 to 255"),
        (COLORS.replace("[9, ", "["), "label_colors"),
        ("ignore_colors: [[0, 0, 0]]", "ignore_colors needs label_colors"),
    ],
)
def test_a_contradiction_in_the_description_is_one_line(tmp_path, more, words):
    refused(write_set(tmp_path, YAML + more), words)


def test_faulty_labels_stop_the_training_before_its_first_step(tmp_path):
    """An unknown id in the last file of val; another size and colours are as easily noticed."""
    root = write_set(tmp_path / "data")
    path = root / "labels" / "val" / "2 b.png"
    good = np.asarray(Image.open(path))
    cv2.imwrite(str(path), np.where(good == 7, 70, good))
    done = run(
        "train.py", *TRAIN, "--dataset", "custom", "--class_weights", "false",
        "--data_root", root, "--log_root", tmp_path / "logs",
    )  # fmt: skip
    fails(done, "2 b.png", "undefined label ids 70")
    assert not (tmp_path / "logs").exists()
    for label, words in (
        (good[:50], r"\(50, 96\) pixels, its image has \(60, 96\)"),
        (np.stack([good] * 3, -1), "colours, not ids"),
    ):
        cv2.imwrite(str(path), label)
        with pytest.raises(UserError, match=f"2 b.png: {words}"):
            list(read_all_train_ids(build_dataset("custom", root, "val"), workers=1))


def test_without_a_description(tmp_path):
    with pytest.raises(UserError, match=r"dataset.yaml: not found.*custom_data.md"):
        read_description(tmp_path / "dataset.yaml")
    with pytest.raises(UserError, match=r"dataset.yaml: not found.*--data_root"):
        build_dataset("custom", tmp_path, "train")


def test_voc_palette_is_the_known_one():
    known = {1: (128, 0, 0), 8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128),
             255: (224, 224, 192)}  # fmt: skip
    palette = voc_palette()
    assert all(tuple(palette[index]) == color for index, color in known.items())
    assert len(np.unique(palette, axis=0)) == 256


def test_names_alone_count_from_zero():
    table = Description("{split}/{name}.png", "{split}-labels/{name}.png", ["a", "b"]).label_table()
    assert table.id_to_train[[0, 1, 2, 255]].tolist() == [0, 1, 254, 255]
    assert table.ids.tolist() == [0, 1] and table.num_ids == 3


def test_folders_that_spell_the_splits_in_their_own_way(tmp_path):
    text = YAML.replace("classes:", "splits: {train: training, val: validation}\nclasses:")
    root = write_set(tmp_path, text)
    for kind in ("images", "labels"):
        (root / kind / "train").rename(root / kind / "training")
        shutil.copytree(root / kind / "val", root / kind / "test")
        (root / kind / "val").rename(root / kind / "validation")
    for split, count in (("train", 6), ("val", 3), ("test", 3), ("trainval", 9)):
        dataset = build_dataset("custom", root, split)
        assert len(dataset) == count and dataset[0]["label"].shape == (60, 80)
    (root / "images" / "validation").rename(root / "images" / "val")
    with pytest.raises(UserError, match=r"no val images \S+/images/validation/"):
        build_dataset("custom", root, "val")


def test_image_and_label_names_that_differ_by_their_endings(tmp_path):
    """In one folder for both, and for two cities as in Cityscapes."""
    text = """
        images: "{split}/*/{name}_photo.*"
        labels: "{split}/*/{name}_label.png"
        classes: [a, b]
    """
    (tmp_path / "dataset.yaml").write_text("\n".join(map(str.strip, text.splitlines())))
    for number, city in enumerate(("bonn", "ulm")):
        folder = tmp_path / "train" / city
        folder.mkdir(parents=True)
        pixels = np.full((4, 6), number, np.uint8)
        Image.fromarray(np.stack([pixels] * 3, -1)).save(folder / f"{city}_1_photo.png")
        Image.fromarray(pixels).save(folder / f"{city}_1_label.png")
    dataset = build_dataset("custom", tmp_path, "train")
    assert dataset.names == ["bonn_1", "ulm_1"]
    assert [int(dataset[i]["label"].max()) for i in range(2)] == [0, 1]
    (folder / "ulm_1_label.png").rename(folder / "ulm_2_label.png")
    with pytest.raises(UserError, match=r"1 of 2 train label files missing \(ulm_1\)"):
        build_dataset("custom", tmp_path, "train")


PAIRS = """lists: list/{split}.txt
classes: {road: 7, sidewalk: 8, vehicle: [26, 27, 28]}
ignore: [0, 255]
"""


def test_lists_of_pairs_as_other_projects_have_them(tmp_path):
    """Paths relative to the folder, also after a slash; a tab where names have spaces."""
    root = write_set(tmp_path, PAIRS)
    (root / "list").mkdir()
    (root / "list" / "train.txt").write_text(
        "images/train/4 b.jpg\tlabels/train/4 b.png\n/images/train/2 b.jpg\t/labels/train/2 b.png\n"
    )
    (root / "images/val/1 b.jpg").rename(root / "images/val/one.jpg")
    (root / "list" / "val.txt").write_text("images/val/one.jpg labels/val/other.png\n")
    (root / "labels/val/1 b.png").rename(root / "labels/val/other.png")
    (root / "list" / "test.txt").write_text("images/val/one.jpg\n")
    data = ("--dataset", "custom", "--data_root", root)
    for more in (("--check", "true"), ("--pack", "true")):
        done = run("utils/preprocess_data.py", *data, *more)
        assert done.returncode == 0, done.stdout + done.stderr
    assert build_dataset("custom", root, "train").names == ["4 b", "2 b"]
    val = build_dataset("custom", root, "val", packed=False)
    assert val.names == ["one"] and val.files[0].ids == root / "labels" / "val" / "other.png"
    assert not build_dataset("custom", root, "test").has_labels
    (root / "list" / "train.txt").write_text(
        "images/train/4 b.jpg\tlabels/train/2 b.png\nimages/train/2 b.jpg\tlabels/train/4 b.png\n"
    )
    with pytest.raises(UserError, match=r"train.pack: image 4 b has other files now"):
        build_dataset("custom", root, "train")
    (root / "list" / "train.txt").write_text("images/val/one.jpg\n")
    with pytest.raises(UserError, match="1 of 1 train label files missing"):
        build_dataset("custom", root, "train", packed=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [("a.png b.png c.png", "train.txt: 'a.png b.png c.png' is not two paths"),
     ("a/x.png b/x.png\nc/x.png b/x.png", "train.txt: two lines have the image x"),
     ("images/train/1_b.jpg x.png", r"1 of 1 train image files missing \(1_b\)"),
     ("images/train/1 b.jpg\tx.png", r"1 of 1 train label files missing \(1 b\)")],
)  # fmt: skip
def test_wrong_lists_of_pairs_are_one_line(tmp_path, text, words):
    root = write_set(tmp_path, PAIRS)
    (root / "list").mkdir()
    (root / "list" / "train.txt").write_text(text)
    with pytest.raises(UserError, match=words):
        build_dataset("custom", root, "train")


def ship(folder: Path) -> None:
    described.SHIPPED = folder


def test_a_shipped_description_with_its_lists_beside_it(tmp_path, monkeypatch):
    """Chosen by its name; a list in the data set's folder comes first."""
    shipped = tmp_path / "shipped"
    (shipped / "lists").mkdir(parents=True)
    monkeypatch.setattr("utils.data.described.SHIPPED", shipped)
    root = write_set(tmp_path / "data")
    (root / "dataset.yaml").unlink()
    text = YAML.replace("{split}", "train").replace("ignore:", "lists: lists/{split}.txt\nignore:")
    (shipped / "street.yaml").write_text(text)
    (shipped / "lists" / "train.txt").write_text("4 b\n2 b\n")
    (shipped / "lists" / "val.txt").write_text("0 b\n")
    assert data_set_names() == [*DATASETS, "custom", "street"]
    assert resolve_data_root("street", None) == REPOSITORY / "data" / "street"
    data_set = find_data_set("street", root)
    assert data_set.name == "street" and data_set.classes.names == ("road", "sidewalk", "vehicle")
    assert build_dataset("street", root, "train").names == ["4 b", "2 b"]
    assert build_dataset("street", root, "val").names == ["0 b"]
    with pytest.raises(UserError, match="lists/test.txt: missing or empty"):
        build_dataset("street", root, "test")

    command = ("utils/preprocess_data.py", "--dataset", "street", "--data_root", root)
    first = partial(ship, shipped)
    done = run(*command, "--check", "true", first=first)
    assert done.returncode == 0 and "6 files, no fault" in done.stdout, done.stdout + done.stderr
    done = run(*command, first=first)
    assert done.returncode == 0 and (root / "meta" / "class_weights.json").is_file(), done.stderr
    (root / "lists").mkdir()
    (root / "lists" / "val.txt").write_text("1 b\n")
    assert build_dataset("street", root, "val").names == ["1 b"]
    done = run(*command[:2], "lane", first=first)
    fails(done, "--dataset lane: unknown data set", "custom, street")


def test_every_shipped_description_is_one_that_can_be_read(tmp_path):
    names = data_set_names()
    assert "camvid" in names and len(set(names)) == len(names)
    for path in sorted((REPOSITORY / "configs" / "datasets").glob("*.yaml")):
        classes = find_data_set(path.stem, tmp_path).classes
        assert classes.names == tuple(read_description(path).ids())


def table_of(classes: dict, ignore: list[int]) -> LabelTable:
    return Description("{split}/{name}", "{split}/{name}.png", classes, ignore).label_table()


CLASSES = {
    "up to 255": ({"a": 255, "b": [254, 253], "c": 0, "d": [128, 129]}, [7, 1]),
    "nothing ignored": ({"a": 1, "b": 255, "c": 0, "d": 254}, []),
    "ids without a gap": ({"a": [0, 1], "b": [2, 3], "c": [4, 5], "d": [6, 7]}, [255]),
    "every id a class's": ({"a": 9, "b": [*range(9), *range(10, 254)], "c": 254, "d": 255}, []),
}


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("border", [0, 2])
def test_ids_up_to_255_are_scored_as_small_ones_are(tmp_path, kind, border):
    """The same pixels under other ids: the same scores, and the ids come back from a file."""
    table, plain = table_of(*CLASSES[kind]), table_of({"a": 0, "b": 1, "c": 2, "d": 3}, [255])
    rng = np.random.default_rng(0)
    truth, prediction = (
        cv2.resize(rng.choice([0, 1, 2, 3, *[255] * hidden], (6, 8)).astype(np.uint8), (64, 48),
                   interpolation=cv2.INTER_NEAREST)
        for hidden in (1, 0)
    )  # fmt: skip
    prediction = np.where((rng.random((48, 64)) < 0.6) & (truth != 255), truth, prediction)
    found = []
    for classes in (table, plain):
        ids = classes.to_ids(truth)
        classed = truth != 255
        assert np.array_equal(classes.id_to_train[ids][classed], truth[classed])
        assert not np.isin(ids[~classed], classes.ids).any()
        counts = count_pixels(ids, classes.to_ids(prediction), classes, border=border)
        found.append(compute_scores(counts, classes).plain())
    assert found[0] == found[1] and 0 < found[0]["miou"] < 1
    assert bool(found[0]["boundary"]) == bool(border)
    save_as_ids(tmp_path / "x.png", prediction, table)
    stored = np.asarray(Image.open(tmp_path / "x.png"))
    assert np.array_equal(stored, table.ids[prediction])
    assert np.array_equal(table.id_to_train[stored], prediction)


def test_253_classes_and_no_more():
    names = [f"c{number}" for number in range(253)]
    table = table_of({name: number + 3 for number, name in enumerate(names)}, [0])
    train_ids = np.arange(253, dtype=np.uint8)[None]
    assert np.array_equal(table.id_to_train[table.to_ids(train_ids)], train_ids)
    counts = count_pixels(table.to_ids(train_ids), table.to_ids(train_ids), table)
    assert compute_scores(counts, table).miou == 1
    with pytest.raises(ValueError, match="254 classes, the limit is 253"):
        table_of({name: number for number, name in enumerate([*names, "more"])}, [])


def color_set(root: Path) -> tuple[Path, dict[tuple, int]]:
    """The page's set with label files in colours, and the train id of each colour."""
    write_set(root, YAML + COLORS)
    colors = {7: (1, 2, 3), 8: (9, 0, 3), 26: (200, 0, 255), 27: (200, 0, 255), 28: (200, 0, 255)}
    for path in sorted((root / "labels").glob("*/*.png")):
        ids = np.asarray(Image.open(path))
        picture = np.full((*ids.shape, 3), (0, 0, 3), np.uint8)  # what is ignored
        for number, color in colors.items():
            picture[ids == number] = color
        Image.fromarray(picture).save(path)
    return root, {(1, 2, 3): 0, (9, 0, 3): 1, (200, 0, 255): 2, (0, 0, 3): IGNORE}


def test_label_files_of_colours_are_read_by_exact_match(tmp_path):
    root, _ = color_set(tmp_path / "colours")
    plain = write_set(tmp_path / "ids")
    for split in ("train", "val"):
        found, expected = (build_dataset("custom", x, split) for x in (root, plain))
        assert len(found) == len(expected) > 0
        for one, other in zip(found, expected, strict=True):
            assert np.array_equal(one["label"], other["label"])
            assert one["label"].dtype == np.uint8
        assert np.array_equal(found.train_ids(1), expected.train_ids(1))
    table = found.classes
    assert table.colors.tolist() == [[1, 2, 3], [9, 0, 3], [200, 0, 255]]  # of pictures too
    assert table.ids.tolist() == [7, 8, 26]  # of written predictions
    path = root / "labels" / "val" / "0 b.png"
    Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE).save(path)
    assert np.array_equal(found[0]["label"], expected[0]["label"])
    command = ("utils/preprocess_data.py", "--dataset", "custom", "--data_root")
    for folder in (root, plain):
        done = run(*command, folder, "--pack", "true")
        assert done.returncode == 0, done.stderr
    weights = [(x / "meta" / "class_weights.json").read_text() for x in (root, plain)]
    assert weights[0] == weights[1]
    packed = build_dataset("custom", root, "val")
    assert "packed" in packed.source and np.array_equal(packed[2]["label"], expected[2]["label"])
    done = run(*command, root, "--check", "true")
    assert done.returncode == 0 and "20 files, no fault" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("color", [(1, 2, 4), (2, 2, 3), (3, 2, 1), (0, 0, 0), (255, 255, 255)])
def test_a_colour_of_no_class_is_named_with_its_place(tmp_path, color):
    """One level off, channels the other way round, black: nothing is guessed."""
    root, _ = color_set(tmp_path)
    path = root / "labels" / "val" / "1 b.png"
    picture = np.asarray(Image.open(path)).copy()
    picture[37, 21:30] = color
    picture[50, 3] = color
    Image.fromarray(picture).save(path)
    done = run("utils/preprocess_data.py", "--dataset", "custom", "--data_root", root,
               "--check", "true")  # fmt: skip
    fails(done, "1 fault")
    (line,) = (line for line in done.stdout.splitlines() if "1 b" in line)
    assert line.startswith(f"{path}: colour {color} at row 37, column 21 ")
    dataset = build_dataset("custom", root, "val")
    with pytest.raises(UserError, match=r"1 b.png: .*row 37, column 21 .*label_colors"):
        list(read_all_train_ids(dataset, workers=1))


def test_the_colours_of_a_jpeg_are_no_classes(tmp_path):
    root, _ = color_set(tmp_path)
    (root / "dataset.yaml").write_text(
        (YAML + COLORS).replace("labels/{split}/{name}.png", "labels/{split}/{name}.jpg")
    )
    for path in sorted((root / "labels").glob("*/*.png")):
        Image.open(path).save(path.with_suffix(".jpg"), quality=60)
    with pytest.raises(UserError, match=r"b.jpg: colour .* belongs to no class"):
        list(read_all_train_ids(build_dataset("custom", root, "train"), workers=1))


def plain_set(root: Path, files: dict[str, str], text: str = "") -> Path:
    """A set of links to one image and its label: name of the link -> "image" or "label"."""
    root.mkdir(parents=True)
    pixels = np.zeros((4, 6), np.uint8)
    Image.fromarray(np.stack([pixels] * 3, -1)).save(root / "image.png")
    Image.fromarray(pixels).save(root / "label.png")
    for name, kind in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / f"{kind}.png", root / name)
    default = "images: images/{split}/{name}.png\nlabels: labels/{split}/{name}.png\n"
    (root / "dataset.yaml").write_text((text or default) + "classes: [a, b]\n")
    return root


def pair(name: str, split: str = "train") -> dict[str, str]:
    return {f"{kind}s/{split}/{name}.png": kind for kind in ("image", "label")}


LAYOUTS = {  # files, links (place -> target, seen from it), description, names of train
    "endings in any case": (
        {"images/train/a.PNG": "image", "labels/train/a.Png": "label", **pair("b")},
        {}, "", ["a", "b"],
    ),
    "hidden files": (
        {**pair("a"), "images/train/._a.png": "image", "labels/train/._a.png": "label"},
        {}, "", ["a"],
    ),
    "a linked split": (
        {"far/a.png": "image", "near/a.png": "label"},
        {"images/train": "../far", "labels/train": "../near"}, "", ["a"],
    ),
    "linked folders of cities": (
        {"far/a.png": "image", "near/a.png": "label"},
        {"images/train/x": "../../far", "labels/train/x": "../../near"},
        "images: images/{split}/*/{name}.png\nlabels: labels/{split}/*/{name}.png\n", ["a"],
    ),
    "any number of folders": (
        {"i/train/a.png": "image", "i/train/x/y/b.png": "image",
         "l/train/a.png": "label", "l/train/x/b.png": "label"},
        {}, "images: i/{split}/**/{name}.png\nlabels: l/{split}/**/{name}.png\n", ["a", "b"],
    ),
    "dots and slashes": (
        pair("a"), {},
        "images: ./images//{split}/{name}.png\nlabels: labels/./{split}/{name}.png\n", ["a"],
    ),
    "a folder above": (
        pair("a"), {},
        "images: x/../images/{split}/{name}.png\nlabels: labels/{split}/{name}.png\n", ["a"],
    ),
    "signs in names": (pair("a[1] *?#%&+ b"), {}, "", ["a[1] *?#%&+ b"]),
    "signs in the pattern": (
        {"i [1]?/train/a.png": "image", "l [1]?/train/a.png": "label"}, {},
        "images: i [1]?/{split}/{name}.png\nlabels: l [1]?/{split}/{name}.png\n", ["a"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYOUTS)
def test_folders_and_patterns_as_people_have_them(case, tmp_path):
    files, links, text, names = LAYOUTS[case]
    root = plain_set(tmp_path / "my [1] data #%", files, text)
    (root / "x").mkdir(exist_ok=True)
    for place, target in links.items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).symlink_to(target)
    dataset = build_dataset("custom", root, "train")
    assert dataset.names == names and dataset[0]["label"].shape == (4, 6)
    pack_split(dataset, root, "train", workers=1, overwrite=False)
    assert build_dataset("custom", root, "train").names == names


@pytest.mark.parametrize("place", ["data", "data set/lists", "~"])
@pytest.mark.parametrize("ends", ["\n", "  \r\n"])
def test_lists_that_lie_anywhere(place, ends, tmp_path, monkeypatch, capsys):
    """An absolute path, ~, a byte order mark, and a name that stands there again."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / place.replace("~", "home")
    where = "~" if place == "~" else folder.as_posix()
    text = f"images: i/{{name}}.png\nlabels: l/{{name}}.png\nlists: {where}/{{split}}.txt\n"
    both = {f"{kind[0]}/{name}.png": kind for kind in ("image", "label") for name in "abc"}
    root = plain_set(tmp_path / "set", both, text.replace("\n", ends))
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text(ends.join("ba") + f"{ends}b{ends}", encoding="utf-8-sig")
    assert build_dataset("custom", root, "train").names == ["b", "a"]
    assert "1 duplicate names, such as b; each counts once" in capsys.readouterr().err


def test_pictures_of_another_ending_are_counted(tmp_path, capsys):
    """Not labels beside their images, hidden files and what is no picture."""
    text = "images: i/{split}/{name}.jpg\nlabels: i/{split}/{name}.png\n"
    root = plain_set(
        tmp_path / "set", {"i/train/a.jpg": "image", "i/train/a.png": "label"}, text
    )  # fmt: skip
    assert build_dataset("custom", root, "train").names == ["a"]
    assert capsys.readouterr().err == ""
    for name in ("b.jpeg", "c.TIF", "._d.jpeg", "notes.txt"):
        (root / "i" / "train" / name).touch()
    assert build_dataset("custom", root, "train").names == ["a"]
    line = "2 pictures of other types are skipped, such as b.jpeg. Write {name}.* in dataset.yaml"
    assert line in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("classes", "[yes, no]", 'got [True, False]. Give a value like [road, "no", "1"] or {road'),
        ("classes", "{yes: 1, no: 0}", 'classes: True is not text. Put names such as "yes", "no"'),
        ("classes", "{1: 0, 2: 1}", "classes: 1 is not text"),
        ("classes", "{a: 0.5}", "classes: got {'a': 0.5}. Give a value like [road"),
        ("classes", "{a: b}", "classes: got {'a': 'b'}. Give a value like [road"),
        ("classes", "[1, 2]", "classes: got [1, 2]. Give a value like [road"),
        ("classes", "[a, ~]", "classes: got ['a', None]. Give a value like [road"),
        ("classes", "road", "classes: got road. Give a value like [road"),
        ("ignore", "255", "ignore: got 255. Give a value like [0, 255]"),
        ("splits", "{train: [a]}", "splits: got ['a']. Give a value like {train: training}"),
        ("colors", "{road: [1, 2]}", "colors: got [1, 2]. Give a value like {road: [128, 64"),
        ("label_colors", "{on: [1, 2, 3]}", "label_colors: True is not text"),
        ("ignore_colors", "[0, 0, 0]", "ignore_colors: got 0. Give a value like [[0, 0, 0]]"),
        ("images", "/data/{split}/{name}.png", "images must be relative to the data set's folder:"),
        ("labels", "~/l/{split}/{name}.png", "labels must be relative to the data set's folder:"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_one_plain_line_with_an_example(key, value, words, tmp_path):
    description = {
        "images": "images/{split}/{name}.png", "labels": "labels/{split}/{name}.png",
        "classes": "[road, car]", key: value,
    }  # fmt: skip
    text = "".join(f"{name}: {content}\n" for name, content in description.items())
    (tmp_path / "dataset.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        build_dataset("custom", tmp_path, "train")
    line = str(error.value)
    assert words in line and "\n" not in line and "Union" not in line and len(line) < 300, line


def test_files_are_looked_for_in_a_second_also_where_there_are_many(tmp_path):
    """COCO has 118,000; a tenth of them here."""
    (tmp_path / "images" / "train").mkdir(parents=True)
    for number in range(11_800):
        (tmp_path / "images" / "train" / f"{number:012d}.jpg").touch()
    begin = time.process_time()
    assert len(find_named(tmp_path, "images/train/{name}.jpg")) == 11_800
    assert time.process_time() - begin < 1
