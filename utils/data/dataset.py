"""What one object says about a data set, and what every opened split offers."""

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
    """A split is not there at all: not every data set has every split."""


@dataclass(frozen=True)
class Files:
    """The files of one sample; of the three kinds of labels the ones that the data set has."""

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
    """The archive that a data set's test server takes: one PNG of ids per image."""

    images: int
    ending: str  # of the archive
    file: str  # within the archive, {} stands for the image's name


@dataclass(frozen=True)
class DataSet:
    """Everything the other rooms know about one data set.

    find(root, split): the files that training and evaluation read, of a split of `splits`, in its
    order; a path may lead nowhere. NoImages where there is no image. downloaded: the same of the
    files as they are published, where prepare(root, workers=, overwrite=) makes others of them;
    prepare returns whether it also wrote the class weights.
    """

    name: str
    classes: LabelTable
    find: Callable[[Path, str], FoundFiles]
    splits: tuple[str, ...] = ("train", "val", "test")
    unions: Mapping[str, tuple[str, ...]] = field(
        default_factory=lambda: {"trainval": ("train", "val")}
    )  # splits that are others one after the other
    images: Mapping[str, int] = field(default_factory=dict)  # split -> number of images
    variable: str | None = None  # environment variable that names its folder
    hints: Mapping[str, str] = field(default_factory=dict)  # split -> advice on missing labels
    downloaded: Callable[[Path, str], FoundFiles] | None = None
    prepare: Callable[..., bool] | None = None
    server: Server | None = None

    def prepare_again(self, root: Path, derived: Path) -> str:
        """The command that makes a derived file anew."""
        place = f"--dataset {self.name} --data_root {quote(str(root))}"
        option = " --pack true" if derived.suffix == ".pack" else ""
        return f"Run python utils/preprocess_data.py {place}{option}"

    def files(self, root: Path, split: str) -> list[Files]:
        """The samples of a split of `splits`; UserError for missing files."""
        return complete_files(self.find(root, split), root, split, self.hints.get(split, ""))


class Dataset(Protocol):
    """An opened split, safe to share between threads."""

    names: list[str]  # of the images
    classes: LabelTable
    source: str  # where the pixels come from, for people
    checked: bool  # whether every label was read before
    has_labels: bool

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": (H,W,3) uint8 RGB, "label": (H,W) uint8 train ids or 255, "name": str
        [, "instance": (H,W) uint16 instance ids, val split of sets that have them]}."""

    def image(self, index: int) -> np.ndarray:
        """(H,W,3) uint8 RGB."""

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of the image; its pixels are not decoded."""

    def train_ids(self, index: int) -> np.ndarray:
        """(H,W) uint8 train ids or 255; UserError where it has not its image's size."""
        return self[index]["label"]


def train_id_path(root: Path, name: str) -> Path:
    """Where a data set's prepare writes the train ids of an image."""
    return root / "meta" / "label_imgs" / f"{name}.png"


def converted_labels(root: Path, split: str) -> Path:
    """What a data set's prepare made of a split's labels, as utils/data/sources.py names it."""
    return root / "meta" / f"label_imgs.{split}"


def complete_files(found: FoundFiles, root: Path, split: str, hint: str) -> list[Files]:
    """The samples of `found`; UserError with the first names where files are missing."""
    names = found["image"]
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
            warn(f"{one}: {len(others)} {split} label files belong to no image, such as this one")
    return [Files(name, **{kind: found[kind][name] for kind in found}) for name in names]
