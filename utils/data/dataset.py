"""DataSet, the description of a data set, and Dataset, the interface of an opened split."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any, Protocol

import numpy as np

from utils.base.errors import UserError, warn
from utils.data.label_table import LabelTable

# Kind of file, "image" or a field of Files -> image name -> path.
FoundFiles = dict[str, dict[str, Path]]


class NoImages(UserError):
    """A split has no images at all; callers may accept this, as a data set may lack a split."""


@dataclass(frozen=True)
class Files:
    """The image of one sample and its label files, of one or more of three kinds."""

    name: str
    image: Path
    ids: Path | None = None  # the data set's own ids, or colours
    train_ids: Path | None = None
    instances: Path | None = None  # instance ids

    @property
    def paths(self) -> list[Path]:
        """The image, then its labels."""
        return [x for x in (self.image, self.ids, self.train_ids, self.instances) if x is not None]


@dataclass(frozen=True)
class Server:
    """The archive that a data set's test server accepts: one PNG of ids per image."""

    images: int
    ending: str  # file extension of the archive
    file: str  # path in the archive; {} becomes the image's name


@dataclass(frozen=True)
class DataSet:
    """Everything that other packages know about one data set.

    find(root, split): the files that training and evaluation read, in the order of the split; a
    file may not exist. NoImages if there is no image. prepare(root, workers=, overwrite=): converts
    published files and returns whether it also wrote the class weights; downloaded(root, split):
    like find, but for the published files.
    """

    name: str
    classes: LabelTable
    find: Callable[[Path, str], FoundFiles]
    splits: tuple[str, ...] = ("train", "val", "test")
    unions: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"trainval": ("train", "val")}
    )  # name -> the splits that it joins
    images: Mapping[str, int] = field(default_factory=dict)  # split -> number of images
    variable: str | None = None  # environment variable with its folder
    hints: Mapping[str, str] = field(default_factory=dict)  # split -> advice on missing labels
    downloaded: Callable[[Path, str], FoundFiles] | None = None
    prepare: Callable[..., bool] | None = None
    server: Server | None = None
    # Folder and split -> {image name: its group}, for sets whose groups are scored one by one.
    groups: Callable[[Path, str], dict[str, str]] = lambda _root, _split: {}

    def prepare_again(self, root: Path, derived: Path, *, instances: bool = False) -> str:
        """Advice with the command that writes a derived file again. instances: it holds them."""
        place = f"--dataset {self.name} --data_root {quote(str(root))}"
        option = " --pack true" if derived.suffix == ".pack" else ""
        option += " --instances true" if option and instances else ""
        return f"Run python utils/preprocess_data.py {place}{option}"

    def files(self, root: Path, split: str, *, instances: bool = False) -> list[Files]:
        """The samples of one of `splits`; UserError for missing files, also if `instances` are
        asked for and there are none."""
        found = self.found(root, split, instances=instances)
        if instances and "instances" not in found:
            what = f"{split} has no instance ids (instanceIds), which a panoptic network needs"
            raise UserError(f"{root}: {what}. Take a data set with them, or another --model")
        return complete_files(found, root, split, self.hints.get(split, ""))

    def found(self, root: Path, split: str, *, instances: bool) -> FoundFiles:
        """The result of find, with the published instance ids if `instances` are asked for."""
        found = self.find(root, split)
        if instances and self.downloaded is not None:
            more = self.downloaded(root, split)
            found |= {kind: more[kind] for kind in ("instances",) if kind in more}
        return found


class Dataset(Protocol):
    """An opened split, which threads may share."""

    names: list[str]  # of the images
    classes: LabelTable
    source: str  # origin of the pixels, for messages
    checked: bool  # whether every label was read and found valid before
    has_labels: bool

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": (H,W,3) uint8 RGB, "label": (H,W) uint8 train ids or 255, "name": str
        [, "instance": (H,W) uint16 instance ids, val split of sets that have them]}."""

    def image(self, index: int) -> np.ndarray:
        """(H,W,3) uint8 RGB."""

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of the image, without decoding it."""

    def train_ids(self, index: int) -> np.ndarray:
        """(H,W) uint8 train ids or 255; UserError if the label and its image differ in size."""
        return self[index]["label"]


def train_id_path(root: Path, name: str) -> Path:
    """Path at which DataSet.prepare writes the train ids of an image."""
    return root / "meta" / "label_imgs" / f"{name}.png"


def converted_labels(root: Path, split: str) -> Path:
    """Name of a split's converted labels in utils/data/sources.py; no file has this path."""
    return root / "meta" / f"label_imgs.{split}"


def complete_files(found: FoundFiles, root: Path, split: str, hint: str) -> list[Files]:
    """The samples of `found`; UserError with the first names if files are missing."""
    if not (names := found["image"]):
        raise NoImages(f"{root}: the list of {split} images is empty. Write their names into it")
    for kind, paths in found.items():
        missing = [name for name in names if name not in paths or not paths[name].exists()]
        if missing:
            folder = paths[missing[0]].parent if missing[0] in paths else root
            what = "image" if kind == "image" else "label"
            count = f"{len(missing)} of {len(names)} {split} {what} files missing"
            advice = hint or "Add them, or correct the list of names"
            raise UserError(f"{folder}: {count} ({', '.join(missing[:3])}). {advice}")
        if others := paths.keys() - names.keys():
            one = paths[min(others)]
            warn(f"{one}: {len(others)} {split} label files have no image, such as this one")
    return [Files(name, **{kind: found[kind][name] for kind in found}) for name in names]
