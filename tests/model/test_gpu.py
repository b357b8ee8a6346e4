"""What only an NVIDIA GPU can show: python -m pytest -m gpu"""

import copy
import csv
from dataclasses import replace
from math import isfinite
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import exact_rows, randomize, tiny, train
from torch import nn

from datasets import build_dataset
from evaluation.evaluate import evaluate
from evaluation.inference import Predictor
from model import MODELS, build_model
from model.losses import SegmentationLoss
from model.normalize import FromPixels
from model.ops.upsample_cross_entropy import (
    hard_pixels,
    upsample_cross_entropy,
    upsample_cross_entropy_reference,
)
from utils.base.errors import UserError
from utils.data.batches import Batch, Batches
from utils.training.batch_size import find_batch_size
from utils.training.config import Config
from utils.training.distributed import World
from utils.training.optim import AveragedWeights, build_optimizer
from utils.training.replay import Replay
from utils.training.step import training_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


def batch(height: int = 128, width: int = 256) -> Batch:
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, height, width, 3), generator=noise, dtype=torch.uint8)
    labels = torch.randint(0, 20, (4, height, width), generator=noise, dtype=torch.uint8)
    targets = {"label": labels.masked_fill(labels == 19, 255).cuda()}
    return Batch(images.cuda(), targets, [], torch.eye(3, 4).expand(4, 3, 4).cuda())


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradient_are_the_reference_s(weighted, label_smoothing):
    labels = batch().targets["label"]
    results = []
    for op, kind in (
        (upsample_cross_entropy, "float32"),
        (upsample_cross_entropy_reference, "float64"),
    ):
        dtype = getattr(torch, kind)
        noise = torch.Generator("cuda").manual_seed(0)
        logits = torch.randn(4, 19, 16, 32, generator=noise, device="cuda").to(dtype)
        weights = torch.linspace(1, 2, 19, device="cuda", dtype=dtype) if weighted else None
        logits.requires_grad_()
        sums = op(logits, labels, class_weights=weights, label_smoothing=label_smoothing)
        sums[0].backward()
        results.append([*sums, logits.grad])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=1e-3)


def test_an_image_larger_than_the_memory_is_predicted_in_windows(capsys):
    """Or refused: the logits and one gigabyte are too little for 32 megapixels at stride 8."""
    model = build_model("deeplabv3", num_classes=19).cuda()
    predictor = Predictor(model, device=torch.device("cuda"), windows_if_needed=True)
    strict = Predictor(model, device=torch.device("cuda"))
    image = np.zeros((4096, 8192, 3), np.uint8)
    most = torch.cuda.memory_allocated() + 4 * 19 * 4096 * 8192 + (1 << 30)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(most / torch.cuda.mem_get_info()[1])
    try:
        with pytest.raises(UserError, match="out of memory .*--crop"):
            strict.logits(image, size=(4096, 8192))
        logits = predictor.logits(image, size=(4096, 8192))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert logits.shape == (1, 19, 4096, 8192)
    assert "predicted in windows of" in capsys.readouterr().err


@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("hard_threshold", [None, 0.7])
@pytest.mark.parametrize("amp", [torch.bfloat16, torch.float16])
def test_a_step_never_waits_for_the_device(replay, compiled, hard_threshold, amp):
    """Two micro-batches, colours, average, clipping; memory does not grow."""
    model = build_model("deeplabv3", num_classes=19).cuda().to(memory_format=torch.channels_last)
    trained, average = FromPixels(model), AveragedWeights(model, 0.9)
    if compiled:
        trained.compile()
    optimizer = build_optimizer(model, "sgd", base_lr=0.01, weight_decay=5e-4)
    criterion = SegmentationLoss(hard_threshold=hard_threshold, hard_min_kept=1000)
    scaler = torch.amp.GradScaler("cuda") if amp == torch.float16 else None
    options = {"amp": amp, "clip": 10.0, "scaler": scaler, "replay": Replay() if replay else None}
    losses, peaks, crops = [], [], [batch()] * 2

    def steps(number: int) -> None:
        for _ in range(number):
            losses.append(training_step(trained, criterion, optimizer, crops, **options))
            average.update(len(losses))
        peaks.append(torch.cuda.max_memory_allocated())

    steps(5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps(15)
        steps(80)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert losses[-1] < losses[0]
    assert peaks[2] <= 1.01 * peaks[1]


RECIPES = [{"focal": 2.0}, {"dice": 0.5}, {"lovasz": 0.5}, {"optimizer": "muon"}]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: next(iter(recipe)))
def test_no_loss_and_no_optimizer_waits_and_another_size_is_recorded_again(recipe):
    """Class weights off and on, crops of half the height from the seventh step."""
    results = []
    for replay in (None, Replay()):
        torch.manual_seed(0)
        losses = {key: value for key, value in recipe.items() if key != "optimizer"}
        model = build_model("deeplabv3", num_classes=19).cuda()
        model = model.to(memory_format=torch.channels_last)
        how = {"base_lr": 1e-3, "weight_decay": 0.01}
        optimizer = build_optimizer(model, recipe.get("optimizer", "adamw"), **how)
        criterion = SegmentationLoss(class_weights=torch.arange(1.0, 20), **losses).cuda()
        trained, whole, values = FromPixels(model), batch(), []
        height = whole.images.shape[1] // 2
        targets = {"label": whole.targets["label"][:, :height].contiguous()}
        half = Batch(whole.images[:, :height].contiguous(), targets, [])
        for step in range(12):
            torch.cuda.set_sync_debug_mode("error" if step in (5, 11) else "default")
            criterion.weigh(step % 2 == 0)
            crops = [whole if step < 6 else half]
            options = {"amp": torch.bfloat16, "replay": replay}
            values.append(training_step(trained, criterion, optimizer, crops, **options))
        torch.cuda.set_sync_debug_mode("default")
        results.append([float(value) for value in values])
    assert replay.graph is not None
    assert results[0] == pytest.approx(results[1], rel=2e-2)


