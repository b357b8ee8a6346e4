"""Damaged checkpoints, full disks, second processes, weights that are not finite."""

import fcntl
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from shutil import which

import pytest
import torch
from helpers import (
    REPOSITORY,
    TRAIN,
    Command,
    assert_same_bits,
    exact_rows,
    fails,
    final_state,
    limit_files,
    run,
    tiny,
    train,
)

from evaluation.trained import load_model
from utils.base import threads
from utils.base.errors import UserError
from utils.base.lock import LOCK, hold
from utils.training.checkpoint import load_checkpoint, save_checkpoint, step_files
from utils.training.distributed import World
from utils.training.logger import read_metrics
from utils.training.run import Run, default_run_name, find_checkpoint, find_run


@pytest.fixture(scope="module")
def finished(cityscapes_root, tmp_path_factory):
    """Six steps with EMA, checkpoints at 2, 4 and 6."""
    log_root = tmp_path_factory.mktemp("logs")
    config = tiny(cityscapes_root, log_root, ema=0.9, eval_every=4, save_every=2)
    train(config)
    return config, log_root / "run"


@pytest.fixture
def run_folder(finished, tmp_path):
    config, folder = finished
    shutil.copytree(folder, tmp_path / "run", symlinks=True)
    return replace(config, log_root=tmp_path, resume="auto"), tmp_path / "run"


def tree(folder) -> dict:
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_the_newest_whole_checkpoint_takes_a_damaged_ones_place(finished, run_folder):
    config, folder = run_folder
    *_, good, newest = step_files(folder / "checkpoints")
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    done = train(config)
    assert done.stderr.count("warning:") == 1 and f"{newest}: damaged" in done.stderr
    assert f"steps {load_checkpoint(good)['step'] + 1} to 6" in done.stdout
    assert exact_rows(folder) == exact_rows(finished[1])
    assert_same_bits(final_state(folder), final_state(finished[1]))
    assert newest not in step_files(folder / "checkpoints")  # its successor took its place
    assert "warning" not in train(config).stderr


def test_with_no_whole_checkpoint_nothing_starts_and_nothing_changes(run_folder):
    config, folder = run_folder
    for path in step_files(folder / "checkpoints"):
        path.write_bytes(path.read_bytes()[:-1])
    before = tree(folder)
    with pytest.raises(UserError, match=r"run: no checkpoint is intact. .*--overwrite"):
        train(config)
    assert tree(folder) == before


def test_a_run_goes_on_without_its_links_and_loses_what_kills_left(finished, run_folder):
    config, folder = run_folder
    checkpoints = folder / "checkpoints"
    step_files(checkpoints)[-1].unlink()
    (checkpoints / "last.pth").unlink()
    for name in (".tmp-1", ".tmp-last.pth-2", "../.tmp-results.json-3"):
        (checkpoints / name).write_bytes(b"half")
    train(config)
    assert not list(folder.rglob(".tmp-*"))
    assert_same_bits(final_state(folder), final_state(finished[1]))


def test_a_resumed_run_never_empties_its_files(finished, run_folder):
    """A second name shows what a kill in the middle of writing would leave under the first."""
    config, folder = run_folder
    step_files(folder / "checkpoints")[-1].unlink()
    names = ("metrics.csv", "config.yaml", "results.json", "environment.json")
    held = {name: (folder / name).read_bytes() for name in names}
    for name in names:
        os.link(folder / name, folder / f"held-{name}")
    train(config)
    assert {name: (folder / f"held-{name}").read_bytes() for name in names} == held
    assert exact_rows(folder) == exact_rows(finished[1])
    with (folder / "metrics.csv").open("a") as file:
        file.write("7,3.5,2.")
    assert len(read_metrics(folder)) == len(exact_rows(finished[1]))


