"""The one error a user can cause, and the one place that turns it into a line and an exit code."""

import errno
import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

# What a disk does, not the program: full, over quota, read only, failing.
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG}


class UserError(Exception):
    """Message `<file>: <what was found>. <what to do>`: one line and exit code 2 in a command."""


@cache
def warn(text: str) -> None:
    """One line on stderr, once, and only of the first of torchrun's processes."""
    if os.environ.get("RANK", "0") == "0":
        print(f"warning: {text}", file=sys.stderr)


class DiskError(UserError):
    """A full or failing disk: what is written next would fail too."""


class Faults:
    """Of many items, those that fail: each is named on stderr and left out, the rest is done."""

    left_out = 0

    def attempt(self, name: object, function: Callable[..., Any], *arguments: Any) -> Any:
        """function(*arguments); None where a UserError comes. A DiskError ends it all."""
        try:
            return function(*arguments)
        except DiskError:
            raise
        except UserError as error:
            what = " ".join(str(error).split())
            # At once, newline included: threads write here.
            sys.stderr.write(f"left out: {what if str(name) in what else f'{name}: {what}'}\n")
            self.left_out += 1


def out_of_memory(error: Exception) -> bool:
    """Whether PyTorch, OpenCV or Python ran out of memory; cuDNN then finds no "engine"."""
    words = ("out of memory", "allocate memory", "Insufficient memory", "ALLOC_FAILED", "an engine")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def run_command(command: Callable[[], None]) -> None:
    """Run a command's `main`; a `UserError` becomes one line on stderr and exit code 2.

    Ctrl-C ends with 130, as a shell expects; train.py handles its own.
    """
    try:
        command()
        sys.stdout.flush()
        return
    except UserError as error:
        text, code = f"error: {' '.join(str(error).split())}", 2
    except (RuntimeError, MemoryError) as error:
        what, rank = f"({(str(error).splitlines() or [''])[0][:200]})", os.environ.get("RANK")
        if out_of_memory(error):
            text, code = f"error: out of memory {what}. Free some, or take less at once", 2
        elif rank and any(word in str(error) for word in ("gloo", "NCCL", "TCPStore")):
            text, code = f"process {rank}: lost another one {what}", 1
        else:
            raise
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in {*DISK, errno.ENAMETOOLONG}:
            raise
        name, advice = error.filename or "disk", "Free space, check the disk or the name"
        text, code = f"error: {name}: {error.strerror}. {advice}", 2
    except KeyboardInterrupt:
        text, code = "interrupted", 130
    print(text, file=sys.stderr)
    sys.exit(code)
