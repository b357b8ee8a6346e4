"""Which files belong together, what their pixels mean, and what damaged ones say."""

import shutil
import struct
import time
import zlib
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from helpers import preprocess, write_cityscapes
from PIL import ExifTags, Image

from datasets import build_dataset, find_data_set, listed, name_in
from utils.base.errors import UserError
from utils.data.image_files import image_header, image_size, read_ids, read_image, write_png
from utils.data.label_table import CITYSCAPES, IGNORE, ids_of_instances
from utils.data.prepare import current_class_weights, pack_split


@pytest.fixture
def tree(cityscapes_root, tmp_path):
    """A copy of the tree that a test may damage."""
    return shutil.copytree(cityscapes_root, tmp_path / "tree")


def first(root, pattern):
    return sorted(root.glob(pattern))[0]


def test_train_samples_pair_image_and_train_ids(cityscapes_root):
    dataset = build_dataset("cityscapes", cityscapes_root, "train")
    assert len(dataset) == 4
    sample = dataset[1]
    assert sample["name"] == "aachen_000001_000019"
    assert sample["image"].shape == (64, 128, 3) and sample["image"].dtype == np.uint8
    assert sample["label"].shape == (64, 128) and sample["label"].dtype == np.uint8
    assert set(np.unique(sample["label"])) <= {*range(19), IGNORE}
    assert "instance" not in sample


def test_val_labels_follow_from_instance_ids(cityscapes_root):
    dataset = build_dataset("cityscapes", cityscapes_root, "val")
    for index, files in enumerate(dataset.files):
        sample = dataset[index]
        ids = read_ids(files.instances.with_name(f"{files.name}_gtFine_labelIds.png"), np.uint8)
        assert (sample["instance"] >= 1000).any()
        assert np.array_equal(ids_of_instances(sample["instance"]), ids)
        assert np.array_equal(sample["label"], CITYSCAPES.id_to_train[ids])


def test_the_layout_of_the_unpacked_zips_gives_the_same_samples(cityscapes_root, tree):
    for kind in ("leftImg8bit", "gtFine"):
        folder = tree / f"{kind}_trainvaltest"
        folder.mkdir()
        (tree / kind).rename(folder / kind)
    for split in ("train", "val"):
        flat, nested = (build_dataset("cityscapes", r, split) for r in (cityscapes_root, tree))
        assert [x.name for x in flat.files] == [x.name for x in nested.files]
        for index in range(len(flat)):
            assert all(np.array_equal(flat[index][k], nested[index][k]) for k in flat[index])


def test_images_are_rgb(tmp_path):
    red = np.zeros((4, 5, 3), np.uint8)
    red[..., 0] = 200
    Image.fromarray(red).save(tmp_path / "a.png")
    assert np.array_equal(read_image(tmp_path / "a.png"), red)


def test_camvid_reads_png_or_jpg_and_ignores_void(tmp_path):
    for folder in ("train", "trainannot"):
        (tmp_path / folder).mkdir()
    label = np.array([[0, 5], [10, 11]], np.uint8)
    for name, suffix in (("a", "jpg"), ("b", "png")):
        Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "train" / f"{name}.{suffix}")
        Image.fromarray(label).save(tmp_path / "trainannot" / f"{name}.png")
    dataset = build_dataset("camvid", tmp_path, "train")
    assert [dataset[i]["name"] for i in (0, 1)] == ["a", "b"]
    assert dataset[0]["label"].tolist() == [[0, 5], [10, IGNORE]]


def test_palette_labels_give_their_indices(tmp_path):
    ids = np.array([[0, 7], [26, 33]], np.uint8)
    picture = Image.fromarray(ids)
    picture.putpalette([(i * 7) % 256 for i in range(768)])
    picture.save(tmp_path / "p.png")
    assert np.array_equal(read_ids(tmp_path / "p.png", np.uint8), ids)


def test_a_missing_data_set_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"no images.*--data_root.*make demo"):
        build_dataset("cityscapes", tmp_path, "train")


