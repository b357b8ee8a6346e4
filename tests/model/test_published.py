"""hub:NAME against a local server with made files in the published formats."""

import hashlib
import os
import socket
import struct
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest
import torch
import torchvision
from helpers import Command, fails, randomize, run, write_cityscapes
from test_convert import Mmseg

from evaluation import converted
from utils.base import download
from utils.base.errors import UserError
from utils.training import network, published
from utils.training.network import load_backbone_weights

NAME = "deeplabv3_resnet18_cityscapes"


class Server(ThreadingHTTPServer):
    """Serves bytes by path; `cuts`: bytes after which it drops the next connections."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.answer: tuple[int, str, bytes] | None = None  # status, type and text of all answers
        self.reset = False  # drop it without a farewell
        self.pause = 0.0  # seconds before an answer
        self.asked: list[str | None] = []  # the Range of every request
        self.address = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        span = self.headers["Range"]
        self.server.asked.append(span)
        time.sleep(self.server.pause)
        if self.server.answer is not None:
            status, kind, text = self.server.answer
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            return self.wfile.write(text)
        if self.path not in self.server.files:
            return self.send_error(404)
        content = self.server.files[self.path]
        start = int(span.removeprefix("bytes=").rstrip("-")) if span else 0
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        end = start + self.server.cuts.pop(0) if self.server.cuts else None
        self.wfile.write(content[start:end])
        if end and self.server.reset:
            self.wfile.flush()
            time.sleep(0.2)  # the client reads first
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    with Server() as found:
        Thread(target=found.serve_forever, daemon=True).start()
        yield found
        found.shutdown()


@pytest.fixture(scope="module")
def weights() -> bytes:
    """mmsegmentation's file of NAME, with random weights."""
    theirs, content = Mmseg(18, deep_stem=True), BytesIO()
    randomize(theirs)
    torch.save({"meta": {"iter": 80000}, "state_dict": theirs.state_dict()}, content)
    return content.getvalue()


def keep_in(folder: Path) -> None:
    """Published networks are kept in `folder`, after at most two attempts."""
    for module in (converted, network, published):
        module.PRETRAINED = folder
    download.TRIES = 2


@pytest.fixture
def spec(server, weights, tmp_path, monkeypatch) -> str:
    """hub:NAME with the made file's digits; the server has it, pretrained_models/ is empty."""
    for command in (run, Command):
        kept = partial(command, first=partial(keep_in, tmp_path / "pretrained"))
        monkeypatch.setitem(globals(), command.__name__, kept)
    monkeypatch.setenv("WEIGHTS_MIRROR", server.address)
    server.files[urlsplit(published.published()[NAME].url).path] = weights
    return f"hub:{NAME}@{hashlib.sha256(weights).hexdigest()[:8]}"


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "street.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (97, 161, 3), np.uint8))
    return path


