"""A checkpoint owns its classes: names, ids and colours are in it, and every command knows it."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import fails, run, tiny, train
from PIL import Image

from utils.base.errors import UserError
from utils.training.checkpoint import load_checkpoint, point, save_checkpoint

PATHS = "images: images/{split}/{name}.png\nlabels: labels/{split}/{name}.png\n"
COLORS = "colors: {sky: [1, 2, 3], road: [4, 5, 6]}\n"
BEFORE = "classes: {sky: 23, road: 7}\n" + COLORS


def write_set(root, description: str = BEFORE, ids=(23, 7)):
    for split in ("train", "val"):
        for number in range(2):
            label = np.resize(np.array(ids, np.uint8).repeat(8), (64, 64))
            image = np.stack([label * 9] * 3, -1) + np.uint8(number)
            for folder, pixels in (("images", image), ("labels", label)):
                path = root / folder / split / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    (root / "dataset.yaml").write_text(PATHS + description)
    return root


def options(root, logs, **changes):
    return tiny(root, logs, **{"dataset": "custom", "class_weights": False, "steps": 2} | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A data set and a folder of runs with one run of two steps."""
    folder = tmp_path_factory.mktemp("classes")
    root = write_set(folder / "data")
    train(options(root, folder / "logs"))
    return folder


