"""Cityscapes' files (cityscapes-dataset.com), in folders or in the official archives."""

from pathlib import Path

from utils.archives import find_members
from utils.errors import UserError
from utils.files import first_folder
from utils.listing import Files, find_images, require_labels

DAMAGED = "troisdorf_000000_000073"  # of train_extra: its image was published broken


def cityscapes_files(root: Path, split: str) -> list[Files]:
    """Cityscapes fine annotations (cityscapes-dataset.com), flat or as the zips unpack.

    Train labels are the files that utils/preprocess_data.py writes; val reads instance ids, from
    which label ids and train ids follow; test has images only.
    """
    images, labels = (first_folder(root, name, split) for name in ("leftImg8bit", "gtFine"))
    files = []
    for image in find_images(images, "*/*_leftImg8bit.png", root):
        name = image.name.removesuffix("_leftImg8bit.png")
        instance = labels / image.parent.name / f"{name}_gtFine_instanceIds.png"
        label = train_id_path(root, name)
        found = {"train": {"label": label}, "val": {"instance": instance}, "test": {}}[split]
        files.append(Files(name, image, **found))
    hint = {"train": "Run python utils/preprocess_data.py first", "val": "Unpack gtFine"}
    require_labels(files, hint.get(split, ""))
    return files


def train_id_path(root: Path, name: str) -> Path:
    """Where the train ids of a Cityscapes image lie once preprocessed."""
    return root / "meta" / "label_imgs" / f"{name}.png"


def labelled_files(root: Path, split: str, *, kind: str = "gtFine") -> list[Files]:
    """Every image of a split with its `*_labelIds.png`: what preprocessing converts."""
    images, labels = (first_folder(root, name, split) for name in ("leftImg8bit", kind))
    files = []
    for image in find_images(images, "*/*_leftImg8bit.png", root):
        name = image.name.removesuffix("_leftImg8bit.png")
        if name != DAMAGED:
            label = labels / image.parent.name / f"{name}_{kind}_labelIds.png"
            files.append(Files(name, image, label))
    require_labels(files, f"Unpack {kind}")
    return files


def zipped_files(archives: list[Path], split: str) -> list[Files]:
    """Train or val inside the official zip archives, which are not unpacked; train has ids."""
    kind, plane = {"train": ("labelIds", "label"), "val": ("instanceIds", "instance")}[split]
    found = [
        find_members(archives, pattern)
        for pattern in (
            f"leftImg8bit/{split}/*/*_leftImg8bit.png",
            f"gtFine/{split}/*/*_gtFine_{kind}.png",
        )
    ]
    images, labels = (
        {name.rpartition("/")[2].rsplit("_", count)[0]: member for name, member in members.items()}
        for members, count in zip(found, (1, 2), strict=True)
    )
    if missing := sorted(images.keys() - labels.keys()):
        count = f"{len(missing)} of {len(images)} {split} images have no {kind} ({missing[0]})"
        raise UserError(f"{archives[-1]}: {count}. Give gtFine_trainvaltest.zip as well")
    return [Files(name, image, **{plane: labels[name]}) for name, image in images.items()]
