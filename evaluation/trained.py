"""Load a checkpoint for prediction or scoring with a command's options."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from datasets import build_dataset, find_data_set, resolve_data_root
from evaluation.converted import published_run
from evaluation.evaluate import evaluate
from evaluation.inference import Predictor
from evaluation.metrics import Scores
from evaluation.task import TASKS, Task
from model import at_output_stride, build_model, model_class
from utils.base.environment import usual_workers
from utils.base.errors import UserError, warn
from utils.base.parser import Factors, check, chosen, valid_scales
from utils.base.paths import resolve_log_root
from utils.data.dataset import Dataset
from utils.data.label_table import LabelTable
from utils.training import distributed
from utils.training.checkpoint import load_checkpoint
from utils.training.distributed import World
from utils.training.published import HUB
from utils.training.run import find_checkpoint


@dataclass(frozen=True)
class PredictionOptions:
    """Options of every command that predicts with a checkpoint."""

    checkpoint: str | None = None
    """A run's name, its folder, a checkpoint file, or hub:NAME for a network that another project
    published. Default: best checkpoint of the newest run."""
    log_root: Path | None = None
    """Folder of all runs. Default: training_logs/."""
    data_root: Path | None = None
    """Folder of the data set. Default: the one the checkpoint was trained on."""
    output_stride: Literal[8, 16, 32] | None = None
    """Output stride of the network; atrous rates change with it. 8 gives finer predictions, even if
    the network was trained at 16 (DeepLabV3 section 4.1). Default: as trained."""
    scales: Factors | None = None
    """Factors to resize images by; probabilities are averaged. Default: the run's --eval_scales."""
    flip: bool = False
    """Also predict the mirrored image and average both predictions."""
    crop: tuple[int, int] | None = None
    """Height and width of sliding windows, whose logits are averaged. Default: whole images."""
    stride: tuple[int, int] | None = None
    """Vertical and horizontal step of the windows. Default: two thirds of --crop."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the network; auto: bf16 on GPUs that support it, else fp16; fp32 on a CPU."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to compute on; auto: CUDA if there is a GPU, else the CPU."""
    workers: int = usual_workers()
    """Threads to read images, and as many to write; 0: none. Default: number of cores, max. 16."""

    def __post_init__(self) -> None:
        check(self, "workers", lambda workers: workers >= 0, "at least 0")
        check(self, "crop", lambda crop: min(crop) >= 32, "at least 32x32")
        rows, columns = self.crop or (0, 0)
        within = "at least 1 and at most --crop"
        check(self, "stride", lambda x: 1 <= x[0] <= rows and 1 <= x[1] <= columns, within)
        check(self, "scales", valid_scales, "one or more factors between 0.01 and 100")


@dataclass(frozen=True)
class ScoringOptions(PredictionOptions):
    """Options of every command that scores a checkpoint."""

    dataset: str | None = None
    """Data set to score on. Default: the one the checkpoint was trained on."""
    split: Literal["val", "test"] = "val"
    """Split to score; test only if its labels are public (camvid)."""


