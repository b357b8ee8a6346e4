"""Training steps and predictions of DeepLabV3 against torchvision's and SMP's, side by side.

    python benchmarks/bench_step.py                        small crops on a CPU, full size on a GPU
    python benchmarks/bench_step.py --networks resnet50-8 --crop 512 1024 --batch 4
    python benchmarks/bench_step.py --profile              where the time of every config goes

Peers are used as their users do, float32 and NCHW (TF32 on a GPU), on a GPU also in bfloat16 and
channels_last, without and with torch.compile. Random weights and images. --profile runs --configs
whose data set is there, each in a process of its own; Cityscapes' on the synthetic set.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from functools import partial
from itertools import pairwise
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import segmentation_models_pytorch as smp
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import segmentation

from benchmarks import measure
from datasets import SegmentationDataset, build_dataset, resolve_data_root
from evaluation.evaluate import evaluate
from evaluation.inference import inference_copy, predict_logits
from model import build_model
from model.losses import SegmentationLoss
from model.normalize import normalize
from model.ops.upsample_argmax import upsample_argmax
from utils.base.errors import UserError, run_command
from utils.base.parser import parse
from utils.base.paths import REPOSITORY
from utils.data.batches import Batch, Batches
from utils.data.class_weights import read_class_weights
from utils.training.config import Config
from utils.training.distributed import World, autocast
from utils.training.optim import build_optimizer
from utils.training.run import build_run
from utils.training.step import training_step

WORLD = World(0, 1, measure.choose_device())
DEVICE, AMP, ON_CPU = WORLD.device, WORLD.amp_dtype("auto"), WORLD.device.type == "cpu"
NETWORKS = ("resnet18-8", "resnet50-16", "resnet50-8", "resnet18-16", "resnet101-8")
CHEAP = ("deeplabv3_resnet18_os16", "deeplabv3_resnet18_os8", "demo")
Build = Callable[[], nn.Module]


def builders(backbone: str, stride: str) -> dict[str, Build]:
    """Ours, and the peers that have this network."""
    own = {"num_classes": 19, "backbone": backbone, "output_stride": int(stride)}
    rates = (12, 24, 36) if stride == "8" else (6, 12, 18)
    options = {"encoder_output_stride": int(stride), "decoder_atrous_rates": rates, "classes": 19}
    build: dict[str, Build] = {
        "ours": partial(build_model, "deeplabv3", **own),
        "SMP": partial(smp.DeepLabV3, backbone, encoder_weights=None, **options),
    }
    theirs = getattr(segmentation, f"deeplabv3_{backbone}", None)
    if theirs and stride == "8":
        build["torchvision"] = partial(theirs, weights_backbone=None, num_classes=19)
    return build


def logits_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """SMP's networks give a tensor, the others a dictionary; peers at full size."""
    outputs = model(images)
    return outputs["out"] if isinstance(outputs, dict) else outputs


