"""Checkpoints: written completely or not at all, verified by hash, read without running code."""

import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.base.errors import UserError

FORMAT = 1
SCALAR = np.float64(0).__reduce__()[0]
NUMPY_SCALARS = [  # for numbers that some files store, such as a best score; they run no code
    np.dtype,
    np.dtypes.Float32DType,
    np.dtypes.Float64DType,
    np.dtypes.Int64DType,
    *((SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
CHECKPOINT_NAME = re.compile(r"step_(\d{8})-([0-9a-f]{16})\.pth")


def save_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Write `state` as folder/step_<step>-<sha256>.pth and point last.pth at it; returns the path.

    The file gets this name only after its bytes are on the disk, so that a kill at any moment
    leaves the previous checkpoint unchanged.
    """
    temporary = folder / f".tmp-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        path = folder / f"step_{state['step']:08d}-{sha256(temporary)}.pth"
        os.replace(temporary, path)
        point(folder / "last.pth", path)
    except (OSError, RuntimeError) as error:  # torch raises the latter when a write fails
        cause = system_error(error)
        if cause is None:
            raise
        temporary.unlink(missing_ok=True)
        free = shutil.disk_usage(folder.parent).free / 2**30
        what = f"step {state['step']} cannot be saved ({cause.strerror}, {free:.1f} GiB free)"
        advice = "earlier checkpoints are intact. Free space, then give --resume auto"
        raise UserError(f"{folder}: {what}; {advice}") from error
    return path


def system_error(error: BaseException | None) -> OSError | None:
    """The first OSError in the chain of `error` and its causes."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def point(link: Path, target: Path) -> None:
    """Point `link` (last.pth, best.pth) at `target`, and replace an existing link atomically."""
    temporary = link.with_name(f".tmp-{link.name}-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(target.name)
    except OSError:  # file systems and Windows accounts without symbolic links
        shutil.copyfile(target, temporary)
    os.replace(temporary, link)
    if os.name == "posix":
        descriptor = os.open(link.parent, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def prune(folder: Path, *, keep: int = 2) -> None:
    """Delete all checkpoints except the newest `keep` and the targets of best.pth and last.pth.

    If the last step has two files, such as a damaged one and a new one, keep last.pth's target.
    Files of left_behind stay.
    """
    best, last = ((folder / name).resolve() for name in ("best.pth", "last.pth"))
    behind = left_behind(folder)
    files = [path for path in step_files(folder) if path not in behind]
    twice = {path for path in files if path.name[:13] == last.name[:13]} - {last}
    older = [path for path in files if path not in twice][:-keep]
    for path in {*older, *twice} - {best, last}:
        path.unlink()


def step_files(folder: Path) -> list[Path]:
    """Checkpoint files in a folder, oldest step first."""
    return sorted(x for x in folder.glob("*.pth") if CHECKPOINT_NAME.fullmatch(x.name))


def left_behind(folder: Path) -> set[Path]:
    """Files of later steps than last.pth's, but older: --resume FILE went back from there."""
    last = (folder / "last.pth").resolve()
    if not (last.is_file() and CHECKPOINT_NAME.fullmatch(last.name)):  # a copy, not a link
        return set()
    later = (path for path in step_files(folder) if path.name[:13] > last.name[:13])
    return {path for path in later if path.stat().st_mtime_ns < last.stat().st_mtime_ns}


def sha256(path: Path) -> str:
    """First 16 hex digits of the file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def load_checkpoint(path: Path, *, needs: Iterable[str] = ()) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote, on the CPU. UserError for a damaged or foreign file,
    and if an entry of `needs` is missing."""
    path = path.resolve()
    match = CHECKPOINT_NAME.fullmatch(path.name)
    if match and path.is_file() and sha256(path) != match[2]:
        raise UserError(f"{path}: damaged, its hash is not {match[2]}. Give an older checkpoint")
    state = read_tensors(path)
    found = state.get("format") if isinstance(state, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise UserError(f"{path}: format {found}, newer than {FORMAT}. Update the code: git pull")
    if found != FORMAT:
        advice = "Give a run of train.py, or convert it: python utils/convert_checkpoint.py"
        raise UserError(f"{path}: not a checkpoint of train.py. {advice}")
    require_entries(state, needs, path)
    return state


def require_entries(state: dict[str, Any], names: Iterable[str], path: Any) -> None:
    """UserError that lists the missing entries of a checkpoint."""
    if missing := [name for name in names if name not in state]:
        raise UserError(f"{path}: lacks {', '.join(missing)}. Give a file that train.py wrote")


def read_tensors(path: Path) -> Any:
    """`torch.load` of tensors and plain containers only: a file can never run code."""
    if path.exists() and not path.is_file():  # reading a named pipe would block
        raise UserError(f"{path}: not a readable weights file. Replace it")
    try:
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: does not exist. Give an existing file") from error
    except Exception as error:  # a damaged file raises one of seven unrelated types
        objects: list[str] = []
        with suppress(Exception):  # this may fail like the load
            objects = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        what = "not a readable weights file. Replace it"
        if objects:
            what = f"holds Python objects ({', '.join(objects[:3])}), which could run code. "
            what += "Save only its state_dict, in the project that wrote it"
        raise UserError(f"{path}: {what}") from error
