"""Every option of `train.py`, as a typed dataclass.

Imports no torch: `--help` and a mistyped option answer at once.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from utils.base.environment import usual_workers
from utils.base.parser import Factors, check, valid_scales
from utils.base.paths import write_text


@dataclass(frozen=True)
class Config:
    """Defaults are the recipe of configs/cityscapes/deeplabv3_resnet18_os8.yaml.

    Names are stored in checkpoints: never rename one.
    """

    dataset: str = "cityscapes"
    """Data set to train on: one of datasets.py, of configs/datasets/, or custom, which dataset.yaml
    in --data_root describes."""
    data_root: Path | None = None
    """Folder of the data set. Default: $CITYSCAPES_DATASET for cityscapes, else data/<dataset>."""
    split: str = "train"
    """Images to train on; trainval adds the val split, whose scores then mean nothing: for the test
    server; trainaug, of voc, adds SBD's; train_extra, of cityscapes, the coarsely labelled ones."""
    fine_repeats: int = 1
    """With --split train_extra: how often an epoch shows a finely labelled image while it shows a
    coarsely labelled one once; 7 makes them about as many."""
    run_name: str | None = None
    """Name of the run's folder in --log_root. Default: data set, model, backbone, stride, time."""
    log_root: Path | None = None
    """Folder of all runs. Default: training_logs/."""
    resume: str | None = None
    """'auto' resumes the last checkpoint of --run_name (of the newest run if none is named);
    a path resumes that checkpoint."""
    overwrite: bool = False
    """Replace an existing run of the same name."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes CUDA when there is a GPU."""

    model: str = "deeplabv3"
    """Architecture: one of MODELS in model/__init__.py."""
    backbone: str = "resnet18"
    """Encoder: one of ENCODERS in model/encoders.py; resnet18, 34, 50, 101 or 152."""
    output_stride: Literal[8, 16, 32] = 8
    """Input pixels per feature; 8 is finer and costs about three times as much as 16."""
    multi_grid: tuple[int, int, int] = (1, 1, 1)
    """Factors on the dilation of the last stage's blocks (DeepLabV3 section 3.2)."""
    norm: Literal["bn", "gn", "gn_ws"] = "bn"
    """BatchNorm, GroupNorm of 32 groups, or that with Weight Standardization in every convolution:
    independent of the batch, so also for --batch_size 1."""
    aux: bool = False
    """Train an auxiliary FCN head on the third stage, weight 0.4."""
    backbone_weights: str | None = "imagenet"
    """'imagenet' (torchvision's weights, read from or downloaded to pretrained_models/),
    a file with a ResNet state_dict, or null for a random start."""

    init_from: str | None = None
    """Fine-tune: a run's name or folder, or a checkpoint file, also of other classes; tensors that
    fit are taken over, the others start at random."""

    crop: tuple[int, int] = (512, 1024)
    """Height and width of a training crop in pixels."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest random scale factor of the image before cropping."""
    flip: bool = True
    """Mirror half of the training crops left to right."""
    batch_size: int = 8
    """Crops per micro-batch and process; with --accumulate a step has several of these."""
    workers: int = usual_workers()
    """Threads that read and crop images, 0 for none. Default: a process's cores, at most 16."""

    steps: int = 80_000
    """Optimizer steps of the whole training."""
    epochs: float | None = None
    """Length of the training in passes over the training set; when given, --steps is ignored."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Update rule; sgd uses momentum 0.9."""
    base_lr: float = 0.01
    """Learning rate after warm-up."""
    min_lr: float = 1e-4
    """Learning rate at the last step."""
    power: float = 0.9
    """Exponent of the polynomial decay of the learning rate."""
    warmup_steps: int = 500
    """Steps over which the learning rate rises linearly from zero."""
    weight_decay: float = 5e-4
    """L2 penalty of sgd, decoupled decay of adamw."""
    head_lr_factor: float = 1.0
    """Learning rate of everything behind the backbone, as a multiple of the backbone's."""
    decay_norm: bool = True
    """Also decay biases and normalisation weights."""
    clip_grad: float | None = None
    """Largest L2 norm of all gradients together; longer ones are shortened to it."""
    accumulate: int = 1
    """Micro-batches per step, each of --batch_size crops and apart for BatchNorm: saves memory."""
    ema: float | None = None
    """Decay per step of an exponential moving average of weights and buffers, such as 0.999; where
    given, evaluation and checkpoints' users take the average."""
    freeze_bn: bool = False
    """Keep all BatchNorm statistics and weights as they start."""
    bn_momentum: tuple[float, float] = (0.1, 0.1)
    """Share of each batch in the running statistics of BatchNorm: the backbone's and the head's."""
    sync_bn: bool = False
    """BatchNorm over the crops of all GPUs together."""

    class_weights: bool = True
    """Weigh the loss by the ENet class weights that utils/preprocess_data.py computed."""
    label_smoothing: float = 0.0
    """Share of every pixel's target that is spread evenly over all classes."""
    hard_threshold: float | None = None
    """Learn only from pixels whose class has at most this probability (hard example mining)."""
    hard_min_kept: int = 100_000
    """Pixels of a process's micro-batch that count in any case, the worst, with hard_threshold."""
    class_uniform: float = 0.0
    """Share of the crops that are cut around a class drawn with equal chances instead of from the
    next image; 0.5 shows rare classes often."""
    photometric: bool = False
    """Change brightness, contrast, saturation and hue of training crops at random."""
    max_class_share: float = 1.0
    """Draw a crop again, up to ten times, while one class fills more of its labelled pixels."""

    eval_every: int = 4000
    """Steps between evaluations on the val split; the last step always evaluates."""
    eval_scales: Factors = (1.0,)
    """Sizes, as factors, at which evaluation shows an image to the model; scores are averaged."""
    save_every: int = 1000
    """Steps between checkpoints; the last step always saves."""
    log_every: int = 20
    """Steps between rows in metrics.csv and updates of the progress line."""
    patience: int | None = None
    """Stop after this many evaluations without a better mIoU."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the network; auto: bf16, on GPUs older than Ampere fp16, which scales the loss,
    on a CPU fp32. On a GPU the convolutions of fp32 take TF32, as is PyTorch's default."""
    compile: bool | None = None
    """Compile the network with torch.compile, which takes a minute or more at the start, and on one
    GPU replay its steps as a CUDA graph. Default: on GPUs where a compiler is installed."""
    seed: int = 0
    """Seed of initial weights, data order, augmentation and dropout."""

    def __post_init__(self) -> None:
        check(self, "split", lambda split: split not in ("val", "test"), "a split to train on")
        check(self, "workers warmup_steps seed hard_min_kept", lambda x: x >= 0, "at least 0")
        counts = "steps eval_every save_every log_every patience batch_size accumulate fine_repeats"
        check(self, counts, lambda value: value >= 1, "at least 1")
        rates = "epochs base_lr power head_lr_factor clip_grad"
        check(self, rates, lambda value: 0 < value < float("inf"), "a number above 0")
        rates = "min_lr weight_decay"
        check(self, rates, lambda value: 0 <= value < float("inf"), "a number of at least 0")
        check(self, "min_lr", lambda value: value <= self.base_lr, "at most base_lr")
        check(self, "ema", lambda decay: 0 < decay < 1, "between 0 and 1")
        check(self, "label_smoothing", lambda share: 0 <= share < 1, "at least 0, below 1")
        check(self, "hard_threshold max_class_share", lambda x: 0 < x <= 1, "above 0, at most 1")
        check(self, "class_uniform", lambda share: 0 <= share <= 1, "between 0 and 1")
        check(self, "bn_momentum", lambda m: 0 < min(m) <= max(m) <= 1, "two shares, 0 to 1")
        check(self, "crop", lambda size: min(size) >= 16, "two sizes of at least 16 pixels")
        check(self, "multi_grid", lambda grid: min(grid) >= 1, "three factors of at least 1")
        check(self, "scale", lambda s: 0.01 <= s[0] <= s[1] <= 100, "two factors, smaller first")
        check(self, "eval_scales", valid_scales, "one or more factors between 0.01 and 100")
        check(self, "run_name", re.compile(r"\w[\w.+-]*").fullmatch, "letters, digits, _.+-")


def write_config(config: Config, path: Path) -> None:
    """The effective options as YAML that `--config` reads back."""
    write_text(path, yaml.safe_dump(plain(config), sort_keys=False))


def plain(config: Config) -> dict[str, Any]:
    """Options as YAML- and checkpoint-safe values: lists for tuples, strings for paths."""
    values = {k: str(v) if isinstance(v, Path) else v for k, v in vars(config).items()}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
