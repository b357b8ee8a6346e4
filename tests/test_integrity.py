"""The check of a data set: every fault found, none invented, fast."""

import shutil
import time

import cv2
import numpy as np
import pytest
from PIL import Image

from utils.errors import UserError
from utils.integrity import jpeg_fault, png_fault
from utils.preprocess_data import check_data


@pytest.fixture
def root(cityscapes_root, tmp_path):
    return shutil.copytree(cityscapes_root, tmp_path / "tree")


def check(root, capsys, *, decode=False) -> list[str]:
    """The lines that the check prints."""
    capsys.readouterr()
    try:
        check_data("synthetic", root, decode=decode, workers=2)
    except UserError as error:
        print(error)
    return capsys.readouterr().out.splitlines()


def flip(path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def one(root, pattern):
    return sorted(root.glob(pattern))[1]


FAULTS = {
    "image missing": ("leftImg8bit/train/*/*", lambda p: p.unlink(), "has no image file"),
    "label missing": ("gtFine/train/*/*labelIds.png", lambda p: p.unlink(), "has no label file"),
    "instance missing": ("gtFine/val/*/*instanceIds.png", lambda p: p.unlink(), "no instance file"),
    "flipped bit": ("leftImg8bit/val/*/*", flip, "damaged (checksum"),
    "cut": ("gtFine/val/*/*labelIds.png", lambda p: p.write_bytes(p.read_bytes()[:99]), "cut off"),
    "empty": ("leftImg8bit/train/*/*", lambda p: p.write_bytes(b""), "not a PNG image"),
    "page": ("leftImg8bit/train/*/*", lambda p: p.write_bytes(b"<html>"), "not a PNG image"),
    "colours": (
        "gtFine/train/*/*labelIds.png",
        lambda p: cv2.imwrite(str(p), np.zeros((64, 128, 3), np.uint8)),
        "colours, not one channel of 8-bit ids",
    ),
    "16 bits": (
        "leftImg8bit/train/*/*",
        lambda p: cv2.imwrite(str(p), np.zeros((64, 128, 3), np.uint16)),
        "not an 8-bit image",
    ),
    "size": (
        "gtFine/train/*/*labelIds.png",
        lambda p: cv2.imwrite(str(p), np.zeros((32, 128), np.uint8)),
        "128 x 32 pixels, its image has another size",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_one_line_that_names_the_file(root, capsys, fault):
    pattern, edit, message = FAULTS[fault]
    assert check(root, capsys)[-1].endswith("21 files, no fault")
    path = one(root, pattern)
    edit(path)
    lines = check(root, capsys)
    assert len(lines) == 2 and message in lines[0], lines
    assert path.name.rsplit("_", 1 + ("gtFine" in pattern))[0] in lines[0]
    assert "1 faults" in lines[1]


def test_undefined_ids_are_found_by_decoding(root, capsys):
    path = one(root, "gtFine/train/*/*labelIds.png")
    cv2.imwrite(str(path), np.full((64, 128), 77, np.uint8))
    assert check(root, capsys)[-1].endswith("no fault")
    lines = check(root, capsys, decode=True)
    assert len(lines) == 2 and "undefined label ids 77" in lines[0] and path.name in lines[0]


def test_an_empty_folder_says_so(tmp_path):
    with pytest.raises(UserError, match="no synthetic files.*--data_root"):
        check_data("synthetic", tmp_path, decode=False, workers=1)


def test_every_damaged_byte_of_a_png_is_noticed(tmp_path):
    """Also what decodes without complaint: a changed byte in any chunk breaks its checksum."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 9, (9, 11)).astype(np.uint8))
    image.save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    assert png_fault(content) == ""
    for place in range(len(content)):
        damaged = content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]
        assert png_fault(damaged), place
        assert png_fault(content[:place]), place


def test_a_jpeg_must_end(tmp_path):
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "x.jpg")
    content = (tmp_path / "x.jpg").read_bytes()
    assert not jpeg_fault(content) and jpeg_fault(content[:-5])


def test_it_checks_300_full_size_files_a_second_on_one_core(tmp_path):
    """2 MB of pixels that do not compress, as a Cityscapes image has; CPU time."""
    noise = np.random.default_rng(0).integers(0, 255, (1024, 700, 3), np.uint8)
    content = cv2.imencode(".png", noise)[1].tobytes()
    assert len(content) > 2 << 20
    times = []
    for _ in range(20):
        begin = time.process_time()
        assert not png_fault(content)
        times.append(time.process_time() - begin)
    assert min(times) < 1 / 300
