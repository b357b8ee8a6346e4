"""UserError, for mistakes of the user, and run_command, which prints it and sets the exit code."""

import errno
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from utils.base.environment import keep_memory

# The disk causes these errors, not the program: full, over quota, read-only, failing.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}


class UserError(Exception):
    """Message `<file>: <what was found>. <what to do>`; a command prints it, exit code 2."""


@cache
def warn(text: str) -> None:
    """Print a warning on stderr: once per text, and only in the first of torchrun's processes."""
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {text}", file=sys.stderr)


class DiskError(UserError):
    """A full or failing disk: every further write would fail too."""


class Faults:
    """Skips the items that fail, reports each of them on stderr, and counts them in `left_out`."""

    left_out = 0

    def attempt(self, name: object, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(*arguments), or None after a UserError. A DiskError is not caught."""
        try:
            return function(*arguments)
        except DiskError:
            raise
        except UserError as error:
            what = " ".join(str(error).split())
            # One write for text and newline, because several threads write.
            sys.stderr.write(f"left out: {what if str(name) in what else f'{name}: {what}'}\n")
            self.left_out += 1


def out_of_memory(error: Exception) -> bool:
    """Whether PyTorch, OpenCV, Python, oneDNN (it creates no "primitive") or cuDNN (it finds no
    "engine") ran out of memory."""
    words = ("out of memory", "allocate memory", "Insufficient memory", "ALLOC_FAILED", "an engine")
    said = any(word in str(error) for word in words) or str(error).endswith("create a primitive")
    return said or isinstance(error, MemoryError)


def run_command(command: Callable[[], None]) -> None:
    """Run a command's `main`; a `UserError` becomes one line on stderr and exit code 2.

    Ctrl-C gives exit code 130, as shells expect; train.py handles Ctrl-C itself.
    """
    keep_memory()
    try:
        command()
        sys.stdout.flush()
        return
    except UserError as error:
        text, code = f"error: {' '.join(str(error).split())}", 2
    except (RuntimeError, MemoryError) as error:
        what, rank = f"({(str(error).splitlines() or [''])[0][:200]})", os.environ.get("RANK")
        if out_of_memory(error):
            text, code = f"error: out of memory {what}. Free memory, or give smaller images", 2
        elif rank and any(word in str(error) for word in ("gloo", "NCCL", "TCPStore")):
            text, code = f"process {rank}: lost another process {what}", 1
        else:
            raise
    except BrokenPipeError:  # the reader of our output has closed it, like `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in {*DISK, errno.ENAMETOOLONG, errno.EACCES}:
            raise
        name, advice = error.filename or "disk", "Free space, check the disk, or shorten the name"
        if error.errno == errno.EACCES:
            advice = "Allow access to it"
        text, code = f"error: {name}: {error.strerror}. {advice}", 2
    except KeyboardInterrupt:
        text, code = "interrupted", 130
    print(text, file=sys.stderr)
    sys.exit(code)
