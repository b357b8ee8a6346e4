"""A training run: its folder, the state in its checkpoints, and how to find and resume it."""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from model import build_model, describe
from model.layers import freeze_norms, set_momentum, zero_last_norms
from model.ops.matrix_gradients import matrix_gradients_gain, use_matrix_gradients
from utils.base.environment import cpu_has_bf16
from utils.base.errors import UserError, warn
from utils.base.find import find, listing
from utils.base.lock import LOCK
from utils.base.parser import chosen
from utils.base.paths import read_bytes, resolve_log_root
from utils.data.label_table import LabelTable
from utils.training.checkpoint import (
    left_behind,
    load_checkpoint,
    point,
    prune,
    require_entries,
    save_checkpoint,
    step_files,
)
from utils.training.config import FREE_ON_RESUME, Config, plain
from utils.training.distributed import World, sum_over_ranks
from utils.training.logger import describe_environment
from utils.training.network import network_options, pretrained_weights, take_over
from utils.training.optim import AveragedWeights, begin_momentum, build_optimizer
from utils.training.published import HUB, published_file

# These may change on resume too: accumulation() keeps their product with the number of processes.
BATCHING = {"batch_size", "accumulate"}
ADVICE_ON_DIVERGENCE = "Start again with a lower --base_lr, more --warmup_steps, or --clip_grad"