def test_the_batch_size_is_the_largest_that_fits():
    """Half of the memory is enough for half of the crops."""
    options = {"backbone_weights": None, "output_stride": 32, "batch_size": 32, "crop": (512, 512)}
    config = Config(**options, data_root=Path())
    model = build_model("deeplabv3", num_classes=19, output_stride=32).cuda()
    world, criterion = World(0, 1, torch.device("cuda", 0)), SegmentationLoss()
    torch.cuda.reset_peak_memory_stats()
    assert find_batch_size(config, model, criterion, torch.bfloat16, world) == config
    needed = torch.cuda.max_memory_allocated() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(0.6 * needed)
    try:
        found = find_batch_size(config, model, criterion, torch.bfloat16, world)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert 2 <= found.batch_size < 32 and found.batch_size * found.accumulate == 32


@pytest.mark.parametrize("hard_threshold", [None, 0.7])
@pytest.mark.parametrize("amp", [None, torch.bfloat16, torch.float16])
def test_replayed_steps_are_those_launched_one_by_one(amp, hard_threshold, capsys):
    """Two micro-batches, clipping, learning rates that change; forgotten in between."""
    results = []
    for replay in (None, Replay()):
        torch.manual_seed(0)
        model = build_model("deeplabv3", num_classes=19).cuda()
        model = model.to(memory_format=torch.channels_last)
        optimizer = build_optimizer(model, "sgd", base_lr=0.01, weight_decay=5e-4)
        criterion = SegmentationLoss(hard_threshold=hard_threshold, hard_min_kept=1000)
        scaler = torch.amp.GradScaler("cuda") if amp == torch.float16 else None
        options = {"amp": amp, "clip": 10.0, "scaler": scaler, "replay": replay}
        trained, losses, other = FromPixels(model), [], batch()
        other.images.copy_(other.images.flip(1))
        for step in range(12):
            optimizer.param_groups[0]["lr"] = 0.01 / (1 + step)
            crops = [batch(), other] if step % 2 else [other, batch()]
            losses.append(float(training_step(trained, criterion, optimizer, crops, **options)))
            if step == 6 and replay is not None:
                assert replay.graph is not None
                replay.forget()
        results.append([*losses, *(x.double().mean().item() for x in model.state_dict().values())])
    assert replay.graph is not None and "slower" not in capsys.readouterr().err
    assert results[0] == pytest.approx(results[1], rel=2e-2, abs=1e-4)


SEMANTIC = [name for name in MODELS if MODELS[name].task == "semantic"]


@pytest.mark.parametrize("name", SEMANTIC)
def test_every_architecture_is_replayed_and_predicts_as_on_the_cpu(name, monkeypatch):
    side = getattr(MODELS[name], "smallest_image", 1)
    crops, results = [batch(max(128, side), max(256, side))], []
    torch.manual_seed(0)
    built = build_model(name, num_classes=19)
    for module in built.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
    for replay in (None, Replay()):
        model = copy.deepcopy(built).cuda().to(memory_format=torch.channels_last)
        optimizer = build_optimizer(model, "adamw", base_lr=1e-4, weight_decay=0.01)
        options = {"amp": torch.bfloat16, "replay": replay}
        how = (FromPixels(model), SegmentationLoss(), optimizer, crops)
        results.append([float(training_step(*how, **options)) for _ in range(8)])
    assert replay.graph is not None and results[0][-1] < results[0][0]
    assert results[0] == pytest.approx(results[1], rel=2e-2)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    randomize(built)
    size = (max(96, side), max(160, side))
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    ours, expected = (
        Predictor(built.to(device), device=torch.device(device)).logits(image, size=size).cpu()
        for device in ("cuda", "cpu")
    )
    assert (ours.argmax(1) == expected.argmax(1)).float().mean() > 0.999


