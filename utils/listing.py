"""Which files make up a split of a data set."""

from dataclasses import dataclass
from pathlib import Path

from utils.archives import Member
from utils.errors import UserError


@dataclass(frozen=True)
class Files:
    """Where one sample lies. `label` holds train ids or ids, as the data set's `label_lut` says."""

    name: str
    image: Path | Member
    label: Path | Member | None = None
    instance: Path | Member | None = None


def find_images(folder: Path, pattern: str, root: Path) -> list[Path]:
    """Sorted image files of a split; UserError when there are none."""
    images = sorted(folder.glob(pattern))
    if not images:
        raise UserError(
            f"{root}: no images {folder / pattern}. "
            "Name the data set's folder with --data_root, or try without data: make demo"
        )
    return images


def require_labels(files: list[Files], hint: str) -> None:
    """UserError naming the first images whose label or instance file is missing."""
    wanted = [path for x in files for path in (x.label, x.instance) if path is not None]
    missing = [path for path in wanted if not path.is_file()]
    if missing:
        first = ", ".join(path.name for path in missing[:3])
        count = f"{len(missing)} of {len(wanted)} label files missing"
        raise UserError(f"{missing[0].parent}: {count} ({first}). {hint}")
