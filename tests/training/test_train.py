"""What a training does and leaves: steps, evaluations, checkpoints, learning rates, files."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from helpers import TRAIN, fails, preprocess, run, tiny, train, write_cityscapes, write_pair

from evaluation import inference
from evaluation.trained import load_model
from utils.base.errors import UserError
from utils.training.checkpoint import load_checkpoint, step_files
from utils.training.optim import lr_factor


def metrics(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(cityscapes_root, tmp_path_factory):
    """One training of six steps with class weights and two reader threads."""
    log_root = tmp_path_factory.mktemp("logs")
    config = tiny(cityscapes_root, log_root, workers=2, aux=True, eval_every=4, save_every=2)
    train(config)
    return config, log_root / "run"


def test_every_step_is_logged_with_its_learning_rate(finished):
    config, folder = finished
    rows = metrics(folder)
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    for step, row in enumerate(rows):
        factor = lr_factor(step, total=6, warmup=2, power=0.9, floor=0.01)
        assert float(row["lr"]) == pytest.approx(config.base_lr * factor)
        assert float(row["epoch"]) == (step + 1) * 2 / 4


def test_evaluations_come_at_the_interval_and_at_the_end(finished):
    _, folder = finished
    assert [int(row["step"]) for row in metrics(folder) if row["miou"]] == [4, 6]
    names = sorted(path.name for path in (folder / "samples").iterdir())
    assert names == ["step_00000004.png", "step_00000006.png"]


def test_checkpoints_last_best_and_the_run_folder_are_complete(finished):
    _, folder = finished
    assert [int(path.name[5:13]) for path in step_files(folder / "checkpoints")][-1] == 6
    assert load_checkpoint(folder / "checkpoints" / "last.pth")["step"] == 6
    best = load_checkpoint(folder / "checkpoints" / "best.pth")
    results = json.loads((folder / "results.json").read_text())
    mious = {int(r["step"]): float(r["miou"]) for r in metrics(folder) if r["miou"]}
    assert best["best_miou"] == mious[best["step"]] == max(mious.values())
    assert results["miou"] == mious[6] and len(results["classes"]) == 19
    expected = {"config.yaml", "environment.json", "metrics.csv", "curves.png", "results.json"}
    assert expected <= {path.name for path in folder.iterdir()}
    assert list(folder.glob("events.*"))


def test_a_checkpoint_rebuilds_its_network_alone(finished):
    _, folder = finished
    model, state = load_model(folder / "checkpoints" / "last.pth")
    assert not model.training and state["classes"][0] == "road"
    assert model(torch.zeros(1, 3, 32, 32))["out"].shape == (1, 19, 1, 1)
    again, _ = load_model(folder / "checkpoints" / "last.pth")
    images = torch.randn(1, 3, 32, 64)
    assert torch.equal(model(images)["out"], again(images)["out"])


def test_the_names_in_a_checkpoint_are_these(finished):
    """Stored in checkpoints: never rename one. A new one needs a default for older files."""
    _, folder = finished
    state = load_checkpoint(folder / "checkpoints" / "last.pth")
    assert {*state} == {
        "model", "optimizer", "ema", "scaler", "loss_sum", "environment", "network", "config",
        "classes", "label_table", "images", "step", "loss_steps", "images_per_step", "best_miou",
        "best_step", "stale", "pending", "cpu_precision", "matrix_gradients", "format",
    }  # fmt: skip
    assert state["network"] == {
        "name": "deeplabv3", "num_classes": 19, "backbone": "resnet18", "output_stride": 32,
        "norm": "bn", "multi_grid": [1, 1, 1], "aux": True,
    }  # fmt: skip
    assert state["format"] == 1


def test_an_existing_run_is_refused_and_untouched(finished):
    config, folder = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    with pytest.raises(UserError, match=r"exists.*--resume.*--overwrite"):
        train(config)
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_overwrite_replaces_the_run_and_epochs_set_the_length(cityscapes_root, tmp_path):
    for steps in (3, 2):
        epochs = None if steps == 3 else 0.9  # 0.9 * 4 images / 2 per step, rounded up
        train(tiny(cityscapes_root, tmp_path, steps=3, epochs=epochs, overwrite=steps == 2))
        assert len(metrics(tmp_path / "run")) == steps


def test_training_on_one_batch_learns_it(cityscapes_root, tmp_path):
    config = tiny(
        cityscapes_root, tmp_path, steps=20, optimizer="adamw", base_lr=2e-3, warmup_steps=0,
        class_weights=False, scale=(1.0, 1.0), crop=(64, 128), batch_size=4, eval_every=30,
        save_every=30,
    )  # fmt: skip
    train(config)
    losses = [float(row["loss"]) for row in metrics(tmp_path / "run")]
    assert losses[-1] < 0.6 * losses[0]


def test_a_training_shorter_than_its_warm_up_says_so(cityscapes_root, tmp_path):
    done = train(tiny(cityscapes_root, tmp_path, steps=1, warmup_steps=50))
    warning = "warning: --warmup_steps 50: the training has 1 steps, in which the learning rate "
    assert f"{warning}only rises. Give a tenth of them\n" in done.stderr


def test_patience_stops_the_training(cityscapes_root, tmp_path):
    """With a vanishing learning rate and frozen data nothing gets better than the first time."""
    config = tiny(
        cityscapes_root, tmp_path, steps=40, base_lr=1e-30, min_lr=0.0, weight_decay=0.0,
        eval_every=1, patience=2, save_every=40,
    )  # fmt: skip
    train(config)
    rows = metrics(tmp_path / "run")
    assert len(rows) < 40
    best = max(range(len(rows)), key=lambda i: float(rows[i]["miou"]))
    assert len(rows) == best + 1 + 2


def test_the_average_follows_the_weights_once_a_step(cityscapes_root, tmp_path):
    train(tiny(cityscapes_root, tmp_path, steps=2, save_every=1, ema=0.9))
    before, after = map(load_checkpoint, step_files(tmp_path / "run" / "checkpoints"))
    decay = (1 + 2) / (10 + 2)
    for name, value in after["ema"].items():
        if value.is_floating_point():
            expected = decay * before["ema"][name] + (1 - decay) * after["model"][name]
            torch.testing.assert_close(value, expected)
    assert not torch.equal(
        after["ema"]["classifier.4.weight"], after["model"]["classifier.4.weight"]
    )


def test_a_loss_that_is_not_finite_stops_with_one_line(cityscapes_root, tmp_path):
    names = r"step \d, learning rate 9.5e\+29, images aachen_\w+, aachen_\w+. .*--base_lr"
    with pytest.raises(UserError, match=names):
        train(tiny(cityscapes_root, tmp_path, base_lr=1e30, min_lr=0.0, warmup_steps=0, steps=20))


def test_imagenet_weights_reach_the_training(cityscapes_root, tmp_path):
    weights = torchvision.models.resnet18(weights=None).state_dict()
    path = tmp_path / "resnet18.pth"
    torch.save({**weights, "projector.weight": torch.zeros(1)}, path)
    config = tiny(
        cityscapes_root, tmp_path, steps=1, base_lr=1e-30, min_lr=0.0, weight_decay=0.0,
        backbone_weights=str(path),
    )  # fmt: skip
    train(config)
    model, _ = load_model(tmp_path / "run" / "checkpoints" / "last.pth")
    for name in ("layer1.0.conv1.weight", "layer3.1.conv2.weight", "layer4.1.conv2.weight"):
        assert torch.equal(model.backbone.state_dict()[name], weights[name])
    torch.save({key: value for key, value in weights.items() if "layer4" not in key}, path)
    with pytest.raises(UserError, match=r"no layer4.*resnet18"):
        train(tiny(cityscapes_root, tmp_path, run_name="other", backbone_weights=str(path)))


def test_fine_tuning_takes_over_what_fits(finished, cityscapes_root, tmp_path):
    _, folder = finished
    trained = load_checkpoint(folder / "checkpoints" / "best.pth")["model"]
    frozen = {"base_lr": 1e-30, "min_lr": 0.0, "weight_decay": 0.0, "steps": 1}
    config = tiny(cityscapes_root, tmp_path, init_from=str(folder), **frozen)
    done = train(config)
    model, _ = load_model(tmp_path / "run" / "checkpoints" / "last.pth")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, trained[name]), name
    assert "random: none\n" in done.stdout
    other = {key: v[:11] if key.startswith("classifier.4") else v for key, v in trained.items()}
    torch.save(other, tmp_path / "eleven.pth")
    done = train(replace(config, init_from=str(tmp_path / "eleven.pth"), run_name="other"))
    assert "random: classifier.4.weight, classifier.4.bias\n" in done.stdout
    torch.save({"a": torch.zeros(2)}, tmp_path / "foreign.pth")
    with pytest.raises(UserError, match="no tensor fits"):
        train(replace(config, init_from=str(tmp_path / "foreign.pth"), run_name="third"))
    torch.save({"model": trained, "ema": 0.999}, tmp_path / "theirs.pth")
    done = train(replace(config, init_from=str(tmp_path / "theirs.pth"), run_name="fourth"))
    assert "random: none\n" in done.stdout


def fill_memory() -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    inference.predict_logits = full


def test_a_val_image_too_large_for_the_memory_is_named_before_the_first_step(tmp_path):
    """The largest one is predicted first. Only the GPU that is full is not a real one."""
    root = write_cityscapes(tmp_path / "data", train=2)
    ids = np.full((80, 144), 7, np.uint16)
    write_pair(root, "val", "lindau", 1, ids, np.random.default_rng(0))  # in place of a smaller one
    preprocess(root)

    command = ("train.py", *TRAIN, "--data_root", root, "--log_root", tmp_path / "a" / "logs")
    done = run(*command, first=fill_memory)
    fails(done, "out of memory with an image of 80x144", "--crop", "--eval_scales")
    assert done.stdout == "" and not (tmp_path / "a").exists()


@pytest.mark.slow
def test_a_compiled_training_learns_the_same_and_leaves_the_same_files(cityscapes_root, tmp_path):
    """Dropout draws other numbers when compiled, so its losses are close, not equal."""
    rows, states = [], []
    for compiled in (True, False):
        config = tiny(cityscapes_root, tmp_path, run_name=str(compiled), compile=compiled)
        train(config)
        rows.append([float(row["loss"]) for row in metrics(tmp_path / str(compiled))])
        states.append(load_checkpoint(tmp_path / str(compiled) / "checkpoints" / "last.pth"))
    assert rows[0] == pytest.approx(rows[1], rel=0.1)
    assert [*states[0]["model"]] == [*states[1]["model"]]
    config = tiny(cityscapes_root, tmp_path, run_name="True", resume="auto", compile=False)
    train(config)  # finished: nothing to do, and the option may change


def test_compile_without_a_compiler_is_one_line(cityscapes_root, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs a C.. compiler .* leave --compile out"):
        train(tiny(cityscapes_root, tmp_path, compile=True))
    assert not (tmp_path / "run").exists()


def test_a_batch_with_a_single_value_per_channel_is_one_line(cityscapes_root, tmp_path):
    """PSANet's attention works at half of the map: 1x1 for crops of 16x16."""
    done = run(
        "train.py", "--data_root", cityscapes_root, "--log_root", tmp_path, "--model", "psanet",
        "--backbone_weights", "null", "--crop", "[16,16]", "--batch_size", 1, "--steps", 1,
        "--device", "cpu", "--warmup_steps", 0,
    )  # fmt: skip
    fails(done, "--batch_size 1: BatchNorm of psanet sees a single value", "--norm gn")


@pytest.mark.slow  # DeconvNet has 250 million parameters
def test_a_val_image_too_small_for_the_network_is_refused_before_the_first_step(tmp_path):
    root = write_cityscapes(tmp_path / "data", train=2, val=1, size=(64, 128))
    run("utils/preprocess_data.py", "--data_root", root)
    done = run(
        "train.py", "--data_root", root, "--log_root", tmp_path, "--model", "deconvnet",
        "--backbone_weights", "null", "--crop", "[224,224]", "--batch_size", 1, "--scale",
        "[4.0,4.0]", "--steps", 1, "--device", "cpu",
    )  # fmt: skip
    fails(done, "an image of 64x128: 64 pixels for the network, which needs 224")
    assert not list(tmp_path.glob("*/metrics.csv"))
