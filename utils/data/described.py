"""Data sets that a YAML file describes: the paths of their files, the meaning of ids or colours.

The file is `dataset.yaml` in the folder of the data set ("custom"), or one of configs/datasets/.
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

    images: str = ""
    """Path of an image, relative to the data set's folder; {split} is train, val or test, {name}
    is the image's name, * matches any text, and so does {group}, a folder such as fog or night:
    evaluation then also scores each group. Without images and labels, each line of lists holds the
    paths of an image and its label."""
    labels: str = ""
    """Path of its label file: one channel of 8-bit ids, a palette PNG, or RGB colours."""
    classes: list[str] | dict[str, int | list[int]] = field(default_factory=list)
    """Class names in the order of ids 0, 1, ..., or each name with its id or ids."""
    ignore: list[int] | None = None
    """Ids that are neither learnt nor scored. Default: 255, unless a class has id 255."""
    lists: str | None = None
    """Path of a text file with the image names of a split, if one folder holds several splits;
    relative to the data set's folder, or to that of the description."""
    splits: dict[str, str] = field(default_factory=dict)
    """Text to replace {split}, such as {train: training, val: validation}."""
    colors: dict[str, Color] = field(default_factory=dict)
    """RGB per class, for pictures. Default: a colour of VOC's palette."""
    label_colors: dict[str, Color] = field(default_factory=dict)
    """RGB per class in label files that hold colours instead of ids."""
    ignore_colors: list[Color] = field(default_factory=list)
    """RGB in label files for pixels that are neither learnt nor scored."""
    release: str = ""
    """The download that this describes, for messages about missing files and unknown ids."""

    def __post_init__(self) -> None:
        if None in (self.images, self.labels):
            raise ValueError("images and labels must be text, or left out")
        for key, path in (("images", self.images), ("labels", self.labels)):
            if path.count("{name}") != 1 and not self.pairs:
                raise ValueError(f"{key} must contain {{name}} once, got {path!r}")
            if path.startswith(("/", "~")) or Path(path).is_absolute():
                example = f"{key}/{{split}}/{{name}}.*; link other folders into it"
                raise ValueError(f"{key} must be relative to the data set's folder: {example}")
        if "{group}" in self.images and "{group}" not in self.images.split("/")[:-1]:
            raise ValueError(f"images: {{group}} must be the name of a folder, got {self.images!r}")
        before, _, behind = self.images.partition("{group}")
        if "**" in before and "**" in behind:
            raise ValueError(f"images: ** on one side of {{group}} only, got {self.images!r}")
        for key in ("classes", "splits", "colors", "label_colors"):
            if odd := [name for name in getattr(self, key) if not isinstance(name, str)]:
                what = f"{key}: {odd[0]} is not text"
                raise ValueError(f'{what}. Put names such as "yes", "no" and "1" in quotes')
        if "{split}" not in (self.lists or self.images):
            raise ValueError("images or lists must contain {split} to separate the splits")
        ids = self.ids()
        used = [number for numbers in ids.values() for number in numbers]
        if self.ignore is None:
            object.__setattr__(self, "ignore", [] if IGNORE in used else [IGNORE])
        if not ids or not all(ids.values()) or min(used) < 0 or max(used) > 255:
            raise ValueError("each class must have an id from 0 to 255")
        if len(ids) >= INVALID:
            raise ValueError(f"{len(ids)} classes, the limit is {INVALID - 1}")
        if twice := {number for number in used if (used + self.ignore).count(number) > 1}:
            raise ValueError(f"ids {sorted(twice)} are given twice")
        if len(ids) < len(self.classes):
            raise ValueError("a class occurs twice")
        if unknown := self.splits.keys() - set(SPLITS):
            raise ValueError(f"splits contains unknown splits: {', '.join(sorted(unknown))}")
        for key in ("colors", "label_colors"):
            if unknown := getattr(self, key).keys() - ids.keys():
                raise ValueError(f"{key} contains unknown classes: {', '.join(sorted(unknown))}")
        if self.label_colors and (missing := ids.keys() - self.label_colors.keys()):
            raise ValueError(f"label_colors lacks {', '.join(sorted(missing))}")
        if self.ignore_colors and not self.label_colors:
            raise ValueError("ignore_colors needs label_colors")
        file_colors = [*self.label_colors.values(), *self.ignore_colors]
        if len(set(file_colors)) < len(file_colors):
            raise ValueError("a colour is given twice in label_colors and ignore_colors")
        values = [value for color in (*self.colors.values(), *file_colors) for value in color]
        if not all(0 <= value <= 255 for value in [*self.ignore, *values]):
            raise ValueError("ids in ignore and values of colours must be from 0 to 255")

    @property
    def pairs(self) -> bool:
        """Whether the lists hold the paths of images and labels."""
        return self.lists is not None and not self.images and not self.labels

    def ids(self) -> dict[str, list[int]]:
        """Class name -> its ids in label files."""
        if isinstance(self.classes, list):
            return {name: [number] for number, name in enumerate(self.classes)}
        return {name: x if isinstance(x, list) else [x] for name, x in self.classes.items()}

    def label_table(self) -> LabelTable:
        """The LabelTable; scores and written predictions use the first id of a class."""
        ids = self.ids()
        colors = voc_palette()[1 : len(ids) + 1]  # not black, which is for ignored pixels
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
            release=self.release,
        )

    def color_table(self) -> np.ndarray:
        """(2^24,) uint8: RGB of a label file, red in the highest bits -> train id."""
        table = np.full((256, 256, 256), INVALID, np.uint8)
        for train_id, name in enumerate(self.ids()):
            table[self.label_colors[name]] = train_id
        for color in self.ignore_colors:
            table[color] = IGNORE
        return table.ravel()

    def pattern(self, kind: str, split: str) -> str:
        """Pattern with {name}, relative to the data set's folder; kind: images or labels."""
        written = getattr(self, kind).replace("\\", "/")  # Windows paths
        return written.replace("{split}", self.splits.get(split, split)).replace("{group}", "*")

    def groups(self, root: Path, split: str) -> dict[str, str]:
        """Image name -> its {group}; {} for a description without groups."""
        if "{group}" not in self.images:
            return {}
        parts = Path(self.images.replace("{split}", self.splits.get(split, split))).parts
        place = parts.index("{group}")
        place -= len(parts) if "**" in parts[:place] else 0  # count from the end
        images = find_named(root, self.pattern("images", split))
        return {name: path.relative_to(root).parts[place] for name, path in images.items()}

    def find(self, root: Path, split: str, path: Path) -> FoundFiles:
        """DataSet.find; `path` is that of the description. The test split may lack labels."""
        if self.pairs:
            listing = root / self.lists.replace("{split}", split)
            found = listed_pairs(root, self.listed(root, split, path), listing)
            return {"image": found["image"]} if split == "test" and not found["ids"] else found
        images, labels = (find_named(root, self.pattern(x, split)) for x in ("images", "labels"))
        pattern = self.pattern("images", split)
        if not images:
            what = f"no {split} images {root / pattern.replace('{name}', '*')}"
            advice = f"Unpack {self.release} there, or give its folder with --data_root"
            raise NoImages(f"{path}: {what}. {advice if self.release else NAME_FOLDER}")
        others = find(root, f"{os.path.splitext(pattern)[0]}.*").keys()
        others -= {*images.values(), *labels.values()}
        if others := sorted(x for x in others if x.suffix.lower() in PICTURES):
            what = f"{len(others)} pictures of other types are skipped, such as {others[0].name}"
            warn(f"{others[0].parent}: {what}. Write {{name}}.* in {path.name} to use all of them")
        if self.lists is not None:
            names = self.listed(root, split, path)
            images = {x: images.get(x, root / pattern.replace("{name}", x)) for x in names}
        if self.lists is not None or "{split}" not in self.labels:  # drop labels of other splits
            labels = {name: labels[name] for name in images if name in labels}
        unlabelled = split == "test" and not labels
        return {"image": images} if unlabelled else {"image": images, "ids": labels}

    def listed(self, root: Path, split: str, path: Path) -> list[str]:
        """The names in a split's list, in the data set's folder or in that of the description."""
        name = to_path(self.lists.replace("{split}", split))
        for folder in (root, path.parent):
            if (folder / name).is_file() and (names := read_names(folder / name)):
                return names
        raise NoImages(f"{root / name}: missing or empty. {SEE_DOCS}")


