"""train.py killed at random moments: the files that stay always resume to the same bits.

One process imports torch and forks every trial, so a trial costs as much as its own steps.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import Command, assert_same_bits, exact_rows, final_state, tiny, train

from utils.base.errors import UserError
from utils.training.checkpoint import point, prune, save_checkpoint, step_files
from utils.training.config import Config, write_config
from utils.training.logger import read_metrics
from utils.training.run import newest_good, remove_leftovers

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")


@pytest.fixture(scope="module")
def scratch():
    """A folder in memory, where that has room: the kills write many checkpoints."""
    memory = Path("/dev/shm")  # noqa: S108
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 4 << 30
    with tempfile.TemporaryDirectory(dir=memory if roomy else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def uninterrupted(cityscapes_root, scratch):
    """DeepLabV3-ResNet18 with EMA, a reader thread and evaluations; seconds it took."""
    config = tiny(
        cityscapes_root, scratch / "uninterrupted",
        steps=6, save_every=2, eval_every=3, ema=0.9, workers=1,
    )  # fmt: skip
    train(replace(config, run_name="warm-up", steps=2))
    begin = time.monotonic()
    train(config)
    return config, time.monotonic() - begin


@dataclass
class Tally:
    kills: int = 0
    finished: int = 0
    repeated: int = 0  # steps that had been done before a kill and were done again


def sizes(folder: Path) -> dict[str, int]:
    """Of a run's checkpoints: what a save changes at once, whichever file it writes to."""
    try:
        return {path.name: path.lstat().st_size for path in folder.glob("*")}
    except FileNotFoundError:  # renamed at this moment
        return {}


@dataclass
class Moment:
    """When to kill: so many seconds after the start or, from then on, into a later save."""

    seconds: float
    saves: int | None = None  # to let pass before; None: right then
    into: float = 0.0  # seconds into the save
    pause: float = 0.0  # seconds that a save takes at most


def trial(config: Config, moment: Moment, tally: Tally) -> None:
    """Resume the run and kill it at that moment; one that ends by itself stays as it is."""
    folder = config.log_root / "run"
    checkpoints = folder / "checkpoints"
    begun = bool(step_files(checkpoints))
    path = config.log_root / "config.yaml"
    write_config(replace(config, resume="auto" if begun else None, overwrite=not begun), path)
    process = Command("train.py", "--config", path)
    start = time.monotonic()
    deadline, saves, before = start + moment.seconds, moment.saves, None
    while process.is_alive():
        now = time.monotonic()
        assert now < start + 120, "hangs"
        if now > deadline:
            if saves is None:
                process.send_signal(signal.SIGKILL)
                break
            before = sizes(checkpoints) if before is None else before
            if sizes(checkpoints) != before:  # a save begins
                saves, pause = (saves - 1, moment.pause) if saves else (None, moment.into)
                deadline, before = now + pause, None
        time.sleep(0.005)
    ended = process.end()
    assert "warning" not in ended.stderr  # of a checkpoint that is not whole
    if ended.returncode != -signal.SIGKILL:
        assert ended.returncode == 0, ended.stderr
        tally.finished += 1
        return
    tally.kills += 1
    done = max((int(row["step"]) for row in read_metrics(folder) if row["step"]), default=0)
    saved = step_files(checkpoints)
    tally.repeated += done - (int(saved[-1].name[5:13]) if saved else 0)


def kill_often(expected: Config, seconds: float, folder: Path, kills: int, seed: int) -> Tally:
    """Kill runs until so many kills are done and one has ended; every ended one has the bits."""
    config = replace(expected, log_root=folder)
    folder.mkdir()
    run, draw, tally = folder / "run", np.random.default_rng(seed), Tally()
    while tally.kills < kills or tally.finished == 0:
        before = tally.finished
        moment = Moment(draw.uniform(seconds / 100, seconds / 5))
        if tally.kills >= kills:
            moment = Moment(1000.0)  # the last one may end
        elif tally.kills % 4 == 3:
            into = draw.uniform(0, seconds / 50)
            moment = Moment(0.0, int(draw.integers(0, 2)), into, seconds / 8)
        trial(config, moment, tally)
        if tally.finished > before:
            assert exact_rows(run) == exact_rows(expected.log_root / "run")
            assert_same_bits(final_state(run), final_state(expected.log_root / "run"))
            for path in step_files(run / "checkpoints"):
                path.unlink()  # the next trial starts anew
    return tally


