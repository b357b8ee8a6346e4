"""Packed files: a split as one flat file of uint8 pixels, from which training reads single crops.

Decoding PNG files takes most of the time of a training sample. A sample from a packed file takes
about as long as a copy of its crop (benchmarks/bench_loader.py).

    magic (8 bytes), length and CRC-32 of the header (4 + 4), header (JSON), zeros up to 64 bytes
    per image: image (H,W,3), label (H,W) or instance ids (H,W) uint16, CRC-32 of both (4 bytes),
    zeros up to 64 bytes

The header gives every size before the first pixel is written. An interrupted file keeps the name
.part; the next run resumes after the last image with a correct CRC-32.
"""

import json
import math
import mmap
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import numpy as np

from utils.base.errors import UserError
from utils.base.paths import make_folder
from utils.base.progress import progress
from utils.base.threads import read_ahead
from utils.data.dataset import DataSet, Dataset, NoImages
from utils.data.image_files import to_train_ids
from utils.data.label_table import LabelTable
from utils.data.sources import name_below, require_unchanged

MAGIC = b"SEGPACK1"
ALIGNMENT = 64
PLANES = {"image": ("u1", (3,)), "label": ("u1", ()), "instance": ("<u2", ())}  # dtype, after (H,W)
REPACK = "Run python utils/preprocess_data.py --pack true with the same --dataset and --data_root"


def packed_path(root: Path, split: str) -> Path:
    """Path of the packed file of a split."""
    return root / "packed" / f"{split}.pack"


def part_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def aligned(size: int) -> int:
    return size + -size % ALIGNMENT


def is_whole(content: bytes | memoryview) -> bool:
    """Whether an image's last four bytes are the CRC-32 of the bytes before."""
    return content[-4:] == struct.pack("<I", zlib.crc32(content[:-4]))


class Layout:
    """Byte offsets and lengths in a packed file.

    header: {"classes": names, "planes": names of PLANES, "images": [{"name": str,
    "size": [height, width], "sources": {path below the data set's folder: bytes}}, ...]}
    """

    def __init__(self, header: dict[str, Any]) -> None:
        self.planes, self.images = header["planes"], header["images"]
        content = json.dumps(header, separators=(",", ":")).encode()
        begin = MAGIC + struct.pack("<II", len(content), zlib.crc32(content)) + content
        self.begin = begin.ljust(aligned(len(begin)), b"\0")
        kinds = [PLANES[plane] for plane in self.planes]
        pixel = sum(np.dtype(kind).itemsize * math.prod(shape) for kind, shape in kinds)
        self.lengths = [pixel * math.prod(image["size"]) + 4 for image in self.images]
        self.starts = [*accumulate(map(aligned, self.lengths), initial=len(self.begin))]
        self.size = self.starts[-1]  # of the file

    def finished_images(self, file: IO[bytes]) -> int:
        """Number of complete images at the beginning of an interrupted file."""
        file.seek(0)
        if file.read(len(self.begin)) != self.begin:
            return 0
        for number, length in enumerate(self.lengths):
            file.seek(self.starts[number])
            content = file.read(length)
            if len(content) < length or not is_whole(content):
                return number
        return len(self.images)

    def encode(self, index: int, sample: dict[str, Any]) -> bytes:
        """The bytes of a sample: planes, CRC-32, and zeros up to the next sample."""
        image = self.images[index]
        if list(sample["image"].shape[:2]) != image["size"]:
            what = f"{image['name']}: image size changed during packing"
            raise UserError(f"{what}. {REPACK}")
        planes = (np.ascontiguousarray(sample[name], PLANES[name][0]).data for name in self.planes)
        content = b"".join(planes)
        content += struct.pack("<I", zlib.crc32(content))
        return content.ljust(aligned(len(content)), b"\0")


def require_space(path: Path, layout: Layout) -> str:
    """The needed and free space as text; creates the folder. UserError if space is too small."""
    make_folder(path.parent)
    partial = part_path(path)
    written = partial.stat().st_size if partial.is_file() else 0
    needed, free = layout.size - written, shutil.disk_usage(path.parent).free
    gib = f"{needed / 2**30:.1f} GiB needed, {free / 2**30:.1f} GiB free"
    if needed > free:
        raise UserError(f"{path.parent}: {gib}. Free space or give another --data_root")
    return gib


