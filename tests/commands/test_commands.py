"""The commands as a user runs them: the card's four from anywhere, and mistakes in one line."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import REPOSITORY, TRAIN, fails, run, tiny, train, write_cityscapes
from PIL import Image

from datasets import build_dataset
from evaluation.visualize import overlay
from utils.data import image_files
from utils.data.image_files import read_ids, read_image
from utils.data.label_table import CITYSCAPES

COMMANDS = ["train.py", "predict.py", "export.py"]
COMMANDS += [
    f"utils/{name}.py" for name in ("convert_checkpoint", "preprocess_data", "results", "synthetic")
]
SCORING = ("eval_on_val_for_metrics", "report", "robustness", "score")
COMMANDS += [f"evaluation/{name}.py" for name in SCORING]


def test_the_four_commands_and_the_official_score(tmp_path):
    root = write_cityscapes(tmp_path / "data", seed=3)
    where = {"CITYSCAPES_DATASET": str(root)}
    logs = ["--log_root", tmp_path / "logs"]
    for command in (
        ["utils/preprocess_data.py"],
        ["train.py", *TRAIN, *logs],
        ["evaluation/eval_on_val_for_metrics.py", *logs],
    ):
        done = run(*command, cwd=Path("/"), fork=False, **where)
        assert done.returncode == 0, done.stderr
    printed = done.stdout.split("official score: ")[1].split()
    settings = dict(word.split("=", 1) for word in printed if "=" in word)
    scorer = Path(sys.executable).with_name(printed[-1])
    subprocess.run([scorer], env={**os.environ, **settings}, check=True, capture_output=True)
    pictures = tmp_path / "logs" / "model_eval_val"
    ours = json.loads((pictures / "scores.json").read_text())
    official = json.loads((pictures / "resultPixelLevelSemanticLabeling.json").read_text())
    for ours_part, official_part in (("classes", "classScores"), ("categories", "categoryScores")):
        for name, value in ours[ours_part].items():
            theirs = official[official_part][name]
            assert abs(value - theirs) <= 1e-12 if value is not None else theirs != theirs
    assert abs(ours["miou"] - official["averageScoreClasses"]) <= 1e-12
    predictions = sorted((tmp_path / "logs" / "model_eval_val_for_metrics").iterdir())
    assert [p.name for p in predictions] == [
        f"lindau_{i:06d}_000019_pred_label_img.png" for i in range(3)
    ]
    assert set(np.unique(Image.open(predictions[0]))) <= set(CITYSCAPES.ids.tolist())
    assert len(list(pictures.glob("*_overlayed.png"))) == 3


def test_evaluating_twice_replaces_the_predictions_in_whole(cityscapes_root, tmp_path):
    logs = ["--log_root", tmp_path]
    done = run("train.py", *TRAIN, *logs, "--data_root", cityscapes_root)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "model_eval_val_for_metrics"
    folder.mkdir()
    (folder / "lindau_000000_000019_stale.png").write_bytes(b"old")
    done = run(
        "evaluation/eval_on_val_for_metrics.py", *logs, "--data_root", cityscapes_root,
        "--checkpoint", "run", "--flip", "true", "--overlays", "false",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list(folder.iterdir())) == 3 and not list(folder.glob("*stale*"))
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    disk = tmp_path / "another disk"
    folder.symlink_to(folder.rename(disk))
    (disk / "lindau_000000_000019_stale.png").write_bytes(b"old")
    again = ("evaluation/eval_on_val_for_metrics.py", *logs, "--data_root", cityscapes_root)
    done = run(*again)
    assert done.returncode == 0, done.stderr
    assert folder.is_symlink() and len(list(folder.iterdir())) == 3
    assert not list(disk.glob("*stale*")) and f"CITYSCAPES_RESULTS='{disk}' " in done.stdout
    folder.unlink()
    folder.write_text("no folder")
    fails(run(*again), f"{folder}: cannot be replaced")
    assert folder.read_text() == "no folder"
    folder.unlink()
    test_images = cityscapes_root / "leftImg8bit" / "test" / "berlin"
    test_images.mkdir(parents=True)
    cv2.imwrite(
        str(test_images / "berlin_000000_000019_leftImg8bit.png"), np.zeros((64, 128, 3), np.uint8)
    )
    done = run("evaluation/eval_on_val_for_metrics.py", *logs, "--split", "test")
    shutil.rmtree(test_images.parent)
    fails(done, "no public labels", "--split val")


def note_files(noted: Path) -> None:
    """Write the name of every decoded file there."""
    decode = image_files.decode

    def noting(content, flags, path, **options):
        with noted.open("a") as file:
            print(path.name, file=file)
        return decode(content, flags, path, **options)

    image_files.decode = noting


def test_scoring_with_pictures_decodes_each_file_once(cityscapes_root, tmp_path):
    train(tiny(cityscapes_root, tmp_path, steps=1, warmup_steps=0))
    noted = tmp_path / "noted"
    command = ("evaluation/eval_on_val_for_metrics.py", "--log_root", tmp_path, "--device", "cpu")
    dataset = build_dataset("cityscapes", cityscapes_root, "val")
    expected = [x.name for files in dataset.files for x in (files.image, files.instances)]
    for workers in ("0", "2"):
        done = run(*command, "--workers", workers, first=partial(note_files, noted))
        assert done.returncode == 0, done.stderr
        assert sorted(noted.read_text().split()) == sorted(expected) and len(expected) == 6
        noted.unlink()
    pictures = tmp_path / "model_eval_val"
    assert len(list(pictures.glob("*_overlayed.png"))) == 3
    ids = tmp_path / "model_eval_val_for_metrics" / f"{dataset.names[1]}_pred_label_img.png"
    painted = CITYSCAPES.draw(CITYSCAPES.id_to_train[read_ids(ids, np.uint8)])
    drawn = overlay(dataset.image(1), painted)
    assert np.array_equal(read_image(pictures / f"{dataset.names[1]}_overlayed.png"), drawn)


@pytest.mark.parametrize("script", COMMANDS)
def test_mistakes_on_the_command_line(script, tmp_path):
    fails(run(script, "--unknown", "1"), "--unknown")
    assert run(script, "--help").returncode == 0
    if script in ("train.py", "utils/preprocess_data.py"):
        fails(run(script, "--data_root", tmp_path / "none"), str(tmp_path))


def test_help_and_mistakes_do_not_wait_for_what_only_work_needs():
    """torchvision brings torch._dynamo: with both, starting takes twice as long as with torch."""
    program = f"""
