"""An interrupted and resumed training equals the uninterrupted one, bit for bit."""

import os
import shutil
import signal
import time
from dataclasses import replace

import pytest
from helpers import (
    ALONE,
    Command,
    assert_same_bits,
    exact_rows,
    final_state,
    preprocess,
    run,
    tiny,
    train,
    write_cityscapes,
)

from utils.base.errors import UserError
from utils.training.checkpoint import load_checkpoint, prune, save_checkpoint, step_files
from utils.training.config import write_config
from utils.training.distributed import StopRequest
from utils.training.logger import StepClock, read_metrics
from utils.training.run import newest_good

EVERYTHING = {
    "ema": 0.9, "accumulate": 2, "precision": "fp16", "photometric": True, "optimizer": "adamw",
    "max_class_share": 0.5, "head_lr_factor": 2.0, "decay_norm": False, "clip_grad": 1.0,
    "aux": True, "hard_threshold": 0.5, "hard_min_kept": 100, "label_smoothing": 0.1,
    "class_uniform": 0.5,
}  # fmt: skip


RECIPE = {
    "ema": 0.9, "optimizer": "muon", "schedule": "onecycle", "zero_init": True, "dice": 0.5,
    "lovasz": 0.5, "focal": 2.0, "class_weight_power": 0.5, "class_weights_from": 0.6,
    "freeze_encoder_steps": 6, "batch_size": 4, "crop": (48, 64),
    "stages": [
        {"until": 0.4, "crop": (16, 32), "scale": (0.25, 0.5)},
        {"until": 0.7, "batch_size": 2},
        {"until": 1.0},
    ],
}  # fmt: skip
CASES = {
    "saved": (5, 100, {}), "evaluated": (8, 8, {}), "every option": (5, 100, EVERYTHING),
    "recipe": (5, 100, RECIPE), "adam": (5, 100, {"optimizer": "adam", "schedule": "step"}),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def uninterrupted(request, cityscapes_root, tmp_path_factory):
    """Ten steps in one go, with a checkpoint half-way, between two rows of metrics.csv."""
    save_every, eval_every, options = CASES[request.param]
    log_root = tmp_path_factory.mktemp("logs")
    config = tiny(
        cityscapes_root, log_root, steps=10, log_every=3,
        save_every=save_every, eval_every=eval_every, **options,
    )  # fmt: skip
    train(config)
    return config, log_root / "run"


def test_resuming_gives_the_same_losses_and_weights(uninterrupted, tmp_path):
    """With two reader threads where there was none."""
    config, folder = uninterrupted
    shutil.copytree(folder, tmp_path / "run", symlinks=True)
    checkpoints = tmp_path / "run" / "checkpoints"
    half_way, *later = step_files(checkpoints)
    for path in (*later, checkpoints / "last.pth", checkpoints / "best.pth"):
        path.unlink()
    assert 0 < load_checkpoint(half_way)["step"] < 10
    train(replace(config, log_root=tmp_path, workers=2, resume=str(half_way), run_name=None))
    assert exact_rows(tmp_path / "run") == exact_rows(folder)
    assert_same_bits(final_state(tmp_path / "run"), final_state(folder))


@pytest.mark.parametrize("uninterrupted", ["saved"], indirect=True)
def test_sigterm_saves_and_the_printed_command_goes_on_exactly(uninterrupted, tmp_path):
    config, folder = uninterrupted
    path = tmp_path / "config.yaml"
    write_config(replace(config, log_root=tmp_path, workers=2), path)
    process = Command("train.py", "--config", path)
    metrics = tmp_path / "run" / "metrics.csv"
    while process.is_alive() and not (metrics.exists() and len(exact_rows(metrics.parent)) > 0):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    done = process.end()
    assert done.returncode == 143, done.stderr
    stopped_at = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pth")["step"]
    assert 3 <= stopped_at < 10
    printed = done.stderr.strip().splitlines()[-1].split("resume with: python ")[1].split()
    done = run(*printed)
    assert done.returncode == 0, done.stderr
    assert exact_rows(tmp_path / "run") == exact_rows(folder)
    assert_same_bits(final_state(tmp_path / "run"), final_state(folder))


@pytest.mark.parametrize("uninterrupted", ["saved"], indirect=True)
def test_a_finished_run_says_so(uninterrupted):
    config, folder = uninterrupted
    done = train(replace(config, resume="auto"))
    assert done.stdout.count(f"{folder}: finished at step 10. ") == 1


@pytest.mark.parametrize("uninterrupted", ["saved"], indirect=True)
def test_other_options_are_refused_by_name(uninterrupted):
    config, _ = uninterrupted
    with pytest.raises(UserError, match=r"base_lr, seed.*--config"):
        train(replace(config, resume="auto", seed=1, base_lr=0.02))


def test_auto_goes_on_where_a_run_was_taken_back(cityscapes_root, tmp_path):
    """After --resume FILE, not at a later step of what was left behind."""
    train(tiny(cityscapes_root, tmp_path, steps=4, save_every=1))
    checkpoints = tmp_path / "run" / "checkpoints"
    kept = step_files(checkpoints)
    state = load_checkpoint(checkpoints / "last.pth")
    for step in (1, 2):
        taken_back = save_checkpoint(checkpoints, state | {"step": step})
    prune(checkpoints, keep=1)
    assert newest_good(tmp_path / "run")["step"] == 2
    assert {*kept} <= {*step_files(checkpoints)}  # the later steps are not the new branch's to drop
    content = taken_back.read_bytes()
    taken_back.write_bytes(b"damaged")
    assert newest_good(tmp_path / "run")["step"] == 4  # better than none
    taken_back.write_bytes(content)
    kept[-1].touch()  # a kill came before last.pth pointed at it
    assert newest_good(tmp_path / "run")["step"] == 4


def test_a_copy_without_links_keeps_its_best_checkpoint(cityscapes_root, tmp_path):
    """Resumed from the file itself, as scp -r leaves it."""
    config = tiny(cityscapes_root, tmp_path, steps=2, eval_every=1, save_every=1)
    train(config)
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    checkpoints = tmp_path / "copy" / "checkpoints"
    assert not (checkpoints / "best.pth").is_symlink()
    train(replace(config, resume=str(checkpoints / "best.pth"), run_name=None))
    best, last = (load_checkpoint(checkpoints / name) for name in ("best.pth", "last.pth"))
    assert best["step"] == last["best_step"] and last["step"] == 2


def test_a_kill_before_best_pth_is_made_up_for(cityscapes_root, tmp_path):
    config = tiny(cityscapes_root, tmp_path, steps=2, eval_every=2)
    train(config)
    checkpoints = tmp_path / "run" / "checkpoints"
    (checkpoints / "best.pth").unlink()
    train(replace(config, resume="auto"))
    assert (checkpoints / "best.pth").resolve() == (checkpoints / "last.pth").resolve()


def test_other_training_images_are_refused(tmp_path):
    root = write_cityscapes(tmp_path / "data", train=3, val=1)
    preprocess(root)
    config = tiny(root, tmp_path / "logs", steps=2)
    train(config)
    last = sorted(root.glob("leftImg8bit/train/*/*"))[-1].name.removesuffix("leftImg8bit.png")
    for path in root.glob(f"**/{last}*"):
        path.unlink()
    preprocess(root)
    with pytest.raises(UserError, match=r"not the training images of this run \(3 then, 2 now\)"):
        train(replace(config, resume="auto"))
    older = load_checkpoint(tmp_path / "logs" / "run" / "checkpoints" / "last.pth")
    del older["images"]  # as an older version wrote it
    save_checkpoint(tmp_path / "logs" / "run" / "checkpoints", older)
    train(replace(config, resume="auto"))


def test_a_restart_takes_over_only_what_its_launch_began(cityscapes_root, tmp_path, monkeypatch):
    config = tiny(cityscapes_root, tmp_path, steps=1)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
    train(config)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert "finished at step 1" in train(config).stdout
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "second")
    with pytest.raises(UserError, match="this run exists"):
        train(config)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(UserError, match="--run_name: torchrun restarted a run whose name is un"):
        train(replace(config, run_name=None))


