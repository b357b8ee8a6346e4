"""PASCAL VOC and SBD on small trees in their exact formats, read as torchvision reads them."""

import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers import REPOSITORY, fails, run, tiny, train
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import SBDataset, VOCSegmentation

from datasets import build_dataset
from model import build_model
from utils.base.errors import UserError
from utils.base.parser import parse
from utils.data.label_table import IGNORE, VOC, voc_palette
from utils.data.voc import prepare
from utils.training.config import Config
from utils.training.distributed import start
from utils.training.logger import read_metrics
from utils.training.network import network_options
from utils.training.run import build_run

TRAIN, VAL = ["2007_000032", "2008_000008", "2009_000017"], ["2007_000033", "2010_000036"]
SBD = ["2008_000002", "2008_000008", "2010_000036", "2011_000100"]  # one in train, one in val
CLASSES = [0, 7, 15]


def draw(rng: np.random.Generator, size=(60, 80)) -> tuple[np.ndarray, np.ndarray]:
    """An image of a car and a person whose colours say what they are, and its ids."""
    ids = np.zeros(size, np.uint8)
    for left, class_id in zip((0, size[1] // 2), CLASSES[1:], strict=True):
        top, more = (int(rng.integers(0, length // 4)) for length in size)
        ids[top : top + size[0] // 2, left + more : left + more + size[1] // 4] = class_id
    image = ids[..., None] * np.array([15, 9, 5]) + rng.integers(0, 30, (*size, 3))
    return image.astype(np.uint8), ids


def outline(ids: np.ndarray) -> np.ndarray:
    """VOC's border of 255 between objects."""
    edges = cv2.morphologyEx(ids, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    return np.where(edges, np.uint8(IGNORE), ids)


def write_indexed(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids)
    image.putpalette(voc_palette().tobytes())
    image.save(path)


def write_voc(root: Path, year: str = "2012", *, test: bool = False) -> Path:
    """JPEGImages of all names, palette PNGs and lists of train and val."""
    voc, rng = root / "VOCdevkit" / f"VOC{year}", np.random.default_rng(int(year))
    for folder in ("JPEGImages", "ImageSets/Segmentation"):
        (voc / folder).mkdir(parents=True)
    for name in sorted({*TRAIN, *VAL, *SBD, "000001"}):
        image, ids = draw(rng, (60 + len(name), 80))
        Image.fromarray(image).save(voc / "JPEGImages" / f"{name}.jpg", quality=95)
        if name in TRAIN + VAL or test:
            write_indexed(voc / "SegmentationClass" / f"{name}.png", outline(ids))
    lists = {"train": TRAIN, "val": VAL, "trainval": TRAIN + VAL, "test": ["000001"]}
    for split, names in lists.items():
        path = voc / "ImageSets" / "Segmentation" / f"{split}.txt"
        path.write_text("\n".join(names) + "\n")
    return voc


def write_sbd(root: Path) -> None:
    """As torchvision's SBDataset unpacks it: img/, cls/*.mat, train.txt, val.txt."""
    rng = np.random.default_rng(3)
    for folder in ("img", "cls"):
        (root / "SBD" / folder).mkdir(parents=True)
    for name in SBD:
        image, ids = draw(rng, (60 + len(name), 80))
        Image.fromarray(image).save(root / "SBD" / "img" / f"{name}.jpg")
        content = {"Segmentation": ids, "CategoriesPresent": np.array(CLASSES[1:])}
        savemat(root / "SBD" / "cls" / f"{name}.mat", {"GTcls": content}, do_compression=True)
    (root / "SBD" / "train.txt").write_text("\n".join(SBD[:2]) + "\n")
    (root / "SBD" / "val.txt").write_text("\n".join(SBD[2:]) + "\n")


@pytest.mark.parametrize("split", ["train", "val"])
def test_voc_is_read_as_torchvision_reads_it(split, tmp_path):
    write_voc(tmp_path)
    ours = build_dataset("voc", tmp_path, split)
    theirs = VOCSegmentation(str(tmp_path), year="2012", image_set=split)
    assert len(ours) == len(theirs) > 0 and ours.classes.num_classes == 21
    for sample, (_image, label) in zip(ours, theirs, strict=True):
        ids = np.asarray(label)
        assert np.array_equal(sample["label"], ids) and set(np.unique(ids)) == {*CLASSES, IGNORE}
        assert sample["image"].shape[:2] == ids.shape
    path = tmp_path / "VOCdevkit/VOC2012/SegmentationClass" / f"{ours.names[0]}.png"
    colors = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)  # the trap: colours made grey, not ids
    assert not np.array_equal(colors, ours.train_ids(0))


def test_the_palette_is_the_development_kits():
    assert VOC.colors[[0, 1, 15, 20]].tolist() == [
        [0, 0, 0], [128, 0, 0], [192, 128, 128], [0, 64, 128],
    ]  # fmt: skip
    assert (VOC.names[7], VOC.names[15], len(VOC.names)) == ("car", "person", 21)


def test_lists_with_leading_slashes(tmp_path):
    voc = write_voc(tmp_path)
    names = ["2008_000002", *TRAIN]
    for name in names:
        image = Image.open(voc / "JPEGImages" / f"{name}.jpg")
        path = voc / "SegmentationClassAug" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full(image.size[::-1], 5, np.uint8)).save(path)  # grey, as it is shared
    listing = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in names]
    (voc / "list").mkdir()
    (voc / "list" / "train_aug.txt").write_text("\n".join(listing) + "\n")
    dataset = build_dataset("voc", tmp_path, "trainaug")
    assert dataset.names == names and all((dataset.train_ids(i) == 5).all() for i in range(4))

    (voc / "list" / "train_aug.txt").rename(voc / "ImageSets" / "Segmentation" / "trainaug.txt")
    (voc / "ImageSets" / "Segmentation" / "trainaug.txt").write_text("\n".join(names))
    assert build_dataset("voc", tmp_path, "trainaug").names == names

    (voc / "SegmentationClassAug").rename(voc / "elsewhere")
    missing = "SegmentationClassAug: 4 of 4 trainaug label files missing"
    with pytest.raises(UserError, match=missing):
        build_dataset("voc", tmp_path, "trainaug")


def test_sbd_adds_what_is_not_in_val(tmp_path):
    write_voc(tmp_path)
    write_sbd(tmp_path)
    with pytest.raises(UserError, match="Run python utils/preprocess_data.py --dataset voc"):
        build_dataset("voc", tmp_path, "trainaug")
    assert not prepare(tmp_path, workers=2, overwrite=False)  # the weights are still to come
    dataset = build_dataset("voc", tmp_path, "trainaug")
    assert dataset.names == [*TRAIN, "2008_000002", "2011_000100"]
    for split in ("train", "val"):
        theirs = SBDataset(str(tmp_path / "SBD"), image_set=split, mode="segmentation")
        for path, (_image, label) in zip(theirs.images, theirs, strict=True):
            if Path(path).stem not in TRAIN + VAL:
                index = dataset.names.index(Path(path).stem)
                assert np.array_equal(dataset.train_ids(index), np.asarray(label))
    borders = dataset.train_ids(1) == IGNORE
    assert borders.any()  # train's own images have VOC's labels


def test_damaged_sbd_is_one_line(tmp_path):
    write_voc(tmp_path)
    write_sbd(tmp_path)
    broken = tmp_path / "SBD" / "cls" / "2008_000002.mat"
    broken.write_bytes(broken.read_bytes()[:200])
    done = run("utils/preprocess_data.py", "--dataset", "voc", "--data_root", tmp_path)
    fails(done, "2008_000002.mat", "not one of SBD's files")


def test_folders_that_are_voc_themselves_and_test_with_labels(tmp_path):
    for year in ("2012", "2007"):
        voc = write_voc(tmp_path, year, test=year == "2007")
        dataset = build_dataset("voc", voc, "test")
        assert dataset.names == ["000001"] and dataset.has_labels == (year == "2007")
    assert build_dataset("voc", tmp_path, "val").files[0].image.parent.parent.name == "VOC2012"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("list", ["no VOCdevkit/VOC2012/ImageSets/Segmentation", "--data_root"]),
        ("aug", ["neither list/train_aug.txt nor SBD", "--split train"]),
        ("label", ["2 of 3 train label files missing", "Unpack SegmentationClass"]),
    ],
)
def test_what_is_missing_is_one_line(spoil, words, tmp_path):
    voc = write_voc(tmp_path)
    if spoil == "list":
        (voc / "ImageSets").rename(tmp_path / "elsewhere")
    for name in TRAIN[:2] if spoil == "label" else ():
        (voc / "SegmentationClass" / f"{name}.png").unlink()
    split = "trainaug" if spoil == "aug" else "train"
    done = run("train.py", "--dataset", "voc", "--data_root", tmp_path, "--split", split,
               "--class_weights", "false", "--log_root", tmp_path / "logs", "--device", "cpu",
               "--backbone_weights", "null")  # fmt: skip
    fails(done, *words)
    fails(
        run("train.py", "--split", "trainaug", "--device", "cpu"),
        "--split trainaug: not in cityscapes. Give one of train",
    )


def test_check_names_faulty_files(tmp_path):
    voc = write_voc(tmp_path)
    check = ["utils/preprocess_data.py", "--dataset", "voc", "--data_root", tmp_path]
    check += ["--check", "true"]
    done = run(*check)
    assert done.returncode == 0 and "11 files, no fault" in done.stdout, done.stderr
    broken = voc / "SegmentationClass" / f"{VAL[0]}.png"
    broken.write_bytes(broken.read_bytes()[:-20])
    (voc / "JPEGImages" / f"{TRAIN[0]}.jpg").unlink()
    done = run(*check)
    fails(done, "2 faults")
    assert f"{TRAIN[0]}.jpg: cannot be read" in done.stdout
    assert f"{broken}: not a whole PNG image" in done.stdout


def test_labels_of_sbd_are_no_fault_before_they_are_converted(tmp_path):
    write_voc(tmp_path)
    write_sbd(tmp_path)
    check = ("utils/preprocess_data.py", "--dataset", "voc", "--data_root", tmp_path)
    done = run(*check, "--check", "true")
    assert done.returncode == 0 and "17 files, no fault" in done.stdout, done.stdout
    prepare(tmp_path, workers=1, overwrite=False)
    done = run(*check, "--check", "true")
    assert done.returncode == 0 and "21 files, no fault" in done.stdout, done.stdout
    (tmp_path / "meta" / "label_imgs" / "2008_000002.png").unlink()
    (tmp_path / "SBD" / "cls" / "2008_000002.mat").unlink()
    done = run(*check, "--check", "true")
    fails(done, "1 fault")
    assert "2008_000002.png: cannot be read" in done.stdout


@pytest.mark.slow
def test_a_run_learns_and_writes_palette_files(tmp_path):
    """With GN+WS and batches of one the loss falls, mIoU rises; predictions are palette files."""
    voc = write_voc(tmp_path / "voc")
    config = tiny(
        tmp_path / "voc", tmp_path / "logs", dataset="voc", class_weights=False,
        norm="gn_ws",
        batch_size=1, steps=36, eval_every=12, save_every=36,
        warmup_steps=0, optimizer="adamw", base_lr=3e-3, min_lr=0.0, crop=(48, 64),
        output_stride=16, scale=(1.0, 1.0),
    )  # fmt: skip
    train(config)
    rows = read_metrics(tmp_path / "logs" / "run")
    losses = [float(row["loss"]) for row in rows]
    scores = [float(row["miou"]) for row in rows if row["miou"]]
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8]) and scores[-1] > 1.2 * scores[0]
    done = run("evaluation/eval_on_val_for_metrics.py", "--log_root", tmp_path / "logs")
    assert done.returncode == 0 and all(name in done.stdout for name in VOC.names), done.stderr
    for name in VAL:
        path = tmp_path / "logs" / "model_eval_val_for_metrics" / f"{name}_pred_label_img.png"
        with Image.open(path) as image:
            assert image.mode == "P" and image.getpalette()[45:48] == [192, 128, 128]
            assert image.size == Image.open(voc / "JPEGImages" / f"{name}.jpg").size
            assert np.asarray(image).max() <= 20
    done = run("predict.py", "--split", "test", "--log_root", tmp_path / "logs")
    assert "1 images, the server expects 1456" in done.stdout, done.stderr
    with tarfile.open(tmp_path / "logs" / "predictions.tgz") as archive:
        (member,) = archive.getmembers()
        assert member.name == "results/VOC2012/Segmentation/comp6_test_cls/000001.png"
        assert Image.open(archive.extractfile(member)).mode == "P"