def load_model(path: Path, *, output_stride: int | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """Network of a checkpoint, in evaluation mode on the CPU, with its averaged weights if it has
    them, and the rest of the file. output_stride: replaces that of the training."""
    state = load_checkpoint(path, needs=("network", "model", "config", "classes"))
    if output_stride is not None:
        try:
            state["network"] = at_output_stride(state["network"], output_stride)
        except ValueError as error:
            raise UserError(f"{path}: {error}. Leave --output_stride out") from error
    averaged, weights = state.pop("ema", None), state.pop("model")
    try:
        with torch.device("meta"):  # skips the random initialization
            network = build_model(**state["network"])
    except (ValueError, TypeError) as error:
        what = f"its network is unknown here ({str(error).splitlines()[0]})"
        raise UserError(f"{path}: {what}. Update the code: git pull") from error
    try:
        network.load_state_dict(averaged or weights, assign=True)
    except RuntimeError as error:
        if output_stride is None:
            raise
        what = f"its weights do not fit --output_stride {output_stride}"
        raise UserError(f"{path}: {what}. Leave --output_stride out") from error
    return network.eval(), state


@dataclass(frozen=True)
class Trained:
    """A loaded checkpoint with a command's options; the model is on `world`'s device."""

    path: Path
    dataset_name: str  # the command's data set, else that of the training
    root: Path  # the data set's folder
    model: nn.Module
    state: dict[str, Any]  # the rest of the file
    world: World
    amp: torch.dtype | None
    options: dict[str, Any]  # of predict_logits
    command: PredictionOptions  # as the user gave them

    @classmethod
    def open(
        cls, options: PredictionOptions, checkpoint: str | None = None, *, together: bool = False
    ) -> "Trained":
        """Load `checkpoint`, default: options.checkpoint. together: torchrun's processes share the
        work; otherwise more than one process is a UserError."""
        world = distributed.start(options.device)
        if world.size > 1 and not together:
            name = Path(sys.argv[0]).name
            raise UserError(f"{name}: cannot use {world.size} processes. Run it without torchrun")
        log_root = resolve_log_root(options.log_root)
        spec = checkpoint or options.checkpoint
        hub = spec is not None and spec.startswith(HUB)
        path = (published_run(spec) if hub else find_checkpoint(spec, log_root)).resolve()
        model, state = load_model(path, output_stride=options.output_stride)
        own, how = state["config"], chosen(options, "scales flip crop stride")
        how["scales"] = how["scales"] or own["eval_scales"]
        name = getattr(options, "dataset", None) or own["dataset"]
        recorded = Path(own["data_root"]) if name == own["dataset"] and not hub else None
        root = resolve_data_root(name, options.data_root or recorded)
        amp = world.amp_dtype(options.precision)
        return cls(path, name, root, model.to(world.device), state, world, amp, how, options)

    def require_classes(self, classes: LabelTable) -> None:
        """UserError if the data set has other classes; a warning if its label ids have changed."""
        if what := classes.difference(self.state["classes"], None):
            what = f"trained on other classes than {self.dataset_name}: {what}"
            raise UserError(f"{self.path}: {what}. Use the data set that it was trained on")
        what = classes.difference(classes.names, self.state.get("label_table"))
        if what and self.dataset_name == self.state["config"]["dataset"]:
            warn(f"{self.path}: {what}; the current ids of {self.dataset_name} are used")

    @property
    def classes(self) -> LabelTable:
        """The classes of the training, with their ids and colours."""
        if table := self.state.get("label_table"):
            return LabelTable.from_plain(table)
        classes = find_data_set(self.dataset_name, self.root).classes
        self.require_classes(classes)
        what = "this older checkpoint does not hold the label ids of its classes"
        warn(f"{self.path}: {what}; the ids of {self.dataset_name} are used")
        return classes

    @property
    def run(self) -> Path | None:
        """Folder of the run, None for a file that belongs to none."""
        return self.path.parents[1] if self.path.parent.name == "checkpoints" else None

    @property
    def name(self) -> str:
        """Of the run, or of a file that belongs to none."""
        return self.run.name if self.run else self.path.stem

    @property
    def origin(self) -> dict[str, Any]:
        """What is scored and how, for files of results."""
        stride = self.state["network"].get("output_stride")
        own = {"output_stride": stride, "precision": str(self.amp or "float32")}
        return {
            "checkpoint": str(self.path), "step": self.state["step"],
            "dataset": self.dataset_name, "data_root": str(self.root),
            "prediction": self.options | own,
        }  # fmt: skip

    @property
    def task(self) -> Task:
        return TASKS[model_class(self.state["network"]["name"]).task]

    def predictor(self, *, windows_if_needed: bool = False) -> Predictor:
        how = {"amp": self.amp, "windows_if_needed": windows_if_needed, "task": self.task}
        how |= {"classes": self.classes, "device": self.world.device}
        return Predictor(self.model, **how, **self.options)

    def evaluate(self, dataset: Dataset, **more: Any) -> Scores:
        """Scores of this network under the command's options; more: others of evaluate()."""
        how = self.options | {"amp": self.amp, "task": self.task, "workers": self.command.workers}
        classes = dataset.classes  # categories but no instances: Cityscapes with label ids only
        if classes.categories and not classes.instance_sizes:
            warn(f"{self.root}: no instance ids (instanceIds); nIoU is left out")
        return evaluate(self.model, dataset, world=self.world, **how, **more)

    def dataset(self, split: str) -> Dataset:
        """The labelled images of a split; UserError if they have other classes or no labels."""
        instances = self.task.instances
        dataset = build_dataset(self.dataset_name, self.root, split, instances=instances)
        self.require_classes(dataset.classes)
        if not dataset.has_labels:
            raise UserError(f"{self.root}: the {split} split has no public labels. Use --split val")
        return dataset