def test_nohup_is_kept(cityscapes_root, tmp_path):
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest(ALONE) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.signal == signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_images_per_second_leaves_an_evaluation_out(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("utils.training.logger.time.perf_counter", lambda: now[0])
    clock = StepClock(images=0)
    now[0] = 3.0
    clock.restart(30)  # after an evaluation between two readings
    now[0] = 4.0
    assert clock.read(images=40)["images_per_second"] == 10


@pytest.mark.parametrize("text", ["step;loss\n1;2\n", "\ufeffstep,loss\n1,2\n", "step\n1.0\n"])
def test_a_foreign_metrics_file_is_named(text, tmp_path):
    (tmp_path / "metrics.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics.csv: .* or delete it"):
        read_metrics(tmp_path)


def test_resume_without_a_run_is_one_line(cityscapes_root, tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        train(tiny(cityscapes_root, tmp_path, resume="auto"))
    assert not list(tmp_path.iterdir())


def test_a_run_keeps_its_images_per_step_whatever_the_batch(cityscapes_root, tmp_path):
    """Norms that do not look at the batch: four images at once or two by two are one training."""
    config = tiny(
        cityscapes_root, tmp_path, run_name="whole", batch_size=4, freeze_bn=True, save_every=2
    )
    train(config)
    shutil.copytree(tmp_path / "whole", tmp_path / "run", symlinks=True)
    step_files(tmp_path / "run" / "checkpoints")[-1].unlink()
    config = replace(config, run_name="run", resume="auto")
    with pytest.raises(UserError, match=r"has 4 images, not a multiple of 1 x 3. .*--batch_size"):
        train(replace(config, batch_size=3))
    done = train(replace(config, batch_size=2))
    assert "1 x 2 batches of 2 keep the 4 images of this run's steps" in done.stderr
    whole, halves = (exact_rows(tmp_path / name) for name in ("whole", "run"))
    assert len(halves) == 6
    assert "accumulate: 2" in (tmp_path / "run" / "config.yaml").read_text()
    own = load_checkpoint(tmp_path / "run" / "checkpoints" / "last.pth")["config"]
    assert (own["batch_size"], own["accumulate"], own["resume"]) == (2, 2, None)
    for one, other in zip(whole, halves, strict=True):
        assert one[:2] == other[:2]
        assert float(one[2]) == pytest.approx(float(other[2]), rel=1e-5)
