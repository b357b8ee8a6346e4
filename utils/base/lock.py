"""A lock that admits one process per folder; the system releases it however the process ends."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from utils.base.errors import UserError, warn
from utils.base.paths import make_folder, writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

LOCK = ".lock"


@contextmanager
def hold(folder: Path, *, enabled: bool = True, wait: bool = False) -> Iterator[None]:
    """Hold folder/.lock and remove it at the end. If another process holds it: UserError, or wait.

    Missing folders are created, and removed at the end if they are empty. A lock is never stale:
    the system's lock on the file counts, not the file's existence.
    """
    if not enabled:
        yield
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / LOCK
    with acquire(path, wait):
        try:
            yield
        finally:
            with suppress(OSError):  # Windows cannot remove an open file
                path.unlink()  # before the lock is released: see acquire
            with suppress(OSError):  # a folder is not empty
                for empty in made:
                    empty.rmdir()


def acquire(path: Path, wait: bool) -> IO[bytes]:
    """The locked file; opens it again if the previous holder removed it before it was locked."""
    while True:
        make_folder(path.parent)  # the previous holder may have removed it
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
            if wait:
                warn(f"{path}: held by {name}; waiting until it ends")
                time.sleep(0.5)
                continue
            raise UserError(f"{path}: held by {name}. Wait until it ends, or stop it") from error
        except OSError:
            return file  # a file system without locks
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()
    with suppress(OSError):  # on a full disk only the holder's name is missing
        file.truncate(0)
        file.write(f"process {os.getpid()}".encode())
    return file


def holder(file: IO[bytes]) -> str:
    """The name in the lock file; waits, because the holder writes it just after locking."""
    for _ in range(40):  # two seconds
        file.seek(0)
        if name := file.read().decode().strip():
            return name
        time.sleep(0.05)
    return "another process"
