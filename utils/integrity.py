"""Faults of image files, found without decoding them: structure, checksums, kind and size."""

import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from utils.errors import UserError
from utils.files import GREY, PALETTE, PNG_START, TAIL, png_header, read_bytes
from utils.labels import LabelTable
from utils.loader import read_ahead
from utils.packing import PackedFile
from utils.progress import progress

KINDS = {  # bits per channel and colour types that are read; JPEG only as image
    "image": ((8,), (GREY, 2, PALETTE, 4, 6)),
    "label": ((8,), (GREY, PALETTE)),
    "instance": ((8, 16), (GREY,)),
}
NAMES = {
    "image": "{kind}, not an 8-bit image",
    "label": "{kind}, not one channel of 8-bit ids",
    "instance": "{kind}, not one channel of instance ids",
}


def png_fault(content: bytes) -> str:
    """What is wrong with a PNG file's structure or checksums; "" if nothing is."""
    if content[:16] != PNG_START:
        return "not a PNG image"
    place, kinds = 8, set()
    while place + 12 <= len(content):
        length, kind = struct.unpack(">I4s", content[place : place + 8])
        end = place + 12 + length
        if end > len(content):
            break
        (expected,) = struct.unpack(">I", content[end - 4 : end])
        if zlib.crc32(memoryview(content)[place + 4 : end - 4]) != expected:
            return f"damaged (checksum of chunk {kind.decode('ascii', 'replace')})"
        kinds.add(kind)
        if kind == b"IEND":
            return "" if b"IDAT" in kinds else "holds no pixels"
        place = end
    return "cut off"


def jpeg_fault(content: bytes) -> str:
    return "" if content.rstrip(b"\0").endswith(b"\xff\xd9") else "cut off"


def faults(paths: dict[str, Path]) -> Iterator[tuple[Path, str]]:
    """Faulty files of one image: {"image": path[, "label": ..., "instance": ...]}."""
    sizes = {}
    for kind, path in paths.items():
        try:
            content = read_bytes(path)
        except UserError:
            yield path, "cannot be read"
            continue
        if kind == "image" and content[:2] == b"\xff\xd8":
            fault = jpeg_fault(content)
        else:
            fault = png_fault(content)
            if not fault:
                header = png_header(content[:26], content[-TAIL:], path)
                bits, colors = KINDS[kind]
                if header.bits not in bits or header.color not in colors:
                    fault = NAMES[kind].format(kind=header.kind)
                sizes[path] = header.size
        if fault:
            yield path, fault
    for path, size in sizes.items():
        if size != next(iter(sizes.values())):
            yield path, f"{size[1]} x {size[0]} pixels, its image has another size"


def all_faults(
    paths: dict[str, Path], decoders: dict[str, Callable[[Path], object]]
) -> list[tuple[Path, str]]:
    """Faults of one image's files; `decoders` raise UserError for what only pixels show."""
    found = list(faults(paths))
    for kind, path in paths.items() if decoders and not found else ():
        try:
            decoders[kind](path)
        except UserError as error:
            found.append((path, str(error).removeprefix(f"{path}: ")))
    return found


def check_split(
    split: str,
    by_kind: dict[str, dict[str, Path]],
    decoders: dict[str, Callable[[Path], object]],
    *,
    workers: int,
) -> int:
    """Print the faults of the files {kind: {image name: path}}, one a line; their number."""
    images: dict[str, dict[str, Path]] = {}
    for kind, paths in by_kind.items():
        for name, path in paths.items():
            images.setdefault(name, {})[kind] = path
    found = 0
    for name, paths in sorted(images.items()):
        for kind in by_kind.keys() - paths.keys():
            found += 1
            print(f"{next(iter(paths.values()))}: {split} image {name} has no {kind} file")
    look = partial(all_faults, decoders=decoders)
    each = read_ahead(look, images.values(), workers=workers, ahead=4 * workers)
    with progress(len(images), unit="image", label=f"check {split}", enabled=bool(images)) as bar:
        for some in each:
            for path, fault in some:
                bar.write(f"{path}: {fault}", file=sys.stdout)
            found += len(some)
            bar.update()
    return found


def check_packed(path: Path, classes: LabelTable) -> int:
    """Print the faults of a packed file; their number."""
    try:
        packed = PackedFile(path, classes)
    except UserError as error:
        print(error)
        return 1
    found = 0
    with progress(len(packed), unit="image", label=f"check {path.name}") as bar:
        for name in packed.damaged():
            if name:
                advice = "--pack true --overwrite true writes it again"
                bar.write(f"{path}: image {name} damaged (checksum); {advice}", file=sys.stdout)
                found += 1
            bar.update()
    return found