def test_missing_labels_are_counted_and_named(tree):
    first(tree, "meta/label_imgs/aachen*").unlink()
    with pytest.raises(UserError, match=r"1 of 4 .*aachen_000000.*preprocess_data"):
        build_dataset("cityscapes", tree, "train")
    first(tree, "gtFine/val/*/*instanceIds.png").unlink()
    with pytest.raises(UserError, match=r"1 of 3 .*lindau_000000.*gtFine"):
        build_dataset("cityscapes", tree, "val")


@pytest.mark.parametrize("damage", ["cut", "empty", "html", "flip"])
@pytest.mark.parametrize("pattern", ["leftImg8bit/val/*/*", "gtFine/val/*/*instanceIds.png"])
def test_a_damaged_file_is_named(tree, pattern, damage):
    path = first(tree, pattern)
    content = path.read_bytes()
    middle = len(content) // 2
    damaged = {
        "cut": content[:middle],
        "empty": b"",
        "html": b"<html>401</html>",
        "flip": content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :],
    }[damage]
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=path.name):
        build_dataset("cityscapes", tree, "val")[0]


@pytest.mark.parametrize("becomes", ["nothing", "a link to itself", "a folder"])
@pytest.mark.parametrize("pattern", ["leftImg8bit/val/*/*", "gtFine/val/*/*instanceIds.png"])
def test_a_file_that_vanishes_is_named(tree, pattern, becomes):
    dataset = build_dataset("cityscapes", tree, "val")
    path = first(tree, pattern)
    path.unlink()
    if becomes == "a link to itself":
        path.symlink_to(path)
    if becomes == "a folder":
        path.mkdir()
    with pytest.raises(UserError, match=f"{path.name}: cannot be read .*Restore the file"):
        dataset[0]


def test_labels_of_another_size_or_kind_are_refused(tree):
    path = first(tree, "meta/label_imgs/aachen*")
    cv2.imwrite(str(path), np.zeros((32, 128), np.uint8))
    with pytest.raises(UserError, match=r"\(32, 128\).*\(64, 128\)"):
        build_dataset("cityscapes", tree, "train")[0]
    cv2.imwrite(str(path), np.zeros((64, 128, 3), np.uint8))
    with pytest.raises(UserError, match="not ids"):
        build_dataset("cityscapes", tree, "train")[0]


def test_undefined_ids_are_named(tmp_path):
    root = write_cityscapes(tmp_path, train=1, val=1)
    path = first(root, "gtFine/val/*/*instanceIds.png")
    ids = np.full((64, 128), 7, np.uint16)
    ids[0, 0] = 77
    cv2.imwrite(str(path), ids)
    with pytest.raises(UserError, match=r"instanceIds.png: undefined label ids 77"):
        build_dataset("cityscapes", root, "val")[0]


def test_class_weights_are_read_in_train_id_order(cityscapes_root, tmp_path):
    cityscapes = find_data_set("cityscapes", cityscapes_root)
    weights = current_class_weights(cityscapes, cityscapes_root)
    assert weights.shape == (19,) and ((weights > 1) & (weights <= 50.5)).all()
    with pytest.raises(UserError, match="preprocess_data"):
        current_class_weights(cityscapes, tmp_path)


def test_unknown_names_are_refused(tmp_path):
    known = "Give one of cityscapes, synthetic, voc, .*camvid"
    with pytest.raises(UserError, match=f"--dataset nowhere: unknown data set. {known}"):
        build_dataset("nowhere", tmp_path, "train")
    with pytest.raises(UserError, match="--split trainaug: not in cityscapes. .*train, val"):
        build_dataset("cityscapes", tmp_path, "trainaug")


