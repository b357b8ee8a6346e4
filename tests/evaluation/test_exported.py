"""Exported files against this repository's own prediction, run by onnxruntime and torch.export."""

import json

import cv2
import numpy as np
import onnx
import pytest
import torch
from helpers import randomize
from torch.nn import functional as F

from evaluation.exported import Plain, compare, halve, write_onnx, write_pt2
from evaluation.inference import Predictor, predict_logits
from model import build_model
from model.compat import Compat
from model.normalize import normalize
from utils.data.label_table import CITYSCAPES

CPU, CLASSES = torch.device("cpu"), CITYSCAPES.without_instances()


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
    samples = [{"image": x, "label": np.zeros(x.shape[:2], np.uint8)} for x in images]
    results = compare({"file": runner}, Predictor(model, device=CPU), samples, CLASSES)
    assert results["file"].same >= 0.999 and results["predict.py"].same == 1
    assert results["file"].miou == pytest.approx(results["predict.py"].miou, abs=1e-3)
    counts = np.bincount(Predictor(model, device=CPU).train_ids(images[2]).ravel())
    assert counts.max() < 0.95 * counts.sum()  # there are borders to get wrong
    (both,) = runner(normalize(torch.tensor(np.stack([images[2], images[4]]))))
    assert both.shape == (2, 360, 480) and both.dtype == np.uint8
    assert (both[0] == runner(normalize(torch.tensor(images[2])[None]))[0][0]).mean() > 0.999


def test_a_file_in_float16_has_half_the_size_and_nearly_the_same_labels(model, tmp_path):
    path = tmp_path / "model.onnx"
    write_onnx(Plain(model, scale=1.0, logits=False), path, {"order": json.dumps("RGB")})
    size = path.stat().st_size
    runner = halve(path)
    assert 0.48 < path.stat().st_size / size < 0.55
    assert onnx.load(path).metadata_props[0].key == "order"
    image = pictures([(360, 480)])[0]
    samples = [{"image": image, "label": Predictor(model, device=CPU).train_ids(image)}]
    result = compare({"half": runner}, Predictor(model, device=CPU), samples, CLASSES)["half"]
    assert 0.99 < result.same < 1  # in float32 it would be 1
    assert 0.9 < result.miou < 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["padded", "fregu856", "fcn8s"])
def test_a_pt2_file_takes_any_size_from_64_pixels_on(model, tmp_path, kind):
    options = {"padded": {"pad": (193, 193)}, "fregu856": {"bgr": True, "resize": (64, 128)}}
    network = (
        Compat(model, **options[kind]) if kind in options else build_model(kind, num_classes=4)
    )
    plain = Plain(network, scale=1.0, logits=True)
    runner = write_pt2(plain, tmp_path / "m.pt2", {})
    for size in ((64, 64), (65, 97), (150, 201), (201, 150), (257, 300)):
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            expected = plain(images).numpy()
        np.testing.assert_allclose(runner(images)[0], expected, rtol=1e-4, atol=1e-5)


def opencv(path):
    network = cv2.dnn.readNetFromONNX(str(path))

    def run(images: torch.Tensor) -> list[np.ndarray]:
        network.setInput(images.numpy())
        return [network.forward()]

    return run


@pytest.mark.parametrize(("scale", "logits"), [
    (0.25, True),
    *(pytest.param(*row, marks=pytest.mark.slow) for row in (
        (0.25, False), (0.3, True), (0.3, False), (1.0, True), (1.5, True), (1.5, False),
    )),
])  # fmt: skip
def test_a_scale_is_part_of_the_file_and_the_same_in_every_program(model, tmp_path, scale, logits):
    """OpenCV ignores that a Resize is antialiased, so there is none."""
    path = tmp_path / "m.onnx"
    runners = [write_onnx(Plain(model, scale=scale, logits=logits), path, {}), opencv(path)]
    if scale == 0.3:
        runners.append(write_pt2(Plain(model, scale=scale, logits=logits), tmp_path / "m.pt2", {}))
    resizes = [node for node in onnx.load(path).graph.node if node.op_type == "Resize"]
    assert not any(x.i for node in resizes for x in node.attribute if x.name == "antialias")
    for size in ((131, 258), (150, 201)):
        image = torch.tensor(pictures([size])[0])[None]
        noisy = image + torch.randint(0, 40, image.shape, dtype=torch.uint8) // 2
        small = predict_logits(model, noisy, size=size, scales=(scale,))
        expected = F.interpolate(small, size, mode="bilinear").numpy()
        for runner in runners:
            (found,) = runner(normalize(noisy))
            if logits:
                np.testing.assert_allclose(found, expected, atol=1e-4)
            else:
                assert (found == expected.argmax(1)).mean() > 0.999
    (tiny,) = runners[0](torch.zeros(1, 3, 1, 3))
    assert tiny.shape[-2:] == (1, 3)  # pixels that a scale rounds to 0
