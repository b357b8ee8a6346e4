"""Options of a recipe: each one does what it says, once, and only when it is given."""

import csv
import json
import resource
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import REPOSITORY, TRAIN, assert_same_bits, fails, final_state, forks, run, tiny, train

from model import build_model
from model.losses import SegmentationLoss
from utils.base.errors import UserError
from utils.base.parser import parse
from utils.data.class_weights import WEIGHTS_FILE
from utils.data.label_table import VOC
from utils.training import run as run_module
from utils.training.batch_size import find_batch_size
from utils.training.config import Config, write_config
from utils.training.distributed import World
from utils.training.run import build_run

CPU = World(0, 1, torch.device("cpu"))


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def losses(root, log_root, name, **options) -> list[float]:
    train(tiny(root, log_root, run_name=name, **options))
    return [float(row["loss"]) for row in rows(log_root / name)]


def test_the_encoder_stays_as_it_is_for_that_number_of_steps(cityscapes_root, tmp_path):
    """Its statistics too; the head trains from the first step."""
    models = {}
    for frozen, steps in ((1, 1), (2, 2), (2, 3)):
        name = f"{frozen}-{steps}"
        options = {"freeze_encoder_steps": frozen, "steps": steps, "warmup_steps": 0}
        train(tiny(cityscapes_root, tmp_path, run_name=name, **options))
        models[name] = final_state(tmp_path / name)["model"]

    def part(name, encoder):
        return {k: v for k, v in models[name].items() if k.startswith("backbone.") == encoder}

    assert_same_bits(part("1-1", True), part("2-2", True))
    assert not torch.equal(
        models["1-1"]["classifier.4.weight"], models["2-2"]["classifier.4.weight"]
    )
    changed = [k for k, v in part("2-3", True).items() if not torch.equal(v, models["2-2"][k])]
    assert {*changed} == {*part("2-3", True)}


def test_an_encoder_that_does_not_exist_cannot_be_frozen(cityscapes_root, tmp_path):
    config = tiny(cityscapes_root, tmp_path, model="unet", output_stride=8)
    with pytest.raises(UserError, match="--freeze_encoder_steps: for deeplabv3, .*. Leave it out"):
        train(replace(config, freeze_encoder_steps=1))


@pytest.mark.parametrize(
    "backbone, norm, last", [("resnet18", "bn", "bn2"), ("resnet50", "gn_ws", "bn3")]
)
def test_zero_init_begins_with_identity_blocks(backbone, norm, last, tmp_path):
    config = Config(
        backbone=backbone, norm=norm, backbone_weights=None, zero_init=True, data_root=tmp_path
    )
    for wanted in (True, False):
        model = build_run(replace(config, zero_init=wanted), VOC, CPU, None).model
        for name, weight in model.named_parameters():
            if weight.ndim == 1 and name.endswith("weight"):
                zero = wanted and f".{last}." in name
                assert (weight == (0 if zero else 1)).all(), name