def test_a_photo_is_predicted_after_a_cut_download(server, spec, weights, photo, tmp_path):
    server.cuts = [1_000_000]
    words = ("predict.py", photo, "--checkpoint", spec, "--output", tmp_path / "out")
    done = run(*words, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert server.asked == [None, "bytes=1000000-"]
    assert "Apache License 2.0" in done.stdout and "published: 76.7 % mIoU" in done.stdout
    assert (tmp_path / "out" / "labels" / "street_pred_label_img.png").is_file()
    folder = tmp_path / "pretrained"
    file = folder / published.published()[NAME].file
    assert file.read_bytes() == weights and not list(folder.glob("*.part"))
    pinned = file.with_name(f"{file.name}.sha256").read_text()
    assert pinned == hashlib.sha256(weights).hexdigest()

    done = run(*words, "--device", "cpu")  # nothing is downloaded, converted or printed again
    assert done.returncode == 0 and len(server.asked) == 2
    assert "Apache" not in done.stdout and "published:" not in done.stdout
    convert = ("utils/convert_checkpoint.py", f"hub:{NAME}", "--log_root", tmp_path / "logs")
    done = run(*convert)  # the pinned hash counts, not the name's
    assert done.returncode == 0 and "published: 76.7" in done.stdout, done.stderr
    assert (tmp_path / "logs" / NAME / "checkpoints" / "last.pth").is_file()
    file.write_bytes(weights[:-1] + b"x")
    fails(run(*convert, "--run_name", "again"), "damaged or another file")
    assert not (tmp_path / "logs" / "again").exists()


def test_a_download_cut_in_every_attempt_is_continued_by_the_next_command(server, spec, tmp_path):
    server.cuts = [1_000_000, 2_000_000]
    convert = ("utils/convert_checkpoint.py", spec, "--log_root", tmp_path / "logs")
    fails(run(*convert), "cut after 3,000,000 of", "by hand", "WEIGHTS_MIRROR")
    assert run(*convert).returncode == 0
    assert server.asked == [None, "bytes=1000000-", "bytes=3000000-"]


def test_wrong_digits_are_refused_and_the_file_removed(server, spec, photo, tmp_path):
    convert = ("utils/convert_checkpoint.py", f"hub:{NAME}", "--log_root", tmp_path / "logs")
    fails(run(*convert), "removed", f"SHA-256 is {spec[-8:]}", "expected is 23dffbe2", f"{NAME}@")
    assert not list((tmp_path / "pretrained").glob("*.p*"))
    other = f"hub:{NAME}@00000000"  # perhaps mistyped: the file stays
    fails(run("utils/convert_checkpoint.py", other, *convert[2:]), "kept as .part", "00000000...")
    assert server.asked == [None, None]
    done = run("utils/convert_checkpoint.py", spec.upper().replace(NAME.upper(), NAME).replace(
        "HUB", "hub"), *convert[2:])  # fmt: skip
    assert done.returncode == 0, done.stderr
    fails(run("evaluation/report.py", "--checkpoint", other), "expected is 00000000")
    for odd in ("", "zzz", "1234567", "1" * 65):
        fails(run("predict.py", photo, "--checkpoint", f"hub:{NAME}@{odd}"), "8 to 64 digits")


def test_without_the_file_or_a_network_the_address_is_named(server, spec, photo, tmp_path):
    server.files.clear()
    words = ("predict.py", photo, "--output", tmp_path / "out", "--checkpoint", spec)
    fails(run(*words), f"{server.address}/mmsegmentation/v0.5/deeplabv3/", "404")
    fails(run(*words, WEIGHTS_MIRROR="http://127.0.0.1:9"), "refused", "127.0.0.1:9/mmseg")
    fails(run("predict.py", photo, "--checkpoint", "hub:resnet"), "unknown", "hub:")
    assert not (tmp_path / "pretrained").exists()


@pytest.mark.parametrize(
    ("answer", "words"),
    [((200, "text/html", b"<p>Log in"), "a web page"), ((416, "text/plain", b""), "416"),
     ((204, "text/plain", b""), "removed"), ((302, "text/plain", b""), "302")],
)  # fmt: skip
def test_odd_answers_are_one_line(server, spec, tmp_path, answer, words):
    server.answer = answer
    fails(run("utils/convert_checkpoint.py", spec.partition("@")[0], "--log_root", tmp_path), words)


@pytest.mark.parametrize("mirror", ["foo", "/some/path", "file:///etc", "http://[::1", "http://ä"])
def test_a_mirror_that_is_none_is_one_line(spec, tmp_path, mirror):
    convert = ("utils/convert_checkpoint.py", spec, "--log_root", tmp_path)
    fails(run(*convert, WEIGHTS_MIRROR=mirror), "cannot be downloaded", "download.openmmlab.com")


def test_a_connection_that_is_reset_keeps_what_arrived(server, spec, weights, tmp_path):
    server.cuts, server.reset = [300_000], True
    done = run("utils/convert_checkpoint.py", spec, "--log_root", tmp_path / "logs")
    assert done.returncode == 0 and "trying again" in done.stdout, done.stderr
    assert server.asked[0] is None and 200_000 < int(server.asked[1][6:-1]) <= 300_000


def test_odd_files_in_the_way_are_one_line(server, spec, weights, tmp_path):
    folder = tmp_path / "pretrained"
    folder.mkdir()
    file = folder / published.published()[NAME].file
    convert = ("utils/convert_checkpoint.py", f"hub:{NAME}", "--log_root", tmp_path / "logs")
    os.mkfifo(file.with_name(f"{file.name}.part"))
    fails(run(*convert), "not a plain file")
    file.with_name(f"{file.name}.part").unlink()
    file.mkdir()
    fails(run(*convert), "not a plain file")
    file.rmdir()
    file.write_bytes(weights)
    hashed = file.with_name(f"{file.name}.sha256")
    for noted in (b"\xff\xfe", b"12345678"):  # then the digits in the name count
        hashed.write_bytes(noted)
        fails(run(*convert), "expected is 23dffbe2", hashed.name)
    hashed.write_text(f"{hashlib.sha256(weights).hexdigest().upper()}  {file.name}\n")  # sha256sum
    assert run(*convert).returncode == 0


def test_a_report_of_it_on_the_data_set_that_is_there_now(server, spec, tmp_path, photo):
    predict = ("predict.py", photo, "--checkpoint", spec, "--device", "cpu", "--output")
    done = run(*predict, tmp_path / "out", CITYSCAPES_DATASET="/none")
    assert done.returncode == 0, done.stderr
    root = write_cityscapes(tmp_path / "data", train=1, val=1)
    page = tmp_path / "report.html"
    report = ("evaluation/report.py", "--checkpoint", spec, "--device", "cpu", "--output", page)
    done = run(*report, CITYSCAPES_DATASET=str(root))
    assert done.returncode == 0 and "mmsegmentation" in page.read_text(), done.stderr


def test_two_processes_download_once(server, spec, photo, tmp_path):
    server.pause = 1.0
    words = ("predict.py", photo, "--device", "cpu", "--checkpoint", spec, "--output")
    both = [Command(*words, tmp_path / f"out{number}") for number in range(2)]
    for done in [command.end() for command in both]:
        assert done.returncode == 0, done.stderr
    assert server.asked == [None]


def test_a_training_starts_from_it(server, spec, tmp_path):
    root = write_cityscapes(tmp_path / "data", train=2, val=1)
    run("utils/preprocess_data.py", "--data_root", root)
    done = run(
        "train.py", "--data_root", root, "--log_root", tmp_path, "--init_from", spec, "--device",
        "cpu", "--crop", "[32,64]", "--batch_size", 2, "--steps", 1, "--class_weights", "false",
    )  # fmt: skip
    assert done.returncode == 0 and "weights of" in done.stdout, done.stderr


def test_imagenet_s_weights_come_through_the_same_door(server, spec, tmp_path, monkeypatch):
    monkeypatch.setattr(network, "PRETRAINED", tmp_path / "pretrained")
    content = BytesIO()
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), content)
    server.files["/models/resnet18-f37072fd.pth"] = content.getvalue()
    with pytest.raises(UserError, match="removed.*expected is f37072fd.*--backbone_weights null"):
        load_backbone_weights("imagenet", "resnet18")