def listed_pairs(root: Path, lines: list[str], listing: Path) -> FoundFiles:
    """Files of lines such as "images/a.jpg labels/a.png", relative to `root` even after a slash;
    an image's name is that of its file. UserError for other lines and for a name given twice."""
    found: FoundFiles = {"image": {}, "ids": {}}
    for line in lines:
        words = [x.strip() for x in line.split("\t")] if "\t" in line else line.split()
        if len(words) > 2:
            raise UserError(f"{listing}: {line!r} is not two paths. Separate them by one tab")
        files = [root / word.lstrip("/") for word in words]
        for kind, file in zip(found, files, strict=False):
            if found[kind].setdefault(files[0].stem, file) != file:
                what = f"two lines have the image {files[0].stem}, with different paths"
                raise UserError(f"{listing}: {what}. Give the files different names")
    return found


def read_description(path: Path) -> Description:
    """The description in a file; UserError for missing, unknown or contradictory entries."""
    if not path.is_file():
        raise UserError(f"{path}: not found. {NAME_FOLDER}")
    parser = YamlParser(exit_on_error=False)
    parser.add_class_arguments(Description)
    try:
        return Description(**parser.parse_path(path).as_dict())
    except (ArgumentError, ValueError, OSError) as error:
        what = plainly(str(error), Description).removeprefix(f"{path}: ")
        raise UserError(f"{path}: {what}. {SEE_DOCS}") from error


def described_data_set(name: str, root: Path) -> DataSet:
    """The data set of root/dataset.yaml for "custom", else that of configs/datasets/<name>.yaml."""
    path = root / DESCRIPTION_FILE if name == "custom" else SHIPPED / f"{name}.yaml"
    description = read_description(path)
    find = partial(description.find, path=path)
    hint = f"Unpack all of {description.release}" if description.release else ""
    hints = dict.fromkeys(SPLITS, hint)
    return DataSet(name, description.label_table(), find, hints=hints, groups=description.groups)


def described_names() -> list[str]:
    return ["custom", *find_named(SHIPPED, "{name}.yaml")]
