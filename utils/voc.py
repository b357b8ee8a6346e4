"""PASCAL VOC segmentation, and SBD's labels of its other images: which files make up a split.

VOC: host.robots.ox.ac.uk/pascal/VOC (Everingham et al., 2010). SBD, "VOC aug": Hariharan et al.,
"Semantic Contours from Inverse Detectors", 2011.
"""

from io import BytesIO
from pathlib import Path

import numpy as np

from utils.errors import UserError
from utils.files import make_folder, read_bytes, write_png
from utils.loader import read_ahead
from utils.progress import progress

FOLDERS = (".", "VOCdevkit/VOC2012", "VOC2012", "VOCdevkit/VOC2007", "VOC2007")
LISTS = "ImageSets/Segmentation"
AUG_LISTS = ("list/train_aug.txt", f"{LISTS}/train_aug.txt", f"{LISTS}/trainaug.txt")
SBD_FOLDERS = ("SBD", "sbd", "benchmark_RELEASE/dataset")
Sample = tuple[str, Path, Path | None]  # name, image, label


def voc_samples(root: Path, split: str) -> list[Sample]:
    """Name, image and label of the images of train, val, test or trainaug, in the list's order."""
    voc = voc_folder(root)
    if split == "trainaug":
        return augmented_samples(root, voc)
    samples = [sample(voc, name) for name in read_names(voc, split)]
    if split == "test" and not any(label.is_file() for _, _, label in samples):
        return [(name, image, None) for name, image, _ in samples]  # VOC 2012's are not public
    return samples


def has_split(root: Path, split: str) -> bool:
    """Whether there is a list of it; VOC 2012's of test comes in an archive of its own."""
    voc = voc_folder(root)
    if split == "trainaug":
        return any((voc / name).is_file() for name in AUG_LISTS) or sbd_folder(root) is not None
    return (voc / LISTS / f"{split}.txt").is_file()


def voc_folder(root: Path) -> Path:
    """The VOC2012 or VOC2007 folder of `root`, which may be that folder itself."""
    for name in FOLDERS:
        if (root / name / LISTS).is_dir():
            return root / name
    raise UserError(
        f"{root}: no VOCdevkit/VOC2012/{LISTS}. Name the folder with --data_root; "
        "docs/voc.md says how to get it"
    )


def sample(voc: Path, name: str, labels: str = "SegmentationClass") -> tuple[str, Path, Path]:
    return name, voc / "JPEGImages" / f"{name}.jpg", voc / labels / f"{name}.png"


def read_names(voc: Path, split: str) -> list[str]:
    return read_lines(voc / LISTS / f"{split}.txt")


def read_lines(path: Path) -> list[str]:
    lines = read_bytes(path).decode("utf-8", "replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def augmented_samples(root: Path, voc: Path) -> list[Sample]:
    """VOC's train images and SBD's that are not in VOC's val: 10,582 of VOC 2012.

    From a list beside SegmentationClassAug, whose lines are names or "/JPEGImages/X.jpg
    /SegmentationClassAug/X.png"; else from SBD, as utils/preprocess_data.py converts it.
    """
    for path in (voc / name for name in AUG_LISTS):
        if path.is_file():
            return [listed(voc, line) for line in read_lines(path)]
    sbd = sbd_folder(root)
    if sbd is None:
        raise UserError(
            f"{voc}: neither {AUG_LISTS[0]} nor SBD. docs/voc.md says how to get them, or "
            "train with --split train"
        )
    own = [sample(voc, name) for name in read_names(voc, "train")]
    more = [(name, sample(voc, name)[1], sbd_label(root, name)) for name in sbd_names(sbd, voc)]
    return own + more


def listed(voc: Path, line: str) -> Sample:
    """One line of an augmented list; paths in it begin with a slash and lie below `voc`."""
    words = line.split()
    if len(words) == 1:
        return sample(voc, words[0], "SegmentationClassAug")
    image, label = (voc / word.lstrip("/") for word in words[:2])
    return image.stem, image, label


def sbd_folder(root: Path) -> Path | None:
    """Where SBD's cls/*.mat, train.txt and val.txt lie: torchvision's layout, or the archive's."""
    found = (root / name for name in SBD_FOLDERS)
    return next((folder for folder in found if (folder / "cls").is_dir()), None)


def sbd_names(sbd: Path, voc: Path) -> list[str]:
    """SBD's images that VOC's train and val do not hold, sorted."""
    names = {name for split in ("train", "val") for name in read_lines(sbd / f"{split}.txt")}
    return sorted(names - {name for split in ("train", "val") for name in read_names(voc, split)})


def sbd_label(root: Path, name: str) -> Path:
    """Where the label of an SBD image lies once preprocessed."""
    return root / "meta" / "label_imgs" / f"{name}.png"


def convert_sbd(root: Path, *, workers: int, overwrite: bool) -> None:
    """Write SBD's .mat labels as PNGs of ids below root/meta, where `root` holds SBD."""
    sbd = sbd_folder(root)
    if sbd is None:
        return
    names = sbd_names(sbd, voc_folder(root))
    pending = [name for name in names if overwrite or not sbd_label(root, name).is_file()]
    make_folder(sbd_label(root, "").parent)

    def convert(name: str) -> None:
        write_png(sbd_label(root, name), read_mat(sbd / "cls" / f"{name}.mat"))

    with progress(len(pending), unit="image", label="SBD") as bar:
        for _ in read_ahead(convert, pending, workers=workers):
            bar.update()
    print(f"{root / 'meta'}: {len(pending)} of {len(names)} SBD label images written")


def read_mat(path: Path) -> np.ndarray:
    """SBD's category-specific .mat file -> (H,W) uint8 ids, 0 to 20."""
    try:
        from scipy.io import loadmat  # only SBD needs it
    except ImportError as error:
        raise UserError(f"{path}: MATLAB's format. Install scipy: pip install scipy") from error
    content = read_bytes(path)
    try:
        ids = loadmat(BytesIO(content))["GTcls"][0]["Segmentation"][0].astype(np.uint8)
    except Exception as error:  # whatever scipy makes of damaged bytes
        text = str(error).split("\n")[0]
        raise UserError(f"{path}: not one of SBD's files ({text}). Replace it") from error
    if ids.ndim != 2:
        raise UserError(f"{path}: holds no label image. Replace it")
    return ids
