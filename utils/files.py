"""Places of the repository, and files: label PNGs read strictly, results written whole.

Imports neither torch nor jsonargparse, so that evaluation/score.py runs without them.
"""

import json
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from utils.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[1]
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\0\0\0\0IEND\xaeB`\x82"
GREY, PALETTE = 0, 3  # colour types, PNG specification section 11.2.2


def resolve_log_root(log_root: Path | None) -> Path:
    """The folder of all runs; absolute."""
    return (log_root or REPOSITORY / "training_logs").resolve()


def resolve_data_root(dataset: str, data_root: Path | None) -> Path:
    """The folder the user named, else the data set's default place; absolute."""
    if data_root is None:
        given = os.environ.get("CITYSCAPES_DATASET") if dataset == "cityscapes" else None
        data_root = Path(given) if given else REPOSITORY / "data" / dataset
    return data_root.resolve()


def first_folder(root: Path, kind: str, split: str) -> Path:
    """`root/kind/split`, or the nested layout that the Cityscapes zips unpack to."""
    nested = root / f"{kind}_trainvaltest" / kind / split
    return nested if nested.is_dir() else root / kind / split


def make_folder(folder: Path) -> None:
    """`mkdir -p`; UserError where that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be created ({error.strerror}). Free it") from error


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}). Free the place") from error


class PngHeader(NamedTuple):
    """What a PNG file says of itself."""

    size: tuple[int, int]  # height, width
    bits: int  # per channel
    color: int  # colour type

    @property
    def kind(self) -> str:
        return {GREY: f"{self.bits} bits", PALETTE: "palette colours"}.get(self.color, "colours")


def read_png_header(path: Path) -> PngHeader:
    """First and last bytes of a PNG file; UserError unless it begins and ends as one."""
    try:
        with path.open("rb") as file:
            start = file.read(26)
            file.seek(max(file.seek(0, os.SEEK_END) - 1024, 0))  # some tools append a comment
            end = file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Restore the file") from error
    if start[:16] != PNG_START or PNG_END not in end:
        raise UserError(f"{path}: not a whole PNG image. Replace the damaged file")
    width, height, bits, color = struct.unpack(">IIBB", start[16:26])
    return PngHeader((height, width), bits, color)


def read_grey(path: Path, dtype: type) -> np.ndarray:
    """One-channel PNG of 8 bits, or of up to 16 for np.uint16 -> (H,W) numbers.

    A damaged file is a UserError: OpenCV compares checksums, which Pillow skips for pixels.
    """
    header = read_png_header(path)
    if header.color != GREY or header.bits not in {np.uint8: (8,), np.uint16: (8, 16)}[dtype]:
        wanted = f"one-channel image of {8 * dtype(0).itemsize} bits"
        raise UserError(f"{path}: {header.kind}, not ids. Give a {wanted}")
    try:
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error) as error:
        raise UserError(f"{path}: cannot be read ({error}). Restore the file") from error
    if pixels is None or pixels.ndim != 2:
        raise UserError(f"{path}: not a whole PNG image. Replace the damaged file")
    return pixels.astype(dtype, copy=False)
