"""Every option of `train.py`, as a typed dataclass.

This file does not import torch, so that `--help` and error messages appear at once.
"""

import json
import math
import re
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypedDict

import yaml

from utils.base.environment import usual_workers
from utils.base.parser import Factors, check, valid_scales
from utils.base.paths import write_text

# Options that processes of one run may have different values of.
OF_A_PROCESS = {"run_name", "resume", "overwrite", "log_root", "data_root", "device", "workers"}
OF_A_PROCESS |= {"compile"}
# Options that may change when a run resumes; any other change would make it another training.
FREE_ON_RESUME = OF_A_PROCESS | {"log_every", "save_every", "eval_every", "patience"}
FREE_ON_RESUME |= {"find_batch_size"}


class Stage(TypedDict, total=False):
    """A part of a training: options that it changes, and `until`, the share of all steps at which
    it ends."""

    until: float
    crop: tuple[int, int]
    scale: tuple[float, float]
    batch_size: int


@dataclass(frozen=True)
class Config:
    """Defaults are the recipe of configs/cityscapes/deeplabv3_resnet18_os8.yaml.

    Checkpoints store the names of options: never rename one.
    """

    dataset: str = "cityscapes"
    """Data set to train on: one of datasets.py, one of configs/datasets/, or custom, which the
    dataset.yaml in --data_root describes."""
    data_root: Path | None = None
    """Folder of the data set. Default: $CITYSCAPES_DATASET for cityscapes, else data/<dataset>."""
    split: str = "train"
    """Split to train on. trainval adds val, for the test server: val scores then mean nothing.
    trainaug (voc) adds SBD's images, train_extra (cityscapes) the coarsely labelled images."""
    train_list: Path | None = None
    """Train only on the images of --split that this text file lists: a name or path in each line,
    as in lists of an eighth of Cityscapes. Class weights stay those of all images."""
    also: tuple[str, ...] = ()
    """Other data sets with the same classes, whose train images are added: a list such as
    '[bdd100k]' or '[bdd100k=FOLDER]'. Validation and class weights stay those of --dataset."""
    fine_repeats: int = 1
    """With --split train_extra: how often an epoch shows each finely labelled image. It shows each
    coarsely labelled image once; 7 gives about as many of both."""
    run_name: str | None = None
    """Name of the run's folder in --log_root. Default: data set, model, backbone, stride, time."""
    log_root: Path | None = None
    """Folder of all runs. Default: training_logs/."""
    resume: str | None = None
    """'auto' resumes from the last checkpoint of --run_name, or of the newest run if --run_name is
    not given; a path resumes from that checkpoint."""
    overwrite: bool = False
    """Replace an existing run of the same name."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device that computes; auto uses CUDA if there is a GPU."""

    model: str = "deeplabv3"
    """Architecture: one of MODELS in model/__init__.py."""
    backbone: str = "resnet18"
    """Encoder: resnet18, 34, 50, 101, 152 or another of ENCODERS in model/encoders.py."""
    output_stride: Literal[8, 16, 32] = 8
    """Input pixels per feature; 8 is finer and takes about three times as long as 16."""
    multi_grid: tuple[int, int, int] = (1, 1, 1)
    """Dilation factors of the blocks in the last stage (DeepLabV3 section 3.2)."""
    norm: Literal["bn", "gn", "gn_ws"] = "bn"
    """BatchNorm, GroupNorm with 32 groups, or GroupNorm with Weight Standardization of every
    convolution. GroupNorm does not depend on the batch and allows --batch_size 1."""
    aux: bool = False
    """Train an auxiliary FCN head on the third stage, with loss weight 0.4."""
    separable: bool = False
    """Depthwise separable 3x3 convolutions in ASPP and decoder, with a third of the arithmetic."""
    attention: Literal["both", "collect", "distribute"] = "both"
    """What the attention of PSANet does with features: collect, distribute or both."""
    mask: tuple[int, int] = (59, 59)
    """Height and width, odd, of the window that PSANet's attention reaches, in pixels of half of
    the map's resolution: 16 pixels of the image at output stride 8."""
    center_window: int = 3
    """Side, odd, in pixels of the maps at stride 4, of the square in which the center of an
    instance must be the highest (panoptic_deeplab). Larger for larger things."""
    deformable: bool = False
    """Deformable 3x3 convolutions in the last three stages of a ResNet (upsnet)."""
    semantic_layers: int = 2
    """Layers of the semantic head (upsnet): 2 for Cityscapes, 3 for COCO."""
    roi_loss: bool = False
    """Train the classes of the pixels in the true boxes too (upsnet), as on COCO."""
    backbone_weights: str | None = "imagenet"
    """'imagenet' (torchvision's weights, downloaded to pretrained_models/ if missing), a file with
    a ResNet state_dict, or null for random weights."""

    init_from: str | None = None
    """Fine-tune a run (its name or folder), a checkpoint file or hub:NAME, a network that another
    project published; its classes may differ. Tensors of the same name and shape are loaded, the
    others start at random."""

    crop: tuple[int, int] = (512, 1024)
    """Height and width of a training crop in pixels."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest random scale factor of the image before cropping."""
    stages: list[Stage] | None = None
    """Parts of the training with another crop, scale or batch_size: a list such as [{until: 0.6,
    crop: [256,512], scale: [0.25,1]}, {until: 1}]; until: share of all steps at which one ends."""
    flip: bool = True
    """Mirror half of the training crops left to right."""
    find_batch_size: bool = False
    """Look for the largest --batch_size that fits into memory, before the first step. It divides
    the images of a step (--batch_size times --accumulate), whose number stays the same."""
    batch_size: int = 8
    """Crops per micro-batch and process; with --accumulate a step has several micro-batches."""
    workers: int = usual_workers()
    """Threads that read and crop images; 0: main thread. Default: one per core, at most 16."""

    steps: int = 80_000
    """Optimizer steps of the whole training."""
    epochs: float | None = None
    """Length of the training in passes over the training set; if given, it replaces --steps."""
    optimizer: Literal["sgd", "adam", "adamw", "muon"] = "sgd"
    """sgd uses momentum 0.9; muon makes the updates of convolutions orthogonal, uses AdamW for all
    other weights, and takes learning rates of AdamW."""
    base_lr: float = 0.01
    """Learning rate after warm-up."""
    min_lr: float = 1e-4
    """Learning rate at the last step."""
    schedule: Literal["poly", "linear", "cosine", "onecycle", "step", "exponential"] = "poly"
    """Curve of the learning rate from base_lr to min_lr. step: what lies above min_lr falls to a
    tenth after each of --milestones; onecycle: rises for 30 % of the steps, then falls."""
    milestones: tuple[float, ...] = (1 / 3, 2 / 3)
    """With --schedule step: shares of the steps after which the rate falls."""
    power: float = 0.9
    """Exponent of the polynomial decay of the learning rate."""
    warmup_steps: int = 500
    """Steps over which the learning rate rises linearly from zero."""
    weight_decay: float = 5e-4
    """Weight decay: L2 penalty for sgd and adam, decoupled for adamw and muon."""
    head_lr_factor: float = 1.0
    """Learning rate of all layers after the backbone, as a multiple of the backbone's."""
    decay_norm: bool = True
    """Apply weight decay to biases and normalisation weights too."""
    clip_grad: float | None = None
    """Maximum L2 norm of all gradients together; larger gradients are scaled down to it."""
    accumulate: int = 1
    """Micro-batches per step, each of --batch_size crops and alone in BatchNorm. Saves memory."""
    ema: float | None = None
    """Decay per step of an exponential moving average of weights and buffers, such as 0.999. If it
    is given, evaluation and other commands use the averaged weights."""
    zero_init: bool = False
    """Start each residual block as the identity: the last norm of the block gets weight zero. For
    training from random weights."""
    freeze_encoder_steps: int = 0
    """Keep the backbone, with its BatchNorm statistics, unchanged for this number of steps."""
    freeze_bn: bool = False
    """Keep all BatchNorm statistics and weights at their initial values."""
    bn_momentum: tuple[float, float] = (0.1, 0.1)
    """BatchNorm momentum, the share of each batch in the running statistics: backbone, head."""
    sync_bn: bool = False
    """Compute BatchNorm statistics over the crops of all GPUs together."""

    class_weights: bool | Path = True
    """Weigh the loss by the ENet class weights that utils/preprocess_data.py computed, or by those
    of a JSON file with the weight of each class: {"road": 1.0, ...}."""
    class_weight_power: float = 1.0
    """Exponent of the class weights; 0.5 brings them closer together."""
    class_weights_from: float = 0.0
    """Share of the steps after which the class weights count; before, all pixels count alike."""
    label_smoothing: float = 0.0
    """Share of every pixel's target that is spread evenly over all classes."""
    hard_threshold: float | None = None
    """Hard example mining: learn only from pixels whose class has at most this probability."""
    hard_min_kept: int = 100_000
    """With --hard_threshold: number of hardest pixels per micro-batch that are always kept."""
    focal: float = 0.0
    """Exponent of the focal loss, such as 2; 0: cross entropy."""
    dice: float = 0.0
    """Weight of a Dice loss added to the cross entropy."""
    lovasz: float = 0.0
    """Weight of a Lovasz-softmax loss added to the cross entropy."""
    hardest: float = 0.2
    """Panoptic networks: the share of an image's pixels, those with the highest loss, that the
    cross entropy counts. 1 for a short training: it learns large areas sooner."""
    offset_weight: float = 0.01
    """Panoptic networks: weight of the error of the offsets, in pixels of the crop. Images at a
    quarter of their size have offsets of a quarter."""
    semantic_weight: float = 1.0
    """Weight of the loss of all pixels' classes (upsnet)."""
    panoptic_weight: float = 0.5
    """Weight of the loss of the head that joins classes and instances (upsnet)."""
    class_uniform: float = 0.0
    """Share of crops that contain a class drawn with equal probabilities, instead of coming from
    the next image; 0.5 shows rare classes often."""
    photometric: bool = False
    """Change brightness, contrast, saturation and hue of training crops at random."""
    max_class_share: float = 1.0
    """Draw a crop up to ten times until no class fills more of its labelled pixels than this."""

    eval_every: int = 4000
    """Steps between evaluations on the val split; the last step always evaluates."""
    eval_scales: Factors = (1.0,)
    """Scale factors of each image in evaluation; the class scores are averaged over them."""
    save_every: int = 1000
    """Steps between checkpoints; the last step always saves."""
    log_every: int = 20
    """Steps between rows in metrics.csv and updates of the progress line."""
    patience: int | None = None
    """Stop after this many evaluations without a better mIoU; panoptic networks: a better PQ."""

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the network. auto: bf16 on a GPU, fp16 with loss scaling on GPUs older than
    Ampere; on a CPU fp32, in training bf16 if the CPU multiplies bf16 itself. On a GPU, fp32
    convolutions use TF32, which is PyTorch's default."""
    compile: bool | None = None
    """Compile the network with torch.compile, which takes a minute or more at the start; on one GPU
    also replay steps as a CUDA graph. Default: true on GPUs if a compiler is installed."""
    seed: int = 0
    """Seed of initial weights, data order, augmentation and dropout."""

    def __post_init__(self) -> None:
        check(self, "split", lambda split: split not in ("val", "test"), "a split to train on")
        counts = "workers warmup_steps hard_min_kept freeze_encoder_steps"
        check(self, counts, lambda x: x >= 0, "at least 0")
        check(self, "seed", lambda x: 0 <= x < 2**64, "at least 0, below 2^64")
        counts = "steps eval_every save_every log_every patience batch_size accumulate fine_repeats"
        check(self, counts, lambda value: value >= 1, "at least 1")
        rates = "epochs base_lr power head_lr_factor clip_grad offset_weight"
        rates += " semantic_weight panoptic_weight"
        check(self, rates, lambda value: 0 < value < float("inf"), "a number above 0")
        check(self, "epochs", lambda value: value < 1e9, "below a billion")
        rates = "min_lr weight_decay class_weight_power focal dice lovasz"
        check(self, rates, lambda value: 0 <= value < float("inf"), "a number of at least 0")
        check(self, "min_lr", lambda value: value <= self.base_lr, "at most base_lr")
        check(self, "ema", lambda decay: 0 < decay < 1, "between 0 and 1")
        check(self, "label_smoothing", lambda share: 0 <= share < 1, "at least 0, below 1")
        check(
            self,
            "hard_threshold max_class_share hardest",
            lambda x: 0 < x <= 1,
            "above 0, at most 1",
        )
        check(self, "class_uniform class_weights_from", lambda x: 0 <= x <= 1, "between 0 and 1")
        check(self, "bn_momentum", lambda m: 0 < min(m) <= max(m) <= 1, "two shares, 0 to 1")
        check(self, "crop", lambda size: min(size) >= 16, "two sizes of at least 16 pixels")
        check(self, "multi_grid", lambda grid: min(grid) >= 1, "three factors of at least 1")
        check(self, "semantic_layers", lambda x: x >= 1, "at least 1")
        check(self, "center_window", lambda side: side >= 1 and side % 2, "odd")
        check(self, "mask", lambda sides: all(x >= 1 and x % 2 for x in sides), "two odd sides")
        check(self, "scale", lambda s: 0.01 <= s[0] <= s[1] <= 100, "two factors, smaller first")
        check(self, "eval_scales", valid_scales, "one or more factors between 0.01 and 100")
        ends = [0.0, *(stage.get("until", 1.0) for stage in self.stages or [Stage()])]
        rising = ends == sorted({*ends}) and ends[-1] == 1
        check(self, "stages", lambda _: rising, "a list with rising values of until, the last 1")
        self.parts()
        if self.find_batch_size and any("batch_size" in stage for stage in self.stages or []):
            raise ValueError("--find_batch_size true: leave batch_size out of --stages")
        random = self.backbone_weights is None and self.init_from is None
        check(self, "zero_init", lambda wanted: random or not wanted, "false with trained weights")
        # Each of these would do nothing beside the other option.
        check(self, "label_smoothing", lambda x: not (x and self.focal), "0 with --focal")
        for name in ("class_weight_power", "class_weights_from"):
            given = self.class_weights or getattr(self, name) == getattr(Config, name)
            check(self, name, lambda _, given=given: given, "left out with --class_weights false")
        between = "shares between 0 and 1"
        check(self, "milestones", lambda x: all(0 < share < 1 for share in x), between)
        floor = self.schedule != "exponential" or self.min_lr > 0
        check(self, "min_lr", lambda _: floor, "above 0 with --schedule exponential")
        check(self, "run_name", re.compile(r"\w[\w.+-]*").fullmatch, "letters, digits, _.+-")

    def mean_batch_size(self) -> float:
        """Mean of the stages' batch sizes over the steps of the training."""
        ends = [0.0, *(end for end, _ in self.parts())]
        shares = (end - begin for begin, end in pairwise(ends))
        return sum(s * part.batch_size for s, (_, part) in zip(shares, self.parts(), strict=True))

    def largest_crop(self) -> tuple[int, int]:
        return max((part.crop for _, part in self.parts()), key=math.prod)

    def parts(self) -> list[tuple[float, "Config"]]:
        """Of each stage, the share of the steps at which it ends, and its options."""
        every = [{"until": 1.0, **stage} for stage in self.stages or []]
        parts = [(stage.pop("until"), replace(self, stages=None, **stage)) for stage in every]
        return parts or [(1.0, self)]


def write_config(config: Config, path: Path) -> None:
    """Write the effective options as YAML that `--config` can read."""
    write_text(path, yaml.safe_dump(plain(config), sort_keys=False))


def plain(config: Config) -> dict[str, Any]:
    """Options as YAML- and checkpoint-safe values: lists for tuples, strings for paths."""
    return json.loads(json.dumps(vars(config), default=str))
