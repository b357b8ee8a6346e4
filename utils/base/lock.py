"""One process per folder: a lock that the system releases when its holder ends, in any way."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from utils.base.errors import UserError
from utils.base.paths import make_folder, writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

LOCK = ".lock"


@contextmanager
def hold(folder: Path, *, enabled: bool = True) -> Iterator[None]:
    """Hold folder/.lock, which is removed at the end; UserError where another process holds it.

    Folders made for it are removed again if nothing else came into them. No lock is ever stale:
    what counts is the system's lock on the file, not that the file exists.
    """
    if not enabled:
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    make_folder(folder)
    path = folder / LOCK
    with acquire(path):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows removes no open file
                path.unlink()  # before the lock is released: see acquire
            with suppress(OSError):  # some folder is in use
                for empty in made:
                    empty.rmdir()


def acquire(path: Path) -> IO[bytes]:
    """The locked file; opened again where its holder removed it before it could be locked."""
    while True:
        with writing(path):
            file = path.open("a+b", buffering=0)
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except (BlockingIOError, PermissionError) as error:
            with file:
                name = holder(file)
            raise UserError(f"{path}: held by {name}. Wait until it ends, or stop it") from error
        except OSError:
            return file  # a file system without locks
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()
    with suppress(OSError):  # a full disk; the name is all that lacks
        file.truncate(0)
        file.write(f"process {os.getpid()}".encode())
    return file


def holder(file: IO[bytes]) -> str:
    """What the holder writes right after it got the lock, which may be this moment."""
    for _ in range(40):  # two seconds
        file.seek(0)
        if name := file.read().decode().strip():
            return name
        time.sleep(0.05)
    return "another process"