def test_the_table_names_what_torchvision_and_mmsegmentation_publish():
    models = torchvision.models.segmentation
    weights = (
        models.DeepLabV3_ResNet50_Weights, models.DeepLabV3_ResNet101_Weights,
        models.FCN_ResNet50_Weights, models.FCN_ResNet101_Weights,
    )  # fmt: skip
    networks = [*published.published().values()]
    assert len(networks) == 90 and len({x.file for x in networks}) == 90
    for ours, theirs in zip(networks, weights, strict=False):
        entry = theirs.COCO_WITH_VOC_LABELS_V1
        miou = entry.meta["_metrics"]["COCO-val2017-VOC-labels"]["miou"]
        assert (ours.url, ours.miou) == (entry.url, miou)
    for other in networks[4:]:
        folder = other.url.split("/")[-2]
        assert other.file.startswith(f"{folder}_20") and 60 < other.miou < 82
        assert other.align_corners == ("769x769" in other.file or None)


def test_the_names_are_listed(tmp_path):
    done = run("utils/convert_checkpoint.py", "hub:")
    assert done.returncode == 0 and done.stdout.count("  hub:") == 90
    assert f"hub:{NAME}" in done.stdout and "windows" in done.stdout


def test_who_waits_for_a_process_that_fails_tries_itself(server, spec, tmp_path):
    server.pause = 0.5
    convert = ("utils/convert_checkpoint.py", f"hub:{NAME}", "--log_root")
    both = [Command(*convert, tmp_path / f"logs{number}") for number in range(2)]
    for done in [command.end() for command in both]:
        assert done.returncode == 2 and "expected is 23dffbe2" in done.stderr, done.stderr
        assert "cannot be written" not in done.stderr
    assert server.asked == [None, None]