@dataclass
class Run:
    """The state of a training that a checkpoint must restore."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    network: dict[str, Any]  # build_model's arguments
    config: dict[str, Any]
    classes: list[str]
    label_table: dict[str, Any]  # LabelTable.plain()
    images: str  # number of the training images, and hash of their names
    loss_sum: torch.Tensor  # of the steps since the last row of metrics.csv
    ema: AveragedWeights | None = None
    scaler: torch.amp.GradScaler | None = None  # only for fp16
    loss_steps: int = 0  # number of these steps
    images_per_step: int = 0
    step: int = 0
    best_miou: float = -1.0  # of the task's measure; the name is stored in checkpoints
    best_step: int = 0
    stale: int = 0  # evaluations since the best one
    pending: dict[str, float] | None = None  # metrics of a step whose evaluation was interrupted
    cpu_precision: str | None = None  # what --precision auto means on a CPU for this run
    matrix_gradients: bool | None = None  # see use_matrix_gradients; an older run lacks it
    bad_step: torch.Tensor | None = None  # the first step whose loss was not finite, or 0

    # Entries of a checkpoint: never rename one.
    PLAIN: ClassVar = (
        "network", "config", "classes", "label_table", "images", "step", "loss_steps",
        "images_per_step", "best_miou", "best_step", "stale", "pending", "cpu_precision",
        "matrix_gradients",
    )  # fmt: skip

    def __post_init__(self) -> None:
        self.bad_step = torch.zeros((), dtype=torch.int64, device=self.loss_sum.device)

    def steps(self, total: int) -> range:
        """The remaining steps, first the last step again if its evaluation was interrupted."""
        return range(self.step + (self.pending is None), total + 1)

    def take_pending(self) -> dict[str, float] | None:
        """The metrics of the step whose evaluation was interrupted, once; for other steps None."""
        row, self.pending = self.pending, None
        return row

    def note(self, score: float) -> None:
        """Update the best score and the number of evaluations since."""
        if score > self.best_miou:
            self.best_miou, self.best_step, self.stale = score, self.step, 0
        else:
            self.stale += 1

    def add_loss(self, step: int, loss: torch.Tensor) -> None:
        """Add the loss of a step, without waiting for the device."""
        self.loss_sum += loss
        self.loss_steps += 1
        self.bad_step.masked_fill_((self.bad_step == 0) & ~loss.isfinite(), step)

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

    def require_space(self, folder: Path, *, checkpoints: int = 3) -> None:
        """UserError if the disk lacks space for the checkpoints that a run has at the same time."""
        weights = sum(x.nbytes for x in self.model.state_dict().values())
        moments = 2 if isinstance(self.optimizer, torch.optim.Adam) else 1
        needed = checkpoints * weights * (1 + moments + (self.ema is not None)) / 2**30
        free = shutil.disk_usage(folder).free / 2**30
        if free < needed:
            what = f"{free:.2f} GiB free, {checkpoints} checkpoints need {needed:.2f}"
            raise UserError(f"{folder}: {what}. Free space, or give another --log_root")

    def restore(self, state: dict[str, Any]) -> None:
        state = {"label_table": self.label_table, "images": self.images, **state}  # older runs
        later = ["environment", "pending", "images_per_step", "cpu_precision", "matrix_gradients"]
        needed = set(self.state()).difference(later)
        require_entries(state, sorted(needed), f"checkpoint of step {state.get('step')}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        begin_momentum(self.optimizer)  # an older run may have stopped before its first step
        if self.ema is not None:
            self.ema.model.load_state_dict(state["ema"])
        if self.scaler is not None and state["scaler"]:  # a run in bf16 saved none
            self.scaler.load_state_dict(state["scaler"])
        self.loss_sum.copy_(state["loss_sum"])
        for name in self.PLAIN:
            if name != "config":  # options that may change are those of this process
                setattr(self, name, state.get(name))
        self.cpu_precision = self.cpu_precision or "fp32"  # an older run lacks it

    def amp_dtype(self, world: World) -> torch.dtype | None:
        """The dtype of autocast in training steps, None for float32. On a CPU "auto" means what it
        meant at the first step, because another dtype would be another training."""
        precision = self.config["precision"]
        if precision == "auto" and not world.on_gpu:
            precision = self.cpu_precision
        return world.amp_dtype(precision)

    def save(self, folder: Path) -> None:
        """Write a checkpoint, point best.pth at it if it is the best, and delete older ones.

        UserError if weights are not finite, so that a bad checkpoint never replaces a good one.
        """
        floats = [x for x in self.model.state_dict().values() if x.is_floating_point()]
        if not torch.stack([x.isfinite().all() for x in floats]).all():
            what = f"weights of step {self.step} are not finite, not saved"
            raise UserError(f"{folder}: {what}. {ADVICE_ON_DIVERGENCE}")
        save_checkpoint(folder, self.state())
        self.point_at_best(folder)
        prune(folder)

    def point_at_best(self, folder: Path) -> None:
        """Point best.pth at the checkpoint of this step if it is the best; also after resuming,
        because a kill may have come before."""
        own = [x for x in step_files(folder) if x.name.startswith(f"step_{self.step:08d}-")]
        last = (folder / "last.pth").resolve()
        if own and self.best_step == self.step > 0:
            point(folder / "best.pth", last if last in own else own[-1])


def default_run_name(config: Config, world: World) -> str:
    """<dataset>_<model>_<backbone>_os<stride>_<launch or time>, for a run without --run_name."""
    words = describe(network_options(config, num_classes=1))
    return "_".join((config.dataset, *words, world.launch or time.strftime("%Y%m%d-%H%M%S")))


def empty_folder(folder: Path) -> None:
    """Delete the run in `folder`, except the lock that this process holds."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files of killed processes; the caller must hold the run's lock."""
    for path in folder.rglob(".tmp-*"):
        path.unlink()


def newest_good(folder: Path) -> dict[str, Any]:
    """The state in the newest intact checkpoint of a run; warns of damaged ones.

    UserError if all are damaged: a run never restarts from step 0 without the user's consent.
    """
    checkpoints = folder / "checkpoints"
    behind, last = left_behind(checkpoints), (checkpoints / "last.pth").resolve()
    order = sorted(step_files(checkpoints), key=lambda x: (x not in behind, x.name[:13], x == last))
    for path in order[::-1]:
        try:
            return load_checkpoint(path)
        except UserError as error:
            warn(str(error))
    raise UserError(f"{folder}: no checkpoint is intact. Start again with --overwrite true")


