"""Real torchrun processes against one process: the same loss, gradients, samples and counts."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from shutil import which

import pytest
import torch
from helpers import REPOSITORY, forks, preprocess, randomize, run, tiny, train, write_cityscapes
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from datasets import build_dataset
from evaluation.evaluate import evaluate
from evaluation.task import TASKS
from model import build_model
from model.losses import PanopticDeepLabLoss, SegmentationLoss, UPSNetLoss
from model.normalize import FromPixels
from model.panoptic import upsnet
from utils.base.errors import UserError
from utils.data.batches import Batches
from utils.data.label_table import CITYSCAPES
from utils.training import distributed
from utils.training.checkpoint import load_checkpoint, step_files
from utils.training.logger import read_metrics
from utils.training.optim import build_optimizer
from utils.training.step import training_step

OPTIONS = [
    "--run_name", "run", "--device", "cpu", "--backbone_weights", "null", "--output_stride", "32",
    "--crop", "[32,64]", "--batch_size", "2", "--workers", "1", "--steps", "24", "--log_every", "1",
    "--eval_every", "1000", "--save_every", "4",
]  # fmt: skip
SLOWER = 2  # than an idle machine, where other tests run beside these


def work(root: str, result: str) -> None:
    """Steps of four images with frozen norms, of one or two processes; five images evaluated."""
    world = distributed.start("cpu")
    distributed.require_same("options", "options", world)
    if world.size == 3:
        with pytest.raises(UserError, match=r"data set: process 2 differs from process 0"):
            distributed.require_same(world.rank == 2, "data set", world)
    content = evaluations(Path(root), world)
    if world.size < 3:
        content |= steps(Path(root), world)
    if world.is_main:
        with open(result, "w", encoding="utf-8") as file:
            json.dump(content, file)
    distributed.stop(world)


def networks() -> list[nn.Module]:
    """One of each task, with the same weights everywhere."""
    torch.manual_seed(0)
    plain = build_model("deeplabv3", num_classes=19, output_stride=32, dropout=0.0).eval()
    segmenting = build_model("panoptic_deeplab", num_classes=19, backbone="resnet18").eval()
    randomize(segmenting)
    things = CITYSCAPES.is_thing.nonzero()[0].tolist()
    detecting = build_model("upsnet", num_classes=19, things=things, backbone="resnet18")
    nn.init.zeros_(detecting.heads.box_predictor.cls_score.weight)  # every class is likely
    return [plain, segmenting, detecting]


def evaluations(root: Path, world: distributed.World) -> dict:
    plain, segmenting, detecting = networks()
    if world.rank == 1:  # what BatchNorm statistics of another process look like
        nn.init.normal_(next(plain.buffers()))
    distributed.copy_buffers_from_main(plain, world)
    dataset, how = build_dataset("cityscapes", root, "val"), {"world": world, "workers": 1}
    scores = evaluate(plain, dataset, **how)
    segments = evaluate(segmenting, dataset, **how, task=TASKS["panoptic"])
    detected = evaluate(detecting, dataset, **how, task=TASKS["panoptic_boxes"])
    if not world.is_main:
        return {}
    return {
        "val_loss": scores.loss, "confusion": scores.counts.confusion.tolist(),
        "instances": scores.counts.instances.tolist(), "panoptic": segments.panoptic,
        "detected": detected.plain(),
        "objects": [len(objects) for objects in detected.counts.found],
    }  # fmt: skip


def steps(root: Path, world: distributed.World) -> dict:
    """Losses of three steps, gradients of the first; loss and gradients of a step of panoptic
    networks."""
    plain, segmenting, detecting = networks()
    train_set = build_dataset("cityscapes", root, "train")
    batches = Batches(
        train_set, batch_size=4 // world.size, crop=(32, 64), scale=(0.5, 2.0), flip=True, seed=0,
        workers=1, device=world.device, rank=world.rank, world_size=world.size,
    )  # fmt: skip
    parallel = FromPixels(plain)
    if world.size > 1:
        parallel = DistributedDataParallel(parallel, gradient_as_bucket_view=True)
    optimizer = build_optimizer(plain, "sgd", base_lr=0.01, weight_decay=0.0)
    losses = []
    for batch in batches.run(0, 3):
        losses.append(training_step(parallel, SegmentationLoss(), optimizer, [batch]).item())
        if len(losses) == 1:
            gradients = [p.grad.double().norm().item() for p in plain.parameters()]
    parallel = FromPixels(segmenting)  # without dropout, and with frozen statistics
    if world.size > 1:
        parallel = DistributedDataParallel(parallel)
    instances = build_dataset("cityscapes", root, "train", instances=True)
    planes = PanopticDeepLabLoss.planes
    batch = next(replace(batches, dataset=instances, planes=planes).run(0, 1))
    optimizer = build_optimizer(segmenting, "sgd", base_lr=0.0, weight_decay=0.0)
    loss = training_step(parallel, PanopticDeepLabLoss(), optimizer, [batch]).item()
    norms = [p.grad.double().norm().item() for p in segmenting.parameters()]
    return {
        "losses": losses, "gradients": gradients, "panoptic_step": [loss, *norms],
        "detection_step": detect(detecting, replace(batches, dataset=instances), world),
    }  # fmt: skip


def detect(model: nn.Module, batches: Batches, world: distributed.World) -> list[float]:
    """Loss and gradients of a step of UPSNet; nothing is drawn at random."""
    every = 1 << 20
    for part in (model.proposals, model.heads):
        part.fg_bg_sampler.batch_size_per_image = every
    parallel = FromPixels(model.train())
    if world.size > 1:
        parallel = DistributedDataParallel(parallel)
    batches = replace(batches, planes=UPSNetLoss.planes, batch_size=1).run(0, 4 // world.size)
    optimizer = build_optimizer(model, "sgd", base_lr=0.0, weight_decay=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upsnet, "KEPT", 1)
        loss = training_step(parallel, UPSNetLoss(), optimizer, [*batches]).item()
    return [loss, *(p.grad.double().norm().item() for p in model.parameters())]


def work_as(values: tuple, root: str, result: str) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    os.environ.update(zip(names, map(str, values), strict=True))
    work(root, result)


def torchrun(processes: int, script: str, *arguments: object) -> subprocess.CompletedProcess:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [sys.executable, *launch, str(REPOSITORY / script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'tests'}"},
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip


def results(root, folder, processes: int) -> dict:
    path = folder / f"{processes}.json"
    if processes == 1:
        work(str(root), str(path))
        return json.loads(path.read_text())
    if processes == 2:
        done = torchrun(processes, __file__, root, path)
        assert done.returncode == 0, done.stderr[-3000:]
    else:
        forked(processes, str(root), str(path))
    return json.loads(path.read_text())


def forked(processes: int, root: str, path: str) -> None:
    """`work` in processes that torchrun would take four seconds each to start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    several = (processes, "127.0.0.1", port)
    ranks = [(rank, rank, *several) for rank in range(processes)]
    children = [forks.Process(target=work_as, args=(rank, root, path)) for rank in ranks]
    for process in children:
        process.start()
    for process in children:
        process.join(120)
    assert [process.exitcode for process in children] == [0] * processes


