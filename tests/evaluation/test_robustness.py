"""evaluation/robustness.py: corruptions that repeat, and scores equal to those of written files."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from zlib import crc32

import numpy as np
import pytest
from helpers import REPOSITORY, fails, forks, run, tiny, train

from datasets import build_dataset
from evaluation.corruptions import CORRUPTIONS, Corrupted, corrupted
from utils.data.image_files import read_image, write_png

SMOOTH = (np.indices((48, 96)).sum(0)[..., None] * (1, 2, 0) % 256).astype(np.uint8)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_depends_on_the_seed_alone_and_grows(name):
    found = {(x, seed): corrupted(SMOOTH, name, x, seed) for x in (1, 5) for seed in (0, 1)}
    for (severity, seed), image in found.items():
        assert image.shape == SMOOTH.shape and image.dtype == np.uint8
        assert np.array_equal(image, corrupted(SMOOTH, name, severity, seed))
    random = ("noise", "motion", "glass", "snow", "spatter", "fog", "frost")
    same = all(np.array_equal(found[x, 0], found[x, 1]) for x in (1, 5))
    assert same is not any(word in name for word in random)
    change = {x: np.abs(found[x, 0].astype(int) - SMOOTH).mean() for x in (1, 5)}
    assert change[1] > 0 and (change[1] < change[5] or name == "saturate")  # 1 is grey, 5 gaudy


def test_processes_give_the_same_images_in_any_order(cityscapes_root):
    dataset = build_dataset("cityscapes", cityscapes_root, "val")
    with ProcessPoolExecutor(2, forks) as pool, ThreadPoolExecutor(4) as threads:
        for name in ("fog", "impulse_noise", "snow"):
            found = threads.map(Corrupted(dataset, name, 2, pool).__getitem__, [2, 0, 1])
            for sample in found:
                image = dataset.image(dataset.names.index(sample["name"]))
                expected = corrupted(image, name, 2, crc32(sample["name"].encode()))
                assert np.array_equal(sample["image"], expected)


@pytest.fixture(scope="module")
def trained(cityscapes_root, tmp_path_factory):
    logs = tmp_path_factory.mktemp("logs")
    train(tiny(cityscapes_root, logs, steps=3, warmup_steps=0, base_lr=0.05))
    return ("--log_root", logs, "--device", "cpu")


def test_scores_equal_those_of_corrupted_files(trained, cityscapes_root, tmp_path):
    options = ("--corruptions", "[fog,shot_noise]", "--severities", "[3,1]", "--workers", "1")
    done = run("evaluation/robustness.py", *trained, *options)
    assert done.returncode == 0, done.stderr
    folder = trained[1]
    assert (folder / "robustness_run.png").stat().st_size > 10_000
    content = json.loads((folder / "robustness_run.json").read_text())
    assert content["data_root"] == str(cityscapes_root) and content["images"] == 3
    miou = content["miou"]
    assert [*miou] == ["fog", "shot_noise"] and [*miou["fog"]] == ["1", "3"]
    assert content["mean"] == pytest.approx(np.mean([[*x.values()] for x in miou.values()]))
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("fog"))
    assert line.split()[1] == f"{100 * miou['fog']['1']:.1f}" and len(line.split()) == 4

    root = tmp_path / "foggy"
    shutil.copytree(cityscapes_root, root)
    for path in root.glob("leftImg8bit/val/*/*.png"):
        seed = crc32(path.name.removesuffix("_leftImg8bit.png").encode())
        write_png(path, corrupted(read_image(path), "fog", 3, seed))
    command = ("evaluation/eval_on_val_for_metrics.py", *trained, "--data_root", root)
    assert run(*command).returncode == 0
    scores = json.loads((folder / "model_eval_val" / "scores.json").read_text())
    assert scores["miou"] == miou["fog"]["3"] != content["clean"]


def hide() -> None:
    sys.modules["imagecorruptions"] = None


def test_mistakes_are_one_line(trained, tmp_path):
    robustness = ("evaluation/robustness.py", *trained)
    fails(run(*robustness, "--corruptions", "[rain]"), "--corruptions must be among gaussian_noise")
    fails(run(*robustness, "--severities", "[0]"), "--severities must be from 1 to 5")
    noise = ("--corruptions", "[shot_noise]", "--severities", "[5]")
    fails(run(*robustness, *noise), "--severities must be up to 3 for noises")
    fails(run(*robustness, "--severities", "3"), "like [1,3]")
    fails(run(*robustness, "--output", "x.png"), "--output must be a file *.json")
    fails(run(*robustness, first=hide), "imagecorruptions-imaug cannot be used", "pip install")
    (tmp_path / "r.json").mkdir()
    fails(run(*robustness, "--output", tmp_path / "r.json"), "r.json")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_its_processes_too(trained, tmp_path, number):
    """Ctrl-C, which reaches them all, is one line; none is left."""
    command = (REPOSITORY / "evaluation" / "robustness.py", *trained, "--workers", "2")
    process = subprocess.Popen(
        [sys.executable, *map(str, command), "--output", str(tmp_path / "r.json")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while "at severity" not in process.stdout.readline():
        assert process.poll() is None
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    printed = process.communicate(timeout=180)[1]  # the others hold its pipes
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in printed
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.2)
    raise AssertionError("a process is left")
