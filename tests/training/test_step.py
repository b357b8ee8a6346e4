"""Every option of a training step does what it says, once."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from model import build_model
from model.layers import freeze_norms, set_momentum
from model.losses import SegmentationLoss
from model.normalize import FromPixels, distort, normalize
from model.ops.upsample_cross_entropy import hard_pixels, upsample_cross_entropy_reference
from utils.data.augment import color_matrix
from utils.data.batches import Batch
from utils.training.optim import AveragedWeights, begin_momentum, build_optimizer
from utils.training.replay import Replay
from utils.training.step import training_step


def network(**options) -> nn.Module:
    torch.manual_seed(0)
    return build_model("deeplabv3", num_classes=5, output_stride=32, dropout=0.0, **options)


def batch(count: int = 8) -> Batch:
    noise = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 32, 64, 3), generator=noise, dtype=torch.uint8)
    labels = torch.randint(0, 6, (count, 32, 64), generator=noise, dtype=torch.uint8)
    labels[labels == 5] = 255
    labels[0, :24] = 255  # micro-batches have different numbers of labelled pixels
    return Batch(images, {"label": labels}, [])


def cut(whole: Batch, parts: int) -> list[Batch]:
    pairs = zip(whole.images.chunk(parts), whole.targets["label"].chunk(parts), strict=True)
    return [Batch(images, {"label": labels}, []) for images, labels in pairs]


def sgd(model: nn.Module, **options) -> torch.optim.Optimizer:
    return build_optimizer(model, "sgd", **{"base_lr": 0.1, "weight_decay": 0.0, **options})


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2, 3, 4, 5])])
def test_one_step_is_plain_pytorch_s(weights):
    ours, plain, whole = network(aux=True), network(aux=True), batch()
    torch.manual_seed(1)  # the auxiliary head's dropout
    loss = training_step(
        FromPixels(ours), SegmentationLoss(class_weights=weights), sgd(ours), [whole]
    )
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9)
    outputs, labels = plain(normalize(whole.images)), whole.targets["label"]
    parts = [
        upsample_cross_entropy_reference(outputs[name], labels, class_weights=weights)
        for name in ("out", "aux")
    ]
    out, aux = (loss_sum / weight_sum for loss_sum, weight_sum in parts)
    expected = out + 0.4 * aux
    assert aux.item() != out.item()
    expected.backward()
    optimizer.step()
    torch.testing.assert_close(loss, expected.detach())
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{}, {"class_weights": torch.tensor([1.0, 2, 3, 4, 5])}, {"label_smoothing": 0.1}]
)
def test_1_x_8_is_2_x_4_and_4_x_2(options):
    """With frozen BatchNorm, whose statistics would differ."""
    whole, results = batch(), []
    for parts in (1, 2, 4):
        model = network().double()
        freeze_norms(model)
        optimizer = sgd(model)
        criterion = SegmentationLoss(**options).double()
        pieces = cut(whole, parts)
        losses = [
            training_step(FromPixels(InDouble(model)), criterion, optimizer, pieces)
            for _ in range(2)
        ]
        results.append((torch.stack(losses), [p.detach() for p in model.parameters()]))
    for losses, parameters in results[1:]:
        torch.testing.assert_close(losses, results[0][0], rtol=1e-6, atol=0)
        for a, b in zip(parameters, results[0][1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    assert results[0][0][0] != results[0][0][1]


class InDouble(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.model(images.double())


def test_steps_that_cannot_be_recorded_are_launched_as_before(capsys):
    """As here, without a GPU: said once; gradients of two micro-batches are added to zeros."""
    losses = []
    for replay in (None, Replay()):
        model = network()
        optimizer, pieces = sgd(model), cut(batch(), 2)
        how = (FromPixels(model), SegmentationLoss(), optimizer, pieces)
        losses.append([training_step(*how, replay=replay).item() for _ in range(4)])
    assert losses[0] == losses[1]
    assert capsys.readouterr().err.count("no CUDA graph could be recorded") == 1


def test_a_batch_without_labels_changes_nothing():
    model, whole = network(), batch()
    freeze_norms(model)
    before = copy.deepcopy(model.state_dict())
    ignored = torch.full_like(whole.targets["label"], 255)
    nothing = Batch(whole.images, {"label": ignored}, [])
    assert training_step(FromPixels(model), SegmentationLoss(), sgd(model), [nothing]) == 0
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_hard_pixels_alone_are_learned_by_both_heads():
    model, whole = network(aux=True), batch()
    outputs, labels = model(normalize(whole.images)), whole.targets["label"]
    criterion = SegmentationLoss(hard_threshold=0.2, hard_min_kept=100)
    loss_sum, weight_sum = criterion(outputs, whole.targets)
    kept = hard_pixels(outputs["out"], labels, threshold=0.2, min_kept=100)
    out, aux = (upsample_cross_entropy_reference(outputs[k], kept) for k in ("out", "aux"))
    assert 100 <= weight_sum < (labels != 255).sum()
    torch.testing.assert_close(loss_sum, out[0] + 0.4 * aux[0])
    assert weight_sum == out[1] == aux[1]


def test_label_smoothing_reaches_the_loss():
    outputs, targets = network()(normalize(batch().images)), batch().targets
    smoothed = SegmentationLoss(label_smoothing=0.2)(outputs, targets)[0]
    expected = upsample_cross_entropy_reference(
        outputs["out"], targets["label"], label_smoothing=0.2
    )[0]
    torch.testing.assert_close(smoothed, expected)
    assert smoothed != SegmentationLoss()(outputs, targets)[0]


def test_clipping_limits_the_norm_of_the_mean_s_gradient():
    """Of the mean over all micro-batches, not of sums or parts."""
    norms = []
    for clip in (None, 1e9, 0.5):
        model = network()
        training_step(FromPixels(model), SegmentationLoss(), sgd(model), cut(batch(), 2), clip=clip)
        gradients = [p.grad.flatten() for p in model.parameters()]
        norms.append(torch.cat(gradients).double().norm().item())
    assert norms[0] == pytest.approx(norms[1]) and norms[0] > 0.6
    assert norms[2] == pytest.approx(0.5, rel=1e-4)


def test_norms_synchronized_between_gpus_freeze_too():
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(network())
    norms = [x for x in model.modules() if isinstance(x, torch.nn.SyncBatchNorm)]
    set_momentum(model, 0.25, 0.25)
    freeze_norms(model)
    assert norms and all(norm.momentum == 0.25 and not norm.training for norm in norms)
    assert not any(parameter.requires_grad for norm in norms for parameter in norm.parameters())


def test_fp16_scales_the_loss_and_skips_what_overflows():
    model, whole = network(), batch(2)
    freeze_norms(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    step = partial(
        training_step, FromPixels(model), SegmentationLoss(), sgd(model), [whole], scaler=scaler
    )
    exact = copy.deepcopy(model)
    expected = training_step(FromPixels(exact), SegmentationLoss(), sgd(exact), [whole])
    torch.testing.assert_close(step(), expected)
    for a, b in zip(model.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    before = copy.deepcopy(model.state_dict())
    scaler.update(new_scale=float("inf"))
    step()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_an_overflow_in_the_first_step_of_fp16_changes_nothing(kind):
    """The step after it is then the first one: no momentum is left without values."""
    model, whole = network(), batch(2)
    freeze_norms(model)
    plain = copy.deepcopy(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=float("inf"))
    optimizer = build_optimizer(model, kind, base_lr=0.1, weight_decay=0.01)
    step = partial(training_step, FromPixels(model), SegmentationLoss(), optimizer, [whole])
    step(scaler=scaler)
    scaler.update(new_scale=2.0**10)
    for _ in range(3):
        step(scaler=scaler)
    other = build_optimizer(plain, kind, base_lr=0.1, weight_decay=0.01)
    for _ in range(3):
        training_step(FromPixels(plain), SegmentationLoss(), other, [whole])
    for a, b in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_state_without_momentum_gets_zeros_and_any_other_is_left_alone():
    """As of a run of before, stopped in front of its first step."""
    optimizer = sgd(network())
    empty = optimizer.state_dict() | {"state": {}}
    optimizer.load_state_dict(empty)
    begin_momentum(optimizer)
    buffers = [state["momentum_buffer"] for state in optimizer.state.values()]
    assert len(buffers) == len(optimizer.param_groups[0]["params"])
    assert not any(buffer.any() for buffer in buffers)
    buffers[0] += 1
    begin_momentum(optimizer)
    assert buffers[0].all()


def test_parameter_groups():
    model = network(aux=True)
    plain = sgd(model, weight_decay=0.1)
    assert len(plain.param_groups) == 1
    groups = sgd(model, weight_decay=0.1, head_lr_factor=10, decay_norm=False).param_groups
    options = {
        id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        rate = 0.1 if name.startswith("backbone.") else 1.0
        decay = 0.1 if parameter.ndim > 1 else 0.0
        assert options.pop(id(parameter)) == (pytest.approx(rate), decay)
    assert not options


def test_frozen_norms_keep_statistics_and_weights():
    model = network()
    freeze_norms(model)
    before = copy.deepcopy(model.state_dict())
    optimizer = sgd(model, weight_decay=0.1)
    training_step(FromPixels(model), SegmentationLoss(), optimizer, [batch()])
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for key, value in model.state_dict().items():
        assert torch.equal(before[key], value) == (key.rpartition(".")[0] in norms), key


def test_averaged_weights_follow_the_formula_and_its_buffers():
    model = network()
    average = AveragedWeights(model, 0.9)
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    for step in (1, 2, 3, 200):
        training_step(FromPixels(model), SegmentationLoss(), sgd(model), [batch()])
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for key, value in model.state_dict().items():
            mixed = decay * expected[key] + (1 - decay) * value
            expected[key] = mixed if value.is_floating_point() else value.clone()
    for key, value in average.model.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-6)
    assert not torch.equal(average.model.backbone.conv1.weight, model.backbone.conv1.weight)
    assert average.model.backbone.bn1.num_batches_tracked == 4


def test_colours_change_as_the_matrix_says_and_stay_in_range():
    matrices = np.stack([color_matrix(0, 0, index) for index in range(64)])
    assert np.array_equal(matrices[3], color_matrix(0, 0, 3))
    assert not np.array_equal(matrices[3], color_matrix(0, 1, 3))
    unchanged = [np.allclose(m, np.eye(3, 4)) for m in matrices]
    assert 0 < sum(unchanged) < 16  # one in 16 draws nothing
    images = batch(64).images
    changed = distort(images, torch.from_numpy(matrices))
    pixel = images[5, 3, 7].numpy().astype(float)
    expected = np.clip(matrices[5, :, :3] @ pixel + matrices[5, :, 3], 0, 255)
    np.testing.assert_allclose(changed[5, 3, 7], expected, rtol=1e-4, atol=1e-3)
    assert changed.min() >= 0 and changed.max() <= 255
    grey = torch.full((64, 1, 1, 3), 128, dtype=torch.uint8)  # has no hue, no saturation
    assert (distort(grey, torch.from_numpy(matrices)).std(3) < 1e-3).all()
    same = torch.eye(3, 4).expand(64, 3, 4).contiguous()
    torch.testing.assert_close(distort(images, same), images.float())


def test_colours_reach_the_step():
    whole, losses = batch(), []
    dark = torch.eye(3, 4).expand(8, 3, 4) * 0.1
    for colors in (None, torch.eye(3, 4).expand(8, 3, 4).contiguous(), dark.contiguous()):
        model = network()
        one = Batch(whole.images, whole.targets, [], colors)
        losses.append(training_step(FromPixels(model), SegmentationLoss(), sgd(model), [one]))
    torch.testing.assert_close(losses[0], losses[1])
    assert abs(losses[2] / losses[0] - 1) > 1e-3