def test_trainval_is_train_then_val(cityscapes_root):
    splits = ("trainval", "train", "val")
    whole, *parts = (
        build_dataset("cityscapes", cityscapes_root, split, fine_repeats=3) for split in splits
    )
    assert len(whole) == 7 and whole.names == [*parts[0].names, *parts[1].names]
    assert whole.classes is parts[0].classes and "files" in whole.source
    for index, part, place in ((3, parts[0], 3), (4, parts[1], 0), (6, parts[1], 2)):
        for kind in ("image", "label"):
            assert np.array_equal(whole[index][kind], part[place][kind])
        assert np.array_equal(whole.train_ids(index), part[place]["label"])


def png_of(width: int, height: int, *, color: int = 0) -> bytes:
    """A PNG file that claims a size and holds next to nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    colors = [(b"PLTE", bytes(3))] if color == 3 else []
    chunks = [(b"IHDR", head), *colors, (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.mark.parametrize("size", [(30_000, 30_000), (2**31 - 1, 2**31 - 1), (0, 0), (2048, 1024)])
def test_a_small_file_that_claims_many_pixels_is_refused_at_once(tmp_path, size):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_of(*size))
    for read in (read_image, lambda path: read_ids(path, np.uint8)):
        begin = time.process_time()
        with pytest.raises(UserError, match=r"bomb.png"):
            read(path)
        assert time.process_time() - begin < 0.1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(16_384, 16_385), (60_000, 60_000), (15_000, 15_000)])
def test_one_limit_is_named_for_images_of_all_kinds(tmp_path, size):
    """Pillow would warn from 89 million pixels on, and give up at 179 million."""
    png, jpeg, palette = (tmp_path / name for name in ("x.png", "x.jpg", "palette.png"))
    png.write_bytes(png_of(*size))
    palette.write_bytes(png_of(*size, color=3))
    Image.new("RGB", (8, 8)).save(jpeg)
    content = jpeg.read_bytes()
    place = content.index(b"\xff\xc0") + 5
    jpeg.write_bytes(content[:place] + struct.pack(">HH", *size[::-1]) + content[place + 4 :])
    words = "the limit is 268,435,456" if size[0] * size[1] > 1 << 28 else "not a whole"
    for path in (png, jpeg):
        assert image_size(path) == size[::-1]
    for path, read in (
        (png, read_image), (palette, lambda path: read_ids(path, np.uint8)),
        (png, lambda path: read_ids(path, np.uint8)), (jpeg, require_jpeg),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"{path.name}: .*{words}"):
            read(path)


def require_jpeg(path: Path) -> None:
    """Of a JPEG file the header alone is believed: OpenCV makes what is missing grey."""
    image_header(path.read_bytes(), path)
    raise UserError(f"{path}: not a whole image")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_other_8_bit_images_are_read_as_rgb(tmp_path, mode):
    grey = Image.fromarray(np.arange(0, 240, 10, np.uint8).reshape(4, 6))
    grey.convert(mode).save(tmp_path / "x.png")
    image = read_image(tmp_path / "x.png")
    assert image.shape == (4, 6, 3)
    assert np.array_equal(image, np.asarray(grey.convert(mode).convert("RGB")))


def test_images_of_16_bits_or_four_inks_are_refused(tmp_path):
    cv2.imwrite(str(tmp_path / "deep.png"), np.zeros((4, 6, 3), np.uint16))
    with pytest.raises(UserError, match="deep.png: 16 bits"):
        read_image(tmp_path / "deep.png")
    Image.fromarray(np.zeros((4, 6, 4), np.uint8), "CMYK").save(tmp_path / "inks.jpg")
    with pytest.raises(UserError, match="inks.jpg: 6 x 4 pixels, CMYK"):
        read_image(tmp_path / "inks.jpg")
    for name in ("x.gif", "x.bmp"):
        Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / name)
        with pytest.raises(UserError, match=name):
            read_image(tmp_path / name)


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "I;16"])
def test_every_damaged_or_missing_byte_of_a_png_is_noticed(tmp_path, mode):
    """Also one that would decode without complaint: its chunk's checksum is wrong."""
    ids = np.random.default_rng(0).integers(0, 9, (9, 11)).astype(np.uint8)
    image = Image.fromarray(ids * np.uint16(999) if mode == "I;16" else ids)
    if mode == "P":
        image.putpalette(list(range(48)))
    path = tmp_path / "x.png"
    (image.convert("RGB") if mode == "RGB" else image).save(path)
    readers = {
        "L": [read_image, lambda path: read_ids(path, np.uint8)],
        "P": [read_image, lambda path: read_ids(path, np.uint8)],
        "RGB": [read_image],
        "I;16": [lambda path: read_ids(path, np.uint16)],
    }[mode]
    content = path.read_bytes()
    for read in readers:
        path.write_bytes(content)
        read(path)
        for place in range(len(content)):
            for damaged in (
                content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :],
                content[:place],
            ):
                path.write_bytes(damaged)
                with pytest.raises(UserError, match=r"x\.png: "):
                    read(path)


