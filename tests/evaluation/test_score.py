"""evaluation/score.py: what it refuses, what it needs, what it leaves."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import REPOSITORY, fails, run, write_cityscapes
from PIL import Image

from evaluation.prediction_files import (
    check_header,
    count_pairs,
    find_truth,
    holds_train_ids,
    match_predictions,
)
from utils.base.errors import UserError
from utils.data.label_table import CITYSCAPES, IGNORE


def write_predictions(root: Path, folder: Path) -> Path:
    """A third of the rows wrong; names as mmsegmentation writes them."""
    folder.mkdir(exist_ok=True)
    for path in root.glob("gtFine/val/*/*labelIds.png"):
        ids = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        ids[::3] = np.roll(ids[::3], 9, 1)
        name = path.name.replace("gtFine_labelIds", "leftImg8bit")
        cv2.imwrite(str(folder / name), ids)
    return folder


@pytest.fixture
def predictions(cityscapes_root, tmp_path):
    return write_predictions(cityscapes_root, tmp_path / "predictions")


def check_all(folder: Path, root: Path) -> None:
    """What the command does with a folder of predictions."""
    pairs = match_predictions(folder, find_truth(root, "val"))
    for pair in pairs:
        check_header(pair)
    count_pairs(pairs)


def change(path: Path, edit) -> None:
    cv2.imwrite(str(path), edit(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))


def to_palette(path: Path) -> None:
    image = Image.open(path)
    image.putpalette(list(range(256)) * 3)
    image.save(path)


def corrupt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)


FAULTS = {
    "missing": (Path.unlink, "1 of 3 images have no prediction lindau_000001_000019"),
    "duplicate": (lambda p: shutil.copy(p, p.with_name(p.stem + "_color.png")), "Keep one"),
    "stale copy below": (
        lambda p: shutil.copytree(p.parent, p.parent / "old", ignore=lambda *_: ["old"]),
        "duplicate of",
    ),
    "extra": (lambda p: shutil.copy(p, p.with_name("bonn_000000_000019.png")), "no image of"),
    "wrong size": (lambda p: change(p, lambda x: x[::2, ::2]), "64 x 32 instead of 128 x 64"),
    "colours": (lambda p: change(p, lambda x: np.dstack([x] * 3)), "colours, not label ids"),
    "palette": (to_palette, "palette colours, not label ids"),
    "16 bits": (lambda p: change(p, lambda x: x.astype(np.uint16)), "16 bits, not label ids"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-200]), "not a whole PNG"),
    "corrupted": (corrupt, "not a whole PNG"),
    "empty": (lambda p: p.write_bytes(b""), "not a whole PNG"),
    "train ids": (lambda p: change(p, lambda x: CITYSCAPES.id_to_train[x]), "train ids"),
    "id 34": (lambda p: change(p, lambda x: x + np.uint8(34 - x.max())), "id 34"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_prediction_is_named(fault, predictions, cityscapes_root):
    edit, message = FAULTS[fault]
    check_all(predictions, cityscapes_root)
    path = predictions / "lindau_000001_000019_leftImg8bit.png"
    edit(path)
    with pytest.raises(UserError, match=message) as found:
        check_all(predictions, cityscapes_root)
    assert str(predictions) in str(found.value) and "\n" not in str(found.value)


def test_train_ids_without_ignored_pixels_are_recognised(predictions, cityscapes_root):
    """As a network writes them: 0..18 everywhere; every other folder passes."""
    for path in predictions.glob("*.png"):
        ids = CITYSCAPES.id_to_train[cv2.imread(str(path), cv2.IMREAD_UNCHANGED)]
        cv2.imwrite(str(path), np.where(ids == IGNORE, 2, ids).astype(np.uint8))
    with pytest.raises(UserError, match=r"000000_000019\S*: train ids, .* train ids 0 to 18 are"):
        check_all(predictions, cityscapes_root)


@pytest.mark.parametrize("used", [[7], [0, 7, 8, 11], [7, 8, 1, 2], [0], [26, 5]])
def test_label_ids_are_not_taken_for_train_ids(used):
    confusion = np.zeros((34, 34), np.int64)
    confusion[7, used] = 5
    assert not holds_train_ids(confusion + np.eye(34, dtype=np.int64) * np.isin(range(34), used))


def test_the_command_s_results_and_mistakes(predictions, cityscapes_root, tmp_path):
    options = ["--predictions", predictions, "--data_root", cityscapes_root]
    outputs = ["--json", tmp_path / "out.json", "--confusion", tmp_path / "confusion.png"]
    done = run(
        REPOSITORY / "evaluation/score.py", *options, *outputs,
        "--boundary_width", 2, "--check_official", "true", cwd=Path("/"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "largest difference to the official scorer in 157 results: 0\n" in done.stdout
    results = json.loads((tmp_path / "out.json").read_text())
    assert 0 < results["averageScoreInstClasses"] < 1
    assert f"Score Average : {results['averageScoreClasses']:.3f}" in done.stdout
    assert 0 < results["scores"]["boundary_miou"] < results["scores"]["miou"]
    picture = cv2.imread(str(tmp_path / "confusion.png"))
    assert min(picture.shape[:2]) > 800 and picture.std() > 5
    picture = tmp_path / "confusion2.png"  # the file beside it cannot be written
    done = run("evaluation/score.py", *options, "--json", "/proc/x.json", "--confusion", picture)
    assert done.returncode == 2 and "left out: /proc/x.json: cannot be" in done.stderr
    assert picture.is_file() and "Traceback" not in done.stderr
    before = sorted(path.name for path in tmp_path.iterdir())
    wrong = [
        ([*options, "--json", tmp_path / "none" / "x.json"], "none/x.json"),
        ([*options, "--json", tmp_path], str(tmp_path)),
        ([*options, "--confusion", tmp_path], str(tmp_path)),
        ([*options, "--workers", "0"], "--workers"),
        (["--predictions", tmp_path / "none", *options[2:]], "no such folder"),
        ([*options[:2], "--data_root", tmp_path], "--data_root"),
        ([*options, "--split", "test"], "--split"),
    ]
    for arguments, message in wrong:
        failed = run("evaluation/score.py", *arguments)
        assert failed.returncode == 2 and failed.stderr.startswith("error: "), failed.stderr
        assert message in failed.stderr and failed.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_some_images_can_be_scored_and_every_line_says_so(predictions, cityscapes_root, tmp_path):
    """Of a whole folder it is the official score; the images' numbers are theirs alone."""
    options = ["--predictions", predictions, "--data_root", cityscapes_root]
    options += ["--json", tmp_path / "out.json"]
    whole = run("evaluation/score.py", *options)
    everything = json.loads((tmp_path / "out.json").read_text())
    again = run("evaluation/score.py", *options, "--subset", "true")
    assert again.stdout == whole.stdout and "not official" not in whole.stdout
    next(predictions.glob("*1_000019*.png")).unlink()
    failed = run("evaluation/score.py", *options)
    assert failed.returncode == 2 and "1 of 3 images have no prediction" in failed.stderr
    done = run("evaluation/score.py", *options, "--subset", "true")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) > 30 and all("(not official, 2 of 3 images)" in line for line in lines)
    results = json.loads((tmp_path / "out.json").read_text())
    assert results.pop("subset") == "not official, 2 of 3 images" and "subset" not in everything
    confusion = np.array(results["confMatrix"])
    assert confusion.sum() == 2 * 64 * 128 and confusion.max() < np.max(everything["confMatrix"])
    for path in predictions.iterdir():
        path.unlink()
    for more, words in (([], "3 of 3 images have no"), (["--check_official", "true"], "--subset")):
        failed = run("evaluation/score.py", *options, "--subset", "true", *more)
        assert failed.returncode == 2 and words in failed.stderr and failed.stderr.count("\n") == 1


