"""Checkpoints: written whole or not at all, checked by hash, read without pickle's dangers."""

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torchvision
from torch import nn

from utils.distributed import World, sum_over_ranks
from utils.errors import UserError
from utils.files import REPOSITORY
from utils.logger import describe_environment
from utils.optim import AveragedWeights

FORMAT = 1
PRETRAINED = REPOSITORY / "pretrained_models"
NAME = re.compile(r"step_(\d{8})-([0-9a-f]{16})\.pth")


@dataclass
class Run:
    """Everything of a training that a checkpoint must bring back."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    network: dict[str, Any]  # build_model's arguments
    config: dict[str, Any]
    classes: list[str]
    loss_sum: torch.Tensor  # of the steps since the last row of metrics.csv
    ema: AveragedWeights | None = None
    scaler: torch.amp.GradScaler | None = None  # of fp16
    loss_steps: int = 0  # their number
    step: int = 0
    best_miou: float = -1.0
    best_step: int = 0
    stale: int = 0  # evaluations since the best one

    PLAIN: ClassVar = (
        "network", "config", "classes", "step", "loss_steps", "best_miou", "best_step", "stale",
    )  # fmt: skip

    def note(self, miou: float) -> None:
        """Keep the best mIoU and the number of evaluations since."""
        if miou > self.best_miou:
            self.best_miou, self.best_step, self.stale = miou, self.step, 0
        else:
            self.stale += 1

    def add_loss(self, loss: torch.Tensor) -> None:
        """Count a step's loss in, without waiting for the device."""
        self.loss_sum += loss
        self.loss_steps += 1

    def mean_loss(self, world: World) -> float:
        """Mean over the steps since the last call and over all processes; waits for the device."""
        mean = sum_over_ranks(self.loss_sum, world).item() / (self.loss_steps * world.size)
        self.loss_sum.zero_()
        self.loss_steps = 0
        return mean

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema and self.ema.model.state_dict(),
            "scaler": self.scaler and self.scaler.state_dict(),
            "loss_sum": self.loss_sum,
            "environment": describe_environment(),
            **{name: getattr(self, name) for name in self.PLAIN},
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for part, held in ((self.ema and self.ema.model, "ema"), (self.scaler, "scaler")):
            if part is not None:
                part.load_state_dict(state[held])
        self.loss_sum.copy_(state["loss_sum"])
        for name in self.PLAIN:
            setattr(self, name, state[name])

    def save(self, folder: Path) -> None:
        """Write a checkpoint; best.pth follows when this step is the best. Older ones go."""
        path = save_checkpoint(folder, self.state())
        if self.best_step == self.step:
            point(folder / "best.pth", path)
        prune(folder)


def save_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Write `state` as folder/step_<step>-<sha256>.pth and point last.pth at it; returns the path.

    The file gets its name only once its bytes are on the disk: a kill at any moment leaves the
    previous checkpoint as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".tmp-{os.getpid()}"
    with temporary.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    path = folder / f"step_{state['step']:08d}-{sha256(temporary)}.pth"
    os.replace(temporary, path)
    point(folder / "last.pth", path)
    return path


def point(link: Path, target: Path) -> None:
    """Make `link` (last.pth, best.pth) stand for `target`, replacing an older one in one step."""
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
    """Delete all but the newest `keep` checkpoints and what best.pth and last.pth stand for."""
    named = {(folder / name).resolve() for name in ("best.pth", "last.pth")}
    for path in step_files(folder)[:-keep]:
        if path.resolve() not in named:
            path.unlink()


def step_files(folder: Path) -> list[Path]:
    """Checkpoints of a run's folder, oldest step first."""
    return sorted(path for path in folder.glob("step_*.pth") if NAME.fullmatch(path.name))