def exif_with_thumbnail(thumbnail: bytes) -> bytes:
    """What a camera writes: a second directory that names a whole JPEG file within the entry."""
    entries = [(0x0103, 3, 6), (0x0201, 4, 56), (0x0202, 4, len(thumbnail))]
    second = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    directories = struct.pack("<HIH", 0, 14, len(entries)) + second + bytes(4)
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + directories + thumbnail


def jpeg_of(image: Image.Image, **options) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


JPEGS = {
    "plain": {},
    "thumbnail": {"thumbnail": True},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_rows": 1},
    "comment": {"comment": b"\xff\xd9 is not the end"},
    "colour profile": {"icc_profile": b"\xff\xd9" * 40_000},  # in two segments
}


@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_that_ends_too_early_is_refused(tmp_path, kind):
    """Zeros after it are a download that stopped, which OpenCV would fill with grey."""
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    image, options, path = Image.fromarray(noise), dict(JPEGS[kind]), tmp_path / "x.jpg"
    if options.pop("thumbnail", False):
        thumbnail = jpeg_of(image.resize((16, 12)))
        options["exif"] = exif_with_thumbnail(thumbnail)
        entry = Image.open(BytesIO(jpeg_of(image, **options))).getexif().get_ifd(ExifTags.IFD.IFD1)
        assert entry[0x0202] == len(thumbnail) and thumbnail.endswith(b"\xff\xd9")
    content = jpeg_of(image, **options)
    padded = content[:2] + b"\xff\xff" + content[2:]  # before a marker any number is allowed
    for whole in (content, padded, content + b"\0" * 9, content + b"maker's notes"):
        path.write_bytes(whole)
        assert read_image(path).shape == (48, 64, 3)
    for length in (*range(0, len(content) - 2, 97), len(content) - 2):
        for rest in (b"", bytes(len(content) - length)):
            path.write_bytes(content[:length] + rest)
            with pytest.raises(UserError, match=r"x\.jpg: not a whole PNG or JPEG image"):
                read_image(path)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3)])