def test_a_truth_that_lacks_instance_ids_of_some_images_is_refused(
    predictions, cityscapes_root, tmp_path
):
    root = shutil.copytree(cityscapes_root, tmp_path / "data")
    next(root.glob("gtFine/val/*/*instanceIds.png")).unlink()
    for panoptic in ("false", "true"):
        options = ("--predictions", predictions, "--data_root", root, "--panoptic", panoptic)
        fails(run("evaluation/score.py", *options), "1 of 3 images have no instanceIds, first ")


def test_label_ids_alone_are_scored_without_niou(predictions, cityscapes_root, tmp_path):
    options = ["--predictions", predictions, "--json", tmp_path / "out.json"]
    whole = run("evaluation/score.py", *options, "--data_root", cityscapes_root)
    expected = json.loads((tmp_path / "out.json").read_text())
    root = shutil.copytree(cityscapes_root, tmp_path / "data")
    for path in root.glob("gtFine/*/*/*instanceIds.png"):
        path.unlink()
    options += ["--data_root", root]
    done = run("evaluation/score.py", *options)
    assert done.returncode == 0, done.stderr
    line, table = done.stdout.split("\n", 1)
    assert "no instanceIds" in line and "nIoU is left out" in line
    assert "nIoU" in whole.stdout and "nIoU" not in table
    results = json.loads((tmp_path / "out.json").read_text())
    for key in ("confMatrix", "averageScoreClasses", "averageScoreCategories", "priors"):
        assert results[key] == expected[key]
    assert np.isnan(
        [*results["classInstScores"].values(), results["averageScoreInstClasses"]]
    ).all()
    failed = run("evaluation/score.py", *options, "--check_official", "true")
    assert failed.returncode == 2 and "instanceIds.png: missing" in failed.stderr


def files_to_take() -> list[str]:
    """score.py and the files that its docstring names for another project, beside utils/base/."""
    source = (REPOSITORY / "evaluation/score.py").read_text(encoding="utf-8")
    text = " ".join(ast.get_docstring(ast.parse(source)).split())
    beside, data = text.split("copy this file, ")[1].split("utils/base/, and from utils/data/")
    names = [f"evaluation/{name}" for name in ("score.py", *re.findall(r"\w+\.py", beside))]
    names += [f"utils/data/{name}" for name in re.findall(r"\w+\.py", data)]
    return names


