"""Reads image and label files, with a UserError for damaged ones, and writes them."""

import struct
import warnings
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import IO, Any, NamedTuple

import cv2
import numpy as np
from PIL.Image import Exif
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from utils.base.errors import UserError
from utils.base.paths import read_bytes, whole
from utils.data.label_table import INVALID, LabelTable, ids_of_instances

CHECK = "Replace it; python utils/preprocess_data.py --check true lists every fault"
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\0\0\0\0IEND\xaeB`\x82"
TURN = 0x0112  # EXIF's orientation tag, 1 to 8
MOST_PIXELS = 1 << 28  # per image; Cityscapes has 2^21, and a small file can claim any number
GREY, PALETTE = 0, 3  # colour types, PNG specification section 11.2.2
UNFILTERED = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE)  # faster, smaller for ids
warnings.filterwarnings("ignore", "Corrupt EXIF data")  # Pillow's; such an image is not rotated


class PngHeader(NamedTuple):
    """Header fields of a PNG file."""

    size: tuple[int, int]  # height, width after the EXIF rotation
    bits: int  # per channel
    color: int  # colour type
    turn: int  # EXIF orientation

    @property
    def kind(self) -> str:
        return {GREY: f"{self.bits} bits", PALETTE: "palette colours"}.get(self.color, "colours")


def png_header(content: bytes, path: Any, *, advice: str = CHECK) -> PngHeader:
    """The header of a PNG file's content; UserError if a chunk claims more bytes than follow.

    OpenCV would allocate the claimed bytes: one flipped bit can cost up to 2 GiB and seconds.
    """
    place, turn, pixels = 8 if content.startswith(PNG_START) else len(content), 1, False
    while content[place : place + 12] != PNG_END:  # any bytes may follow the end
        if place + 12 > len(content):
            raise UserError(f"{path}: not a whole PNG image. {advice}")
        kind, start = content[place + 4 : place + 8], place + 8
        place = start + int.from_bytes(content[place : place + 4], "big") + 4
        pixels |= kind == b"IDAT"
        if kind == b"eXIf" and not pixels:  # decoders ignore it after the pixels
            turn = exif_turn(content[start : place - 4])
    width, height, bits, color = struct.unpack_from(">IIBB", content, 16)
    require_pixels(height, width, path)
    return PngHeader((width, height) if turn > 4 else (height, width), bits, color, turn)


def require_pixels(height: int, width: int, path: Any) -> None:
    if not 0 < width * height <= MOST_PIXELS:
        what = f"{width} x {height} pixels, the limit is {MOST_PIXELS:,}"
        raise UserError(f"{path}: {what}. Give an image within this limit")


def exif_turn(entry: bytes) -> int:
    """The orientation in an EXIF entry, 1 to 8; 1 (not rotated) if it is missing or damaged."""
    exif = Exif()
    try:
        exif.load(entry)
        return max(1, range(9).index(exif.get(TURN, 1)))
    except (OSError, SyntaxError, ValueError, struct.error):
        return 1


def turned(pixels: np.ndarray, turn: int) -> np.ndarray:
    """Stored pixels -> rotated and mirrored as the EXIF orientation `turn` requires."""
    pixels = pixels.swapaxes(0, 1) if turn > 4 else pixels
    down, right = (-1 if turn in flipped else 1 for flipped in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return np.ascontiguousarray(pixels[::down, ::right])


def read_image(path: Path) -> np.ndarray:
    """PNG or JPEG file -> (H,W,3) uint8 RGB, rotated as its EXIF entry requires."""
    return decode_image(read_bytes(path), path)


def decode_image(content: bytes, path: Path) -> np.ndarray:
    """read_image for the content of a file; `path` is only for error messages."""
    turn = image_header(content, path)[1]
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return turned(decode(content, flags, path, what="PNG or JPEG"), turn)


def decode(content: bytes, flags: int, path: Any, *, what: str, advice: str = CHECK) -> np.ndarray:
    """cv2.imdecode, which verifies the checksums of a PNG file; UserError if it fails."""
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:  # an absurd size
        raise UserError(f"{path}: cannot be decoded ({error}). {advice}") from error
    if pixels is None:
        raise UserError(f"{path}: not a whole {what} image. {advice}")
    return pixels


def image_header(content: bytes, path: Path) -> tuple[tuple[int, int], int]:
    """Height and width after the EXIF rotation, and EXIF orientation, without decoding. UserError
    unless the content is a complete 8-bit PNG or JPEG image within the size limit."""
    if content.startswith(PNG_START[:8]):
        header = png_header(content, path)
        if header.bits > 8:
            raise UserError(f"{path}: {header.bits} bits per channel. Give an 8-bit image")
        return header.size, header.turn
    with suppress(OSError, SyntaxError, ValueError):  # Pillow's
        size, turn, mode = pillow_header(BytesIO(content), JpegImageFile)
        require_pixels(*size, path)
        if mode not in ("L", "RGB"):
            raise UserError(f"{path}: {size[1]} x {size[0]} pixels, {mode}. Give an RGB image")
        if not jpeg_is_cut(content):
            return size, turn
    raise UserError(f"{path}: not a whole PNG or JPEG image. {CHECK}")


def pillow_header(file: IO[bytes], opener: type) -> tuple[tuple[int, int], int, str]:
    """Height and width after the EXIF rotation, EXIF orientation, and Pillow's mode of a file."""
    with opener(file) as image:  # Image.open would apply its own limit and warn
        turn = exif_turn(image.info.get("exif", b""))
        return image.size if turn > 4 else image.size[::-1], turn, image.mode


def jpeg_is_cut(content: bytes) -> bool:
    """Whether a JPEG file is truncated: no end marker follows its pixels.

    If zeros follow instead, as in an aborted download, OpenCV decodes the rest as grey.
    """
    place = 2
    while content[place : place + 1] == b"\xff" and content[place + 1 : place + 2] != b"\xda":
        if content[place + 1 : place + 2] == b"\xff":  # fill bytes may precede a marker
            place += 1
        else:  # a segment; its thumbnail may contain an end marker
            place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return content.find(b"\xff\xd9", place) < 0


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of read_image's result; reads only the beginning of most files."""
    with suppress(OSError, SyntaxError, ValueError), path.open("rb") as file:
        opener = PngImageFile if file.peek(8).startswith(PNG_START[:8]) else JpegImageFile
        return pillow_header(file, opener)[0]
    return image_header(read_bytes(path), path)[0]  # Pillow fails for some, as with a long comment


def read_ids(path: Path, dtype: type, *, advice: str = CHECK) -> np.ndarray:
    """One-channel PNG -> (H,W) ids; palette files give their indices (cv2 would give colours)."""
    return decode_ids(read_bytes(path), path, dtype, advice=advice)


def decode_ids(content: bytes, path: Any, dtype: type, *, advice: str = CHECK) -> np.ndarray:
    """read_ids for the content of a file; `path` is for error messages. 16 bits need np.uint16."""
    header = png_header(content, path, advice=advice)
    if header.color == PALETTE:
        return turned(decode_palette(content, path, advice=advice).astype(dtype), header.turn)
    bits = 8 * np.dtype(dtype).itemsize
    if header.color != GREY or header.bits not in (8, bits):
        what = f"{header.kind}, not ids"
        advice = f"Give a one-channel image of {bits} bits"
        if header.bits == 8:
            advice += ", or describe the colours with label_colors in dataset.yaml"
        raise UserError(f"{path}: {what}. {advice}")
    pixels = decode(content, cv2.IMREAD_UNCHANGED, path, what="PNG", advice=advice)
    if pixels.ndim != 2:
        raise UserError(f"{path}: not a whole PNG image. {advice}")
    return turned(pixels.astype(dtype, copy=False), header.turn)


def recode(pixels: np.ndarray, codes_of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """(H,W,3) uint8 RGB of segment ids R + 256 G + 65536 B -> (H,W) uint16: the codes of
    the pixels, with codes_of(the ids that occur, ascending). Fast for runs of equal pixels."""
    ids = cv2.cvtColor(pixels, cv2.COLOR_RGB2RGBA).view("<u4").ravel()
    begins = np.flatnonzero(np.append(True, ids[1:] != ids[:-1]))
    present, places = np.unique(ids[begins].astype(np.int64) & 0xFFFFFF, return_inverse=True)
    codes = codes_of(present).astype(np.uint16)[places]
    return np.repeat(codes, np.diff(begins, append=ids.size)).reshape(pixels.shape[:2])


def contradiction(path: Path, instances: np.ndarray) -> list[str]:
    """A line with the first pixel where a file's label ids and the instance ids differ, or none."""
    ids = read_ids(path, np.uint8)
    if ids.shape != instances.shape:
        return [f"{path}: {ids.shape} pixels, its instanceIds {instances.shape}. Unpack both again"]
    wrong = np.argwhere(ids != ids_of_instances(instances))
    if not len(wrong):
        return []
    what = f"differs from instanceIds at row {wrong[0, 0]}, column {wrong[0, 1]}"
    return [f"{path}: {what}, {len(wrong)} such pixels. Unpack both again"]


def decode_palette(content: bytes, path: Any, *, advice: str) -> np.ndarray:
    """A palette PNG -> (H,W) indices."""
    try:
        with PngImageFile(BytesIO(content)) as image:
            image.verify()  # checksums; afterwards Pillow must open it again
        with PngImageFile(BytesIO(content)) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path}: not a whole PNG image. {advice}") from error


def to_train_ids(ids: np.ndarray, classes: LabelTable, path: Path) -> np.ndarray:
    """(H,W) uint8 ids or uint16 instance ids -> (H,W) uint8 train ids.

    UserError for undefined ids.
    """
    if ids.dtype == np.uint16:
        ids = classes.to_plain_ids(ids)
    train_ids = cv2.LUT(ids, classes.id_to_train)
    if (train_ids == INVALID).any():
        unknown = ", ".join(map(str, np.unique(ids[train_ids == INVALID])))
        raise UserError(
            f"{path}: undefined label ids {unknown}. Give the data set's own id files, or add the "
            "ids to classes or ignore in dataset.yaml"
        )
    return train_ids


def read_train_ids(path: Path, classes: LabelTable) -> np.ndarray:
    """A label file of the data set, with ids or colours -> (H,W) uint8 train ids."""
    if classes.color_to_train is None:
        return to_train_ids(read_ids(path, np.uint8), classes, path)
    image = read_image(path)
    red, green, blue = np.moveaxis(image.astype(np.uint32), 2, 0)
    train_ids = classes.color_to_train[red << 16 | green << 8 | blue]
    unknown = np.argwhere(train_ids == INVALID)
    if len(unknown):
        row, column = unknown[0].tolist()
        color = tuple(image[row, column].tolist())
        what = f"colour {color} at row {row}, column {column} belongs to no class"
        raise UserError(f"{path}: {what}. Add it to label_colors or ignore_colors of dataset.yaml")
    return train_ids


def read_label(path: Path, kind: str, classes: LabelTable) -> dict[str, np.ndarray]:
    """A label file; kind: its field of Files -> {"label": (H,W) uint8 train ids
    [, "instance": (H,W) uint16 instance ids]}."""
    if kind == "instances":
        instances = read_ids(path, np.uint16)
        return {"instance": instances, "label": to_train_ids(instances, classes, path)}
    if kind == "train_ids":
        return {"label": read_ids(path, np.uint8)}
    try:
        return {"label": read_train_ids(path, classes)}
    except UserError as error:
        if not classes.release:
            raise
        raise UserError(f"{error}; the labels must be those of {classes.release}") from error


def write_png(path: Path, pixels: np.ndarray, *, filtered: bool = True) -> None:
    """(H,W), (H,W,3) RGB or (H,W,4) RGBA -> PNG file, complete or not at all."""
    if pixels.ndim == 3:
        swap = cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
        pixels = cv2.cvtColor(pixels, swap)
    content = cv2.imencode(".png", pixels, () if filtered else UNFILTERED)[1]
    with whole(path) as temporary:
        temporary.write_bytes(content.tobytes())
