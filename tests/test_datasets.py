"""Which files belong together, what their pixels mean, and what damaged ones say."""

import shutil
import struct
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import write_cityscapes
from PIL import Image

from datasets import build_dataset
from utils.class_weights import read_class_weights
from utils.errors import UserError
from utils.images import image_size, read_ids, read_image
from utils.labels import CITYSCAPES, IGNORE, label_ids
from utils.preprocess_data import preprocess


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
        ids = read_ids(files.instance.with_name(f"{files.name}_gtFine_labelIds.png"), np.uint8)
        assert (sample["instance"] >= 1000).any()
        assert np.array_equal(label_ids(sample["instance"]), ids)
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
    weights = read_class_weights(cityscapes_root, CITYSCAPES)
    assert weights.shape == (19,) and ((weights > 1) & (weights <= 50.5)).all()
    with pytest.raises(UserError, match="preprocess_data"):
        read_class_weights(tmp_path, CITYSCAPES)


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="camvid"):
        build_dataset("kitti", tmp_path, "train")


def test_trainval_is_train_then_val(cityscapes_root):
    splits = ("trainval", "train", "val")
    whole, *parts = (build_dataset("cityscapes", cityscapes_root, split) for split in splits)
    assert len(whole) == 7 and whole.names == [*parts[0].names, *parts[1].names]
    assert whole.classes is parts[0].classes and "files" in whole.source
    for index, part, place in ((3, parts[0], 3), (4, parts[1], 0), (6, parts[1], 2)):
        for kind in ("image", "label"):
            assert np.array_equal(whole[index][kind], part[place][kind])
        assert np.array_equal(whole.label(index), part[place]["label"])


def png_of(width: int, height: int) -> bytes:
    """A PNG file that claims a size and holds next to nothing."""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_s_rotation_is_ignored(tmp_path, orientation):
    tag = Image.Exif()
    tag[0x0112] = orientation
    for name in ("x.jpg", "x.png"):
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / name, exif=tag)
        assert read_image(tmp_path / name).shape == (4, 6, 3)


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
    begin = time.monotonic()
    with pytest.raises(UserError, match="not a whole PNG"):
        read(path)
    assert time.monotonic() - begin < 0.5


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
    preprocess(root, workers=1, overwrite=False)
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
    with pytest.raises(UserError, match="1 of 2 label files missing.*Unpack gtCoarse"):
        build_dataset("cityscapes", root, "train_extra")


def test_the_size_of_a_missing_and_of_a_wrong_file(tmp_path):
    with pytest.raises(UserError, match=r"none.png: does not exist"):
        image_size(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text.png: not a PNG or JPEG image"):
        image_size(tmp_path / "text.png")
