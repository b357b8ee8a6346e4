"""PASCAL VOC segmentation, and SBD's labels of further VOC images: the files of each split.

VOC: host.robots.ox.ac.uk/pascal/VOC (Everingham et al., 2010). SBD, "VOC aug": Hariharan et al.,
"Semantic Contours from Inverse Detectors", 2011.
"""

from io import BytesIO
from pathlib import Path

import numpy as np

from utils.base.errors import UserError
from utils.base.find import find_named
from utils.base.paths import read_bytes, read_names
from utils.data.dataset import DataSet, FoundFiles, NoImages, Server, train_id_path
from utils.data.label_table import VOC
from utils.data.sources import convert

FOLDERS = (".", "VOCdevkit/VOC2012", "VOC2012", "VOCdevkit/VOC2007", "VOC2007")
SEE_DOCS = "See docs/voc.md for the download"
LISTS = "ImageSets/Segmentation"
AUG_LISTS = ("list/train_aug.txt", f"{LISTS}/train_aug.txt", f"{LISTS}/trainaug.txt")
SBD_FOLDERS = ("SBD", "sbd", "benchmark_RELEASE/dataset")


def find(root: Path, split: str) -> FoundFiles:
    """Images and labels of train, val, test or trainaug, in the list's order."""
    voc = voc_folder(root)
    if split == "trainaug":
        return augmented(root, voc)
    listing = voc / LISTS / f"{split}.txt"
    if not listing.is_file():
        raise NoImages(f"{listing}: not found. {SEE_DOCS}")
    files = lying_in(voc, read_names(listing))
    if split == "test" and not any(path.is_file() for path in files["ids"].values()):
        del files["ids"]  # VOC 2012's test labels are not public
    return files


def voc_folder(root: Path) -> Path:
    """The VOC2012 or VOC2007 folder of `root`, which may be that folder itself."""
    for name in FOLDERS:
        if (root / name / LISTS).is_dir():
            return root / name
    raise NoImages(f"{root}: no {FOLDERS[1]}/{LISTS}. Give the folder with --data_root. {SEE_DOCS}")


def lying_in(voc: Path, names: list[str], labels: str = "SegmentationClass") -> FoundFiles:
    """Paths of the images and labels of these names, whether or not the files exist."""
    files: FoundFiles = {}
    for kind, folder, ending in (("image", "JPEGImages", ".jpg"), ("ids", labels, ".png")):
        found = find_named(voc / folder, f"{{name}}{ending}")
        files[kind] = {x: found.get(x, voc / folder / f"{x}{ending}") for x in names}
    return files


def augmented(root: Path, voc: Path) -> FoundFiles:
    """VOC's train images and the images of SBD that are not in VOC's val: 10,582 for VOC 2012.

    They come from a list, whose lines are names or "/JPEGImages/X.jpg /SegmentationClassAug/X.png",
    with labels in SegmentationClassAug. Without a list they come from SBD, which prepare converts.
    """
    for path in (voc / name for name in AUG_LISTS):
        if path.is_file():
            return listed(voc, path)
    sbd = sbd_folder(root)
    if sbd is None:
        what = f"neither {AUG_LISTS[0]} nor SBD"
        raise NoImages(f"{voc}: {what}. {SEE_DOCS}, or train with --split train")
    own, more = read_names(voc / LISTS / "train.txt"), sbd_names(sbd, voc)
    files = lying_in(voc, own + more)
    files["ids"] |= {name: train_id_path(root, name) for name in more}  # train ids are VOC's ids
    return files


def listed(voc: Path, path: Path) -> FoundFiles:
    """The files in an augmented list; its paths begin with a slash but are relative to `voc`."""
    lines = [line.split() for line in read_names(path)]
    files = lying_in(voc, [x[0] for x in lines if len(x) == 1], "SegmentationClassAug")
    for words in (words for words in lines if len(words) > 1):
        image, label = (voc / word.lstrip("/") for word in words[:2])
        if files["image"].setdefault(image.stem, image) != image:
            raise UserError(f"{path}: two images have the name {image.stem}. Rename one")
        files["ids"][image.stem] = label
    return files


def sbd_folder(root: Path) -> Path | None:
    """Folder of SBD's cls/*.mat, train.txt and val.txt, as in torchvision or in the archive."""
    folders = (root / name for name in SBD_FOLDERS)
    return next((folder for folder in folders if (folder / "cls").is_dir()), None)


def sbd_names(sbd: Path, voc: Path) -> list[str]:
    """Sorted names of the SBD images that are neither in VOC's train nor in its val."""
    names, own = (
        {name for split in ("train", "val") for name in read_names(folder / f"{split}.txt")}
        for folder in (sbd, voc / LISTS)
    )
    return sorted(names - own)


def downloaded(root: Path, split: str) -> FoundFiles:
    """Like find, but without the images whose SBD label is not yet converted."""
    files, sbd = find(root, split), sbd_folder(root)
    if split != "trainaug" or sbd is None:
        return files
    for name, path in list(files["ids"].items()):
        unconverted = path == train_id_path(root, name) and not path.is_file()
        if unconverted and (sbd / "cls" / f"{name}.mat").is_file():
            del files["image"][name], files["ids"][name]
    return files


def prepare(root: Path, *, workers: int, overwrite: bool) -> bool:
    """Convert SBD's .mat labels to PNGs of ids below root/meta, if `root` contains SBD."""
    sbd = sbd_folder(root)
    if sbd is None:
        return False
    names = sbd_names(sbd, voc_folder(root))
    mats = {name: sbd / "cls" / f"{name}.mat" for name in names}
    how = {"workers": workers, "overwrite": overwrite}
    written = convert(root, "trainaug", mats, VOC, lambda name: read_mat(mats[name]), **how)
    print(f"{root / 'meta'}: {len(written)} of {len(names)} SBD label images written")
    return False


def read_mat(path: Path) -> np.ndarray:
    """SBD's category-specific .mat file -> (H,W) uint8 ids, 0 to 20."""
    try:
        from scipy.io import loadmat  # only SBD needs it
    except ImportError as error:
        raise UserError(f"{path}: a MATLAB file needs scipy. Type pip install scipy") from error
    content = read_bytes(path)
    try:
        ids = loadmat(BytesIO(content))["GTcls"][0]["Segmentation"][0].astype(np.uint8)
    except Exception as error:  # damaged bytes raise various errors
        text = str(error).split("\n")[0]
        raise UserError(f"{path}: not one of SBD's files ({text}). Replace it") from error
    if ids.ndim != 2:
        raise UserError(f"{path}: holds no label image. Replace it")
    return ids


DATA_SET = DataSet(
    "voc",
    VOC,
    find,
    splits=("train", "val", "test", "trainaug"),
    hints={
        "trainaug": "Run python utils/preprocess_data.py --dataset voc first, or complete the list",
        "train": "Unpack SegmentationClass",
        "val": "Unpack SegmentationClass",
    },
    downloaded=downloaded,
    prepare=prepare,
    # VOC 2012 development kit, section 5.3; comp6: trained also on other data, such as ImageNet
    server=Server(1456, ".tgz", "results/VOC2012/Segmentation/comp6_test_cls/{}.png"),
)
