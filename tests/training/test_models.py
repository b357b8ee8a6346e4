"""Every architecture trains, resumes, is scored, predicts and is exported as DeepLabV3 does."""

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
from helpers import assert_same_bits, exact_rows, fails, final_state, run, tiny, train

from evaluation.task import TASKS
from model import MODELS, option_names
from utils.training.checkpoint import step_files


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_everything_works_for_it(name, cityscapes_root, tmp_path):
    options = {"model": name, "steps": 4, "save_every": 2, "ema": 0.9, "clip_grad": 1.0}
    options |= {
        "aux": "aux" in option_names(name),
        "run_name": "whole",
        "base_lr": 1e-3,
    }
    least = getattr(MODELS[name], "smallest_image", 1)
    if least > 64:  # the images have 64x128 pixels
        options |= {"crop": (least, least), "scale": (4.0, 4.0), "eval_scales": (4.0,)}
    if "output_stride" not in option_names(name):
        options["output_stride"] = 8  # the default, which stands for no choice
    config = tiny(cityscapes_root, tmp_path, **options)
    train(config)
    shutil.copytree(tmp_path / "whole", tmp_path / "half", symlinks=True)
    for path in step_files(tmp_path / "half" / "checkpoints")[1:]:
        path.unlink()
    train(replace(config, run_name="half", resume="auto"))
    assert exact_rows(tmp_path / "half") == exact_rows(tmp_path / "whole")
    assert_same_bits(final_state(tmp_path / "half"), final_state(tmp_path / "whole"))

    whole = ("--log_root", tmp_path, "--checkpoint", "whole")
    done = run("evaluation/eval_on_val_for_metrics.py", *whole)
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "model_eval_val" / "scores.json").read_text())
    trained = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert scores["miou"] == pytest.approx(trained["miou"], abs=1e-3)

    photo = tmp_path / "photo.png"
    cv2.imwrite(str(photo), np.random.default_rng(0).integers(0, 256, (97, 131, 3), np.uint8))
    side = max(64, least)
    windows = ("--crop", f"[{side},{side}]", "--stride", f"[{side - 16},{side - 16}]")
    for more in ((), windows)[: 1 if TASKS[MODELS[name].task].instances else 2]:
        out = tmp_path / f"out{len(more)}"
        done = run("predict.py", photo, *whole, "--output", out, *more)
        assert done.returncode == 0, done.stderr
        assert len(list(out.rglob("*.png"))) >= 1
    if getattr(MODELS[name], "dynamic", False):
        fails(run("export.py", *whole), "has no ONNX or pt2 form", "Export another network")
        return
    done = run("export.py", *whole, fork=False)
    assert done.returncode == 0, done.stderr
    fp32 = done.stdout.splitlines()[-1].split()
    assert fp32[0] == "fp32" and float(fp32[3].rstrip("%")) >= 99.9
