"""What a derived file was made from, so that a change of it is noticed before it is used.

Beside packed/train.pack, say, lies packed/train.pack.sources.json: what the ids meant, and of every
source file its size, times and inode, and the CRC-32 of its content. Content is read only where one
of the others is not as noted, as after copying a data set.
"""

import json
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from utils.base.errors import UserError
from utils.base.paths import read_bytes, write_text
from utils.base.progress import progress
from utils.base.threads import read_ahead
from utils.data.label_table import LabelTable

Noted = dict[str, list[int]]  # path below the data set's folder -> stamp and CRC-32
THREADS = 4
MANY = 1000  # files whose reading deserves a progress line


def record_of(derived: Path) -> Path:
    return derived.with_name(f"{derived.name}.sources.json")


def names_below(root: Path, paths: Iterable[Path]) -> list[str]:
    """As in a record, where files that lie elsewhere have absolute names. Path.relative_to would
    take seconds for 100,000 files."""
    start = f"{root.as_posix().rstrip('/')}/"
    return [path.as_posix().removeprefix(start) for path in paths]


def stamps(root: Path, names: Iterable[str]) -> Noted:
    """Size, times and inode: they change with the content, even where a tool restores size and
    date. Files that are gone are left out."""
    found = {}
    for name in names:
        with suppress(OSError):
            status = os.stat(os.path.join(root, name))
            times = [status.st_mtime_ns, status.st_ctime_ns]
            found[name] = [status.st_size, *times, status.st_ino]
    return found


def checksums(paths: list[Path]) -> list[int]:
    with progress(len(paths), unit="file", label="compare", enabled=len(paths) > MANY) as bar:
        found = []
        for number in read_ahead(lambda path: zlib.crc32(read_bytes(path)), paths, workers=THREADS):
            found.append(number)
            bar.update()
    return found


@contextmanager
def noting(
    derived: Path,
    root: Path,
    sources: Iterable[Path],
    classes: LabelTable,
    *,
    known: Noted | None = None,
    partial: Path | None = None,
) -> Iterator[None]:
    """Within, `derived` is made; then its record is written.

    A source that changes meanwhile is left out, so that it counts as new. known: entries that
    unchanged gave. partial: where an interrupted run left what it had made, removed unless it
    began with the same sources.
    """
    before = stamps(root, names_below(root, sources))
    begun = {"meaning": classes.meaning, "files": before}
    record_of(derived).unlink(missing_ok=True)
    if partial is not None and read_record(partial) != begun:
        partial.unlink(missing_ok=True)
        write_record(partial, begun)
    yield
    files = {name: entry for name, entry in (known or {}).items() if name in before}
    now = stamps(root, (name for name in before if name not in files))
    same = [name for name in now if now[name] == before[name]]
    numbers = checksums([root / name for name in same])
    files |= {name: [*now[name], crc] for name, crc in zip(same, numbers, strict=True)}
    write_record(derived, begun | {"files": files})
    if partial is not None:
        record_of(partial).unlink()


def write_record(derived: Path, content: dict[str, Any]) -> None:
    write_text(record_of(derived), json.dumps(content, separators=(",", ":")) + "\n")


def read_record(derived: Path) -> dict[str, Any] | None:
    """None where there is none: made before there were records, or by an interrupted run. A
    damaged one is of no classes and no files."""
    with suppress(ValueError, KeyError, TypeError):
        content = json.loads(record_of(derived).read_bytes()) if record_of(derived).exists() else {}
        return {name: content[name] for name in ("meaning", "files")} if content else None
    return {"meaning": None, "files": {}}


def changed_files(
    derived: Path, root: Path, content: dict[str, Any], *, thorough: bool = False
) -> list[str]:
    """Those of a record whose content is another one today, or that are gone from a folder where
    others are left; sources may be removed folder by folder.

    thorough: all contents are compared. Where only stamps differ they are noted anew.
    """
    files, now = content["files"], stamps(root, content["files"])
    suspects = [name for name in now if thorough or now[name] != files[name][:4]]
    read = [name for name in suspects if now[name][0] == files[name][0]]
    numbers = dict(zip(read, checksums([root / name for name in read]), strict=True))
    changed = [name for name in suspects if numbers.get(name) != files[name][4]]
    left = {os.path.dirname(name) for name in now}
    changed += [name for name in files if name not in now and os.path.dirname(name) in left]
    if not changed and any(now[name] != files[name][:4] for name in suspects):
        files |= {name: [*now[name], files[name][4]] for name in now}
        with suppress(UserError):  # a data set that takes no changes
            write_record(derived, content)
    return changed


def unchanged(derived: Path, root: Path, classes: LabelTable) -> Noted | None:
    """The entries whose files are as noted; none where ids mean other classes today. None without
    a record."""
    content = read_record(derived)
    if content is None:
        return None
    if content["meaning"] != classes.meaning:
        return {}
    changed = set(changed_files(derived, root, content))
    return {name: entry for name, entry in content["files"].items() if name not in changed}


def up_to_date(
    derived: Path, root: Path, made: dict[Path, Path], classes: LabelTable
) -> tuple[Noted, set[Path]]:
    """Of derived files, one for each source: unchanged's entries, and the sources whose file, its
    value in `made`, must be made again."""
    known = unchanged(derived, root, classes)

    def current(source: Path, output: Path) -> bool:
        if known is not None:
            return names_below(root, [source])[0] in known
        status = source.stat()  # before there were records: neither written nor put there later
        return output.stat().st_mtime >= max(status.st_mtime, status.st_ctime)

    return known or {}, {
        x for x, path in made.items() if not path.is_file() or not current(x, path)
    }


def require_unchanged(
    derived: Path,
    root: Path,
    classes: LabelTable,
    *,
    advice: str,
    sources: Iterable[Path] | None = None,
    thorough: bool = False,
) -> bool:
    """UserError where `derived` must be made again; whether there is a record.

    sources: those that it should have today.
    """
    content = read_record(derived)
    if content is None:
        return False
    if content["meaning"] != classes.meaning:
        what = "made when ids meant other classes, or its record is damaged"
        raise UserError(f"{derived}: {what}. {advice}")
    changed, noted = changed_files(derived, root, content, thorough=thorough), content["files"]
    if sources is not None:
        today = dict.fromkeys(names_below(root, sources))
        changed += [name for name in today if name not in noted]
        changed += [name for name in noted if name not in today and (root / name).exists()]
    if changed:
        count = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        what = f"{root / changed[0]}{count}: changed, new, gone or no longer listed"
        raise UserError(f"{what} since {derived} was made. {advice}")
    return True
