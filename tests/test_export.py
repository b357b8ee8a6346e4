"""Exported files against this repository's own prediction, run by onnxruntime and torch.export."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import REPOSITORY, randomize, run, tiny
from torch.nn import functional as F

from evaluation.inference import Predictor, predict_logits
from export import EXAMPLE, Plain, compare, write_onnx, write_pt2
from model import build_model
from train import train
from utils.transforms import normalize

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    network = build_model("deeplabv3", num_classes=19, output_stride=32, head_channels=32).eval()
    randomize(network)
    return network


def pictures(sizes) -> list[np.ndarray]:
    """Smooth ones, whose classes form regions."""
    generator = torch.Generator().manual_seed(0)
    coarse = [torch.rand(1, 3, 9, 16, generator=generator) for _ in sizes]
    full = [
        F.interpolate(c, s, mode="bicubic").clamp(0, 1) for c, s in zip(coarse, sizes, strict=True)
    ]
    return [(x[0].permute(1, 2, 0) * 255).byte().numpy() for x in full]


@pytest.mark.parametrize("write", [write_onnx, write_pt2])
def test_exported_files_agree_at_any_size(model, write, tmp_path):
    sizes = [(512, 1024), (355, 479), (360, 480), (33, 65), (360, 480)]
    if write is write_onnx:
        sizes += [(512, 1024), (360, 480), (1024, 2048)]
    path = tmp_path / "model"
    runner = write(Plain(model, scale=1.0, logits=False), path, {"order": json.dumps("RGB")})
    images = pictures(sizes)
    share, *_ = compare(runner, Predictor(model, device=CPU), images)
    assert share >= 0.999
    counts = np.bincount(Predictor(model, device=CPU).labels(images[2]).ravel())
    assert counts.max() < 0.95 * counts.sum()  # there are borders to get wrong
    both = runner(normalize(torch.tensor(np.stack([images[2], images[4]]))))
    assert both.shape == (2, 360, 480) and both.dtype == np.uint8
    assert (both[0] == runner(normalize(torch.tensor(images[2])[None]))[0]).mean() > 0.999


def test_a_scale_is_part_of_the_file(model, tmp_path, scale=0.25):
    runner = write_onnx(Plain(model, scale=scale, logits=True), tmp_path / "m.onnx", {})
    image = torch.tensor(pictures([(130, 258)])[0])[None]
    small = predict_logits(model, image, size=(130, 258), scales=(scale,))
    expected = F.interpolate(small, (130, 258), mode="bilinear")
    np.testing.assert_allclose(runner(normalize(image)), expected.numpy(), atol=1e-3, rtol=1e-3)


def test_the_command_writes_a_checked_file_with_its_facts(cityscapes_root, tmp_path):
    train(tiny(cityscapes_root, tmp_path, steps=1, warmup_steps=0))
    options = ["--checkpoint", "run", "--log_root", tmp_path, "--device", "cpu"]
    done = run("export.py", *options, cwd=tmp_path, fork=False)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "run" / "model.onnx"
    assert "of the pixels of 3 val images agree" in done.stdout
    facts = {x.key: json.loads(x.value) for x in onnx.load(path).metadata_props}
    assert facts["classes"][0] == "road" and facts["ids"][0] == 7 and facts["order"] == "RGB"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    image = (np.zeros((1, 64, 128, 3)) - facts["mean"]) / facts["std"]
    inputs = {"images": image.transpose(0, 3, 1, 2).astype(np.float32)}
    assert session.run(["labels"], inputs)[0].shape == (1, 64, 128)

    done = run("export.py", *options, "--format", "pt2", "--logits", "true", fork=False)
    assert done.returncode == 0, done.stderr
    network = torch.export.load(tmp_path / "run" / "model.pt2").module()
    assert network(torch.zeros(EXAMPLE)).shape == (2, 19, *EXAMPLE[2:])
    for arguments, words in (
        (["--flip", "true"], "predicts at one scale"),
        (["--output", "no/such.onnx"], "no file in an existing folder"),
        (["--images", "0"], "--images must be at least 1"),
    ):
        done = run("export.py", *options, *arguments)
        assert done.returncode == 2 and words in done.stderr
    assert not list(tmp_path.rglob(".tmp-*"))


def test_a_file_that_predicts_something_else_is_refused(cityscapes_root, tmp_path):
    """Of a network whose export rounds its input: nothing is written, an earlier file stays."""
    train(tiny(cityscapes_root, tmp_path, steps=1, warmup_steps=0))
    kept = tmp_path / "run" / "model.pt2"
    kept.write_text("earlier")
    script = tmp_path / "rounded.py"
    script.write_text(
        f"import sys\nsys.path[0] = {str(REPOSITORY)!r}\nimport export\n"
        "forward = export.Plain.forward\n"
        "export.Plain.forward = lambda self, x: forward(self, x.round())\n"
        "export.run_command(export.main)\n"
    )
    options = ["--checkpoint", "run", "--log_root", tmp_path, "--device", "cpu"]
    done = run(script, *options, "--format", "pt2", fork=False)
    assert done.returncode == 2, done.stderr
    assert "of the pixels as predicted here, not written" in done.stderr
    assert kept.read_text() == "earlier"
