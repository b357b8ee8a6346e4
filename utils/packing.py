"""A split of a data set as one flat file of uint8 pixels, from which a crop is read in place.

Decoding PNG files takes most of a training sample's time; from a packed file a sample costs about
as much as copying its crop (benchmarks/bench_loader.py).

    magic (8 bytes), length and CRC-32 of the header (4 + 4), header (JSON), zeros up to 64 bytes
    per image: image (H,W,3), label (H,W) or instance ids (H,W) uint16, CRC-32 of both (4 bytes),
    zeros up to 64 bytes

The header fixes every size before the first pixel is written. An interrupted file keeps its .part
name and goes on after the last image whose CRC-32 is right.
"""

import json
import mmap
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.files import make_folder
from utils.labels import LabelTable

MAGIC = b"SEGPACK1"
ALIGNMENT = 64
PLANES = {"image": (np.uint8, 3), "label": (np.uint8, 1), "instance": (np.uint16, 1)}
REPACK = "Run python utils/preprocess_data.py --pack true"


def packed_path(root: Path, split: str) -> Path:
    """Where the packed file of a split lies."""
    return root / "packed" / f"{split}.pack"


def pack(
    path: Path,
    header: dict[str, Any],
    samples: Callable[[range], Iterable[dict[str, Any]]],
    *,
    on_image: Callable[[int], None],
) -> None:
    """Write `path`: the images that `header` announces, from `samples(range of indices)`.

    on_image(n) is told after how many images the file stands.
    """
    begin = encode_header(header)
    places, _ = layout(header)
    partial = part_path(path)
    try:
        with partial.open("r+b" if partial.is_file() else "w+b") as file:
            done = finished_images(file, begin, header, places)
            file.seek(0)
            if done == 0:
                file.write(begin)
            else:
                file.seek(end_of(places[done - 1], header["images"][done - 1], header))
            file.truncate()
            on_image(done)
            for number, sample in enumerate(samples(range(done, len(places))), done):
                file.write(encode(sample, header["images"][number], header))
                on_image(number + 1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{partial}: {error.strerror}. Free space and run this again") from error


def require_space(path: Path, header: dict[str, Any]) -> tuple[int, int]:
    """Bytes that are still to be written and bytes free; makes the folder. UserError if too few."""
    make_folder(path.parent)
    partial = part_path(path)
    written = partial.stat().st_size if partial.is_file() else 0
    needed, free = layout(header)[1] - written, shutil.disk_usage(path.parent).free
    if needed > free:
        gib = f"{needed / 2**30:.1f} GiB needed, {free / 2**30:.1f} GiB free"
        raise UserError(f"{path.parent}: {gib}. Free space or choose another --data_root")
    return needed, free


def part_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def is_packed(path: Path, header: dict[str, Any]) -> bool:
    """Whether `path` is a whole file with this header."""
    begin = encode_header(header)
    if not path.is_file() or path.stat().st_size != layout(header)[1]:
        return False
    with path.open("rb") as file:
        return file.read(len(begin)) == begin


def make_header(
    names: list[str],
    sizes: list[tuple[int, int]],
    sources: list[dict[str, int]],
    planes: list[str],
    classes: LabelTable,
) -> dict[str, Any]:
    """sizes: (height, width); sources: bytes of the files that each image comes from."""
    images = [
        {"name": name, "size": list(size), "sources": source}
        for name, size, source in zip(names, sizes, sources, strict=True)
    ]
    return {"classes": list(classes.names), "planes": planes, "images": images}


def encode_header(header: dict[str, Any]) -> bytes:
    content = json.dumps(header, separators=(",", ":")).encode()
    return aligned(MAGIC + struct.pack("<II", len(content), zlib.crc32(content)) + content)


def aligned(content: bytes) -> bytes:
    return content + bytes(-len(content) % ALIGNMENT)


def pixel_bytes(image: dict[str, Any], header: dict[str, Any]) -> int:
    height, width = image["size"]
    per_pixel = sum(np.dtype(PLANES[p][0]).itemsize * PLANES[p][1] for p in header["planes"])
    return height * width * per_pixel


def end_of(place: int, image: dict[str, Any], header: dict[str, Any]) -> int:
    end = place + pixel_bytes(image, header) + 4
    return end + -end % ALIGNMENT


def layout(header: dict[str, Any]) -> tuple[list[int], int]:
    """Where each image begins, and the file's size in bytes."""
    places, start = [], len(encode_header(header))
    for image in header["images"]:
        places.append(start)
        start = end_of(start, image, header)
    return places, start


def encode(sample: dict[str, Any], image: dict[str, Any], header: dict[str, Any]) -> bytes:
    """One image with its CRC-32."""
    if list(sample["image"].shape[:2]) != image["size"]:
        raise UserError(f"{image['name']}: its size changed while it was packed. {REPACK} again")
    content = b"".join(
        np.ascontiguousarray(sample[plane], np.dtype(PLANES[plane][0]).newbyteorder("<")).data
        for plane in header["planes"]
    )
    return aligned(content + struct.pack("<I", zlib.crc32(content)))


def finished_images(file: Any, begin: bytes, header: dict[str, Any], places: list[int]) -> int:
    """How many images at the beginning of an interrupted file are whole."""
    file.seek(0)
    if file.read(len(begin)) != begin:
        return 0
    for number, place in enumerate(places):
        file.seek(place)
        content = file.read(pixel_bytes(header["images"][number], header) + 4)
        if len(content) < 5 or zlib.crc32(content[:-4]) != struct.unpack("<I", content[-4:])[0]:
            return number
    return len(places)


class PackedFile:
    """A packed split, opened: views of its pixels, nothing decoded and nothing copied."""

    def __init__(self, path: Path, classes: LabelTable) -> None:
        """UserError unless the file is whole and holds these classes."""
        self.path = path
        try:
            with path.open("rb") as file:
                self.header = read_header(file, path)
                self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be opened ({error}). {REPACK}") from error
        self.places, size = layout(self.header)
        if len(self.bytes) != size:
            raise UserError(f"{path}: {len(self.bytes)} bytes instead of {size}. {REPACK}")
        if self.header["classes"] != list(classes.names):
            raise UserError(f"{path}: packed with other classes. {REPACK}")

    def __len__(self) -> int:
        return len(self.places)

    def names(self) -> list[str]:
        return [image["name"] for image in self.header["images"]]

    def planes(self, index: int) -> dict[str, np.ndarray]:
        """{"image": (H,W,3) uint8, "label": (H,W) uint8, "instance": (H,W) uint16}, read only;
        "label" or "instance" may be missing."""
        height, width = self.header["images"][index]["size"]
        place, views = self.places[index], {}
        for plane in self.header["planes"]:
            dtype, channels = PLANES[plane]
            view = np.frombuffer(self.bytes, dtype, height * width * channels, place)
            views[plane] = view.reshape(
                (height, width, channels) if channels > 1 else (height, width)
            )
            place += view.nbytes
        return views

    def require_current(self, root: Path) -> None:
        """UserError where a source file below `root` has another size than when it was packed."""
        for image in self.header["images"]:
            for name, size in image["sources"].items():
                try:
                    found = (root / name).stat().st_size
                except OSError:
                    continue  # sources may be gone, or never have been unpacked
                if found != size:
                    raise UserError(f"{self.path}: older than {root / name}. {REPACK} again")

    def damaged(self) -> Iterator[str]:
        """Name of every image, "" for a whole one: reads the whole file."""
        for image, place in zip(self.header["images"], self.places, strict=True):
            end = place + pixel_bytes(image, self.header)
            (expected,) = struct.unpack("<I", self.bytes[end : end + 4])
            whole = zlib.crc32(memoryview(self.bytes)[place:end]) == expected
            yield "" if whole else image["name"]


def read_header(file: Any, path: Path) -> dict[str, Any]:
    """UserError for anything but a packed file's beginning."""
    start = file.read(len(MAGIC) + 8)
    if len(start) == len(MAGIC) + 8 and start.startswith(MAGIC):
        length, expected = struct.unpack("<II", start[len(MAGIC) :])
        content = file.read(min(length, 1 << 26))
        if len(content) == length and zlib.crc32(content) == expected:
            return json.loads(content)
    raise UserError(f"{path}: not a packed file, or damaged. {REPACK}")