def peer_side(build: Build, batch: Batch, training: bool, fast: bool, compiled: bool) -> Callable:
    """A step or a prediction; fast: bfloat16 and channels_last."""
    layout = torch.channels_last if fast else torch.contiguous_format
    amp = torch.bfloat16 if fast else None
    images = normalize(batch.images).contiguous(memory_format=layout)
    model = build().to(DEVICE, memory_format=layout).train(training)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    if compiled:
        model.compile()

    def step(_: int) -> None:
        with autocast(DEVICE, amp):
            labels = batch.targets["label"].long()
            loss = F.cross_entropy(logits_of(model, images), labels, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.inference_mode()
    def prediction(_: int) -> torch.Tensor:
        with autocast(DEVICE, amp):
            return logits_of(model, images).argmax(1).byte()

    return step if training else prediction


def our_side(build: Build, batch: Batch, training: bool) -> Callable:
    """train.py's step or evaluation's prediction."""
    model = build().to(DEVICE, memory_format=torch.channels_last)
    if training:
        optimizer = build_optimizer(model, "sgd", base_lr=0.01, weight_decay=5e-4)
        if not ON_CPU:
            model.compile()
        criterion = SegmentationLoss()
        return lambda _: training_step(model, criterion, optimizer, [batch], amp=AMP)
    network, size = inference_copy(model), tuple(batch.images.shape[1:3])

    def prediction(_: int) -> torch.Tensor:
        with autocast(DEVICE, AMP):
            return upsample_argmax(predict_logits(network, batch.images, size=size), size)

    return prediction


def compare(name: str, rounds: int, training: bool, size: list[int], images: int) -> dict:
    """One network: seconds and memory of every side."""
    noise = partial(torch.randint, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    truth = {"label": noise(0, 19, (images, *size))}
    batch = Batch(noise(0, 256, (images, *size, 3)), truth, []).to(DEVICE)
    modes = {" fp32": (False, False), " bf16": (True, False), " bf16 compiled": (True, True)}
    build = builders(*name.split("-"))
    sides = {"ours": our_side(build.pop("ours"), batch, training)}
    for peer, make in build.items():
        for mode, how in ({"": (False, False)} if ON_CPU else modes).items():
            sides[f"{peer}{mode}"] = peer_side(make, batch, training, *how)
    memory = {side: measure.extra_mib(partial(call, 0), DEVICE) for side, call in sides.items()}
    seconds = measure.median_seconds(sides, rounds, warm_up=1 if ON_CPU else 5, device=DEVICE)
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


def profile(path: Path, synthetic: Path, steps: int) -> dict:
    """The parts of a step of one config, milliseconds, and what its whole training would take."""
    config = replace(parse(Config, "", ["--config", str(path)]), backbone_weights=None)
    if config.dataset in ("cityscapes", "synthetic"):
        config = replace(config, dataset="synthetic", data_root=synthetic)
    name, root = config.dataset, resolve_data_root(config.dataset, config.data_root)
    train_set = build_dataset(name, root, "train")
    val_set = build_dataset(name, root, "val", packed=False)
    run, weights = build_run(config, train_set.classes.names, WORLD, None), None
    if config.class_weights:
        weights = torch.from_numpy(read_class_weights(root, train_set.classes))
    if not ON_CPU:
        run.model.compile()
    network, criterion = nn.Sequential(run.model), SegmentationLoss(class_weights=weights)
    marks: list[tuple[str, float]] = []

    def mark(part: str, *_: object) -> None:
        measure.wait_for(DEVICE)
        marks.append((part, time.perf_counter()))

    network.register_forward_hook(partial(mark, "forward"))
    criterion.to(DEVICE).register_forward_hook(partial(mark, "loss"))
    run.optimizer.register_step_pre_hook(partial(mark, "backward"))
    run.optimizer.register_step_post_hook(partial(mark, "optimizer"))
    batches = Batches(
        train_set, batch_size=config.batch_size, crop=config.crop, scale=config.scale,
        flip=config.flip, seed=config.seed, workers=config.workers, device=DEVICE,
    ).run(0, steps + 1)  # fmt: skip
    seconds = dict.fromkeys(("data", "forward", "loss", "backward", "optimizer"), 0.0)
    for number in range(steps + 1):
        marks.clear()
        mark("start")
        batch = next(batches)
        mark("data")
        training_step(network, criterion, run.optimizer, [batch], amp=AMP)
        for (_, begin), (part, end) in pairwise(marks):
            seconds[part] += (end - begin) / steps * (number > 0)  # the first one warms up
    memory, step = measure.peak_mib(DEVICE), sum(seconds.values())
    few = SegmentationDataset(val_set.files[: 4 if ON_CPU else None], val_set.classes)
    mark("start")
    evaluate(run.model, few, world=WORLD, scales=config.eval_scales, amp=AMP)
    mark("evaluation")
    evaluation = (marks[-1][1] - marks[-2][1]) / len(few)
    epoch = len(train_set) / config.batch_size
    total = config.steps if config.epochs is None else math.ceil(config.epochs * epoch)
    return {
        "config": path.relative_to(REPOSITORY / "configs").as_posix(),
        "batch": f"{config.batch_size} x {config.crop[0]}x{config.crop[1]}",
        "steps_measured": steps, "peak_gib": round(memory / 1024, 2),
        "ms": {part: round(1e3 * value, 2) for part, value in seconds.items()},
        "images_per_second": round(config.batch_size / step, 3),
        "evaluation_ms_per_image": round(1e3 * evaluation, 1),
        "steps_of_recipe": total, "hours_of_recipe": round(total * step / 3600, 2),
    }  # fmt: skip


def profiles(given: argparse.Namespace) -> list[dict]:
    """Of every config, by a process of its own."""
    rows, options = [], ["--steps", given.steps, "--root", given.root]
    for path in sorted((REPOSITORY / "configs").glob("[!d]*/*.yaml")):  # not datasets/
        if any(fnmatch(path.stem, pattern) for pattern in given.configs):
            command = map(str, [sys.executable, __file__, "--one", path, *options])
            done = subprocess.run([*command], stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode != 2:  # its data set is not here: the line above says so
                done.check_returncode()
                rows.append(json.loads(done.stdout.splitlines()[-1]))
    if not rows:
        raise UserError("none of the configs has its data set here. Run make demo first")
    return rows


def main() -> None:
    given = measure.options(
        __doc__, networks=NETWORKS[:3] if ON_CPU else NETWORKS, batch=2 if ON_CPU else 8,
        crop=(256, 512) if ON_CPU else (512, 1024), size=(256, 512) if ON_CPU else (1024, 2048),
        rounds=5 if ON_CPU else 20, profile=False, configs=CHEAP if ON_CPU else ("*",),
        steps=3 if ON_CPU else 50, one=Path(), root=measure.SYNTHETIC, results=measure.RESULTS,
    )  # fmt: skip
    torch.backends.cudnn.benchmark = True
    if given.one.name:
        print(json.dumps(profile(given.one, given.root, given.steps)))
    elif given.profile:
        measure.record(given.results, "profile", profiles(given))
    else:
        measure.one_thread()
        cases = [(False, given.size, 1), (True, given.crop, given.batch)]
        rows = [compare(name, given.rounds, *case) for name in given.networks for case in cases]
        measure.record(given.results, "step", rows, "segmentation-models-pytorch")


if __name__ == "__main__":
    run_command(main)
