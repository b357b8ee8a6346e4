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
TAIL = 1024  # bytes; some tools append a comment after the end of the image
MOST_PIXELS = 1 << 26  # of an image; Cityscapes' have 2^21, and a small file can claim any number
PLAIN = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE)  # id maps: faster and smaller so
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
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Whole or not at all: a kill leaves the earlier file."""
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8", newline="")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}). Free the place") from error


def write_png(path: Path, pixels: np.ndarray) -> None:
    """(H,W) uint8 ids; whole or not at all."""
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        temporary.write_bytes(cv2.imencode(".png", pixels, PLAIN)[1].tobytes())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}). Free the place") from error


class PngHeader(NamedTuple):
    """What a PNG file says of itself."""

    size: tuple[int, int]  # height, width
    bits: int  # per channel
    color: int  # colour type

    @property
    def kind(self) -> str:
        return {GREY: f"{self.bits} bits", PALETTE: "palette colours"}.get(self.color, "colours")


DAMAGED = "Replace the damaged file"


def png_header(start: bytes, end: bytes, path: Any, *, advice: str = DAMAGED) -> PngHeader:
    """From the first 26 and last 12 bytes of a PNG file, or more; UserError for another file."""
    if start[:16] != PNG_START or PNG_END not in end:
        raise UserError(f"{path}: not a whole PNG image. {advice}")
    width, height, bits, color = struct.unpack(">IIBB", start[16:26])
    if not 0 < width * height <= MOST_PIXELS:
        raise UserError(f"{path}: {width} x {height} pixels. {advice}")
    return PngHeader((height, width), bits, color)


def require_chunks(content: bytes, path: Any, *, advice: str = DAMAGED) -> None:
    """UserError where a chunk of a PNG file claims more bytes than follow.

    OpenCV would allocate them first: up to 2 GiB, and seconds, for one flipped bit.
    """
    place, kind = 8, b""
    while kind != b"IEND":
        if place + 12 > len(content):
            raise UserError(f"{path}: not a whole PNG image. {advice}")
        kind = content[place + 4 : place + 8]
        place += 12 + int.from_bytes(content[place : place + 4], "big")


def read_png_header(path: Path) -> PngHeader:
    """The header of a PNG file, of which only the beginning and the end are read."""
    try:
        with path.open("rb") as file:
            start = file.read(26)
            file.seek(max(file.seek(0, os.SEEK_END) - TAIL, 0))
            return png_header(start, file.read(), path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Restore the file") from error


def read_bytes(path: Any) -> bytes:
    """Content of a file, or of an archive's member; UserError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Restore the file") from error


def decode_grey(content: bytes, path: Any, dtype: type, *, advice: str = DAMAGED) -> np.ndarray:
    """One-channel PNG of 8 bits, or of up to 16 for np.uint16 -> (H,W) numbers.

    A damaged file is a UserError: OpenCV compares checksums, which Pillow skips for pixels.
    """
    header = png_header(content[:26], content[-TAIL:], path, advice=advice)
    if header.color != GREY or header.bits not in {np.uint8: (8,), np.uint16: (8, 16)}[dtype]:
        wanted = f"one-channel image of {8 * dtype(0).itemsize} bits"
        raise UserError(f"{path}: {header.kind}, not ids. Give a {wanted}")
    require_chunks(content, path, advice=advice)
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:  # an absurd size
        raise UserError(f"{path}: cannot be decoded ({error}). {advice}") from error
    if pixels is None or pixels.ndim != 2:
        raise UserError(f"{path}: not a whole PNG image. {advice}")
    return pixels.astype(dtype, copy=False)


def read_grey(path: Path, dtype: type) -> np.ndarray:
    return decode_grey(read_bytes(path), path, dtype)
