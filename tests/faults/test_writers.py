"""Every writer on a full disk, and where nothing may be written: one line, and no file."""

import re
import resource
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers import TRAIN, fails, limit_files, run, tiny, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datasets import build_dataset, find_data_set
from evaluation.plots import plot_confusion
from evaluation.submission import write_submission
from evaluation.task import TASKS
from evaluation.video import open_video
from evaluation.visualize import ContactSheet, save_as_ids
from utils.base.errors import DiskError, UserError
from utils.base.paths import write_json, write_text
from utils.data.image_files import write_png
from utils.data.label_table import CITYSCAPES
from utils.training.config import write_config
from utils.training.logger import RunLogger
from utils.training.plots import plot_curves

NOISE = np.random.default_rng(0).integers(0, 19, (64, 96, 3), np.uint8)
ROW = {"loss": 1.0, "lr": 0.1}


@contextmanager
def most_bytes(size: int):
    limit_files(size)
    try:
        yield
    finally:
        limit_files(resource.RLIM_INFINITY)


def video(path: Path) -> None:
    with open_video(path, size=(64, 96), rate=10) as write:
        for _ in range(8):
            write(NOISE)


def palette(path: Path) -> None:
    save_as_ids(path, NOISE[..., 0], find_data_set("voc", path.parent).classes)


def contact_sheet(path: Path, dataset) -> None:
    sheet = ContactSheet(dataset, TASKS["semantic"])
    sheet.add(dataset[0], None, dataset[0]["label"])
    sheet.save(path)


# A name of a file -> what writes it.
WRITERS: dict[str, Callable[[Path], object]] = {
    "ids.png": lambda path: write_png(path, NOISE[..., 0], filtered=False),
    "palette.png": palette,
    "scores.json": lambda path: write_json(path, ROW),
    "report.html": lambda path: write_text(path, "<html>" * 99),
    "x.webm": video,
    "confusion.png": lambda path: plot_confusion(np.ones((34, 34), int), CITYSCAPES, path),
    "curves.png": lambda path: plot_curves([{"step": 1, **ROW}], path),
    "config.yaml": lambda path: write_config(tiny(path, path), path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_on_a_full_disk_is_one_line_and_leaves_no_file(tmp_path, name):
    with most_bytes(20), pytest.raises(DiskError, match=rf"{name}: (cannot|only .* could) be"):
        WRITERS[name](tmp_path / name)
    assert not list(tmp_path.iterdir())
    WRITERS[name](tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_where_nothing_may_be_written_is_one_line(name):
    with pytest.raises(UserError, match=f"{name}: cannot be written"):
        WRITERS[name](Path("/proc") / name)


@pytest.mark.parametrize(
    "command",
    [
        "predict.py {image} {run} --output {no}/out",
        "evaluation/eval_on_val_for_metrics.py {run} --log_root {no}/logs",
        "evaluation/report.py {run} --output {no}/report.html",
        "evaluation/score.py {score} --json {no}/score.json",
        "utils/convert_checkpoint.py {image} --log_root {no}/logs",
        "utils/synthetic.py --data_root {no}/data",
        "train.py --data_root {data} --log_root {no}/logs",
    ],
)
def test_a_command_where_nothing_may_be_written_is_one_line(trained, tmp_path, command):
    (tmp_path / "file").touch()
    for no in ("/proc", tmp_path / "file"):
        done = run(*command.format(**trained, no=no).split())
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
        assert re.search(rf"{no}/\S+: cannot be|{no}/\S+: not a file name", done.stderr), (
            done.stderr
        )
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_an_export_on_a_full_disk_is_one_line(trained, tmp_path, kind):
    command = f"export.py {trained['run']} --format {kind} --output {tmp_path / 'x'}"
    done = run(*command.split(), fork=False, first=partial(limit_files, 1 << 20))
    fails(done, "x: cannot be written (File too large)")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def trained(cityscapes_root, tmp_path_factory) -> dict[str, object]:
    """Words of the commands above."""
    logs = tmp_path_factory.mktemp("logs")
    train(tiny(cityscapes_root, logs, steps=1, warmup_steps=0))
    truth = cityscapes_root / "gtFine" / "val"
    labels = tmp_path_factory.mktemp("labels")
    for path in truth.rglob("*_labelIds.png"):
        shutil.copy(path, labels)
    return {
        "run": f"--device cpu --checkpoint {logs / 'run'}",
        "image": sorted(cityscapes_root.glob("leftImg8bit/val/*/*.png"))[0],
        "data": cityscapes_root,
        "score": f"--predictions {labels} --data_root {cityscapes_root}",
    }


def test_contact_sheets_and_archives_too(cityscapes_root, tmp_path):
    """They need a data set; 2,000 bytes are enough for the folder, not for the picture."""
    dataset = build_dataset("cityscapes", cityscapes_root, "val")
    server = find_data_set("cityscapes", cityscapes_root).server
    labels, path = tmp_path / "labels", tmp_path / "samples" / "step_1.png"
    labels.mkdir()
    for name in dataset.names:
        write_png(labels / f"{name}_pred_label_img.png", CITYSCAPES.to_ids(NOISE[..., 0]))
    for work in (
        lambda: contact_sheet(path, dataset),
        lambda: write_submission(labels, dataset, tmp_path / "out", server),
    ):
        with most_bytes(2000), pytest.raises(DiskError, match="cannot be written"):
            work()
    assert not list(path.parent.iterdir()) and not list(tmp_path.glob("*.zip"))
    with pytest.raises(UserError, match="samples: cannot be created"):
        contact_sheet(Path("/proc/samples/step_1.png"), dataset)


def test_a_row_is_in_all_files_or_the_training_ends(cityscapes_root, tmp_path):
    """metrics.csv and TensorBoard's events; PyTorch's writer failed in a thread, or never."""
    config = tiny(cityscapes_root, tmp_path)
    with RunLogger(tmp_path, config, start=4, total=9, enabled=True) as log:
        log.write(5, ROW)
        for path, work in (
            (tmp_path / "metrics.csv", lambda: log.write(6, ROW)),
            (log.events.path, lambda: log.events.add(step=6)),
        ):
            with most_bytes(path.stat().st_size + 3), pytest.raises(DiskError, match=path.name):
                work()
    assert [point.step for point in points(tmp_path)] == [5]
    with RunLogger(tmp_path, config, start=5, total=9, enabled=True) as log:
        log.write(6, {**ROW, "loss": 0.25})
    assert [(point.step, point.value) for point in points(tmp_path)] == [(5, 1.0), (6, 0.25)]


def points(folder: Path) -> list:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events.Scalars("loss")


def test_a_training_on_a_full_disk_ends_with_one_line(cityscapes_root, tmp_path):
    done = run(
        "train.py", *TRAIN, "--data_root", cityscapes_root, "--log_root", tmp_path,
        "--steps", "20", "--log_every", "1", first=partial(limit_files, 2000),
    )  # fmt: skip
    fails(done, "cannot be written (File too large)", "events.out")
