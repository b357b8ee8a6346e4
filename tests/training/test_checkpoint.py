"""Checkpoints: exact, checked, safe; foreign and damaged files are one line."""

import os
import pickle
from hashlib import sha256

import pytest
import torch
import torchvision

from utils.base.errors import UserError
from utils.training import network
from utils.training.checkpoint import (
    load_checkpoint,
    point,
    prune,
    save_checkpoint,
    step_files,
)
from utils.training.network import load_backbone_weights
from utils.training.run import find_checkpoint


def state(step: int) -> dict:
    return {"step": step, "model": {"w": torch.full((100,), float(step))}}


def test_a_saved_state_comes_back_and_last_follows(tmp_path):
    for step in (1, 2):
        path = save_checkpoint(tmp_path, state(step))
        assert path.name.startswith(f"step_{step:08d}-")
        assert (tmp_path / "last.pth").resolve() == path
    loaded = load_checkpoint(tmp_path / "last.pth")
    assert loaded["step"] == 2 and torch.equal(loaded["model"]["w"], torch.full((100,), 2.0))
    assert not list(tmp_path.glob(".tmp*"))


def test_pruning_keeps_the_newest_the_best_and_the_last(tmp_path):
    first = save_checkpoint(tmp_path, state(1))
    point(tmp_path / "best.pth", first)
    for step in (2, 3, 4):
        save_checkpoint(tmp_path, state(step))
        prune(tmp_path)
    assert [int(path.name[5:13]) for path in step_files(tmp_path)] == [1, 3, 4]
    assert load_checkpoint(tmp_path / "best.pth")["step"] == 1
    other = save_checkpoint(tmp_path, {**state(4), "again": True})  # after a damaged one
    prune(tmp_path)
    assert step_files(tmp_path)[-1] == other and len(step_files(tmp_path)) == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "html"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    path = save_checkpoint(tmp_path, state(1))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"flip": content, "cut": content[:-1], "empty": b"", "html": b"<html>"}[damage]
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=path.name):
        load_checkpoint(tmp_path / "last.pth")


class Malicious:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_that_runs_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "model": Malicious()}, "zip.pth")
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Malicious()))
    for name, words in {
        "zip.pth": r"holds Python objects \(posix.system\), which could run code",
        "raw.pth": "not a readable weights file",
    }.items():
        with pytest.raises(UserError, match=words):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_foreign_weights_are_not_a_checkpoint(tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "foreign.pth")
    with pytest.raises(UserError, match="not a checkpoint of train.py"):
        load_checkpoint(tmp_path / "foreign.pth")


def test_a_run_is_found_by_name_folder_file_or_as_the_newest(tmp_path):
    for number, name in enumerate(("old", "new")):
        path = save_checkpoint(tmp_path / name / "checkpoints", state(number))
        os.utime(path, (number, number))
    last = tmp_path / "old" / "checkpoints" / "last.pth"
    for spec in ("old", str(tmp_path / "old"), str(last)):
        assert find_checkpoint(spec, tmp_path) == last
    assert find_checkpoint(None, tmp_path).parts[-3] == "new"
    point(last.with_name("best.pth"), last.resolve())
    assert find_checkpoint("old", tmp_path).name == "best.pth"
    for spec, root in (("none", tmp_path), (None, tmp_path / "empty")):
        with pytest.raises(UserError, match="checkpoint"):
            find_checkpoint(spec, root)


def test_backbone_weights_come_from_pretrained_models(tmp_path, monkeypatch):
    monkeypatch.setattr(network, "PRETRAINED", tmp_path)
    weights = torchvision.models.resnet18(weights=None).state_dict()
    path = tmp_path / "resnet18-f37072fd.pth"
    torch.save(weights, path)
    with pytest.raises(UserError, match="damaged or another file"):
        load_backbone_weights("imagenet", "resnet18")
    path.with_name(f"{path.name}.sha256").write_text(sha256(path.read_bytes()).hexdigest())
    loaded = load_backbone_weights("imagenet", "resnet18")
    assert torch.equal(loaded["conv1.weight"], weights["conv1.weight"])
    assert load_backbone_weights(None, "resnet18") is None
    own = load_backbone_weights(str(tmp_path / "resnet18-f37072fd.pth"), "resnet18")
    assert torch.equal(own["conv1.weight"], weights["conv1.weight"])


def test_offline_the_file_to_fetch_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(network, "PRETRAINED", tmp_path)
    monkeypatch.setattr("utils.base.download.TRIES", 1)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # a closed port: no network
    with pytest.raises(UserError, match=r"resnet18-f37072fd\.pth.*--backbone_weights null"):
        load_backbone_weights("imagenet", "resnet18")
    assert not list(tmp_path.iterdir())