def pack(path: Path, layout: Layout, dataset: Dataset, *, workers: int) -> None:
    """Write `path`, or resume an interrupted run."""
    partial = part_path(path)
    bar = progress(len(dataset), unit="image", label=f"pack {path.stem}")
    try:
        with bar, partial.open("r+b" if partial.is_file() else "w+b") as file:
            done = layout.finished_images(file)
            file.seek(layout.starts[done] if done else 0)
            file.truncate()
            if done == 0:
                file.write(layout.begin)
            bar.update(done)
            indices = range(done, len(dataset))
            samples = read_ahead(dataset.__getitem__, indices, workers=workers, ahead=2 * workers)
            for index, sample in zip(indices, samples, strict=True):
                file.write(layout.encode(index, sample))
                bar.update()
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{partial}: {error.strerror}. Free space and run this again") from error


class PackedDataset(Dataset):
    """An opened packed split; samples are read-only views of the file, without decode or copy."""

    has_labels = checked = True

    def __init__(self, path: Path, classes: LabelTable) -> None:
        """UserError unless the file is complete and has these classes."""
        self.path, self.source = path, f"packed file {path}"
        try:
            with path.open("rb") as file:
                self.bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be opened ({error}). {REPACK}") from error
        header = read_header(self.bytes, path)
        self.layout = Layout(header)
        self.classes = classes if "instance" in header["planes"] else classes.without_instances()
        self.names = [image["name"] for image in self.layout.images]
        if len(self.bytes) != self.layout.size:
            what = f"{len(self.bytes)} bytes instead of {self.layout.size}"
            raise UserError(f"{path}: {what}. {REPACK}")
        if header["classes"] != list(classes.names):
            raise UserError(f"{path}: packed with other classes. {REPACK}")

    def __getitem__(self, index: int) -> dict[str, Any]:
        size, place = self.size(index), self.layout.starts[index]
        sample: dict[str, Any] = {"name": self.names[index]}
        for plane in self.layout.planes:
            dtype, more = PLANES[plane]
            sample[plane] = np.ndarray((*size, *more), dtype, self.bytes, place)
            place += sample[plane].nbytes
        if "label" not in sample:
            sample["label"] = to_train_ids(sample["instance"], self.classes, self.path)
        return sample

    def image(self, index: int) -> np.ndarray:
        dtype, more = PLANES["image"]  # the first plane
        shape = (*self.size(index), *more)
        return np.ndarray(shape, dtype, self.bytes, self.layout.starts[index])

    def size(self, index: int) -> tuple[int, int]:
        return tuple(self.layout.images[index]["size"])

    def require_current(
        self, data_set: DataSet, root: Path, split: str, *, thorough: bool = False
    ) -> None:
        """UserError if the split must be packed again; see require_unchanged."""
        instances, sources = "instance" in self.layout.planes, []
        advice = data_set.prepare_again(root, self.path, instances=instances)
        with suppress(NoImages):  # the image files may have been deleted
            found = data_set.found(root, split, instances=instances)
            sources = [path for paths in found.values() for path in paths.values()]
            if self.names != [*found["image"]]:
                what = "has other images than the data set, or in another order"
                raise UserError(f"{self.path}: {what}. {advice}")
            for image in self.layout.images:  # of the same files, labels may belong to others
                name, packed = image["name"], image["sources"].keys()
                files = (paths[name] for paths in found.values() if name in paths)
                if not {name_below(root, path) for path in files} <= packed:
                    raise UserError(f"{self.path}: image {name} has other files now. {advice}")
        how = {"thorough": thorough, "instances": instances}
        if require_unchanged(self.path, data_set, root, sources, **how):
            return
        for image in self.layout.images:  # an older file without a record
            for name, size in image["sources"].items():
                with suppress(OSError):  # source files may not exist
                    if (root / name).stat().st_size != size:
                        raise UserError(f"{self.path}: older than {root / name}. {advice}")

    def damaged(self) -> Iterator[str]:
        """For each image its name if it is damaged, else "". Reads the whole file."""
        for index, name in enumerate(self.names):
            start, length = self.layout.starts[index], self.layout.lengths[index]
            yield "" if is_whole(memoryview(self.bytes)[start : start + length]) else name


def read_header(content: mmap.mmap, path: Path) -> dict[str, Any]:
    """The header of a packed file; UserError if it is damaged or this is another kind of file."""
    if content[:8] == MAGIC and len(content) > 16:
        length, expected = struct.unpack("<II", content[8:16])
        header = content[16 : 16 + length]
        if len(header) == length and zlib.crc32(header) == expected:
            return json.loads(header)
    raise UserError(f"{path}: not a packed file, or damaged. {REPACK}")
