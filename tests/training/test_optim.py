"""Learning-rate curves and optimizers."""

import copy
import math

import pytest
import torch
from torch import nn

from utils.base.parser import parse
from utils.base.paths import REPOSITORY
from utils.training.config import Config
from utils.training.optim import build_optimizer, lr_factor, lr_schedule, orthogonal


def test_poly_falls_from_one_to_the_floor():
    curve = [lr_factor(s, total=100, warmup=0, power=0.9, floor=0.01) for s in range(101)]
    assert curve[0] == 1 and curve[100] == 0.01
    assert curve[50] == pytest.approx(0.01 + 0.99 * 0.5**0.9)
    assert curve == sorted(curve, reverse=True)


def test_warmup_rises_linearly_to_the_curve():
    warm = [lr_factor(s, total=100, warmup=10, power=0.9, floor=0.0) for s in range(20)]
    plain = [lr_factor(s, total=100, warmup=0, power=0.9, floor=0.0) for s in range(20)]
    assert [w / p for w, p in zip(warm[:10], plain, strict=False)] == pytest.approx(
        [(s + 1) / 10 for s in range(10)]
    )
    assert warm[10:] == plain[10:]


def test_a_resumed_schedule_continues_the_curve():
    def optimizer():
        return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)

    options = {"total": 20, "warmup": 4, "power": 0.9, "floor": 0.01}
    first = optimizer()
    schedule, curve, states = lr_schedule(first, start=0, **options), [], []
    for _ in range(20):
        states.append(first.state_dict())
        curve.append(schedule.get_last_lr()[0])
        first.step()
        schedule.step()
    for start in (1, 3, 7, 19):
        again = optimizer()
        again.load_state_dict(states[start])
        schedule = lr_schedule(again, start=start, **options)
        for expected in curve[start:]:
            assert schedule.get_last_lr()[0] == again.param_groups[0]["lr"] == expected
            again.step()
            schedule.step()


CURVES = {  # value at a quarter, half and three quarters of a training from 1 to 0.01
    "poly": [0.01 + 0.99 * share**0.9 for share in (0.75, 0.5, 0.25)],
    "linear": [0.7525, 0.505, 0.2575],
    "cosine": [0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2 for done in (0.25, 0.5, 0.75)],
    "step": [1, 0.01 + 0.99 * 0.1, 0.01 + 0.99 * 0.01],
    "exponential": [0.01**0.25, 0.1, 0.01**0.75],
}


@pytest.mark.parametrize("schedule", CURVES)
def test_every_schedule_falls_along_its_curve(schedule):
    options = {"total": 300, "warmup": 0, "power": 0.9, "floor": 0.01, "schedule": schedule}
    curve = [lr_factor(step, **options) for step in range(301)]
    assert [curve[step] for step in (75, 150, 225)] == pytest.approx(CURVES[schedule])
    assert curve == sorted(curve, reverse=True) and curve[0] == 1
    assert curve[300] == pytest.approx(0.01, rel=0.2)


def test_the_steps_of_a_schedule_are_its_milestones():
    options = {"total": 90, "warmup": 0, "power": 0.9, "floor": 0.0, "schedule": "step"}
    curve = [lr_factor(step, milestones=(0.6667, 0.8889), **options) for step in range(90)]
    assert curve == pytest.approx([1] * 61 + [0.1] * 20 + [0.01] * 9)


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("configs/c*/upsnet*.yaml")))
def test_recipes_in_steps_fall_to_a_tenth(path):
    config = parse(Config, "", ["--config", str(path)])
    floor = config.min_lr / config.base_lr
    how = {"total": 1000, "warmup": 0, "power": 0.9, "floor": floor, "schedule": config.schedule}
    curve = [lr_factor(step, milestones=config.milestones, **how) for step in range(1000)]
    found = sorted({round(math.log10(factor), 6) for factor in curve}, reverse=True)
    assert found == [-float(number) for number in range(len(config.milestones) + 1)]


def test_one_cycle_is_pytorch_s():
    """Except that PyTorch's curve begins and ends one step earlier."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=1001, final_div_factor=1e9, cycle_momentum=False
    )
    options = {"total": 1000, "warmup": 0, "power": 0.9, "floor": 0.0, "schedule": "onecycle"}
    for step in range(1000):
        expected = theirs.get_last_lr()[0]
        assert lr_factor(step, **options) == pytest.approx(expected, abs=0.01), step
        optimizer.step()
        theirs.step()


def test_orthogonal_keeps_the_singular_vectors_and_evens_the_values():
    noise = torch.Generator().manual_seed(0)
    for shape in ((6, 40), (40, 6), (12, 30)):
        matrix = torch.randn(*shape, generator=noise)
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        values = u.T @ orthogonal(matrix) @ vh.T
        diagonal = values.diagonal()
        assert diagonal.min() > 0.6 and diagonal.max() < 1.3
        assert (values - diagonal.diag()).abs().max() < 1e-3


def test_muon_updates_hidden_convolutions_and_adamw_the_rest():
    """Two steps against the formulas; both kinds decay once."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 32, 3, bias=False), nn.BatchNorm2d(32), nn.Conv2d(32, 2, 1))
    model = model.to(memory_format=torch.channels_last)
    start = copy.deepcopy(model)
    optimizer = build_optimizer(model, "muon", base_lr=0.1, weight_decay=0.5)
    rest = [p for name, p in start.named_parameters() if name != "0.weight"]
    adamw = torch.optim.AdamW(rest, lr=0.1, weight_decay=0.5)
    weight, mean = start[0].weight.detach().clone(), torch.zeros(32, 27)
    for _ in range(2):
        for ours, other in zip(model.parameters(), start.parameters(), strict=True):
            ours.grad = torch.randn_like(ours)
            other.grad = ours.grad.clone()
        optimizer.step()
        adamw.step()
        gradient = model[0].weight.grad.reshape(32, 27)
        mean = 0.95 * mean + 0.05 * gradient
        update = orthogonal(0.05 * gradient + 0.95 * mean).view(weight.shape)
        weight = weight * (1 - 0.1 * 0.5) - 0.1 * 0.2 * 32**0.5 * update
    torch.testing.assert_close(model[0].weight.detach(), weight)
    for (name, ours), other in zip(model.named_parameters(), start.parameters(), strict=True):
        if name != "0.weight":
            torch.testing.assert_close(ours, other)
    state = optimizer.state_dict()
    assert state["state"][0].keys() == {"momentum_buffer", "step"}


def test_adam_has_the_penalty_in_its_gradient_and_adamw_has_not():
    for kind, expected in (("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)):
        model, other = (nn.Linear(3, 2) for _ in range(2))
        other.load_state_dict(model.state_dict())
        optimizer = build_optimizer(model, kind, base_lr=0.1, weight_decay=0.5)
        plain = expected(other.parameters(), lr=0.1, weight_decay=0.5)
        for _ in range(2):
            for a, b in zip(model.parameters(), other.parameters(), strict=True):
                a.grad = b.grad = torch.randn_like(a)
            optimizer.step()
            plain.step()
        torch.testing.assert_close(model.weight, other.weight)
