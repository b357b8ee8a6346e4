"""Image files of every kind: one view of them, and one verdict on them, in all commands."""

import struct
import zlib
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from datasets import build_dataset, find_data_set
from utils.base.errors import UserError
from utils.data.check import check_data
from utils.data.image_files import image_header, image_size, read_image
from utils.data.packed import packed_path
from utils.data.prepare import pack_split, weigh

SIZE = (24, 36)
IDS = np.repeat(np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3) % 2, 12, 0), 12, 1)
IDS[:5, :9] = 2  # no symmetry
PHOTO = np.stack([IDS * 90, 255 - IDS * 60, IDS * 20 + 40], -1)
DESCRIPTION = "images: i/{split}/{name}.*\nlabels: l/{split}/{name}.png\nclasses: [a, b, c]\n"


def tagged(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def write_set(root: Path, ending: str, *, image=None, label=None, text: str = DESCRIPTION) -> None:
    """A train and a val image with labels; `image` and `label` write train's."""
    (root / "dataset.yaml").write_text(text)
    for split in ("train", "val"):
        paths = [root / "i" / split / f"x{ending}", root / "l" / split / "x.png"]
        for path, pixels in zip(paths, (PHOTO, IDS), strict=True):
            path.parent.mkdir(parents=True)
            Image.fromarray(pixels).save(path)
        for path, write in zip(paths, (image, label), strict=True):
            if write is not None and split == "train":
                path.unlink()
                write(path)


def check(root: Path, capsys) -> list[str]:
    capsys.readouterr()
    try:
        check_data(find_data_set("custom", root), root, workers=1)
    except UserError as error:
        print(error)
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("ending", [".jpg", ".png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tagged_image_is_seen_upright_everywhere(tmp_path, capsys, ending, orientation):
    """Labels are drawn on what a labelling tool shows."""
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    buffer = BytesIO()
    Image.fromarray(PHOTO).save(buffer, "PNG", exif=tagged(inverse))
    stored = np.asarray(ImageOps.exif_transpose(Image.open(buffer)))  # so that upright is PHOTO

    def save(path: Path) -> None:
        Image.fromarray(stored).save(path, exif=tagged(orientation), quality=95, subsampling=0)

    write_set(tmp_path, ending, image=save)
    path = tmp_path / "i" / "train" / f"x{ending}"
    files = build_dataset("custom", tmp_path, "train")
    pack_split(files, tmp_path, "train", workers=1, overwrite=False)
    packed = build_dataset("custom", tmp_path, "train")
    assert str(packed_path(tmp_path, "train")) in packed.source
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    assert np.abs(expected.astype(int) - PHOTO).max() <= (30 if ending == ".jpg" else 0)
    for dataset in (files, packed):
        assert np.array_equal(dataset[0]["image"], read_image(path)) and dataset.size(0) == SIZE
        assert np.array_equal(dataset[0]["label"], IDS)
        assert np.array_equal(dataset.image(0), dataset[0]["image"])
        assert np.array_equal(dataset.train_ids(0), IDS)
    assert np.abs(files[0]["image"].astype(int) - expected).max() <= 2  # two JPEG decoders
    weigh(files, tmp_path, workers=1)
    lines = check(tmp_path, capsys)
    assert lines[-1].endswith("no fault") and len(lines) == 1 + (orientation != 1)
    assert all("1 train images have an EXIF orientation" in line for line in lines[:-1])


@pytest.mark.parametrize("kind", ["grey", "palette", "colours"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_a_tagged_label_is_turned_as_its_image_is(tmp_path, kind, orientation):
    """Both as a tool writes them that copies the tag."""
    label = Image.fromarray(PHOTO if kind == "colours" else IDS)
    if kind == "palette":
        label.putpalette(list(range(9)))
    colors = "label_colors: {a: [0, 255, 40], b: [90, 195, 60], c: [180, 135, 80]}\n"
    exif = tagged(orientation)
    write_set(
        tmp_path, ".png", text=DESCRIPTION + colors * (kind == "colours"),
        image=lambda path: Image.fromarray(PHOTO).save(path, exif=exif),
        label=lambda path: label.save(path, exif=exif),
    )  # fmt: skip
    sample = build_dataset("custom", tmp_path, "train")[0]
    assert np.array_equal(sample["image"][..., 0], sample["label"] * 90)
    assert not np.array_equal(sample["label"], IDS)


def entry(order: str, kind: int, value: bytes) -> bytes:
    begin = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return begin + struct.pack(f"{order}IHHHI", 8, 1, 0x0112, kind, 1) + value + bytes(4)


EXIF = {
    "little endian": (entry("<", 3, b"\6\0\0\0"), 6),
    "big endian": (entry(">", 3, b"\0\6\0\0"), 6),
    "0": (entry("<", 3, bytes(4)), 1),
    "9": (entry("<", 3, b"\x09\0\0\0"), 1),
    "cut off": (entry("<", 3, b"\6\0\0\0")[:16], 1),
    "points behind the end": (b"II*\0\xff\xff\xff\xff", 1),
    "empty": (b"", 1),
    "no EXIF": (b"anything at all", 1),
}


@pytest.mark.parametrize("ending", [".jpg", ".png"])
@pytest.mark.parametrize("kind", EXIF)
def test_an_image_has_the_size_that_is_told_before_it_is_decoded(tmp_path, ending, kind):
    exif, orientation = EXIF[kind]
    path = tmp_path / f"x{ending}"
    Image.fromarray(PHOTO).save(path, exif=b"Exif\0\0" + exif)
    size = SIZE[::-1] if orientation > 4 else SIZE
    assert image_header(path.read_bytes(), path) == (size, orientation)
    assert image_size(path) == read_image(path).shape[:2]


def png(mode: str, **options):
    """A writer of a PNG in a mode of Pillow."""

    def write(path: Path) -> None:
        image = Image.fromarray(PHOTO if mode in ("RGB", "RGBA") else IDS)
        if mode == "P":
            image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
            image.save(path, **options)
        else:
            image.convert(mode).save(path)

    return write


def with_tail(size: int, ending: str = "PNG"):
    def write(path: Path) -> None:
        Image.fromarray(IDS).save(path, ending)
        path.write_bytes(path.read_bytes() + b"\x89PNG" * (size // 4))

    return write


def long_text(path: Path) -> None:
    """A compressed comment of 2 MiB before the pixels, as drawing programs write it."""
    png("L")(path)
    content = path.read_bytes()
    chunk = b"zTXt" + b"mxfile\0\0" + zlib.compress(bytes(1 << 21))
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(content[:33] + chunk + content[33:])


def cut(ending: str):
    def write(path: Path) -> None:
        Image.fromarray(IDS).save(path, ending)
        path.write_bytes(path.read_bytes()[:-9])

    return write


LABELS = {  # writer, whether it is read
    "8 bits": (png("L"), True),
    "palette, 2 bits": (png("P", bits=2), True),
    "palette, 4 bits": (png("P", bits=4), True),
    "palette, 8 bits": (png("P", bits=8), True),
    "palette, 1 bit": (lambda p: Image.fromarray(IDS % 2, "P").save(p, bits=1), True),
    "1 bit": (png("1"), False),
    "16 bits": (lambda p: cv2.imwrite(str(p), IDS.astype(np.uint16)), False),
    "RGB": (png("RGB"), False),
    "RGBA": (png("RGBA"), False),
    "LA": (png("LA"), False),
    "JPEG": (lambda p: Image.fromarray(IDS).save(p, "JPEG"), False),
    "half size": (lambda p: Image.fromarray(IDS[::2, ::2]).save(p), False),
    "turned": (lambda p: Image.fromarray(IDS.T.copy()).save(p), False),
    "truncated": (cut("PNG"), False),
    "10 bytes behind": (with_tail(10), True),
    "2 KiB behind": (with_tail(2 << 10), True),
    "2 MiB behind": (with_tail(2 << 20), True),
    "comment of 2 MiB": (long_text, True),
    "0 bytes": (Path.touch, False),
    "no image": (lambda p: p.write_text("<html>404</html>"), False),
    "a folder": (Path.mkdir, False),
    "undefined id": (lambda p: Image.fromarray(IDS + np.uint8(1)).save(p), False),
}
PHOTOS = {
    mode: (png(mode), True) for mode in ("L", "P", "1", "RGB", "RGBA", "LA")
} | {
    "palette, 2 bits": (png("P", bits=2), True),
    "16 bits": (LABELS["16 bits"][0], False),
    "JPEG": (lambda p: Image.fromarray(PHOTO).save(p, "JPEG"), True),
    "grey JPEG": (lambda p: Image.fromarray(IDS).save(p, "JPEG"), True),
    "JPEG of four inks": (lambda p: Image.fromarray(PHOTO).convert("CMYK").save(p, "JPEG"), False),
    "GIF": (lambda p: Image.fromarray(PHOTO).save(p, "GIF"), False),
    "half size": (lambda p: Image.fromarray(PHOTO[::2, ::2]).save(p), False),
    "truncated": (cut("PNG"), False),
    "truncated JPEG": (cut("JPEG"), False),
    "10 bytes behind": (with_tail(10), True),
    "2 KiB behind": (with_tail(2 << 10), True),
    "2 MiB behind": (with_tail(2 << 20), True),
    "2 MiB behind a JPEG": (with_tail(2 << 20, "JPEG"), True),
    "comment of 2 MiB": (long_text, True),
    "0 bytes": (Path.touch, False),
    "no image": (lambda p: p.write_text("<html>404</html>"), False),
    "a folder": (Path.mkdir, False),
}  # fmt: skip


@pytest.mark.parametrize(
    ("plane", "kind"),
    [*(("label", kind) for kind in LABELS), *(("image", kind) for kind in PHOTOS)],
)
def test_the_check_finds_fault_where_training_does(tmp_path, capsys, plane, kind):
    """And goes on to the next one, which is val's label."""
    write, readable = (LABELS if plane == "label" else PHOTOS)[kind]
    write_set(tmp_path, ".png", **{plane: write})
    (tmp_path / "l" / "val" / "x.png").write_bytes(b"")
    dataset = build_dataset("custom", tmp_path, "train")
    lines = check(tmp_path, capsys)
    assert "val" in lines[-2] and len(lines) == 3 - readable and "fault" in lines[-1], lines
    if readable:
        sample = dataset[0]
        assert sample["image"].shape[:2] == sample["label"].shape == dataset.size(0) == SIZE
    else:
        assert str(tmp_path / plane[0] / "train" / "x.png") in lines[0] or kind == "half size"
        with pytest.raises(UserError, match=r"x\.png: "):
            dataset[0]