def test_it_can_be_lifted_out(predictions, cityscapes_root, tmp_path):
    """The files its docstring names, alone, with only the packages it names; none too many."""
    taken = tmp_path / "taken"
    shutil.copytree(REPOSITORY / "utils/base", taken / "utils/base")
    for name in files_to_take():
        (taken / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, taken / name)
    options = ["--predictions", predictions, "--data_root", cityscapes_root]
    outputs = ["--json", tmp_path / "score.json", "--confusion", tmp_path / "confusion.png"]
    outputs += ["--check_official", "true", "--boundary_width", "2"]
    absent = ["torch", "torchvision", "jsonargparse", "tensorboard", "yaml"]
    for names, arguments in (([*absent, "matplotlib"], options), (absent, [*options, *outputs])):
        program = (
            f"import runpy, sys; sys.argv.pop(0); sys.modules |= dict.fromkeys({names}); "
            "runpy.run_path(sys.argv[0], run_name='__main__'); "
            "print(*(getattr(module, '__file__', '') for module in sys.modules.values()))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, taken / "evaluation/score.py", *arguments],
            cwd="/", env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "Score Average" in done.stdout
    used = done.stdout.split()
    assert not [name for name in files_to_take()[1:] if str(taken / name) not in used]
    assert min(path.stat().st_size for path in map(Path, outputs[1:4:2])) > 1000


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_count_the_same(workers, predictions, cityscapes_root):
    pairs = match_predictions(predictions, find_truth(cityscapes_root, "val"))
    one, several = (count_pairs(pairs, border=2, workers=n) for n in (1, workers))
    for name, value in vars(one).items():
        assert np.array_equal(value, getattr(several, name)), name


def test_memory_for_pixels_does_not_grow_with_the_number_of_images(tmp_path):
    root = write_cityscapes(tmp_path, train=0, val=24, size=(256, 512))
    folder = write_predictions(root, tmp_path / "predictions")
    pairs = match_predictions(folder, find_truth(root, "val"))
    peaks = []
    for some in (pairs[:4], pairs):
        tracemalloc.start()
        count_pairs(some)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] > 256 * 512 * 3  # images are seen by the measurement
    assert peaks[1] - peaks[0] < 20 * 256 * 512 / 4


def linked(path: Path, place: Path) -> None:
    """Move it to another folder and leave a link."""
    path.symlink_to(path.rename(place / path.name))


def gather(predictions: Path) -> None:
    """Into sub-folders of cities, as mmsegmentation writes them."""
    (predictions / "lindau").mkdir()
    for path in [*predictions.glob("*.png")]:
        path.rename(predictions / "lindau" / path.name)


FIRST = "lindau_000000_000019_leftImg8bit"
FOUND = {  # what is done to the predictions and the tree; all of it scores as before
    "linked city of predictions": lambda p, root, far: (gather(p), linked(p / "lindau", far)),
    "linked city of the truth": lambda p, root, far: linked(root / "gtFine/val/lindau", far),
    "linked prediction": lambda p, root, far: linked(p / f"{FIRST}.png", far),
    "loop of links": lambda p, root, far: (p / "again").symlink_to(p),
    "ending": lambda p, root, far: (p / f"{FIRST}.png").rename(p / f"{FIRST}.PNG"),
    "hidden files": lambda p, root, far: [
        x.with_name(f"._{x.name}").touch() for x in [*p.glob("*"), *root.glob("gtFine/val/*/*")]
    ],
    "macOS's folder": lambda p, root, far: shutil.copytree(p, p / "__MACOSX" / "val"),
    "signs": lambda p, root, far: [gather(p), (p / "lindau").rename(p / "a[1] *?#%&+")],
}


@pytest.mark.parametrize("case", FOUND)
def test_files_are_found_wherever_people_put_them(case, predictions, cityscapes_root, tmp_path):
    root = shutil.copytree(cityscapes_root, tmp_path / "my [1] tree")
    (tmp_path / "far").mkdir()
    expected = count_pairs(match_predictions(predictions, find_truth(root, "val")))
    FOUND[case](predictions, root, tmp_path / "far")
    pairs = match_predictions(predictions, find_truth(root, "val"))
    assert len(pairs) == 3
    assert np.array_equal(count_pairs(pairs).confusion, expected.confusion)


def test_the_same_truth_in_two_cities_is_one_line(cityscapes_root, tmp_path):
    root = shutil.copytree(cityscapes_root, tmp_path / "tree")
    shutil.copytree(root / "gtFine/val/lindau", root / "gtFine/val/lindau copy")
    with pytest.raises(
        UserError, match=r"lindau copy/\S+: a second file named lindau_000000_000019"
    ):
        find_truth(root, "val")