def test_a_file_outside_a_run_is_no_run_to_go_on_with(run_folder, tmp_path):
    config, folder = run_folder
    path = tmp_path / "weights.pth"
    shutil.copy(folder / "checkpoints" / "last.pth", path)
    with pytest.raises(UserError, match=r"not in a run's folder.*--init_from"):
        train(replace(config, resume=str(path)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run", "weights.pth"]


def test_one_of_many_processes_gets_the_lock(tmp_path):
    """Twenty real processes at once, none of which ends before all have tried."""
    program = (
        f"import sys; sys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from pathlib import Path; from utils.base.lock import hold\n"
        f"with hold(Path({str(tmp_path / 'run')!r})): print('held', flush=True); input()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    many = [
        subprocess.Popen([sys.executable, "-c", program], text=True, **pipes) for _ in range(20)
    ]
    refused = [p for p in many if p.stdout.readline() != "held\n"]
    assert len(refused) == 19
    (holder,) = set(many) - set(refused)
    for process in refused:
        assert f"held by process {holder.pid}. Wait" in process.communicate(timeout=60)[1]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with hold(tmp_path / "run"):  # a kill leaves the file, not the lock
        assert (tmp_path / "run" / LOCK).is_file()
    assert not (tmp_path / "run" / LOCK).exists()


def hold_often(folder: Path) -> None:
    """Two holders at once would meet at the same new folder."""
    for _ in range(100):
        with suppress(UserError), hold(folder):
            (folder / "mine").mkdir()
            (folder / "mine").rmdir()


def test_a_lock_that_is_removed_at_each_end_still_has_one_holder(tmp_path):
    fork = multiprocessing.get_context("fork")
    many = [fork.Process(target=hold_often, args=(tmp_path,)) for _ in range(4)]
    for process in many:
        process.start()
    for process in many:
        process.join()
    assert [process.exitcode for process in many] == [0] * 4 and not list(tmp_path.iterdir())


# Arguments of commands that fill a folder, and the folder that two of them cannot have at once.
FILLING = {
    "evaluation": (
        "evaluation/eval_on_val_for_metrics.py --device cpu --checkpoint {run} --log_root {new}",
        "{new}",
    ),
    "prediction": ("predict.py {image} --device cpu --checkpoint {run} --output {new}", "{new}"),
    "conversion": ("utils/convert_checkpoint.py {run}/x.pth --log_root {new}", "{new}/x"),
    "synthetic": ("utils/synthetic.py --data_root {new} --train 1 --val 1 --workers 1", "{new}"),
    "training": ("train.py --data_root {data} --log_root {new} --run_name x", "{new}/x"),
}


@pytest.mark.parametrize("name", FILLING)
def test_two_commands_never_fill_one_folder(finished, tmp_path, name):
    config, folder = finished
    places = {"run": folder, "new": tmp_path / "new", "data": config.data_root}
    places["image"] = sorted(config.data_root.glob("leftImg8bit/val/*/*.png"))[0]
    command, held = (text.format(**places) for text in FILLING[name])
    shutil.copy(folder / "config.yaml", folder / "x.pth")
    with hold(Path(held)):
        fails(run(*command.split()), f"{held}/.lock: held by process {os.getpid()}")
        assert tree(tmp_path / "new").keys() == {Path(held, LOCK).relative_to(tmp_path / "new")}
    assert not (tmp_path / "new").exists()


def test_a_holder_that_has_not_yet_written_its_name_is_waited_for(tmp_path):
    with (tmp_path / LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        late = threading.Timer(0.3, lambda: print("process 7", end="", file=file, flush=True))
        late.start()
        with pytest.raises(UserError, match="held by process 7. Wait"), hold(tmp_path):
            pass
        late.join()


def test_a_run_in_use_is_left_alone(run_folder):
    config, folder = run_folder
    with hold(folder):
        before = tree(folder)
        for change in ({}, {"resume": None, "overwrite": True}):
            with pytest.raises(UserError, match=r"\.lock: held by process \d+"):
                train(replace(config, **change))
        assert tree(folder) == before


def test_a_failed_start_leaves_no_folder(tmp_path):
    with pytest.raises(UserError, match="no images"):
        train(tiny(tmp_path / "none", tmp_path / "a" / "logs"))
    assert not (tmp_path / "a").exists()


def test_a_disk_that_takes_no_more_is_one_line_and_costs_no_checkpoint(run_folder):
    """Files may have 30 MiB, a checkpoint has 190: a write fails as on a full disk."""
    config, folder = run_folder
    newest = step_files(folder / "checkpoints")[-1]
    newest.unlink()
    held = tree(folder / "checkpoints")
    command = ["train.py", "--config", folder / "config.yaml", "--resume", "auto"]
    command += ["--log_root", config.log_root]
    done = run(*command, first=partial(limit_files, 30 << 20))
    fails(done, "step 6 cannot be saved (File too large", "GiB free", "--resume auto")
    left = tree(folder / "checkpoints")
    del left[Path("best.pth")]  # it pointed at the deleted file
    assert left == held
    done = run(*command)
    assert done.returncode == 0, done.stderr


def train_in_shell(first: str, *arguments: object) -> subprocess.CompletedProcess:
    """train.py after shell commands; what they mount, only this process sees."""
    shell = ["unshare", "-rm", "sh", "-c", f'{first} && exec "$@"', "sh"]
    if which("unshare") is None or subprocess.run([*shell, "true"]).returncode:
        pytest.skip("may not mount here")
    return subprocess.run(
        [*shell, sys.executable, REPOSITORY / "train.py", *TRAIN, *arguments],
        capture_output=True, text=True,
    )  # fmt: skip


def test_a_disk_too_small_for_the_run_is_told_before_the_first_step(cityscapes_root, tmp_path):
    done = train_in_shell(
        f"mount -t tmpfs -o size=64m none {tmp_path}",
        "--data_root", cityscapes_root, "--log_root", tmp_path / "logs",
    )  # fmt: skip
    fails(done, "logs/run: 0.06 GiB free, 3 checkpoints need 0.3", "--log_root")
    assert "steps 1 to" not in done.stdout


@pytest.mark.slow
def test_few_open_files_no_language_and_data_that_may_only_be_read_are_enough(
    cityscapes_root, tmp_path
):
    done = train_in_shell(
        f"mount --bind {cityscapes_root} {cityscapes_root} "
        f"&& mount -o remount,bind,ro {cityscapes_root} && ! touch {cityscapes_root}/x 2>/dev/null "
        "&& ulimit -n 64 && export LC_ALL=C LANG=C",
        "--data_root", cityscapes_root, "--log_root", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    held = Run(model, optimizer, {}, {}, [], {}, "", torch.zeros(()), step=3)
    held.save(tmp_path)
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    held.step = 4
    with pytest.raises(UserError, match="weights of step 4 are not finite, not saved"):
        held.save(tmp_path)
    assert [load_checkpoint(path)["step"] for path in step_files(tmp_path)] == [3]


class LowScaler(torch.amp.GradScaler):
    """Begins at 2, not at 2^16, from which 16 more steps would lead to 1."""

    def __init__(self, device: str) -> None:
        super().__init__(device, init_scale=2.0)


def lower_scale() -> None:
    torch.amp.GradScaler = LowScaler


def test_fp16_that_overflows_in_every_step_is_one_line(cityscapes_root, tmp_path):
    """Class weights of 1e34: the loss is their mean and finite, its gradient is beyond fp16."""
    root = tmp_path / "data"
    shutil.copytree(cityscapes_root, root)
    path = root / "meta" / "class_weights.json"
    weights = json.loads(path.read_text())["class_weights"]
    path.write_text(json.dumps({"class_weights": dict.fromkeys(weights, 1e34)}))
    config = tiny(root, tmp_path, precision="fp16", class_weights=True)
    with pytest.raises(UserError, match=r"run: fp16 overflowed .* step 2. .*bf16 or fp32"):
        train(config, first=lower_scale)


def limit_memory() -> None:
    """Half a GiB more than the process has at its start."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + (1 << 29)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def test_too_little_memory_is_one_line_that_says_what_to_lower(cityscapes_root, tmp_path):
    """For 16 crops of half a megapixel."""
    done = run(
        "train.py", *TRAIN, "--data_root", cityscapes_root, "--log_root", tmp_path,
        "--crop", "[512,1024]", "--batch_size", "16", first=limit_memory,
    )  # fmt: skip
    fails(done, "out of memory with 16 crops of 512x1024, deeplabv3 resnet18 os32", "--batch_size")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_steps(cityscapes_root, tmp_path, record_property):
    """The least resident memory while steps 300 to 500, and 1300 to 1500, were done.

    Above it lie up to 100 MiB that the C library holds for a while.
    """
    process = Command(
        "train.py", *TRAIN, "--data_root", cityscapes_root, "--log_root", tmp_path,
        "--steps", 1500, "--log_every", 10, "--eval_every", 10**6, "--save_every", 10**6,
    )  # fmt: skip
    sizes: dict[int, int] = {}
    while process.is_alive():
        rows = read_metrics(tmp_path / "run")
        if rows and rows[-1]["step"]:
            pages = Path(f"/proc/{process.process.pid}/statm").read_text().split()[1]
            sizes[int(rows[-1]["step"])] = int(pages) * resource.getpagesize() >> 10
        time.sleep(0.2)
    done = process.end()
    assert done.returncode == 0, done.stderr
    early = min(size for step, size in sizes.items() if 300 <= step <= 500)
    late = min(size for step, size in sizes.items() if step >= 1300)
    record_property("KiB more after 1,000 steps", late - early)
    assert late - early < 4096


def test_two_preprocessings_at_once_are_refused(cityscapes_root):
    with hold(cityscapes_root / "meta"):
        done = run("utils/preprocess_data.py", "--data_root", cityscapes_root)
    fails(done, "meta/.lock: held by process")


def wait_less() -> None:
    threads.READ_TIMEOUT = 1.0


def test_a_read_that_hangs_is_named_and_does_not_keep_the_process(cityscapes_root, tmp_path):
    """A named pipe as an image; instead of two minutes the process waits one second for it."""
    root = tmp_path / "data"
    shutil.copytree(cityscapes_root, root)
    path = sorted(root.glob("leftImg8bit/train/*/*.png"))[2]
    path.unlink()
    os.mkfifo(path)
    begin = time.monotonic()
    command = ("train.py", *TRAIN, "--data_root", root, "--log_root", tmp_path / "logs")
    done = run(*command, first=wait_less)
    fails(done, f"image {path.name.removesuffix('_leftImg8bit.png')}: no answer for 1 s", "disk")
    assert time.monotonic() - begin < 40


@pytest.mark.parametrize("kind", ["fifo", "folder", "dangling"])
def test_a_checkpoint_that_is_no_file_is_refused(tmp_path, kind):
    path = tmp_path / "x.pth"
    {
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "dangling": lambda: path.symlink_to("nothing"),
    }[kind]()
    with pytest.raises(UserError, match=r"x.pth: no checkpoint"):
        find_checkpoint(str(path), tmp_path)
    with pytest.raises(UserError, match="(x.pth|nothing): (does not exist|not a readable)"):
        load_checkpoint(path)


def test_checkpoints_of_newer_versions_and_incomplete_ones_are_told(run_folder, tmp_path):
    _, folder = run_folder
    state = load_checkpoint(folder / "checkpoints" / "last.pth")
    torch.save(state | {"format": 2}, tmp_path / "new.pth")
    with pytest.raises(UserError, match=r"new.pth: format 2, newer than 1"):
        load_checkpoint(tmp_path / "new.pth")
    for name in ("model", "network", "classes"):
        torch.save({key: state[key] for key in state if key != name}, tmp_path / "x.pth")
        with pytest.raises(UserError, match=f"x.pth: lacks {name}"):
            load_model(tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["model", "optimizer", "ema", "loss_sum", "best_miou", "stale"])
def test_a_run_goes_on_with_everything_or_not_at_all(run_folder, name):
    config, folder = run_folder
    checkpoints = folder / "checkpoints"
    state = load_checkpoint(checkpoints / "last.pth")
    for path in checkpoints.iterdir():
        path.unlink()
    del state["format"], state[name]
    state["step"] = 4
    save_checkpoint(checkpoints, state)
    with pytest.raises(UserError, match=f"checkpoint of step 4: lacks {name}"):
        train(config)


def test_processes_that_torchrun_starts_again_find_their_run(run_folder, tmp_path, monkeypatch):
    """Without a name of the user's it is the launch's, which a restart keeps."""
    config, folder = run_folder
    unnamed = replace(config, run_name=None, resume=None)
    world = World(0, 2, torch.device("cpu"), launch="3f2a")
    name = default_run_name(unnamed, world)
    assert name == "cityscapes_deeplabv3_resnet18_os32_3f2a"
    assert find_run(unnamed, world) == (tmp_path / name, None)
    folder.rename(tmp_path / name)
    with pytest.raises(UserError, match="this run exists"):
        find_run(unnamed, world)
    newest = step_files(tmp_path / name / "checkpoints")[-1]
    again = replace(world, restarted=True)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "3f2a")
    with pytest.raises(UserError, match="this run exists"):  # another launch began it
        find_run(unnamed, again)
    (tmp_path / name / "environment.json").write_text('{"launch": "3f2a"}')
    assert find_run(unnamed, again) == (tmp_path / name, newest)