@pytest.mark.parametrize(
    "kills", [pytest.param(30, id="30"), pytest.param(1000, marks=pytest.mark.slow, id="1000")]
)
def test_killed_at_random_moments_it_ends_with_the_same_bits(
    uninterrupted, scratch, kills, record_property
):
    """Two runs side by side, each killed half as often."""
    begin = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        halves = [
            pool.submit(kill_often, *uninterrupted, scratch / f"{kills}-{seed}", kills // 2, seed)
            for seed in range(2)
        ]
        tallies = [half.result() for half in halves]
    done = sum(tally.kills for tally in tallies)
    record_property(f"{done} kills: runs finished", sum(tally.finished for tally in tallies))
    record_property("steps repeated", sum(tally.repeated for tally in tallies))
    record_property("seconds", round(time.monotonic() - begin))
    assert done >= kills and all(tally.repeated > 0 for tally in tallies)


def save_second(folder) -> None:
    """What Run.save does, with a small state."""
    path = save_checkpoint(folder, {"step": 2, "model": {"w": torch.full((9999,), 2.0)}})
    point(folder / "best.pth", path)
    prune(folder, keep=1)


def traced(folder, *rules: str) -> tuple[bool, list[str]]:
    """Save in a child under strace: whether it was killed, and the system calls it made."""
    child = os.fork()
    if not child:
        os.kill(os.getpid(), signal.SIGSTOP)  # until strace is there
        try:
            save_second(folder)
        except UserError:
            os._exit(2)
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    trace = folder.parent / "trace"
    tracer = subprocess.Popen(["strace", "-qq", "-f", "-o", trace, *rules, "-p", str(child)])
    while "TracerPid:\t0" in Path(f"/proc/{child}/status").read_text():
        assert tracer.poll() is None, "strace may not attach here"
        time.sleep(0.002)
    os.kill(child, signal.SIGCONT)
    _, status = os.waitpid(child, 0)
    tracer.wait()
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise UserError("refused by the save")
    return os.WIFSIGNALED(status), re.findall(r"^\d+ +(\w+)\(", trace.read_text(), re.MULTILINE)


def killed_at(call: str, number: int, folder) -> bool:
    """Whether a child that saves was killed as it entered that system call."""
    rule = f"inject={call}:signal=SIGKILL:when={number}"
    return traced(folder, "-e", f"trace={call}", "-e", rule)[0]


def first_save(folder) -> None:
    save_checkpoint(folder, {"step": 1, "model": {"w": torch.ones(9999)}})
    point(folder / "best.pth", folder / "last.pth")


@needs_strace
def test_bytes_reach_the_disk_before_their_name_and_the_name_at_last(tmp_path):
    folder = tmp_path / "checkpoints"
    first_save(folder)
    killed, calls = traced(folder, "-e", "trace=write,fsync,rename")
    assert not killed and calls.index("fsync") < calls.index("rename")
    assert "write" not in calls[calls.index("fsync") :]
    assert calls[-1] == "fsync" and calls.count("fsync") == calls.count("rename") == 3


@needs_strace
def test_a_save_killed_at_any_system_call_leaves_a_whole_checkpoint(tmp_path, record_property):
    kills = 0
    for call in ("openat", "write", "fsync", "rename", "symlink", "unlink"):
        number = 1
        while True:
            folder = tmp_path / f"{call}-{number}" / "checkpoints"
            first_save(folder)
            killed = killed_at(call, number, folder)
            remove_leftovers(folder.parent)
            state = newest_good(folder.parent)
            assert state["step"] in ((1, 2) if killed else (2,))
            assert (state["model"]["w"] == state["step"]).all()
            assert not list(folder.glob(".tmp-*"))
            if not killed:
                break
            kills, number = kills + 1, number + 1
    record_property("kills", kills)
    assert kills > 15


@needs_strace
def test_a_disk_that_fails_to_keep_the_bytes_is_told_and_costs_no_checkpoint(tmp_path):
    """fsync answers EIO: the file is given up, the earlier checkpoint stays the newest."""
    folder = tmp_path / "checkpoints"
    first_save(folder)
    with pytest.raises(UserError, match="refused by the save"):
        traced(folder, "-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=1")
    assert newest_good(tmp_path)["step"] == 1 and not list(folder.glob(".tmp-*"))
