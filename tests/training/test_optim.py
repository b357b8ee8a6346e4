"""The learning-rate curve."""

import pytest
import torch

from utils.training.optim import lr_factor, poly_schedule


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
    schedule, curve, states = poly_schedule(first, start=0, **options), [], []
    for _ in range(20):
        states.append(first.state_dict())
        curve.append(schedule.get_last_lr()[0])
        first.step()
        schedule.step()
    for start in (1, 3, 7, 19):
        again = optimizer()
        again.load_state_dict(states[start])
        schedule = poly_schedule(again, start=start, **options)
        for expected in curve[start:]:
            assert schedule.get_last_lr()[0] == again.param_groups[0]["lr"] == expected
            again.step()
            schedule.step()
