"""Data sets that a YAML file describes: where their files lie, what their ids or colours mean.

A `dataset.yaml` in the data's own folder ("custom"), or one that is shipped in configs/datasets/.
"""

import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentError

from utils.base.errors import UserError, warn
from utils.base.find import find, find_named
from utils.base.parser import Color, YamlParser, plainly
from utils.base.paths import REPOSITORY, read_names, to_path
from utils.data.dataset import DataSet, FoundFiles, NoImages
from utils.data.label_table import IGNORE, INVALID, LabelTable, voc_palette

DESCRIPTION_FILE = "dataset.yaml"
SHIPPED = REPOSITORY / "configs" / "datasets"
SEE_DOCS = "docs/custom_data.md explains it"
NAME_FOLDER = f"Give the data set's folder with --data_root; {SEE_DOCS}"
SPLITS = ("train", "val", "test")
PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Description:
    """The content of a dataset.yaml; docs/custom_data.md explains it."""

    images: str
    """Path of an image below the data set's folder; {split} is train, val or test, {name} the
    image's name, * any text."""
    labels: str
    """The same of its label file: one channel of 8-bit ids, a palette PNG, or RGB colours."""
    classes: list[str] | dict[str, int | list[int]]
    """Names of ids 0, 1, ..., or each name with its id or ids."""
    ignore: list[int] | None = None
    """Ids that are neither learnt nor scored. Default: 255, where no class has it."""
    lists: str | None = None
    """Path of a text file with the names of a split, where the folders do not say it: below the
    data set's folder, or beside the description."""
    splits: dict[str, str] = field(default_factory=dict)
    """How the folders spell {split}, as in {train: training, val: validation}."""
    colors: dict[str, Color] = field(default_factory=dict)
    """RGB per class, for pictures; VOC's palette for the others."""
    label_colors: dict[str, Color] = field(default_factory=dict)
    """RGB per class in label files that hold colours instead of ids."""
    ignore_colors: list[Color] = field(default_factory=list)
    """Colours of label files that are neither learnt nor scored."""

    def __post_init__(self) -> None:
        for key, path in (("images", self.images), ("labels", self.labels)):
            if path.count("{name}") != 1:
                raise ValueError(f"{key} must hold {{name}} once, got {path!r}")
            if path.startswith(("/", "~")) or Path(path).is_absolute():
                example = f"{key}/{{split}}/{{name}}.*; a link there may lead elsewhere"
                raise ValueError(f"{key} must lie below the data set's folder, such as {example}")
        for key in ("classes", "splits", "colors", "label_colors"):
            if odd := [name for name in getattr(self, key) if not isinstance(name, str)]:
                what = f"{key}: {odd[0]} is no text"
                raise ValueError(f'{what}. Put names such as "yes", "no" and "1" in quotes')
        if "{split}" not in (self.lists or self.images):
            raise ValueError("images or lists must hold {split}, or all splits are the same")
        ids = self.ids()
        used = [number for numbers in ids.values() for number in numbers]
        if self.ignore is None:
            object.__setattr__(self, "ignore", [] if IGNORE in used else [IGNORE])
        if not ids or not all(ids.values()) or min(used) < 0 or max(used) > 255:
            raise ValueError("each class must have an id of 0 to 255")
        if len(ids) >= INVALID:
            raise ValueError(f"{len(ids)} classes; there may be {INVALID - 1}")
        if twice := {number for number in used if (used + self.ignore).count(number) > 1}:
            raise ValueError(f"ids {sorted(twice)} are given twice")
        if len(ids) < len(self.classes):
            raise ValueError("a class occurs twice")
        if unknown := self.splits.keys() - set(SPLITS):
            raise ValueError(f"splits holds unknown splits: {', '.join(sorted(unknown))}")
        for key in ("colors", "label_colors"):
            if unknown := getattr(self, key).keys() - ids.keys():
                raise ValueError(f"{key} holds unknown classes: {', '.join(sorted(unknown))}")
        if self.label_colors and (missing := ids.keys() - self.label_colors.keys()):
            raise ValueError(f"label_colors lacks {', '.join(sorted(missing))}")
        if self.ignore_colors and not self.label_colors:
            raise ValueError("ignore_colors without label_colors")
        file_colors = [*self.label_colors.values(), *self.ignore_colors]
        if len(set(file_colors)) < len(file_colors):
            raise ValueError("a colour is given twice in label_colors and ignore_colors")
        values = [value for color in (*self.colors.values(), *file_colors) for value in color]
        if not all(0 <= value <= 255 for value in [*self.ignore, *values]):
            raise ValueError("ids in ignore and values of colours must be 0 to 255")

    def ids(self) -> dict[str, list[int]]:
        """Class name -> its ids in label files."""
        if isinstance(self.classes, list):
            return {name: [number] for number, name in enumerate(self.classes)}
        return {name: x if isinstance(x, list) else [x] for name, x in self.classes.items()}

    def label_table(self) -> LabelTable:
        """Scores and written predictions use the first id of a class."""
        ids = self.ids()
        colors = voc_palette()[1 : len(ids) + 1]  # its first, black, is for ignored pixels
        id_to_train = np.full(256, INVALID, np.uint8)
        id_to_train[self.ignore] = IGNORE
        for train_id, (name, numbers) in enumerate(ids.items()):
            id_to_train[numbers] = train_id
            colors[train_id] = self.colors.get(name, self.label_colors.get(name, colors[train_id]))
        first = [numbers[0] for numbers in ids.values()]
        return LabelTable(
            names=tuple(ids),
            colors=colors,
            ids=np.array(first, np.uint8),
            id_to_train=id_to_train,
            num_ids=min(max(first) + 2, 256),
            color_to_train=self.color_table() if self.label_colors else None,
        )

    def color_table(self) -> np.ndarray:
        """(2^24,) uint8: a label file's colour, red first -> train id."""
        table = np.full((256, 256, 256), INVALID, np.uint8)
        for train_id, name in enumerate(self.ids()):
            table[self.label_colors[name]] = train_id
        for color in self.ignore_colors:
            table[color] = IGNORE
        return table.ravel()

    def pattern(self, kind: str, split: str) -> str:
        """Path below the data set's folder, with {name}; kind: images or labels."""
        written = getattr(self, kind).replace("\\", "/")  # as on Windows
        return written.replace("{split}", self.splits.get(split, split))

    def find(self, root: Path, split: str, path: Path) -> FoundFiles:
        """DataSet.find; `path` is the description's. test may lack its labels."""
        images, labels = (find_named(root, self.pattern(x, split)) for x in ("images", "labels"))
        pattern = self.pattern("images", split)
        if not images:
            what = f"no {split} images {root / pattern.replace('{name}', '*')}"
            raise NoImages(f"{path}: {what}. {NAME_FOLDER}")
        others = find(root, f"{os.path.splitext(pattern)[0]}.*").keys()
        others -= {*images.values(), *labels.values()}
        if others := sorted(x for x in others if x.suffix.lower() in PICTURES):
            what = f"{len(others)} pictures of other endings are left out, such as {others[0].name}"
            warn(f"{others[0].parent}: {what}. Write {{name}}.* in {path.name} to take them all")
        if self.lists is not None:
            names = self.listed(root, split, path)
            images = {x: images.get(x, root / pattern.replace("{name}", x)) for x in names}
        if self.lists is not None or "{split}" not in self.labels:  # the others are of other splits
            labels = {name: labels[name] for name in images if name in labels}
        unlabelled = split == "test" and not labels
        return {"image": images} if unlabelled else {"image": images, "ids": labels}

    def listed(self, root: Path, split: str, path: Path) -> list[str]:
        """The names in a split's list: in the data set's folder or beside the description."""
        name = to_path(self.lists.replace("{split}", split))
        for folder in (root, path.parent):
            if (folder / name).is_file() and (names := read_names(folder / name)):
                return names
        raise NoImages(f"{root / name}: not there, or empty. {SEE_DOCS}")


def read_description(path: Path) -> Description:
    """UserError for what is missing, unknown or contradictory in a description."""
    if not path.is_file():
        raise UserError(f"{path}: not found. {NAME_FOLDER}")
    parser = YamlParser(exit_on_error=False)
    parser.add_class_arguments(Description)
    try:
        return Description(**parser.parse_path(path).as_dict())
    except (ArgumentError, ValueError, OSError) as error:
        raise UserError(f"{path}: {plainly(str(error), Description)}. {SEE_DOCS}") from error


def described_data_set(name: str, root: Path) -> DataSet:
    """What root/dataset.yaml describes for "custom", else a shipped description by its name."""
    path = root / DESCRIPTION_FILE if name == "custom" else SHIPPED / f"{name}.yaml"
    description = read_description(path)
    return DataSet(name, description.label_table(), partial(description.find, path=path))


def described_names() -> list[str]:
    return ["custom", *find_named(SHIPPED, "{name}.yaml")]