import contextlib, io, runpy, sys
for name in {COMMANDS}:
    for option in ("--help", "--unknown"):
        sys.argv = [name, option]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(sys.stdout):
            try:
                runpy.run_path(name, run_name="__main__")
            except SystemExit as end:
                assert end.code == (2 if option == "--unknown" else 0), (name, option, end.code)
            else:
                raise AssertionError(name)
print({{'torchvision', 'torch._dynamo', 'matplotlib', 'scipy', 'onnx'}} & set(sys.modules))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_wrong_types_and_missing_files(tmp_path):
    fails(run("train.py", "--batch_size", "many"), "batch_size", "many")
    fails(run("train.py", "--config", "none.yaml"), "none.yaml")
    fails(run("evaluation/eval_on_val_for_metrics.py", "--log_root", tmp_path), str(tmp_path))


def test_output_folders_that_cannot_be_made(cityscapes_root, tmp_path):
    file = tmp_path / "file"
    file.touch()
    data, logs = ["--data_root", cityscapes_root], ["--log_root", file]
    fails(run("train.py", *TRAIN, *data, *logs), str(file), "cannot be created")
    fails(run("utils/synthetic.py", "--data_root", file), str(file))


def test_train_without_data_says_what_to_do(tmp_path):
    absent = {".venv", ".git", "data", "training_logs", "tests"}  # not utils/data, which is code
    shutil.copytree(
        REPOSITORY, tmp_path / "r",
        ignore=lambda folder, _: absent if Path(folder) == REPOSITORY else set(),
    )  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "CITYSCAPES_DATASET"}
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path / "r", env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    fails(done, "no images", "--data_root", "make demo")


