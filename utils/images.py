"""Image and id files of data sets, from folders or archives, decoded or refused in one line."""

from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from utils.archives import Member
from utils.errors import UserError
from utils.files import (
    MOST_PIXELS,
    PALETTE,
    PNG_START,
    TAIL,
    decode_grey,
    png_header,
    read_bytes,
    require_chunks,
)
from utils.labels import INVALID, LabelTable, label_ids

CHECK = "Replace it; python utils/preprocess_data.py --check true lists every fault"


def read_image(path: Path | Member, *, upright: bool = False) -> np.ndarray:
    """PNG or JPEG file -> (H,W,3) uint8 RGB.

    upright: turned as a camera's EXIF entry says, else as stored, as labels are.
    """
    flags = cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    content = read_bytes(path)
    require_image(content, path)
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:  # an absurd size
        raise UserError(f"{path}: cannot be decoded ({error}). {CHECK}") from error
    if image is None:
        raise UserError(f"{path}: not a whole PNG or JPEG image. {CHECK}")
    return image


def require_image(content: bytes, path: Path | Member) -> None:
    """UserError, from the header alone, for what is not an 8-bit PNG or JPEG image of sane size."""
    if content.startswith(PNG_START[:8]):
        header = png_header(content[:26], content[-TAIL:], path, advice=CHECK)
        if header.bits > 8:
            raise UserError(f"{path}: {header.bits} bits per channel. Give an 8-bit image")
        require_chunks(content, path, advice=CHECK)
        return
    try:
        with Image.open(BytesIO(content), formats=("JPEG",)) as image:
            size, mode = image.size, image.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a whole PNG or JPEG image. {CHECK}") from error
    if size[0] * size[1] > MOST_PIXELS or mode not in ("L", "RGB"):
        raise UserError(f"{path}: {size[0]} x {size[1]} pixels, {mode}. Give an RGB image")


def image_size(path: Path | Member) -> tuple[int, int]:
    """Height and width of a PNG or JPEG file, of which only the beginning is read."""
    try:
        with path.open("rb") as file, Image.open(file, formats=("PNG", "JPEG")) as image:
            return image.height, image.width
    except FileNotFoundError as error:
        raise UserError(f"{path}: does not exist. {CHECK}") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not a PNG or JPEG image. {CHECK}") from error


def read_ids(path: Path | Member, dtype: type) -> np.ndarray:
    """One-channel PNG -> (H,W) ids; palette files give their indices (cv2 would give colours)."""
    return decode_ids(read_bytes(path), path, dtype)


def decode_ids(content: bytes, path: object, dtype: type) -> np.ndarray:
    """read_ids of a file's content; `path` names it in errors."""
    if png_header(content[:26], content[-TAIL:], path, advice=CHECK).color != PALETTE:
        return decode_grey(content, path, dtype, advice=CHECK)
    try:
        with Image.open(BytesIO(content)) as image:
            image.verify()  # checksums; an image that was verified must be opened again
        with Image.open(BytesIO(content)) as image:
            return np.asarray(image).astype(dtype)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not a whole PNG image. {CHECK}") from error


def to_train_ids(ids: np.ndarray, lut: np.ndarray, path: Path) -> np.ndarray:
    """(H,W) uint8 ids -> (H,W) uint8 train ids; UserError names ids that `lut` leaves undefined."""
    train_ids = cv2.LUT(ids, lut)
    if (train_ids == INVALID).any():
        found = ", ".join(map(str, np.unique(ids[train_ids == INVALID])))
        raise UserError(
            f"{path}: undefined label ids {found}. Give the data set's own id files; "
            "a custom set's dataset.yaml lists its ids"
        )
    return train_ids


def labels_of(instance: np.ndarray, classes: LabelTable, path: Path) -> np.ndarray:
    """(H,W) uint16 instance ids -> (H,W) uint8 train ids."""
    return to_train_ids(label_ids(instance), classes.id_to_train, path)