def test_processes_equal_one(tmp_path):
    root = write_cityscapes(tmp_path / "data", val=5)
    preprocess(root)
    one, two, three = (results(root, tmp_path, n) for n in (1, 2, 3))
    for several in (two, three):
        assert several["confusion"] == one["confusion"]
        assert several["instances"] == one["instances"]
        assert several["panoptic"] == one["panoptic"]  # to the bit
        assert several["detected"] == one["detected"] and several["objects"] == one["objects"]
        assert several["val_loss"] == pytest.approx(one["val_loss"], rel=1e-6)
    assert sum(map(sum, one["confusion"])) == 5 * 64 * 128
    assert len(one["instances"]) > 5 and one["panoptic"]["All"]["n"] > 10
    assert len(one["objects"]) == 5 and min(one["objects"]) > 0
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-6)
    assert len(set(one["losses"])) == 3
    assert two["panoptic_step"] == pytest.approx(one["panoptic_step"], rel=1e-4, abs=1e-6)
    assert two["detection_step"] == pytest.approx(one["detection_step"], rel=1e-4, abs=1e-6)
    assert min(one["detection_step"]) > 0
    assert two["gradients"] == pytest.approx(one["gradients"], rel=1e-4)


def test_the_evaluation_command_shares_its_images(tmp_path):
    root = write_cityscapes(tmp_path / "data", train=2, val=3)
    preprocess(root)
    train(tiny(root, tmp_path / "logs", steps=1, eval_every=1, crop=(32, 64)))
    script, logs = "evaluation/eval_on_val_for_metrics.py", ["--log_root", tmp_path / "logs"]
    scores, pictures = [], tmp_path / "logs" / "model_eval_val"
    for processes in (1, 2):
        done = run(script, *logs) if processes == 1 else torchrun(2, script, *logs)
        assert done.returncode == 0 and done.stdout.count("predictions: ") == 1, done.stderr
        scores.append(json.loads((pictures / "scores.json").read_text()))
        assert len([*pictures.glob("*_overlayed.png")]) == 3
        assert len([*(tmp_path / "logs" / "model_eval_val_for_metrics").glob("*")]) == 3
    losses = [each.pop("loss") for each in scores]
    assert scores[0] == scores[1] and losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.slow