def test_written_pixels_are_read_back(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    read = read_image if len(shape) == 3 else lambda path: read_ids(path, np.uint8)
    for filtered in (True, False):
        write_png(tmp_path / "x.png", pixels, filtered=filtered)
        assert np.array_equal(read(tmp_path / "x.png"), pixels)
        assert image_size(tmp_path / "x.png") == (4, 6)
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_any_name_of_a_folder_will_do(cityscapes_root, tmp_path):
    root = tmp_path / "my data #1 100% größe\n-x"
    shutil.copytree(cityscapes_root, root)
    for split in ("train", "val"):
        assert np.array_equal(
            build_dataset("cityscapes", root, split)[0]["label"],
            build_dataset("cityscapes", cityscapes_root, split)[0]["label"],
        )


@pytest.mark.parametrize("read", [read_image, lambda path: read_ids(path, np.uint8)])
def test_a_chunk_that_claims_two_gigabytes_is_refused_at_once(read, tmp_path):
    """OpenCV would allocate them: seconds, or no memory left, for one flipped bit."""
    path = tmp_path / "x.png"
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    place = content.index(b"IDAT") - 4
    content[place] |= 0x7F
    path.write_bytes(content)
    begin = time.process_time()
    with pytest.raises(UserError, match="not a whole PNG"):
        read(path)
    assert time.process_time() - begin < 0.5


def write_coarse(root: Path) -> Path:
    """Three images of train_extra with label ids, in the official folders, one of them broken."""
    rng = np.random.default_rng(5)
    for name in ("augsburg_000000_000000", "troisdorf_000000_000073", "troisdorf_000000_000074"):
        image, label = (
            root / kind / "train_extra" / name.split("_")[0] / f"{name}_{ending}.png"
            for kind, ending in (("leftImg8bit", "leftImg8bit"), ("gtCoarse", "gtCoarse_labelIds"))
        )
        for path in (image, label):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 128, 3), dtype=np.uint8)).save(image)
        Image.fromarray(rng.integers(0, 34, (64, 128), dtype=np.uint8)).save(label)
        if name.endswith("73"):
            image.write_bytes(b"")
    return root


def test_coarse_labels_join_the_fine_ones_with_a_weight_of_their_own(tmp_path):
    root = write_coarse(write_cityscapes(tmp_path, train=4))
    preprocess(root)
    fine = build_dataset("cityscapes", root, "train")
    both = build_dataset("cityscapes", root, "train_extra", fine_repeats=3)
    coarse = ["augsburg_000000_000000", "troisdorf_000000_000074"]
    assert both.names == [*fine.names * 3, *coarse] and len(both) == 14
    assert np.array_equal(both[4]["label"], fine[0]["label"])
    path = root / "gtCoarse/train_extra/augsburg" / f"{coarse[0]}_gtCoarse_labelIds.png"
    ids = np.asarray(Image.open(path))
    assert np.array_equal(both[12]["label"], CITYSCAPES.id_to_train[ids])
    assert not both.checked  # nobody has seen the coarse labels before training
    path.unlink()
    with pytest.raises(
        UserError, match="1 of 2 coarse label files missing .augsburg_000000.*Unpack gtCoarse"
    ):
        build_dataset("cityscapes", root, "train_extra")


def test_the_size_of_a_missing_and_of_a_wrong_file(tmp_path):
    with pytest.raises(UserError, match=r"none.png: cannot be read"):
        image_size(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text.png: not a whole PNG or JPEG image"):
        image_size(tmp_path / "text.png")


@pytest.mark.parametrize("packed", [False, True])
def test_a_list_chooses_training_images(tree, tmp_path, packed):
    """Names, paths, and pairs of image and label as in the lists of an eighth of Cityscapes."""
    if packed:
        pack_split(build_dataset("cityscapes", tree, "train", packed=False), tree, "train",
                   workers=1, overwrite=False)  # fmt: skip
    whole = build_dataset("cityscapes", tree, "train")
    first, second, third, *_ = whole.names
    path = tmp_path / "eighth.txt"
    pair = f"leftImg8bit/train/aachen/{third}_leftImg8bit.png gtFine/train/aachen/{third}_x.png"
    path.write_text(f"{pair}\n{first}\n\n/some/where/{second}.png\n")
    part = listed(whole, path)
    assert part.names == [third, first, second] and len(part) == 3
    for place, index in enumerate((2, 0, 1)):
        assert np.array_equal(part[place]["image"], whole[index]["image"])
        assert np.array_equal(part.train_ids(place), whole.train_ids(index))
        assert part.size(place) == whole.size(index)
    assert name_in("4 b.png x.png", {"4 b"}) == "4 b.png x.png"  # a path with spaces is unclear
    assert name_in("4 b", {"4 b"}) == "4 b" and name_in("a/2020.01.02", {"2020.01.02"})
    for text, words in (("", "empty"), (f"{first}\nnobody\n", "1 of 2 names .* such as nobody")):
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            listed(whole, path)
