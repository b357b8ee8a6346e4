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
        except UserError as error:
            if isinstance(error, DiskError):
                raise
            what = " ".join(str(error).split())
            # At once, newline included: threads write here.
            sys.stderr.write(f"left out: {what if str(name) in what else f'{name}: {what}'}\n")
            self.left_out += 1


def out_of_memory(error: Exception) -> bool:
    """Whether PyTorch, OpenCV or Python ran out of memory; cuDNN then finds no "engine"."""
    words = ("out of memory", "allocate memory", "Insufficient memory", "ALLOC_FAILED", "an engine")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)


def lost_a_process(error: Exception) -> bool:
    """Whether, under torchrun, another process ended while this one waited for it."""
    return "RANK" in os.environ and any(word in str(error) for word in ("gloo", "NCCL", "TCPStore"))


def run_command(command: Callable[[], None]) -> None:
    """Run a command's `main`; a `UserError` becomes one line on stderr and exit code 2.

    Ctrl-C ends with 130, as a shell expects; train.py handles its own.
    """
    try:
        command()
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        what = f"({(str(error).splitlines() or [''])[0][:200]})"
        if out_of_memory(error):
            print(f"error: out of memory {what}. Free some, or take less at once", file=sys.stderr)
            sys.exit(2)
        if lost_a_process(error):
            print(f"process {os.environ['RANK']}: lost another one {what}", file=sys.stderr)
            sys.exit(1)
        raise
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in {*DISK, errno.ENAMETOOLONG}:
            raise
        name, advice = error.filename or "disk", "Free space, check the disk or the name"
        print(f"error: {name}: {error.strerror}. {advice}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
