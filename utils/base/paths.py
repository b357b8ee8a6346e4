"""Places in the repository, and files that are written whole or not at all.

Needs the standard library only, so that evaluation/score.py runs without torch and jsonargparse.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from utils.base.errors import DISK, DiskError, UserError, warn

REPOSITORY = Path(__file__).resolve().parents[2]


def to_path(text: str | Path) -> Path:
    """A path as people write it, where the shell left ~ as it is."""
    return Path(os.path.expanduser(text))


def resolve_log_root(log_root: Path | None) -> Path:
    """The folder of all runs; absolute."""
    return Path(os.path.realpath(log_root or REPOSITORY / "training_logs"))


def resolve_data_folder(name: str, data_root: Path | None, variable: str | None) -> Path:
    """The folder the user named, by an option or an environment variable, else data/<name>."""
    named = os.environ.get(variable) if variable else None
    return Path(os.path.realpath(data_root or to_path(named or REPOSITORY / "data" / name)))


def make_folder(folder: Path) -> None:
    """`mkdir -p`; UserError where that is impossible."""
    with writing(folder, "created"):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def writing(path: Path, what: str = "written") -> Iterator[None]:
    """UserError where the system refuses to write `path`."""
    try:
        yield
    except OSError as error:
        kind = DiskError if error.errno in DISK else UserError
        what = f"cannot be {what} ({error.strerror or error})"
        advice = "Free space there, or choose another folder or a shorter name"
        raise kind(f"{path}: {what}. {advice}") from error


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary file name beside `path`; what is written there takes the name at the end.

    An error or a kill leaves an earlier file as it was. UserError where the system refuses.
    """
    name, content = path.name, os.fsencode(path.name)
    if len(content) > 200:  # 255 bytes are what most systems take
        name = sha256(content).hexdigest() + path.suffix[:9]
    temporary = path.with_name(f".tmp-{os.getpid()}-{name}")
    try:
        with writing(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # nothing there, or a folder that takes no changes
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    with whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def require_file_name(path: Path) -> None:
    """UserError unless a file can be written there: no folder, and in a folder that exists."""
    if path.is_dir() or not os.path.isdir(os.path.dirname(os.path.realpath(path))):
        raise UserError(f"{path}: not a file name in an existing folder. Give another file")


def read_bytes(path: Path) -> bytes:
    """Content of a file; UserError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Restore the file") from error


def read_names(path: Path) -> list[str]:
    """The lines of a list, stripped, each once, without the empty ones; UserError as read_bytes."""
    content = read_bytes(path)
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    lines = content.decode(encoding, "replace").splitlines()
    counts = Counter(line.strip() for line in lines if line.strip())
    if twice := [name for name, number in counts.items() if number > 1]:
        warn(f"{path}: {len(twice)} names stand there again, such as {twice[0]}; each counts once")
    return list(counts)
