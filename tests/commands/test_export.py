"""export.py as users run it; evaluation/test_exported.py compares the files themselves."""

import json

import numpy as np
import onnx
import onnxruntime
import torch
from helpers import fails, run, tiny, train

from evaluation.exported import EXAMPLE, Plain


def test_the_command_writes_a_checked_file_with_its_facts(cityscapes_root, tmp_path):
    train(tiny(cityscapes_root, tmp_path, steps=1, warmup_steps=0))
    options = ["--checkpoint", "run", "--log_root", tmp_path, "--device", "cpu"]
    done = run("export.py", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "run" / "model.onnx"
    assert "compared on 3 val images of 128x64" in done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == ["predict.py", "fp32"]
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
    done = run("export.py", *options, "--half", "true", "--output", "half.onnx", cwd=tmp_path)
    assert done.returncode == 0 and "fp16" in done.stdout, done.stderr
    assert (tmp_path / "half.onnx").stat().st_size < 0.55 * path.stat().st_size
    alone = tmp_path / "a" / "alone.pth"  # belongs to no run: the file lies beside it
    alone.parent.mkdir()
    alone.write_bytes((tmp_path / "run" / "checkpoints" / "last.pth").read_bytes())
    done = run("export.py", "--checkpoint", alone, "--device", "cpu")
    assert done.returncode == 0 and alone.with_suffix(".onnx").is_file(), done.stderr
    for arguments, words in (
        (["--flip", "true"], "predicts at one scale"),
        (["--half", "true", "--format", "pt2"], "--half must be false for pt2"),
        (["--output", "no/such.onnx"], "not a file name in an existing folder"),
        (["--images", "0"], "--images must be at least 1"),
    ):
        fails(run("export.py", *options, *arguments), words)
    assert not list(tmp_path.rglob(".tmp-*"))


def test_what_is_no_class_has_an_ignored_id(cityscapes_root, tmp_path):
    """As the 20th output of fregu856's network."""
    train(tiny(cityscapes_root, tmp_path, steps=1, warmup_steps=0))
    state = torch.load(tmp_path / "run" / "checkpoints" / "last.pth", weights_only=True)
    state["network"]["num_classes"] = 20
    for end in ("weight", "bias"):
        last = state["model"][f"classifier.4.{end}"]
        state["model"][f"classifier.4.{end}"] = torch.cat([last, last[:1] - 9])
    torch.save(state, tmp_path / "twenty.pth")
    options = ["--checkpoint", tmp_path / "twenty.pth", "--log_root", tmp_path, "--device", "cpu"]
    done = run("export.py", *options, "--output", tmp_path / "void.onnx")
    assert done.returncode == 0, done.stderr
    facts = {x.key: json.loads(x.value) for x in onnx.load(tmp_path / "void.onnx").metadata_props}
    assert facts["classes"][19] == "void" and facts["ids"][18:] == [33, 0]
    assert len(facts["colors"]) == 20 and facts["colors"][19] == [0, 0, 0]


def round_input() -> None:
    forward = Plain.forward
    Plain.forward = lambda self, x: forward(self, x.round())


def test_a_file_that_predicts_something_else_is_refused(cityscapes_root, tmp_path):
    """Of a network whose export rounds its input: nothing is written, an earlier file stays."""
    train(tiny(cityscapes_root, tmp_path, steps=1, warmup_steps=0))
    kept = tmp_path / "run" / "model.pt2"
    kept.write_text("earlier")
    options = ["--checkpoint", "run", "--log_root", tmp_path, "--device", "cpu"]
    done = run("export.py", *options, "--format", "pt2", first=round_input)
    fails(done, f"{kept}: not written, only", "of the pixels agree with predict.py")
    assert kept.read_text() == "earlier" and not list(tmp_path.rglob(".tmp-*"))
