"""Records of the sources of derived files, so that commands refuse an outdated derived file.

For example, packed/train.pack.sources.json records for packed/train.pack the meaning of ids, and
size, times, inode and CRC-32 of every source file. A command reads the content of a source only if
its size, times or inode differ from the record, as after copying a data set.
"""

import json
import os
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from utils.base.errors import UserError
from utils.base.paths import make_folder, read_bytes, write_text
from utils.base.progress import progress
from utils.base.threads import read_ahead
from utils.data.class_weights import histogram
from utils.data.dataset import DataSet, converted_labels, train_id_path
from utils.data.image_files import write_png
from utils.data.label_table import LabelTable

Noted = dict[str, list[int]]  # name_below of a file -> size, two times, inode [, CRC-32]
Paths = Collection[Path]
DAMAGED = -1  # meaning of a record that cannot be read
THREADS = 4
MANY = 1000  # reading more files shows a progress line


def record_of(derived: Path) -> Path:
    return derived.with_name(f"{derived.name}.sources.json")


def name_below(root: Path, path: Path) -> str:
    """A file's name in a record: its path relative to `root`, or its absolute path if it is not
    below `root`. Path.relative_to would take seconds for 100,000 files."""
    return path.as_posix().removeprefix(f"{root.as_posix().rstrip('/')}/")


def stamps(root: Path, names: Iterable[str]) -> Noted:
    """Size, times and inode of the files that exist: they change with the content, even if a tool
    restores size and date."""
    found = {}
    for name in names:
        with suppress(OSError):
            status = os.stat(os.path.join(root, name))
            found[name] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    return found


def checksums(root: Path, names: list[str]) -> dict[str, int]:
    numbers = read_ahead(lambda x: zlib.crc32(read_bytes(root / x)), names, workers=THREADS)
    how = {"unit": "file", "label": "compare", "enabled": len(names) > MANY}
    return dict(zip(names, progress(len(names), numbers, **how), strict=True))


def write_record(derived: Path, classes: LabelTable, files: Noted) -> None:
    content = {"meaning": classes.meaning, "files": files}
    write_text(record_of(derived), json.dumps(content, separators=(",", ":")) + "\n")


def read_record(derived: Path) -> tuple[int | None, Noted]:
    """The meaning of ids, and the files. None and {} without a record, if an older version or an
    interrupted run made `derived`."""
    try:
        content = json.loads(record_of(derived).read_bytes())
        return content["meaning"], content["files"]
    except (FileNotFoundError, NotADirectoryError):
        return None, {}
    except (ValueError, KeyError, TypeError):
        return DAMAGED, {}


def compare(
    derived: Path, root: Path, classes: LabelTable, sources: Paths = (), *, thorough: bool = False
) -> tuple[list[str] | None, Noted]:
    """Names of files that are changed, new, gone or no longer listed since `derived` was made, or
    None without a record; and the files for a new record. If the meaning of ids changed, the names
    are those of the record and of all sources.

    sources: the current source files, if known. A file that is gone counts only if its folder has
    other sources: users may delete whole folders. thorough: compare the content of all files. If
    only stamps differ, the record gets the new ones.
    """
    meaning, files = read_record(derived)
    today = dict.fromkeys(name_below(root, path) for path in sources)
    known = files | today
    now = stamps(root, known)
    fresh = checksums(root, [x for x in now if thorough or now[x] != files.get(x, [])[:4]])
    noted = files | {name: [*now[name], fresh[name]] for name in fresh}
    changed = [name for name in fresh if noted[name][4:] != files.get(name, [])[4:]]
    left = {os.path.dirname(name) for name in now}
    changed += [name for name in known if name not in now and os.path.dirname(name) in left]
    changed += [name for name in now if today and name not in today]
    if meaning != classes.meaning:
        changed = [record_of(derived).name, *today]
    elif not changed and noted != files:
        with suppress(UserError):  # the data set may be read-only
            write_record(derived, classes, noted)
    return None if meaning is None else changed, {x: noted[x] for x in now if x in today}


@contextmanager
def noting(
    derived: Path, root: Path, sources: Paths, classes: LabelTable
) -> Iterator[tuple[list[str] | None, Noted]]:
    """Write the record of `derived`, which the caller makes in this context; yields as compare.

    The record has the stamps from before, so that a source that changes meanwhile is noticed.
    """
    changed, noted = compare(derived, root, classes, sources)
    yield changed, noted
    if changed != []:
        write_record(derived, classes, noted)


def convert(
    root: Path,
    split: str,
    labels: dict[str, Path],
    classes: LabelTable,
    read: Callable[[str], np.ndarray],
    *,
    workers: int,
    overwrite: bool,
    common: Paths = (),
) -> dict[str, np.ndarray]:
    """Write read(name), (H,W) uint8 train ids, to the train_id_path of each label of a split whose
    output is missing or outdated. Returns name -> (256,) pixel counts of the written ones.

    common: files from which all of them are made.
    """
    make_folder(train_id_path(root, "").parent)
    sources = [*labels.values(), *common]
    with noting(converted_labels(root, split), root, sources, classes) as (changed, _):
        again = set(changed or ())
        overwrite |= not again.isdisjoint(name_below(root, path) for path in common)

        def current(name: str) -> bool:
            output, label = train_id_path(root, name), labels[name]
            if changed is None and output.is_file():  # no record: compare times
                times = label.stat()
                return output.stat().st_mtime >= max(times.st_mtime, times.st_ctime)
            return output.is_file() and name_below(root, label) not in again

        def write(name: str) -> np.ndarray:
            train_ids = read(name)
            write_png(train_id_path(root, name), train_ids, filtered=False)
            return histogram(train_ids)

        pending = [name for name in labels if overwrite or not current(name)]
        counts = read_ahead(write, pending, workers=workers, ahead=2 * workers)
        bar = progress(len(pending), counts, unit="image", label=f"convert {split}")
        return dict(zip(pending, bar, strict=True))


def require_unchanged(
    derived: Path,
    data_set: DataSet,
    root: Path,
    sources: Paths = (),
    *,
    thorough: bool = False,
    instances: bool = False,
) -> bool:
    """UserError if `derived` must be made again, see compare. Returns whether it has a record.
    instances: whether it holds them."""
    if not record_of(derived).exists():
        return False
    if changed := compare(derived, root, data_set.classes, sources, thorough=thorough)[0]:
        count = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        what = f"{root / changed[0]}{count}: changed, new, gone or no longer listed"
        what = f"{what} since {derived} was made"
        if changed[0] == record_of(derived).name:
            what = f"{derived}: made when ids meant other classes, or its record is damaged"
        raise UserError(f"{what}. {data_set.prepare_again(root, derived, instances=instances)}")
    return True