def test_what_a_run_says_at_its_end_is_said_once(cityscapes_root, tmp_path):
    """By the main process: when it ends, and when it is resumed with nothing left to do."""
    options = [*OPTIONS, "--data_root", cityscapes_root, "--log_root", tmp_path, "--steps", "2"]
    done = torchrun(2, "train.py", *options)
    assert done.returncode == 0, done.stderr
    *before, best, score = done.stdout.splitlines()
    assert not any("best mIoU" in line for line in before)
    assert best.startswith("best mIoU") and best.endswith(f" of 2: {tmp_path / 'run'}")
    assert score.endswith(f"eval_on_val_for_metrics.py --checkpoint {tmp_path / 'run'}")
    done = torchrun(2, "train.py", *options, "--resume", "auto")
    assert done.returncode == 0, done.stderr
    finished = f"{tmp_path / 'run'}: finished at step 2. Give a new --run_name to train longer\n"
    assert done.stdout == finished


@pytest.mark.slow
def test_a_bad_file_of_one_process_is_one_line_and_ends_all(tmp_path):
    root = write_cityscapes(tmp_path / "data", train=8)
    preprocess(root)
    path = sorted(root.glob("leftImg8bit/train/*/*.png"))[3]
    path.write_bytes(path.read_bytes()[:300])
    done = torchrun(2, "train.py", *OPTIONS, "--data_root", root, "--log_root", tmp_path)
    ours = done.stderr.split("torch/distributed/elastic")[0]
    assert done.returncode == 1 and "Traceback" not in ours
    (line,) = [line for line in ours.splitlines() if line.startswith("error: ")]
    assert f"{path.name}: not a whole PNG" in line