def test_bad_data_is_named_in_one_line(tmp_path):
    root = write_cityscapes(tmp_path / "data")
    arguments = [*TRAIN, "--data_root", root, "--log_root", tmp_path / "logs"]
    fails(run("train.py", *arguments), "4 of 4", "aachen", "preprocess_data.py")

    bad = sorted(root.glob("gtFine/train/*/*labelIds.png"))[0]
    good = bad.read_bytes()
    Image.fromarray(np.full((64, 128), 99, np.uint8)).save(bad)
    fails(run("utils/preprocess_data.py", "--data_root", root), bad.name, "99")
    bad.unlink()
    name = bad.name.removesuffix("_gtFine_labelIds.png")
    done = run("utils/preprocess_data.py", "--data_root", root)
    fails(done, "1 of 4 train label files missing", f"({name}). Unpack gtFine")
    bad.write_bytes(good)
    assert run("utils/preprocess_data.py", "--data_root", root).returncode == 0

    image = build_dataset("cityscapes", root, "train").files[0].image
    image.write_bytes(image.read_bytes()[:300])
    for workers in ("0", "2"):
        done = run("train.py", *arguments, "--overwrite", "true", "--workers", workers)
        fails(done, image.name, "not a whole PNG", "--check true")


def test_label_ids_out_of_range_in_camvid(tmp_path):
    for folder in ("train", "val"):
        for kind in (folder, f"{folder}annot"):
            (tmp_path / kind).mkdir()
        cv2.imwrite(str(tmp_path / folder / "a.png"), np.zeros((64, 96, 3), np.uint8))
        Image.fromarray(np.full((64, 96), 40, np.uint8)).save(tmp_path / f"{folder}annot" / "a.png")
    done = run(
        "train.py", *TRAIN, "--dataset", "camvid", "--data_root", tmp_path,
        "--class_weights", "false", "--log_root", tmp_path / "logs",
    )  # fmt: skip
    fails(done, "trainannot", "a.png", "40")


def test_a_reader_that_leaves_early_gets_no_traceback(cityscapes_root):
    """As `| head` does; the command's output is flushed into a pipe that nobody reads."""
    process = subprocess.Popen(
        [sys.executable, REPOSITORY / "utils/preprocess_data.py", "--data_root", cityscapes_root],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait() == 1 and "BrokenPipe" not in errors and "Traceback" not in errors


QUICK = ["utils/doctor.py", "utils/results.py", "utils/synthetic.py", "utils/preprocess_data.py"]
QUICK += ["evaluation/score.py", "train.py"]
OTHERS = ["predict.py", "export.py", "utils/convert_checkpoint.py", "evaluation/report.py"]
OTHERS += ["evaluation/eval_on_val_for_metrics.py"]


@pytest.mark.parametrize(
    "script", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_every_command_works_without_the_folder_of_its_file(script, tmp_path):
    """PYTHONSAFEPATH takes it from Python's path; what PYTHONPATH names stays there."""
    for name in ("datasets", "sitecustomize"):  # Hugging Face's, and one that tells at the end
        told = "import atexit, sys; atexit.register(lambda: print(sys.path, file=sys.stderr))"
        (tmp_path / f"{name}.py").write_text(told if name == "sitecustomize" else "raise 1")
    done = run(script, "--help", fork=False, PYTHONSAFEPATH="1", PYTHONPATH=str(tmp_path))
    assert done.returncode == 0 and "usage: " in done.stdout, done.stderr
    assert str(tmp_path) in done.stderr and str(REPOSITORY) in done.stderr
