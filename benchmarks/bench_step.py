"""Compare training steps and predictions with those of torchvision and SMP.

    python benchmarks/bench_step.py                        small crops on a CPU, full size on a GPU
    python benchmarks/bench_step.py --networks resnet50-8 --crop 512 1024 --batch 4
    python benchmarks/bench_step.py --networks             DeepLabV3+, FCN and FPN only
    python benchmarks/bench_step.py --profile              time and memory of every config

Peers run as their users run them, in float32 and NCHW (TF32 on a GPU); also in bfloat16 and
channels_last, on a GPU without and with torch.compile. On a CPU "memory kept" is the malloc setting
of our commands (keep_memory in utils/base/environment.py), for a side that does not set it itself.
Weights and images are random. --profile runs
train.py with each of --configs whose data set exists, for some steps and one evaluation; configs
for Cityscapes run on the synthetic data set.
"""

import argparse
import csv
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # else it would replace another folder
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import segmentation

from benchmarks import measure
from evaluation.inference import inference_copy, predict_logits
from model import build_model, option_names
from model.losses import SegmentationLoss
from model.normalize import FromPixels, normalize
from model.ops.matrix_gradients import matrix_gradients_gain, use_matrix_gradients
from model.ops.upsample_argmax import upsample_argmax
from utils.base.environment import cpu_has_bf16, keep_memory
from utils.base.errors import UserError, run_command
from utils.base.parser import parse
from utils.base.paths import REPOSITORY
from utils.data.batches import Batch
from utils.training.config import Config
from utils.training.distributed import World, autocast
from utils.training.optim import build_optimizer
from utils.training.replay import Replay
from utils.training.step import training_step

try:
    import segmentation_models_pytorch as smp
except ModuleNotFoundError:
    smp = None

WORLD = World(0, 1, measure.choose_device())
DEVICE, ON_CPU = WORLD.device, WORLD.device.type == "cpu"
AMP = torch.bfloat16 if ON_CPU and cpu_has_bf16() else WORLD.amp_dtype("auto")  # of training
NETWORKS = ("resnet18-16", "resnet50-16", "resnet18-8", "resnet50-8", "resnet101-8")
OTHERS = ("deeplabv3plus-resnet18-16", "fcn-resnet50-8", "fpn-resnet18-32")
LIKE_SMP = {  # options that make ours SMP's network
    "deeplabv3plus": {"separable": "bare", "post_conv": True, "align_corners": True},
    "fpn": {"align_corners": True},
}
CHEAP = ("deeplabv3_resnet18_os16", "deeplabv3_resnet18_os8", "demo")
Build = Callable[[], nn.Module]


def builders(name: str) -> dict[str, Build]:
    """Builders of our network and of the peers that have it; name: [model-]encoder-stride."""
    *model, backbone, stride = name.split("-")
    model = model[0] if model else "deeplabv3"
    dilated = "output_stride" in option_names(model)
    own = {"num_classes": 19, "backbone": backbone, **LIKE_SMP.get(model, {})}
    own |= {"output_stride": int(stride)} if dilated else {}
    build: dict[str, Build] = {"ours": partial(build_model, model, **own)}
    peers = {"deeplabv3": smp.DeepLabV3, "deeplabv3plus": smp.DeepLabV3Plus, "fpn": smp.FPN}
    if model in peers:
        options = {"classes": 19, "encoder_weights": None}
        if dilated:
            rates = (12, 24, 36) if stride == "8" else (6, 12, 18)
            options |= {"encoder_output_stride": int(stride), "decoder_atrous_rates": rates}
        build["SMP"] = partial(peers[model], backbone, **options)
    theirs = getattr(segmentation, f"{model}_{backbone}", None)
    if theirs and stride == "8":
        build["torchvision"] = partial(theirs, weights_backbone=None, num_classes=19)
    return build


