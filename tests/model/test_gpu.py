"""What only an NVIDIA GPU can show: python -m pytest -m gpu"""

from functools import partial

import numpy as np
import pytest
import torch
from helpers import randomize

from datasets import build_dataset
from evaluation.evaluate import evaluate
from evaluation.inference import Predictor
from model import build_model
from model.losses import SegmentationLoss
from model.ops.upsample_cross_entropy import (
    upsample_cross_entropy,
    upsample_cross_entropy_reference,
)
from utils.base.errors import UserError
from utils.data.batches import Batch
from utils.training.distributed import World
from utils.training.optim import build_optimizer
from utils.training.step import training_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


def batch() -> Batch:
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 128, 256, 3), generator=noise, dtype=torch.uint8)
    labels = torch.randint(0, 20, (4, 128, 256), generator=noise, dtype=torch.uint8)
    targets = {"label": labels.masked_fill(labels == 19, 255).cuda()}
    return Batch(images.cuda(), targets, [])


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


@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_never_waits_for_the_device(compiled):
    model = build_model("deeplabv3", num_classes=19).cuda().to(memory_format=torch.channels_last)
    if compiled:
        model.compile()
    optimizer = build_optimizer(model, "sgd", base_lr=0.01, weight_decay=5e-4)
    criterion, crops = SegmentationLoss(hard_threshold=0.7, hard_min_kept=1000), [batch()] * 2
    step = partial(training_step, model, criterion, optimizer, crops, amp=torch.bfloat16, clip=10.0)
    losses = [step() for _ in range(3)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses += [step() for _ in range(20)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert losses[-1] < losses[0]


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