@pytest.fixture
def copy(trained, tmp_path):
    """The same for one test: the run's config still names the first data set."""
    shutil.copytree(trained, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


def make_older(copy) -> None:
    """The checkpoints as they were before they held ids and colours."""
    folder = copy / "logs" / "run" / "checkpoints"
    state = load_checkpoint(folder / "last.pth")
    for path in folder.iterdir():
        path.unlink()
    del state["label_table"], state["format"]
    path = save_checkpoint(folder, state)
    for name in ("last.pth", "best.pth"):
        point(folder / name, path)


DIFFERENT = {  # today's description -> what is said, {} stands for "in the data set and"
    "other order": ("classes: {road: 7, sky: 23}\n", "class 0 is 'road' {} 'sky'"),
    "one more": ("classes: {sky: 23, road: 7, car: 26}\n", "class 2 is 'car' {} missing"),
    "one less": ("classes: {sky: 23}\nignore: [7]\n", "class 1 is missing {} 'road'"),
    "another name": ("classes: {sky: 23, street: 7}\n", "class 1 is 'street' {} 'road'"),
    "ids swapped": ("classes: {sky: 7, road: 23}\n", "id 7 is sky {} road"),
    "an id more": ("classes: {sky: 23, road: [7, 8]}\n", "id 8 is road {} no class"),
    "an id ignored": ("classes: {sky: 23, road: 8}\nignore: [7]\n", "id 7 is no class {} road"),
}
DIFFERENT = {
    case: (text, words.format("in the data set and")) for case, (text, words) in DIFFERENT.items()
}
FAST = ("other order", "one more", "ids swapped")  # the others of slow tests are of their kinds
SLOW = [x if x in FAST else pytest.param(x, marks=pytest.mark.slow) for x in DIFFERENT]
NAMES_DIFFER = [case for case in DIFFERENT if DIFFERENT[case][1].startswith("class")]


@pytest.mark.parametrize("case", DIFFERENT)
def test_a_run_does_not_go_on_with_other_classes(case, copy):
    description, words = DIFFERENT[case]
    (copy / "data" / "dataset.yaml").write_text(PATHS + description)
    before = sorted((copy / "logs").rglob("*"))
    config = options(copy / "data", copy / "logs", resume="auto", steps=2)
    with pytest.raises(UserError, match=f"{words}.*--init_from"):
        train(config)
    assert sorted((copy / "logs").rglob("*")) == before


def test_a_run_goes_on_under_other_colours(copy):
    (copy / "data" / "dataset.yaml").write_text(PATHS + BEFORE.replace("[1, 2, 3]", "[9, 9, 9]"))
    assert "finished" in train(options(copy / "data", copy / "logs", resume="auto")).stdout


@pytest.mark.parametrize("case", ["other order", "one more"])
def test_an_older_run_knows_its_names(case, copy):
    make_older(copy)
    (copy / "data" / "dataset.yaml").write_text(PATHS + DIFFERENT[case][0])
    with pytest.raises(UserError, match=DIFFERENT[case][1]):
        train(options(copy / "data", copy / "logs", resume="auto"))


def test_an_older_run_goes_on(copy):
    make_older(copy)
    assert "finished" in train(options(copy / "data", copy / "logs", resume="auto")).stdout


def predict(copy, *more):
    logs = ["--log_root", copy / "logs", "--checkpoint", "run", "--device", "cpu"]
    return run("predict.py", copy / "photo.png", *logs, "--output", copy / "out", *more)


def outputs(copy):
    (copy / "photo.png").write_bytes((copy / "data" / "images" / "val" / "0.png").read_bytes())
    done = predict(copy)
    assert done.returncode == 0, done.stderr
    read = (np.asarray(Image.open(path)) for path in sorted((copy / "out").rglob("*.png")))
    return [*read], done.stderr


@pytest.mark.parametrize("case", [*SLOW, "no folder", "colours"])
def test_predictions_are_those_of_the_checkpoint_s_classes(case, copy):
    """Ids, colours and the legend, whatever became of the data set."""
    expected, _ = outputs(copy)
    assert set(np.unique(expected[1])) <= {23, 7}
    if case == "no folder":
        (copy / "photo.png").replace(copy / "kept.png")
        shutil.rmtree(copy / "data")
        (copy / "kept.png").replace(copy / "photo.png")
        done = predict(copy)
        assert done.returncode == 0, done.stderr
        return
    text = DIFFERENT[case][0] if case in DIFFERENT else BEFORE.replace("[1, 2, 3]", "[9, 9, 9]")
    (copy / "data" / "dataset.yaml").write_text(PATHS + text)
    found, said = outputs(copy)
    assert "warning" not in said
    assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("case", ["as it was", "other order"])
def test_an_older_checkpoint_takes_the_ids_of_today_and_says_so(case, copy):
    (copy / "photo.png").write_bytes((copy / "data" / "images" / "val" / "0.png").read_bytes())
    make_older(copy)
    if case == "as it was":
        done = predict(copy, "--data_root", copy / "data")
        assert done.returncode == 0 and done.stderr.count("does not hold the label ids") == 1
        return
    (copy / "data" / "dataset.yaml").write_text(PATHS + DIFFERENT[case][0])
    fails(predict(copy, "--data_root", copy / "data"), DIFFERENT[case][1])


@pytest.mark.parametrize("case", SLOW)
def test_scores_are_of_the_same_classes_or_none(case, copy):
    description, words = DIFFERENT[case]
    (copy / "data" / "dataset.yaml").write_text(PATHS + description)
    logs = ["--log_root", copy / "logs", "--checkpoint", "run", "--device", "cpu"]
    where = ["--data_root", copy / "data", "--overlays", "false"]
    done = run("evaluation/eval_on_val_for_metrics.py", *logs, *where)
    if case in NAMES_DIFFER:
        fails(done, words)
    elif case != "an id ignored":  # whose label files do not fit any more
        assert done.returncode == 0 and done.stderr.count(words) == 1, done.stderr


STARTS = {  # today's description, its ids -> where each class's row comes from, what is said
    "the same": ("classes: {sky: 23, road: 7}\n", (0, 1), "random: none"),
    "other order": ("classes: {road: 7, sky: 23}\n", (1, 0), "random: none"),
    "one more": ("classes: {car: 8, sky: 23, road: 7}\n", (None, 0, 1), "random: class car"),
    "as many others": ("classes: {car: 23, bus: 7}\n", (None, None), "class car, class bus"),
    "one of two": ("classes: {road: 7, bus: 23}\n", (1, None), "random: class bus"),
}  # fmt: skip


@pytest.mark.parametrize("case", STARTS)
def test_fine_tuning_takes_over_classes_by_name(case, copy):
    description, rows, words = STARTS[case]
    (copy / "data" / "dataset.yaml").write_text(PATHS + description)
    frozen = {"base_lr": 1e-30, "min_lr": 0.0, "weight_decay": 0.0, "steps": 1, "run_name": "new"}
    config = options(copy / "data", copy / "logs", **frozen)
    done = train(replace(config, init_from=str(copy / "logs" / "run")))
    assert words in done.stdout
    old, new = (
        load_checkpoint(copy / "logs" / name / "checkpoints" / "last.pth")["model"]
        for name in ("run", "new")
    )
    for name in ("classifier.4.weight", "classifier.4.bias"):
        assert len(new[name]) == len(rows)
        for row, source in zip(new[name], rows, strict=True):
            equal = [torch.equal(row, other) for other in old[name]]
            assert equal == [number == source for number in range(2)], name
    assert torch.equal(old["backbone.conv1.weight"], new["backbone.conv1.weight"])