@pytest.mark.parametrize("rank", [0, 1])
def test_a_meeting_that_fails_is_one_line(rank, cityscapes_root, tmp_path):
    """The port of process 0 is in use; process 1 is given a host that does not exist."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
        if rank == 1:
            where["MASTER_ADDR"] = "nowhere.invalid"
        options = [*OPTIONS, "--data_root", cityscapes_root, "--log_root", tmp_path]
        begin = time.monotonic()
        done = run("train.py", *options, RANK=str(rank), WORLD_SIZE="2", **where)
    assert done.returncode == 2 and time.monotonic() - begin < 30
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert f"{':'.join(where.values())}: process {rank} cannot join there" in line
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_hosts_with_other_intervals_are_refused_instead_of_waiting(cityscapes_root, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    options = [*OPTIONS, "--data_root", cityscapes_root, "--log_root", tmp_path, "--steps", "6"]
    processes = [
        subprocess.Popen(
            [sys.executable, REPOSITORY / "train.py", *options, "--eval_every", str(2 + rank)],
            env={**os.environ, **place, "RANK": str(rank), "WORLD_SIZE": "2"},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in (0, 1)
    ]  # fmt: skip
    for process in processes:
        _, printed = process.communicate(timeout=60)
        assert process.returncode == 2
        assert "error: options: process 1 differs from process 0. Give all hosts" in printed


def last_step(folder: Path) -> int:
    return max((int(row["step"]) for row in read_metrics(folder) if row["step"]), default=0)


def wait_for_step(folder: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while last_step(folder) < step:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.02)


def workers_of(process: subprocess.Popen) -> list[int]:
    tasks = Path(f"/proc/{process.pid}/task")
    return [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]


@pytest.mark.slow
def test_a_killed_process_a_stop_and_going_on_alone(cityscapes_root, tmp_path, record_property):
    """torchrun starts both again, they go on by themselves; SIGTERM saves at one step; one process
    then takes the same images per step. Figures in docs/several_gpus.md."""
    options = [*map(str, OPTIONS), "--data_root", str(cityscapes_root), "--log_root", str(tmp_path)]
    options += ["--eval_every", "5"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [sys.executable, *launch, "--max-restarts", "1", str(REPOSITORY / "train.py"), *options],
        env={**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    folder = tmp_path / "run"
    checkpoints = folder / "checkpoints"
    wait_for_step(folder, 7, process)
    assert read_metrics(folder)[4]["miou"]  # both evaluated
    begin = time.monotonic()
    os.kill(workers_of(process)[-1], signal.SIGKILL)
    saved = int(step_files(checkpoints)[-1].name[5:13])
    while last_step(folder) > saved:  # the new processes drop the rows after their checkpoint
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    wait_for_step(folder, saved + 1, process)
    seconds = time.monotonic() - begin
    record_property("seconds to the next step", round(seconds, 1))
    assert seconds < 25 * SLOWER

    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=60)
    seconds = time.monotonic() - begin
    record_property("seconds from SIGTERM to the end", round(seconds, 1))
    assert seconds < 5 * SLOWER
    assert f"steps {saved + 1} to 24 on 2 x cpu" in out
    step = load_checkpoint(checkpoints / "last.pth")["step"]
    assert errors.count(f"stopped after step {step}; resume with") == 1
    assert saved < step < 24 and step == last_step(folder)

    done = run("train.py", *options, "--resume", "auto")
    assert done.returncode == 0, done.stderr
    assert f"steps {step + 1} to 24 on 1 x cpu" in done.stdout
    rows = [(row["step"], float(row["epoch"])) for row in read_metrics(folder)]
    assert rows == [(str(number), float(number)) for number in range(1, 25)]  # 4 images a step


@pytest.mark.slow
@pytest.mark.skipif(None in map(which, ("unshare", "ip")), reason="needs unshare and ip")
@pytest.mark.parametrize(
    ("fault", "steps"),
    [("gone", 24), ("back", 200), ("cut5", 24), ("cut60", 24)],
    ids=lambda value: str(value),
)
def test_of_two_hosts_one_fails_and_every_step_is_done_once(
    fault, steps, cityscapes_root, tmp_path, record_property
):
    """Two network namespaces with a cable between them; tests/faults/two_hosts.sh."""
    options = [*OPTIONS, "--data_root", cityscapes_root, "--log_root", tmp_path]
    options += ["--steps", steps]
    script = [REPOSITORY / "tests" / "faults" / "two_hosts.sh", fault, sys.executable, tmp_path]
    begin = time.monotonic()
    done = subprocess.run(
        ["unshare", "-rmn", *map(str, [*script, *options])],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    log = (tmp_path / "host_a.log").read_text()
    given_up = done.returncode != 0
    if given_up:  # torchrun may close the meeting when its hosts lose each other: go on by hand
        assert fault == "cut60" and "RendezvousClosedError" in log, done.stderr + log[-3000:]
        alone = run("train.py", *options, "--resume", "auto")
        assert alone.returncode == 0, alone.stderr
    record_property(f"{fault}: given up by torchrun", given_up)
    started = re.findall(rf"steps (\d+) to {steps} on (\d) x cpu", log)
    record_property(f"{fault}: processes of host a's starts", ", ".join(n for _, n in started))
    record_property(f"{fault}: seconds in all", round(time.monotonic() - begin))
    assert started[0] == ("1", "2")
    assert all(int(step) > 1 for step, _ in started[1:])  # from a checkpoint, not from nothing
    if fault in ("gone", "back"):
        assert [processes for _, processes in started] == ["2", "1", "2"][: len(started)]
        assert len(started) == (2 if fault == "gone" else 3)
    run_folder = tmp_path / "run"
    assert [int(row["step"]) for row in read_metrics(run_folder)] == [*range(1, steps + 1)]
    assert load_checkpoint(run_folder / "checkpoints" / "last.pth")["step"] == steps


if __name__ == "__main__":
    work(*sys.argv[1:])
