"""Damaged PNGs, checkpoints and configs: each is read right or refused in one error, quickly."""

import io
import os
import time

import numpy as np
import pytest
import torch
from helpers import REPOSITORY
from PIL import Image
from scipy.io import savemat

from utils.base.errors import UserError
from utils.base.parser import parse
from utils.data.image_files import read_ids, read_image
from utils.data.voc import read_mat
from utils.training.checkpoint import load_checkpoint, save_checkpoint
from utils.training.config import Config

SECONDS = 10.0  # more is a hang


def many(few: int, lots: int):
    """`few` inputs in every test run, `lots` in the slow one."""
    slow = pytest.param(lots, marks=pytest.mark.slow, id=str(lots))
    return pytest.mark.parametrize("count", [pytest.param(few, id=str(few)), slow])


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """One to three of: bits flipped, a byte set, the end cut off, bytes lost, doubled or put in."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        place = int(rng.integers(len(data))) if data else 0
        length = int(rng.integers(1, 40))
        match rng.integers(6):
            case 0 if data:
                data[place] ^= 1 << int(rng.integers(8))
            case 1 if data:
                data[place] = int(rng.integers(256))
            case 2:
                del data[place:]
            case 3:
                del data[place : place + length]
            case 4:
                data[place:place] = data[place : place + length]
            case _:
                data[place:place] = rng.bytes(length)
    return bytes(data)


def encoded(pixels: np.ndarray, mode: str) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    if mode == "P":
        image.putpalette([(7 * i) % 256 for i in range(768)])
    image.save(stream, "PNG")
    return stream.getvalue()


def tally(inputs, read) -> dict[str, int]:
    """How inputs end: read(input) gives whether what it read is right, or raises UserError."""
    ends = {"right": 0, "wrong": 0, "refused": 0}
    for item in inputs:
        begin = time.monotonic()
        try:
            ends["right" if read(item) else "wrong"] += 1
        except UserError as error:
            assert ". " in str(error)
            ends["refused"] += 1
        assert time.monotonic() - begin < SECONDS
    return ends


@many(1000, 10_000)
def test_a_damaged_png_is_never_read_with_wrong_pixels(tmp_path, count):
    rng = np.random.default_rng(0)
    ids = np.kron(rng.integers(0, 34, (6, 8)), np.ones((8, 8))).astype(np.uint8)
    colors = rng.integers(0, 256, (48, 64, 3)).astype(np.uint8)
    path = tmp_path / "x.png"
    kinds = [
        (encoded(ids, "L"), lambda: np.array_equal(read_ids(path, np.uint8), ids)),
        (encoded(ids, "P"), lambda: np.array_equal(read_ids(path, np.uint8), ids)),
        (encoded(colors, "RGB"), lambda: np.array_equal(read_image(path), colors)),
    ]

    def inputs():
        for number in range(count):
            content, read = kinds[number % 3]
            path.write_bytes(mutated(content, rng))
            yield read

    ends = tally(inputs(), lambda read: read())
    assert ends["wrong"] == 0 and ends["refused"] > 0.9 * count


@many(300, 5000)
def test_a_damaged_sbd_label_is_never_read_with_wrong_pixels(tmp_path, count):
    """Compressed as SBD's are, by which damage is noticed."""
    rng = np.random.default_rng(0)
    ids = np.kron(rng.integers(0, 21, (6, 8)), np.ones((8, 8))).astype(np.uint8)
    path = tmp_path / "x.mat"
    savemat(path, {"GTcls": {"Segmentation": ids}}, do_compression=True)
    good = path.read_bytes()

    def is_right(content: bytes) -> bool:
        path.write_bytes(content)
        return np.array_equal(read_mat(path), ids)

    ends = tally((mutated(good, rng) for _ in range(count)), is_right)
    assert ends["wrong"] == 0 and ends["refused"] > 0.5 * count


@many(200, 1000)
def test_a_damaged_checkpoint_is_never_loaded(tmp_path, count):
    """In a process of its own: a crash would end it. Without its hash's name a file is loaded or
    refused; no library can tell more."""
    rng = np.random.default_rng(0)
    good = save_checkpoint(tmp_path, {"step": 1, "model": {"w": torch.arange(500.0)}})
    content = good.read_bytes()
    unnamed = tmp_path / "some.pth"

    def load(data: bytes) -> bool:
        good.write_bytes(data)
        unnamed.write_bytes(data)
        tally([unnamed], load_checkpoint)
        load_checkpoint(good)
        return data == content

    child = os.fork()
    if not child:
        try:
            ends = tally((mutated(content, rng) for _ in range(count)), load)
            os._exit(ends["wrong"] > 0 or ends["refused"] < 0.9 * count)
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@many(100, 2000)
def test_a_damaged_config_is_refused_or_a_config(tmp_path, count):
    rng = np.random.default_rng(0)
    files = sorted((REPOSITORY / "configs").glob("[!d]*/*.yaml"))  # not datasets/
    path = tmp_path / "c.yaml"
    words = [b"!!python/object:os.system x", b"1e999", b".nan", b"&a [*a]", b"\xef\xbb\xbf", b"\t"]

    def inputs():
        for number in range(count):
            data = mutated(files[number % len(files)].read_bytes(), rng)
            if number % 5 == 0:
                place = int(rng.integers(len(data) + 1))
                data = data[:place] + words[number // 5 % len(words)] + data[place:]
            path.write_bytes(data)
            yield path

    ends = tally(
        inputs(), lambda path: isinstance(parse(Config, "", ["--config", str(path)]), Config)
    )
    assert ends["wrong"] == 0 and ends["refused"] > 0 and ends["right"] > 0


def test_a_config_that_unfolds_without_end_is_refused(tmp_path):
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for one, other in zip("bcdefghij", "abcdefghi", strict=True):
        lines.append(f"{one}: &{one} [{', '.join([f'*{other}'] * 9)}]")
    path = tmp_path / "bomb.yaml"
    path.write_text("\n".join(lines))
    begin = time.process_time()  # not a clock on the wall: the machine may be busy
    with pytest.raises(UserError, match="has aliases"):
        parse(Config, "", ["--config", str(path)])
    assert time.process_time() - begin < 2