def sha256(path: Path) -> str:
    """First 16 hex digits of the file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The state that `save_checkpoint` wrote, on the CPU; UserError when damaged or foreign."""
    path = path.resolve()
    match = NAME.fullmatch(path.name)
    if match and path.is_file() and sha256(path) != match[2]:
        raise UserError(f"{path}: damaged, its hash is not {match[2]}. Use an older checkpoint")
    state = read_tensors(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of train.py. Name a run or a file it wrote")
    return state


def read_tensors(path: Path) -> Any:
    """`torch.load` of tensors and plain containers only: a file can never run code."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path}: does not exist. Name an existing file") from error
    except Exception as error:  # a damaged file raises one of seven unrelated types
        raise UserError(f"{path}: not a readable weights file. Replace it") from error


def take_over(model: nn.Module, path: Path) -> list[str]:
    """Load those tensors of a checkpoint that fit by name and shape; the names of the others.

    Averaged weights, where there are any; a plain state_dict is read as well.
    """
    content = read_tensors(path)
    given = content if isinstance(content, dict) else {}
    given = given.get("ema") or given.get("model") or given
    own = model.state_dict()
    fitting = {
        name: value
        for name, value in given.items()
        if name in own and getattr(value, "shape", None) == own[name].shape
    }
    if not fitting:
        raise UserError(f"{path}: no tensor fits this network. Name a checkpoint of its backbone")
    model.load_state_dict({**own, **fitting})
    return [name for name in own if name not in fitting]


def find_checkpoint(spec: str | None, log_root: Path, *, prefer: str = "best.pth") -> Path:
    """A run's name, a run folder or a file -> checkpoint file; None means the newest run.

    Of a run, `prefer` is taken if it exists, else its last checkpoint.
    """
    if spec is not None and Path(spec).is_file():
        return Path(spec)
    folder = newest_run(log_root) if spec is None else first_existing(log_root / spec, Path(spec))
    for name in (prefer, "last.pth"):
        path = folder / "checkpoints" / name
        if path.is_file():
            return path
    raise UserError(f"{folder}: no checkpoint. Name a run in {log_root} or a checkpoint file")


def newest_run(log_root: Path) -> Path:
    """The run with the newest checkpoint."""
    checkpoints = list(log_root.glob("*/checkpoints/last.pth"))
    if not checkpoints:
        raise UserError(f"{log_root}: no run with a checkpoint. Run train.py first")
    return max(checkpoints, key=lambda path: path.stat().st_mtime).parents[1]


def first_existing(*folders: Path) -> Path:
    """The first of them that is a folder, else the first."""
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def load_backbone_weights(spec: str | None, backbone: str) -> dict[str, torch.Tensor] | None:
    """State dict of 'imagenet' (torchvision's weights for `backbone`) or of a file; None for None.

    ImageNet files are looked for in pretrained_models/ and downloaded there once.
    """
    if spec is None:
        return None
    path = imagenet_file(backbone) if spec == "imagenet" else Path(spec)
    weights = read_tensors(path)
    with torch.device("meta"):  # shapes without memory
        expected = torchvision.models.get_model(backbone, weights=None).state_dict()
    for key, value in expected.items():
        if key.startswith("fc.") or key.endswith("num_batches_tracked"):
            continue
        if not isinstance(weights, dict) or key not in weights or weights[key].shape != value.shape:
            raise UserError(f"{path}: no {key} of {tuple(value.shape)}. Give weights of {backbone}")
    return weights


def imagenet_file(backbone: str) -> Path:
    """torchvision's ImageNet weights in pretrained_models/, downloaded if they are not there."""
    url = torchvision.models.get_model_weights(backbone).IMAGENET1K_V1.url
    path = PRETRAINED / url.rsplit("/", 1)[1]
    if not path.is_file():
        try:
            torch.hub.download_url_to_file(url, str(path), hash_prefix=path.stem.split("-")[1])
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{path}: cannot be downloaded ({error}). Fetch {url} into {PRETRAINED}, "
                "or start from random weights with --backbone_weights null"
            ) from error
    return path