def find_checkpoint(spec: str | None, log_root: Path, *, prefer: str = "best.pth") -> Path:
    """A run's name, a run folder or a file -> checkpoint file.

    None means the run with the newest checkpoint. From a run, it takes `prefer` if that exists,
    else the last checkpoint.
    """
    if spec is not None and Path(spec).is_file():
        return Path(spec)
    if spec is not None:
        folder = log_root / spec if (log_root / spec).is_dir() else Path(spec)
    elif every := find(log_root, "*/checkpoints/step_*.pth"):
        folder = max(every, key=lambda path: path.stat().st_mtime).parents[1]
    else:
        raise UserError(f"{log_root}: no run with a checkpoint. Run python train.py first")
    checkpoints = folder / "checkpoints"
    # step_files: a kill may come between writing a file and pointing last.pth at it.
    for path in (checkpoints / prefer, checkpoints / "last.pth", *step_files(checkpoints)[::-1]):
        if path.is_file():
            return path
    runs = ", ".join(sorted({x.parents[1].name for x in find(log_root, "*/checkpoints/*.pth")}))
    raise UserError(
        f"{folder}: no checkpoint. Give a file, or a run of {log_root}: {runs or 'none'}"
    )


def find_run(config: Config, world: World) -> tuple[Path, Path | None]:
    """The run's folder, unused for a new run, and the checkpoint to resume from. Processes that
    torchrun restarts resume the run that they began."""
    log_root = resolve_log_root(config.log_root)
    if config.resume is None:
        if world.restarted and not (config.run_name or world.launch):
            what = "torchrun restarted a run whose name is unknown"
            raise UserError(f"--run_name: {what}. Give it, or torchrun --rdzv-id")
        folder = log_root / (config.run_name or default_run_name(config, world))
        checkpoints = step_files(folder / "checkpoints")
        begun = world.restarted and launch_of(folder) == os.environ.get("TORCHELASTIC_RUN_ID")
        if begun and checkpoints:
            return folder, checkpoints[-1]
        if listing(folder) and world.is_main and not (config.overwrite or begun):
            what = "this run exists. Resume it with --resume auto, replace it with "
            raise UserError(f"{folder}: {what}--overwrite true, or give another --run_name")
        return folder, None
    spec = config.run_name if config.resume == "auto" else config.resume
    path = find_checkpoint(spec, log_root, prefer="last.pth").resolve()
    if path.parent.name != "checkpoints":
        raise UserError(f"{path}: not in a run's folder. Start from its weights with --init_from")
    return path.parents[1], path


def launch_of(folder: Path) -> str:
    """torchrun's id of the processes that began or resumed the run; "" if it is unknown."""
    try:
        return json.loads(read_bytes(folder / "environment.json"))["launch"] or ""
    except (UserError, ValueError, LookupError, TypeError):
        return ""


def load_run(folder: Path, checkpoint: Path | None, config: Config) -> dict[str, Any] | None:
    """The state to resume from, None for a new run; UserError if options differ."""
    if checkpoint is None:
        return None
    named = config.resume not in (None, "auto") and Path(config.resume).is_file()
    state = load_checkpoint(checkpoint) if named else newest_good(folder)
    now = plain(config)
    before = plain(Config()) | state["config"]  # an older checkpoint lacks newer options
    changed = [k for k in now if k not in FREE_ON_RESUME | BATCHING and now[k] != before[k]]
    if changed:
        what = f"made with another {', '.join(changed)}. Resume with --config"
        raise UserError(f"{folder}: {what} {folder / 'config.yaml'}, or start a new --run_name")
    return state


