"""Places in the repository, and files that are written whole or not at all.

Needs the standard library only, so that evaluation/score.py runs without torch and jsonargparse.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from utils.base.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]


def resolve_log_root(log_root: Path | None) -> Path:
    """The folder of all runs; absolute."""
    return (log_root or REPOSITORY / "training_logs").resolve()


def resolve_data_folder(name: str, data_root: Path | None, variable: str | None) -> Path:
    """The folder the user named, by an option or an environment variable, else data/<name>."""
    named = os.environ.get(variable) if variable else None
    return (data_root or Path(named or REPOSITORY / "data" / name)).resolve()


def make_folder(folder: Path) -> None:
    """`mkdir -p`; UserError where that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"cannot be created ({error.strerror})"
        raise UserError(f"{folder}: {what}. Choose another folder") from error


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary file name beside `path`; what is written there takes the name at the end.

    An error or a kill leaves an earlier file as it was. UserError where the system refuses.
    """
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        raise UserError(f"{path}: {what}. Free space there or choose another folder") from error
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
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise UserError(f"{path}: not a file name in an existing folder. Name another file")


def read_bytes(path: Path) -> bytes:
    """Content of a file; UserError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}). Restore the file") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, stripped, without the empty ones; UserError as read_bytes."""
    lines = read_bytes(path).decode("utf-8", "replace").splitlines()
    return [line.strip() for line in lines if line.strip()]
