"""A data set of one's own: docs/custom_data.md as written, and every mistake in one line."""

import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import REPOSITORY, run
from PIL import Image
from test_commands import TRAIN, fails

from datasets import build_dataset, label_table
from utils.custom import Description, read_description
from utils.errors import UserError
from utils.labels import IGNORE, voc_palette
from utils.loader import read_labels

PAGE = (REPOSITORY / "docs" / "custom_data.md").read_text(encoding="utf-8")
YAML = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)[1]
IDS = [7, 8, 26, 27, 28, 0, 255]


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
    table = label_table("custom", root)
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
    colors = label_table("custom", root).colors.tolist()
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
    with pytest.raises(UserError, match=r"val.txt: cannot be read"):
        build_dataset("custom", tmp_path, "val")
    (tmp_path / "val.txt").write_text("3 b\n9 b\n\n")
    with pytest.raises(UserError, match=r"1 of 2 val image files missing \(9 b\)"):
        build_dataset("custom", tmp_path, "val")
    (tmp_path / "val.txt").write_text(" 3 b\r\n")
    dataset = build_dataset("custom", tmp_path, "val")
    assert dataset.names == ["3 b"]
    with pytest.raises(UserError, match=r"3 b.png: undefined label ids 26, 27, 28.*dataset.yaml"):
        dataset.label(0)
    (tmp_path / "train" / "images" / "train" / "3 b.jpg").touch()
    with pytest.raises(UserError, match="a second image named 3 b"):
        build_dataset("custom", tmp_path, "val")


def test_a_test_split_may_lack_its_labels(tmp_path):
    root = write_set(tmp_path)
    (root / "images" / "val").rename(root / "images" / "test")
    dataset = build_dataset("custom", root, "test")
    assert len(dataset) == 3 and not dataset.has_labels and "label" not in dataset[0]
    with pytest.raises(UserError, match=r"dataset.yaml: no val images"):
        build_dataset("custom", root, "val")


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
        (("road: 7", "road: 254"), "0 to 253"),
        (("road: 7", "road: []"), "each class must"),
        (("[0, 255]", "[0, 256]"), "ignore and"),
        (("ignore: [0", "colors: {bus: [1, 2, 3]}\nignore: [0"), "bus"),
        (("ignore: [0", "colors: {road: [1, 2, 300]}\nignore: [0"), "colors"),
        (("ignore: [", "ignore: [[["), "dataset.yaml"),
        (("classes:", "colors: &a {}\nlists: *a\nclasses:"), "aliases"),
        (("classes:", "!!python/object:os.system classes:"), "dataset.yaml"),
    ],
)
def test_a_mistake_in_the_description_is_one_line(tmp_path, change, words):
    assert YAML.count(change[0]) == 1
    root = write_set(tmp_path, YAML.replace(*change))
    with pytest.raises(UserError, match=re.escape("dataset.yaml: ")) as error:
        build_dataset("custom", root, "train")
    assert words in " ".join(str(error.value).split())


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
            list(read_labels(build_dataset("custom", root, "val"), workers=1))


def test_without_a_description(tmp_path):
    with pytest.raises(UserError, match=r"dataset.yaml: not found.*custom_data.md"):
        read_description(tmp_path)


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