def noise(images: int, size: tuple[int, int], classes: int = 19) -> Batch:
    """Random images and labels, the same each time."""
    draw = partial(torch.randint, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    truth = {"label": draw(0, classes, (images, *size))}
    return Batch(draw(0, 256, (images, *size, 3)), truth, []).to(DEVICE)


def logits_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """SMP's networks return a tensor, the others a dictionary; peers' logits are full size."""
    outputs = model(images)
    return outputs["out"] if isinstance(outputs, dict) else outputs


def peer_side(build: Build, batch: Batch, training: bool, fast: bool, compiled: bool) -> Callable:
    """A peer's training step or prediction; fast: bfloat16 and channels_last."""
    layout = torch.channels_last if fast else torch.contiguous_format
    amp = torch.bfloat16 if fast else None
    images = normalize(batch.images).contiguous(memory_format=layout)
    model = build().to(DEVICE, memory_format=layout).train(training)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    if compiled:
        model.compile(dynamic=False)  # else a second size triggers a compile for dynamic sizes

    def step(_: int) -> None:
        optimizer.zero_grad()
        with autocast(DEVICE, amp):
            labels = batch.targets["label"].long()
            loss = F.cross_entropy(logits_of(model, images), labels, ignore_index=255)
        loss.backward()
        optimizer.step()

    @torch.inference_mode()
    def prediction(_: int) -> torch.Tensor:
        with autocast(DEVICE, amp):
            return logits_of(model, images).argmax(1).byte()

    return step if training else prediction


def our_side(
    build: Build,
    batch: Batch,
    training: bool,
    *,
    replayed: bool = True,
    amp: torch.dtype | None = AMP,
) -> Callable:
    """A training step of train.py or a prediction; replayed: as a CUDA graph on a GPU."""
    model = build().to(DEVICE, memory_format=torch.channels_last)
    if training:
        if ON_CPU and amp is None and matrix_gradients_gain():
            use_matrix_gradients(model)
        optimizer = build_optimizer(model, "sgd", base_lr=0.01, weight_decay=5e-4)
        trained, criterion = FromPixels(model), SegmentationLoss()
        if not ON_CPU:
            trained.compile()
        how = {"amp": amp, "replay": Replay() if replayed and not ON_CPU else None}
        return lambda _: training_step(trained, criterion, optimizer, [batch], **how)
    size = tuple(batch.images.shape[1:3])
    network = inference_copy(model, amp, on_cpu=ON_CPU)
    predict = partial(predict_logits, network, size=size)
    replay = Replay() if replayed and not ON_CPU else lambda work, images: work(images)

    def prediction(_: int) -> torch.Tensor:
        with autocast(DEVICE, amp):
            return upsample_argmax(replay(predict, batch.images), size)

    return prediction


def with_memory(kept: bool, side: Callable) -> Callable:
    """The side under our malloc setting, or under glibc's own."""

    def call(number: int) -> object:
        keep_memory() if kept else measure.usual_malloc()
        return side(number)

    return call


def cpu_sides(own: Build, peers: dict[str, Build], batch: Batch, training: bool) -> measure.Sides:
    """Ours as train.py and the evaluation run it; peers as they are, and with our settings."""
    in_fp32 = with_memory(True, our_side(own, batch, training, amp=None))
    sides = {"ours": in_fp32}
    if training and AMP:
        sides = {"ours": with_memory(True, our_side(own, batch, training)), "ours, fp32": in_fp32}
    for peer, make in peers.items():
        plain = peer_side(make, batch, training, False, False)
        sides[peer] = with_memory(False, plain)
        sides[f"{peer}, memory kept"] = with_memory(True, plain)
        if training and AMP:
            fast = peer_side(make, batch, training, True, False)
            sides[f"{peer} bf16, memory kept"] = with_memory(True, fast)
    return sides


def compare(name: str, rounds: int, training: bool, size: tuple[int, int], images: int) -> dict:
    """Time and memory of every side for one network."""
    batch = noise(images, size)
    modes = {" fp32": (False, False), " bf16": (True, False), " bf16 compiled": (True, True)}
    build = builders(name)
    own = build.pop("ours")
    if ON_CPU:
        sides = cpu_sides(own, build, batch, training)
    else:
        sides = {
            "ours": our_side(own, batch, training),
            "ours, launched one by one": our_side(own, batch, training, replayed=False),
        }
        for peer, make in build.items():
            for mode, how in modes.items():
                sides[f"{peer}{mode}"] = peer_side(make, batch, training, *how)
    memory = {side: measure.extra_mib(partial(call, 0), DEVICE) for side, call in sides.items()}
    at_once = 1 if ON_CPU else 10
    seconds = measure.median_seconds(sides, rounds, at_once=at_once, device=DEVICE)
    figures = {
        side: {
            "ms": round(1e3 * value, 3), "images_per_second": round(images / value, 2),
            "extra_mib": round(memory[side]), "ours_is_faster": round(value / seconds["ours"], 3),
        }
        for side, value in seconds.items()
    }  # fmt: skip
    return {
        "network": name, "kind": "training step" if training else "prediction", "images": images,
        "size": list(size), "rounds": rounds, "sides": figures,
    }  # fmt: skip


def profile(path: Path, synthetic: Path, steps: int) -> dict | None:
    """Time and memory of a config, from a run of `steps` steps; None if its data set is missing."""
    config = parse(Config, "", ["--config", str(path)])
    words = ["train.py", "--config", path, "--steps", steps, "--backbone_weights", "null"]
    words += ["--epochs", "null", "--eval_every", steps, "--log_every", max(1, steps // 10)]
    if config.dataset in ("cityscapes", "synthetic"):
        words += ["--dataset", "synthetic", "--data_root", synthetic]
    with tempfile.TemporaryDirectory() as folder:
        words += ["--log_root", folder, "--run_name", "run"]
        done = subprocess.run([sys.executable, *map(str, words)], cwd=REPOSITORY, check=False)
        if done.returncode == 2:  # no data set; train.py has printed the error
            print(f"{path.name} left out")
            return None
        done.check_returncode()
        with (Path(folder) / "run" / "metrics.csv").open(newline="", encoding="utf-8") as file:
            rows = [*csv.DictReader(file)]
    later = rows[len(rows) // 4 :]  # compilation and warm-up slow down the first steps
    rate, wait = (
        statistics.median(float(row[name]) for row in later)
        for name in ("images_per_second", "data_wait")
    )
    total, last = config.steps, rows[-1]
    if config.epochs is not None:
        total = math.ceil(config.epochs * float(last["step"]) / float(last["epoch"]))
    images = config.batch_size * config.accumulate
    return {
        "config": path.relative_to(REPOSITORY / "configs").as_posix(),
        "batch": f"{images} x {config.crop[0]}x{config.crop[1]}",
        "steps_measured": steps, "peak_gib": round(float(last["memory_gib"]), 2),
        "images_per_second": round(rate, 3), "data_wait": round(wait, 3),
        "gpu_utilization": last["gpu_utilization"], "steps_of_recipe": total,
        "hours_of_recipe": round(total * images / rate / 3600, 2),
    }  # fmt: skip


def profiles(given: argparse.Namespace) -> None:
    """Profile every config; record after each."""
    rows = []
    for path in sorted((REPOSITORY / "configs").glob("[!d]*/*.yaml")):  # not datasets/
        if any(fnmatch(path.stem, pattern) for pattern in given.configs):
            rows += filter(None, [profile(path, given.root, given.steps)])
            if rows:
                measure.record(given.results, "profile", rows)
    if not rows:
        raise UserError("bench_step.py: no config has its data set here. Run make demo first")


def main() -> None:
    given = measure.options(
        __doc__, networks=NETWORKS[:4] if ON_CPU else NETWORKS, others=OTHERS,
        batch=2 if ON_CPU else 8,
        crop=(256, 512) if ON_CPU else (512, 1024), size=(256, 512) if ON_CPU else (1024, 2048),
        rounds=5, profile=False, configs=CHEAP if ON_CPU else ("*",),
        steps=4 if ON_CPU else 60, root=measure.SYNTHETIC, results=measure.RESULTS,
    )  # fmt: skip
    torch.backends.cudnn.benchmark = True
    if given.profile:
        profiles(given)
        return
    if smp is None:
        raise UserError("bench_step.py: segmentation-models-pytorch is missing. Run: make bench")
    measure.one_thread()
    for section, names in {"step": given.networks, "other networks": given.others}.items():
        rows = []
        for name in names:
            cases = [(False, given.size, 1), (True, given.crop, given.batch)]
            if ON_CPU:
                cases.append((True, (128, 160), 8))  # the crops of configs/camvid
            rows += [compare(name, given.rounds, *case) for case in cases]
            measure.record(given.results, section, rows, "segmentation-models-pytorch")


if __name__ == "__main__":
    run_command(main)