def test_momenta_reach_backbone_and_head(tmp_path, cityscapes_root):
    config = tiny(cityscapes_root, tmp_path, bn_momentum=(0.05, 3e-4), aux=True)
    model = build_run(config, VOC, start("cpu"), None).model
    found = {
        (name.split(".")[0], module.momentum)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.BatchNorm2d)
    }
    assert found == {("backbone", 0.05), ("classifier", 3e-4), ("aux_classifier", 3e-4)}


@pytest.mark.parametrize("kind", ["bn", "gn_ws", "multi_grid"])
def test_the_shipped_configs_build_the_published_network(kind):
    path = REPOSITORY / "configs" / "voc" / f"deeplabv3_resnet101_os16_{kind}.yaml"
    config = parse(Config, "", ["--config", str(path)])
    model = build_model(**network_options(config, num_classes=21))
    rates = [block.conv2.dilation[0] for block in model.backbone.layer4]
    assert rates == ([2, 4, 8] if kind == "multi_grid" else [1, 2, 2])
    count = sum(p.numel() for p in model.parameters())
    assert count - 256 * 256 * 9 - 2 * 256 == 58_040_661  # without torchvision's 3x3 after the ASPP


def test_endings_in_any_case_and_a_name_twice(tmp_path, capsys):
    voc = write_voc(tmp_path)
    for path in (
        voc / "JPEGImages" / f"{TRAIN[0]}.jpg",
        voc / "SegmentationClass" / f"{VAL[0]}.png",
    ):
        path.rename(path.with_suffix(path.suffix.upper()))
        path.with_name(f"._{path.name}").touch()
    listing = voc / "ImageSets/Segmentation/train.txt"
    listing.write_bytes(("\ufeff" + "  \r\n".join([*TRAIN, TRAIN[1]])).encode())
    assert build_dataset("voc", tmp_path, "train").names == TRAIN
    assert f"{listing}: 1 duplicate names, such as {TRAIN[1]}" in capsys.readouterr().err
    assert build_dataset("voc", tmp_path, "val")[0]["label"].any()
    (voc / "JPEGImages" / f"{TRAIN[1]}.JPG").touch()
    with pytest.raises(UserError, match=f"{TRAIN[1]}.jpg: a second file named {TRAIN[1]}"):
        build_dataset("voc", tmp_path, "train")


def test_two_images_of_one_name_in_an_augmented_list_are_one_line(tmp_path):
    voc = write_voc(tmp_path)
    (voc / "list").mkdir()
    lines = [f"/{folder}/x.jpg /SegmentationClassAug/x.png" for folder in ("JPEGImages", "other")]
    (voc / "list" / "train_aug.txt").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"train_aug.txt: two images have the name x. Rename one"):
        build_dataset("voc", tmp_path, "trainaug")