@pytest.mark.parametrize("options", [{}, {"scales": (0.5, 1.0), "flip": True}, {"crop": (64, 64)}])
def test_replayed_predictions_are_those_launched_one_by_one(options, capsys):
    """Also after an image of another size."""
    model = build_model("deeplabv3", num_classes=19)
    randomize(model)
    how = {"device": torch.device("cuda"), "amp": torch.bfloat16, **options}
    replayed, launched = (Predictor(model.cuda(), **how) for _ in range(2))
    launched.replay = None
    noise = np.random.default_rng(0)
    for number in range(1, 9):
        size = (64, 128) if number == 6 else (96, 160)
        image = noise.integers(0, 31 * number, (*size, 3), np.uint8)
        ours, theirs = (x.logits(image, size=size) for x in (replayed, launched))
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)
    assert replayed.replay.graph is not None and "slower" not in capsys.readouterr().err


def test_an_overflow_in_the_first_step_of_fp16_leaves_the_weights_finite():
    model = build_model("deeplabv3", num_classes=19).cuda()
    optimizer = build_optimizer(model, "sgd", base_lr=0.01, weight_decay=5e-4)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**60)
    how = (FromPixels(model), SegmentationLoss(), optimizer, [batch()])
    for _ in range(50):
        training_step(*how, amp=torch.float16, scaler=scaler)
    assert scaler.get_scale() < 2.0**60, "it did overflow"
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_hard_pixels_are_the_cpu_s():
    logits, labels = torch.randn(4, 19, 16, 32), batch().targets["label"].cpu()
    for options in ({"threshold": 0.1, "min_kept": 5000}, {"threshold": 0.9, "min_kept": 0}):
        expected = hard_pixels(logits, labels, **options)
        found = hard_pixels(logits.cuda(), labels.cuda(), **options).cpu()
        assert (found != expected).float().mean() < 1e-4


@pytest.mark.parametrize("photometric", [False, True])
def test_batches_on_the_gpu_are_those_of_the_cpu(photometric, cityscapes_root):
    dataset = build_dataset("cityscapes", cityscapes_root, "train")
    options = {"batch_size": 2, "crop": (32, 64), "scale": (0.5, 2.0), "flip": True, "seed": 0}
    both = [
        Batches(dataset, **options, workers=2, photometric=photometric, device=torch.device(name))
        for name in ("cuda", "cpu")
    ]
    for one, other in zip(*(batches.run(0, 20) for batches in both), strict=True):
        for a, b in zip(one.tensors(), other.tensors(), strict=True):
            assert torch.equal(a.cpu(), b)


def test_a_training_resumes_on_the_gpu(cityscapes_root, tmp_path):
    """Compiled, an evaluation in the midst, colours, average: from step 4 as before."""
    options = {"device": "cuda", "steps": 8, "eval_every": 4, "save_every": 4, "ema": 0.9}
    options |= {"crop": (64, 128), "photometric": True, "compile": True}
    train(tiny(cityscapes_root, tmp_path, **options), fork=False)
    before = exact_rows(tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("step_00000008-*.pth"):
        path.unlink()
    train(tiny(cityscapes_root, tmp_path, **options, resume="auto"), fork=False)
    for one, other in zip(before, exact_rows(tmp_path / "run"), strict=True):
        assert float(one[2]) == pytest.approx(float(other[2]), rel=3e-2)


@pytest.mark.parametrize("name", sorted({*MODELS} - {*SEMANTIC}))
def test_panoptic_networks_train_on_the_gpu(name, cityscapes_root, tmp_path):
    config = tiny(cityscapes_root, tmp_path, model=name, output_stride=8, steps=8, eval_every=4)
    train(replace(config, device="cuda", compile=None), fork=False)
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert all(isfinite(float(row["loss"])) for row in rows)
    assert [0 <= float(row["pq"]) <= 1 for row in rows if row["pq"]] == [True, True]


def test_evaluation_gives_the_scores_of_the_cpu(cityscapes_root):
    dataset = build_dataset("cityscapes", cityscapes_root, "val")
    model = build_model("deeplabv3", num_classes=19, output_stride=16)
    randomize(model)
    torch.backends.cudnn.allow_tf32 = False
    found, expected = (
        evaluate(model.to(device), dataset, world=World(0, 1, torch.device(device)))
        for device in ("cuda", "cpu")
    )
    assert found.loss == pytest.approx(expected.loss, rel=1e-4)
    assert found.pixel_accuracy == pytest.approx(expected.pixel_accuracy, abs=1e-3)
