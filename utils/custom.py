"""`dataset.yaml` describes a data set of one's own: where its files lie, what its ids mean."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jsonargparse import ArgumentError

from utils.errors import UserError
from utils.files import read_bytes
from utils.labels import IGNORE, INVALID, LabelTable, voc_palette
from utils.parser import YamlParser

NAME = "dataset.yaml"
ADVICE = "docs/custom_data.md explains it"


@dataclass(frozen=True)
class Description:
    """The content of a dataset.yaml; docs/custom_data.md explains it."""

    images: str
    """Path of an image below the data set's folder; {split} is train, val or test, {name} the
    image's name, * any text."""
    labels: str
    """The same of its label file: one channel of 8-bit ids, or a palette PNG."""
    classes: list[str] | dict[str, int | list[int]]
    """Names of ids 0, 1, ..., or each name with its id or ids."""
    ignore: list[int] = field(default_factory=lambda: [IGNORE])
    """Ids that are neither learnt nor scored."""
    lists: str | None = None
    """Path of a text file with the names of a split, where the folders do not say it."""
    colors: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """RGB per class, for pictures; VOC's palette for the others."""

    def __post_init__(self) -> None:
        for key in ("images", "labels"):
            if getattr(self, key).count("{name}") != 1:
                raise ValueError(f"{key} must hold {{name}} once, got {getattr(self, key)!r}")
        if "{split}" not in (self.lists or self.images):
            raise ValueError("images or lists must hold {split}, or all splits are the same")
        groups = self.ids().values()
        used = [number for ids in groups for number in ids]
        if not groups or not all(groups) or min(used) < 0 or max(used) >= INVALID:
            raise ValueError(f"each class must have an id of 0 to {INVALID - 1}")
        if twice := {number for number in used if (used + self.ignore).count(number) > 1}:
            raise ValueError(f"ids {sorted(twice)} are given twice")
        if unknown := self.colors.keys() - self.ids().keys():
            raise ValueError(f"colors of no class: {', '.join(sorted(unknown))}")
        bytes_ = [*self.ignore, *(value for color in self.colors.values() for value in color)]
        if not all(0 <= value <= 255 for value in bytes_):
            raise ValueError("ids in ignore and values in colors must be 0 to 255")

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
            colors[train_id] = self.colors.get(name, colors[train_id])
        first = [numbers[0] for numbers in ids.values()]
        return LabelTable(
            names=tuple(ids),
            colors=colors,
            ids=np.array(first, np.uint8),
            id_to_train=id_to_train,
            num_ids=max(first) + 2,
            categories={},
            instance_sizes={},
            instance_categories={},
        )

    def find(self, kind: str, root: Path, split: str) -> dict[str, Path]:
        """Files of `kind`, "images" or "labels", of all names that match: name -> path, sorted."""
        pattern = getattr(self, kind).replace("{split}", split)
        text = re.escape(pattern).replace(r"\*", "[^/]*").replace(r"\{name\}", "([^/]+)")
        found: dict[str, Path] = {}
        for path in sorted(root.glob(pattern.replace("{name}", "*"))):
            if match := re.fullmatch(text, path.relative_to(root).as_posix()):
                if match[1] in found:
                    raise UserError(f"{path}: a second {kind[:-1]} named {match[1]}. Rename one")
                found[match[1]] = path
        return found

    def samples(self, root: Path, split: str) -> list[tuple[str, Path, Path | None]]:
        """Name, image and label of a split's samples; test may lack its labels.

        UserError for no image, a file missing on either side and a list that cannot be read.
        """
        images, labels = (self.find(kind, root, split) for kind in ("images", "labels"))
        names = list(images)
        if self.lists is not None:
            path = root / self.lists.replace("{split}", split)
            lines = read_bytes(path).decode("utf-8", "replace").splitlines()
            names = [line.strip() for line in lines if line.strip()]
        if not names:
            raise UserError(f"{root / NAME}: no {split} images {self.images}. {ADVICE}")
        unlabelled = split == "test" and not labels
        for kind, found in (("image", images), ("label", images if unlabelled else labels)):
            if missing := [name for name in names if name not in found]:
                count = f"{len(missing)} of {len(names)} {split} {kind} files missing"
                raise UserError(f"{root / NAME}: {count} ({missing[0]}). Add them or correct it")
        return [(name, images[name], labels.get(name)) for name in names]


def read_description(root: Path) -> Description:
    """root/dataset.yaml; UserError for what is missing, unknown or contradictory in it."""
    path = root / NAME
    if not path.is_file():
        raise UserError(f"{path}: not found. Name the data set's folder with --data_root; {ADVICE}")
    parser = YamlParser(exit_on_error=False)
    parser.add_class_arguments(Description)
    try:
        return Description(**parser.parse_path(path).as_dict())
    except (ArgumentError, ValueError, OSError) as error:
        raise UserError(f"{path}: {error}. {ADVICE}") from error
