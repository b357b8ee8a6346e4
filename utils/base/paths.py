"""Default paths, and files that are written completely or not at all.

Needs only the standard library, so that evaluation/score.py runs without torch and jsonargparse.
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
    """Expands ~, in case the shell did not."""
    return Path(os.path.expanduser(text))


def resolve_log_root(log_root: Path | None) -> Path:
    """Absolute path of the folder of all runs."""
    return Path(os.path.realpath(log_root or REPOSITORY / "training_logs"))


def resolve_data_folder(name: str, data_root: Path | None, variable: str | None) -> Path:
    """Absolute path: `data_root`, else that of the environment variable, else data/<name>."""
    named = os.environ.get(variable) if variable else None
    return Path(os.path.realpath(data_root or to_path(named or REPOSITORY / "data" / name)))


def make_folder(folder: Path) -> None:
    """`mkdir -p`; UserError if it fails."""
    with writing(folder, "created"):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def writing(path: Path, what: str = "written") -> Iterator[None]:
    """Turn an OSError into a UserError about `path`."""
    try:
        yield
    except OSError as error:
        kind = DiskError if error.errno in DISK else UserError
        what = f"cannot be {what} ({error.strerror or error})"
        advice = "Free space there, or give another folder or a shorter name"
        raise kind(f"{path}: {what}. {advice}") from error


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; at the end the temporary file replaces `path`.

    An error or a kill leaves an existing file unchanged. UserError if writing fails.
    """
    name, content = path.name, os.fsencode(path.name)
    if len(content) > 200:  # most systems allow 255 bytes
        name = sha256(content).hexdigest() + path.suffix[:9]
    temporary = path.with_name(f".tmp-{os.getpid()}-{name}")
    try:
        with writing(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # it does not exist, or the folder is read-only
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    with whole(path) as temporary:
        # Names of files may hold bytes that are no UTF-8.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def require_file_name(path: Path) -> None:
    """UserError if `path` is a folder, or its parent folder does not exist."""
    if path.is_dir() or not os.path.isdir(os.path.dirname(os.path.realpath(path))):
        raise UserError(f"{path}: not a file name in an existing folder. Give another file")


def read_bytes(path: Path) -> bytes:
    """Content of a file; UserError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Restore the file") from error


def read_names(path: Path) -> list[str]:
    """The stripped lines of a list, without empty ones and duplicates; UserError as read_bytes."""
    content = read_bytes(path)
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    lines = content.decode(encoding, "replace").splitlines()
    counts = Counter(line.strip() for line in lines if line.strip())
    if twice := [name for name, number in counts.items() if number > 1]:
        warn(f"{path}: {len(twice)} duplicate names, such as {twice[0]}; each counts once")
    return list(counts)
