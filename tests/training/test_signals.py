"""A training that is told to stop: in evaluation, while it waits for data, twice.

A named pipe in a file's place holds the training where it is read until the test lets it go on.
"""

import errno
import os
import shutil
import signal
import time
from dataclasses import replace

import pytest
from helpers import Command, assert_same_bits, exact_rows, final_state, tiny, train

from utils.training.checkpoint import load_checkpoint
from utils.training.config import write_config


@pytest.fixture(scope="module")
def expected(cityscapes_root, tmp_path_factory):
    config = tiny(
        cityscapes_root, tmp_path_factory.mktemp("logs"), workers=1, ema=0.9, log_every=3,
        eval_every=4, save_every=2,
    )  # fmt: skip
    train(config)
    return config


@pytest.fixture
def started(expected, tmp_path):
    """start(split, number) trains with a pipe as that file and returns once the pipe is read.

    Of train an image, which is first read for a step; of val instance ids, which are read before
    the first step, when all labels are checked, and then in the first evaluation.
    """
    root = tmp_path / "data"
    shutil.copytree(expected.data_root, root)
    config = replace(expected, data_root=root, log_root=tmp_path / "logs")
    write_config(config, tmp_path / "config.yaml")
    processes = []

    def start(split: str, number: int):
        files = {"train": "leftImg8bit/train/*/*.png", "val": "gtFine/val/*/*_instanceIds.png"}
        path = sorted(root.glob(files[split]))[number]
        content = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        process = Command("train.py", "--config", tmp_path / "config.yaml")
        processes.append(process)
        if split == "val":
            with open_when_read(path, process) as pipe:
                pipe.write(content)
            while not (config.log_root / "run" / "config.yaml").exists():  # all is checked
                assert process.is_alive(), process.end().stderr
                time.sleep(0.01)
        return process, open_when_read(path, process), path, content

    yield config, start
    for process in processes:
        process.send_signal(signal.SIGKILL)


def open_when_read(path, process):
    """The pipe's end to write to, once the process reads it."""
    while True:
        try:
            return os.fdopen(os.open(path, os.O_WRONLY | os.O_NONBLOCK), "wb")
        except OSError as error:
            assert error.errno == errno.ENXIO and process.is_alive(), process.end().stderr
            time.sleep(0.01)


def goes_on(config, expected) -> None:
    """The interrupted run, resumed, equals the uninterrupted one."""
    train(replace(config, resume="auto"))
    folder, other = config.log_root / "run", expected.log_root / "run"
    assert exact_rows(folder) == exact_rows(other)
    assert_same_bits(final_state(folder), final_state(other))
    samples = [sorted(p.name for p in x.glob("samples/*")) for x in (folder, other)]
    assert samples[0] == samples[1]


def give_back(path, content) -> None:
    path.unlink()
    path.write_bytes(content)


def test_a_stop_in_evaluation_leaves_it_and_resume_makes_up_for_it(started, expected):
    config, start = started
    process, pipe, path, content = start("val", 1)
    process.send_signal(signal.SIGUSR1)
    pipe.write(content)
    pipe.close()
    done = process.end(timeout=60)
    assert done.returncode == 138, done.stderr
    assert "stopped after step 4; resume with" in done.stderr
    state = load_checkpoint(config.log_root / "run" / "checkpoints" / "last.pth")
    assert state["step"] == 4 and state["pending"] is not None
    assert not list((config.log_root / "run").glob("samples/*"))
    give_back(path, content)
    goes_on(config, expected)


def test_a_stop_while_waiting_for_data_saves_at_once(started, expected):
    config, start = started
    process, pipe, path, content = start("train", 2)
    time.sleep(0.5)  # the first image read ahead may be of a later step
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    done = process.end(timeout=60)
    assert done.returncode == 143, done.stderr
    assert time.monotonic() - begin < 10
    assert load_checkpoint(config.log_root / "run" / "checkpoints" / "last.pth")["step"] < 6
    pipe.close()
    give_back(path, content)
    goes_on(config, expected)


def test_a_second_ctrl_c_leaves_at_once(started):
    _, start = started
    process, pipe, _, _ = start("val", 1)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.is_alive()  # asked once, it waits for the image
    process.send_signal(signal.SIGINT)
    done = process.end(timeout=20)
    pipe.close()
    assert done.returncode == 130 and "Traceback" not in done.stderr
    assert done.stderr.strip().endswith("interrupted")
