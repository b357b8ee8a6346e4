"""The times of a video's frames; tests/commands/test_predict.py has whole videos."""

from pathlib import Path

import pytest

from evaluation.video import even


@pytest.mark.parametrize(("times", "expected"), [
    ((), []),
    ((0.7,), [0]),
    ((0, 0.083, 0.167, 0.25), [0, 1, 2, 3]),  # milliseconds, as WebM holds them
    ((3, 3.1, 3.2, 3.3), [0, 1, 2, 3]),
    ((0, 0, 0, 0), [0, 1, 2, 3]),  # no times
    ((0, 0.2, 0.1, 0.3), [0, 0, 1, 3]),  # 2 and 3 fall together
    ((0, 0.5, 0.6), [0, 0, 0, 0, 0, 1, 2]),
    ((0, 0.01, 0.02, 0.1, 0.2), [2, 3, 4]),
])  # fmt: skip
def test_frames_are_made_even(times, expected, capsys):
    rate = 12 if 0.083 in times else 10
    frames = list(even(((time, number) for number, time in enumerate(times)), rate, Path("x")))
    assert frames == expected
    changed = frames != list(range(len(times)))
    assert capsys.readouterr().out.count("variable frame rate") == changed