def test_zero_init_is_for_random_weights(cityscapes_root):
    for other in (("--backbone_weights", "imagenet"), ("--init_from", "demo")):
        fails(
            run("train.py", *TRAIN, "--zero_init", "true", *other), "--zero_init", "trained weights"
        )
    config = Config(model="unet", zero_init=True, backbone_weights=None, data_root=cityscapes_root)
    with pytest.raises(UserError, match="--zero_init true: for networks with a ResNet only"):
        build_run(config, VOC, CPU, None)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"focal": 2.0, "label_smoothing": 0.1}, "--label_smoothing must be 0 with --focal"),
        ({"class_weights": False, "class_weight_power": 0.5}, "left out with --class_weights fal"),
        ({"class_weights": False, "class_weights_from": 0.5}, "left out with --class_weights fal"),
        ({"schedule": "exponential", "min_lr": 0.0}, "above 0 with --schedule exponential"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Config(**options)


def test_class_weights_can_begin_later(cityscapes_root, tmp_path):
    options = {"steps": 4, "warmup_steps": 0}
    off = losses(cityscapes_root, tmp_path, "off", class_weights=False, **options)
    on = losses(cityscapes_root, tmp_path, "on", **options)
    late = losses(cityscapes_root, tmp_path, "late", class_weights_from=0.5, **options)
    assert late[:2] == pytest.approx(off[:2], rel=1e-5)
    assert late[0] != pytest.approx(on[0], rel=1e-3)
    assert late[2] != pytest.approx(off[2], rel=1e-3)
    validation = [float(rows(tmp_path / name)[-1]["val_loss"]) for name in ("on", "late")]
    assert validation[0] != validation[1]  # other weights of the network, the same class weights


def test_the_power_of_the_class_weights_counts_in_training_and_evaluation(
    cityscapes_root, tmp_path
):
    first = {
        power: losses(cityscapes_root, tmp_path, f"p{power}", steps=1, class_weight_power=power)[0]
        for power in (0.0, 0.5, 1.0)
    }
    assert len({*first.values()}) == 3
    off = losses(cityscapes_root, tmp_path, "off", steps=1, class_weights=False)[0]
    assert first[0.0] == pytest.approx(off, rel=1e-5)
    options = ("--log_root", tmp_path, "--checkpoint", "p0.5")
    done = run("evaluation/eval_on_val_for_metrics.py", *options)
    assert done.returncode == 0, done.stderr
    trained = json.loads((tmp_path / "p0.5" / "results.json").read_text())["loss"]
    scored = json.loads((tmp_path / "model_eval_val" / "scores.json").read_text())
    assert scored["loss"] == pytest.approx(trained, rel=1e-5)


def test_stages_change_crop_scale_and_batch_at_their_share_of_the_steps(cityscapes_root, tmp_path):
    """Of 1.5 epochs of 4 images: two steps of 1 x 2 and 1 x 4 images."""
    stages = [{"until": 0.5, "crop": (16, 32)}, {"until": 1.0, "batch_size": 4}]
    config = tiny(cityscapes_root, tmp_path, stages=stages, epochs=1.5)
    train(config)
    assert [float(row["epoch"]) for row in rows(tmp_path / "run")] == [0.5, 1.5]
    small, large = config.parts()
    assert (small[1].crop, small[1].batch_size) == ((16, 32), 2)
    assert (large[1].crop, large[1].batch_size) == ((32, 64), 4)
    assert config.largest_crop() == (32, 64)
    write_config(config, tmp_path / "config.yaml")
    again = parse(Config, "", ["--config", str(tmp_path / "config.yaml")])
    assert again.parts() == config.parts()


@pytest.mark.parametrize(
    "stages, words",
    [
        ("[{until: 0.5}]", "rising values of until, the last 1"),
        ("[{until: 0.5}, {until: 0.5}, {until: 1}]", "rising values of until"),
        ("[{until: 1, crop: [8,8]}]", "two sizes of at least 16 pixels"),
        ("[{until: 1, seed: 3}]", "Give a value like [{until: 0.5, crop: [512,1024]"),
        ("[{until: 1, crop: wide}]", "Give a value like [{until: 0.5, crop: [512,1024]"),
        ("3", "Give a value like [{until: 0.5, crop: [512,1024]"),
    ],
)
def test_wrong_stages_are_one_line(stages, words):
    fails(run("train.py", *TRAIN, "--stages", stages), words)


def test_a_run_with_stages_keeps_its_batch_size(cityscapes_root, tmp_path):
    stages = [{"until": 0.5, "batch_size": 2}, {"until": 1.0}]
    options = {"stages": stages, "batch_size": 4, "save_every": 2, "steps": 4}
    config = tiny(cityscapes_root, tmp_path, **options)
    train(config)
    with pytest.raises(UserError, match="--batch_size: a run with --stages keeps it"):
        train(replace(config, resume="auto", batch_size=2))


def fitting(config: Config, limit: int | None = None) -> tuple[int, int]:
    """Batch size and micro-batches found with `limit` bytes more address space than in use."""
    if limit is not None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + limit
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    model = build_model("deeplabv3", num_classes=19, output_stride=32)
    found = find_batch_size(config, model, SegmentationLoss(), None, CPU)
    return found.batch_size, found.accumulate


def test_the_largest_batch_that_fits_is_found_and_the_images_of_a_step_stay(tmp_path):
    """With 2 GiB more address space than a process needs at its start; and small crops with all.

    PyTorch says on a CPU, too, that it cannot allocate; train.py asks only GPUs, because Linux
    kills a process rather than refuse memory.
    """
    options = {"backbone_weights": None, "output_stride": 32, "batch_size": 12, "accumulate": 2}
    config = Config(crop=(512, 512), data_root=tmp_path, **options)

    with ProcessPoolExecutor(1, forks, max_tasks_per_child=1) as pool:
        assert pool.submit(fitting, replace(config, crop=(64, 64))).result() == (24, 1)
        size, accumulate = pool.submit(fitting, config, limit=2 << 30).result()
    assert 2 <= size < 24 and size * accumulate == 24


def test_a_batch_size_is_looked_for_on_gpus_only(cityscapes_root, tmp_path):
    with pytest.raises(UserError, match="--find_batch_size true: for GPUs only. Leave it out"):
        train(tiny(cityscapes_root, tmp_path, find_batch_size=True))
    assert not (tmp_path / "run").exists()


def test_auto_is_bf16_on_a_cpu_that_has_it_and_old_runs_stay_in_fp32(
    cityscapes_root, tmp_path, monkeypatch
):
    config = tiny(cityscapes_root, tmp_path)
    for has, dtype in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr(run_module, "cpu_has_bf16", lambda has=has: has)
        begun = build_run(config, VOC, CPU, None)
        assert begun.amp_dtype(CPU) is dtype
        monkeypatch.setattr(run_module, "cpu_has_bf16", lambda has=has: not has)
        assert build_run(config, VOC, CPU, begun.state()).amp_dtype(CPU) is dtype
        older = begun.state()
        del older["cpu_precision"]
        assert build_run(config, VOC, CPU, older).amp_dtype(CPU) is None
        explicit = build_run(replace(config, precision="fp32"), VOC, CPU, None)
        assert explicit.amp_dtype(CPU) is None


@pytest.mark.parametrize("gains", [True, False])
def test_an_old_run_keeps_its_gradients_to_the_bit(cityscapes_root, tmp_path, monkeypatch, gains):
    def used(state: dict | None, precision: str) -> bool:
        run = build_run(replace(config, precision=precision), VOC, CPU, state)
        return any("_conv_forward" in vars(module) for module in run.model.modules())

    config = tiny(cityscapes_root, tmp_path)
    monkeypatch.setattr(run_module, "matrix_gradients_gain", lambda: gains)
    begun = build_run(config, VOC, CPU, None).state()
    older = {key: value for key, value in begun.items() if key != "matrix_gradients"}
    assert used(None, "fp32") == gains
    assert not used(None, "bf16")
    assert not used(older, "fp32")
    monkeypatch.setattr(run_module, "matrix_gradients_gain", lambda: not gains)
    assert used(begun, "fp32") == gains


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_a_command_keeps_the_memory_it_has_freed():
    """Page faults while 64 MiB are taken, written and freed twenty times."""
    work = (
        "import resource, sys; sys.path.insert(0, {path!r})\n"
        "from utils.base.errors import run_command\n"
        "def main():\n"
        "    for _ in range(20): b'x' * (1 << 26)\n"
        "({run})(main)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)\n"
    )
    faults = [
        int(
            subprocess.run(
                [sys.executable, "-c", work.format(path=str(REPOSITORY), run=how)],
                capture_output=True, text=True, check=True,
            ).stdout
        )
        for how in ("run_command", "lambda main: main()")
    ]  # fmt: skip
    assert faults[0] < 0.5 * faults[1]


def test_class_weights_may_come_from_a_file(cityscapes_root, tmp_path):
    """ENet's weights from a file are as from the data set; others change training and score."""
    enet = json.loads((cityscapes_root / WEIGHTS_FILE).read_text())["class_weights"]
    path, results = tmp_path / "weights.json", {}
    for name, weights in {"default": None, "enet": enet, "ten": {**enet, "road": 10.0}}.items():
        if weights is not None:
            path.write_text(json.dumps(weights))
        choice = {} if weights is None else {"class_weights": path}
        results[name] = losses(cityscapes_root, tmp_path, name, steps=1, **choice)
        done = run("evaluation/eval_on_val_for_metrics.py", "--checkpoint", name, "--log_root",
                   tmp_path)  # fmt: skip
        assert done.returncode == 0, done.stderr
        scores = json.loads((tmp_path / "model_eval_val" / "scores.json").read_text())
        assert scores["loss"] == pytest.approx(
            json.loads((tmp_path / name / "results.json").read_text())["loss"], rel=1e-3
        )
    assert results["enet"] == results["default"] != results["ten"]
    for content in ("{", "[1]", '{"road": 1}', json.dumps({**enet, "sky": 0}),
                    json.dumps({**enet, "skyy": 1}), "[" * 5000,
                    json.dumps({name: [1, 2] for name in enet}),
                    json.dumps(dict.fromkeys(enet, 10 ** 400))):  # fmt: skip
        path.write_text(content)
        words = ("train.py", *TRAIN, "--data_root", cityscapes_root, "--log_root", tmp_path)
        fails(run(*words, "--overwrite", "true", "--class_weights", path), f"{path}: does not give")
    fails(run(*words, "--overwrite", "true", "--class_weights", "no.json"), "no.json: cannot be")
