"""One process per folder: a lock that the system releases when its holder ends, in any way."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from utils.base.errors import UserError
from utils.base.paths import make_folder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

LOCK = ".lock"


@contextmanager
def hold(folder: Path, *, enabled: bool = True) -> Iterator[None]:
    """Hold folder/.lock; UserError where another process does.

    Folders made for it are removed again if nothing else came into them. No lock is ever stale:
    what counts is the system's lock on the file, not that the file exists.
    """
    if not enabled:
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    path = folder / LOCK
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        what = f"cannot be written ({error.strerror})"
        raise UserError(f"{path}: {what}. Choose a folder that can") from error
    with file:
        acquire(file, path)
        try:
            yield
        finally:
            with suppress(OSError):  # some folder is in use
                if made and os.listdir(folder) == [LOCK]:
                    path.unlink()
                for empty in made:
                    empty.rmdir()


def acquire(file: IO[str], path: Path) -> None:
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError) as error:
        name = holder(file)
        raise UserError(f"{path}: held by {name}. Wait until it ends, or stop it") from error
    except OSError:
        return  # a file system without locks
    file.truncate(0)
    file.write(f"process {os.getpid()}")
    file.flush()


def holder(file: IO[str]) -> str:
    """What the holder writes right after it got the lock, which may be this moment."""
    for _ in range(40):  # two seconds
        file.seek(0)
        if name := file.read().strip():
            return name
        time.sleep(0.05)
    return "another process"