def accumulation(config: Config, world: World, state: dict[str, Any] | None) -> int:
    """Micro-batches per step and process: --accumulate for a new run.

    A resumed run keeps its images per step, even if --batch_size or the number of processes
    changed: it sees the same images in the same order with the same learning rates.
    """
    together = config.batch_size * world.size
    images = (state or {}).get("images_per_step") or together * config.accumulate
    fixed = config.stages and not config.find_batch_size
    if state and fixed and config.batch_size != state["config"]["batch_size"]:
        raise UserError("--batch_size: a run with --stages keeps it. Leave it out")
    if images % together:
        what = f"{images} images, not a multiple of {world.size} x {config.batch_size}"
        advice = "Give another --batch_size, or another number of processes"
        raise UserError(f"a step of this run has {what}. {advice}")
    needed = images // together
    if needed != config.accumulate and world.is_main:
        what = f"{world.size} x {needed} batches of {config.batch_size}"
        print(f"{what} keep the {images} images of this run's steps", file=sys.stderr)
    return needed


def build_run(
    config: Config,
    classes: LabelTable,
    world: World,
    state: dict[str, Any] | None,
    *,
    names: Sequence[str] = (),
) -> Run:
    """Model, average and optimizer at step 0, or restored from `state`, a checkpoint; UserError
    if the checkpoint has other classes or training images, `names`."""
    torch.manual_seed(config.seed)
    images = f"{len(names)} {hashlib.sha256(repr([*names]).encode()).hexdigest()[:16]}"
    if state and state.get("images", images) != images:
        what = f"not the training images of this run ({state['images'].split()[0]} then"
        advice = "Restore them, or start a new run with --init_from"
        raise UserError(f"{config.data_root}: {what}, {len(names)} now). {advice}")
    if state and (what := classes.difference(state["classes"], state.get("label_table"))):
        advice = "Restore the data set's description, or start a new run with --init_from"
        raise UserError(f"{config.data_root}: {what}. {advice}")
    things = classes.is_thing.nonzero()[0].tolist()
    network = network_options(config, classes.num_classes, things)
    pretrained = state is None and config.init_from is None
    weights = pretrained_weights(config, network) if pretrained else {}
    try:
        model = build_model(**network, **weights)
    except ValueError as error:  # options that do not go together
        raise UserError(f"--model {config.model}: {error}. Change one of them") from error
    if state is None and config.init_from is not None:
        spec = config.init_from
        hub, log_root = spec.startswith(HUB), resolve_log_root(config.log_root)
        path = published_file(spec) if hub else find_checkpoint(spec, log_root)
        what = take_over(model, path, network, classes.names)
        if world.is_main:
            print(f"weights of {path}; {what}")
    if config.zero_init:
        try:
            zero_last_norms(model)
        except ValueError as error:
            raise UserError(f"--zero_init true: {error}. Leave it out") from None
    set_momentum(model, *config.bn_momentum)
    if config.freeze_bn:
        freeze_norms(model)
    if config.sync_bn and world.size > 1:  # last: it copies the settings above
        if not world.on_gpu:
            raise UserError("--sync_bn true: PyTorch supports it on GPUs only. Leave it out")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(world.device, memory_format=torch.channels_last)
    options = chosen(config, "base_lr weight_decay head_lr_factor decay_norm")
    optimizer = build_optimizer(model, config.optimizer, **options)
    loss_sum = torch.zeros((), device=world.device)
    of_classes = list(classes.names), classes.plain()
    own = plain(replace(config, resume=None, overwrite=False))
    run = Run(model, optimizer, network, own, *of_classes, images, loss_sum)
    run.cpu_precision = "bf16" if cpu_has_bf16() else "fp32"
    run.matrix_gradients = matrix_gradients_gain()
    if config.ema is not None:
        run.ema = AveragedWeights(model, config.ema)
    if world.amp_dtype(config.precision) == torch.float16:
        run.scaler = torch.amp.GradScaler(world.device.type)
    if state is not None:
        run.restore(state)
    if run.matrix_gradients and not world.on_gpu and run.amp_dtype(world) is None:
        use_matrix_gradients(model)
    return run
