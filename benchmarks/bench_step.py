"""Training steps and predictions of DeepLabV3 against torchvision's and SMP's, side by side.

    python benchmarks/bench_step.py                        small crops on a CPU, full size on a GPU
    python benchmarks/bench_step.py --networks resnet50-8 --crop 512 1024 --batch 4
    python benchmarks/bench_step.py --profile              where the time of every config goes

Peers are used as their users do, float32 and NCHW (TF32 on a GPU), and on a GPU also in bfloat16
and channels_last, without and with torch.compile. Their step is model, F.cross_entropy, backward,
SGD; their prediction model, argmax. Ours is train.py's step and evaluation's predict. Random
weights and images; the multiply-adds of a network, counted twice, are its FLOPs, and the same run
times a matrix product. On a CPU one thread's process time, on a GPU wall time; medians in turns.

--profile runs each config of configs/ whose data set is there for some steps, in a process of its
own, and splits the time of a step; those of Cityscapes on data/synthetic, which has its sizes. On a
CPU the small ones only.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import segmentation_models_pytorch as smp
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import (
    choose_device,
    extra_mib,
    machine,
    median_seconds,
    record,
    resident_mib,
    wait_for,
)
from datasets import Dataset, build_dataset
from evaluation.evaluate import evaluate
from evaluation.inference import inference_copy, predict
from model import build_model
from model.losses import SegmentationLoss
from train import build_run
from utils.class_weights import read_class_weights
from utils.config import Config
from utils.distributed import World
from utils.errors import run_command
from utils.files import REPOSITORY, resolve_data_root
from utils.loader import Batch, Batches
from utils.optim import build_optimizer
from utils.parser import parse
from utils.step import training_step
from utils.transforms import normalize

NETWORKS = ("resnet18-8", "resnet18-16", "resnet50-16", "resnet50-8", "resnet101-8")
CHEAP = ("demo", "deeplabv3_resnet18_os16", "deeplabv3_resnet18_os8")
Step = Callable[[int], object]


class Peer(nn.Module):
    """A peer's network; full-size logits, as it gives them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.network(images)
        return logits["out"] if isinstance(logits, dict) else logits


def peers(backbone: str, stride: int) -> dict[str, Callable[[], nn.Module]]:
    """Peers that have this network."""
    rates = (12, 24, 36) if stride == 8 else (6, 12, 18)
    smp_options = {"encoder_output_stride": stride, "decoder_atrous_rates": rates, "classes": 19}
    found = {"SMP": partial(smp.DeepLabV3, backbone, encoder_weights=None, **smp_options)}
    if backbone in ("resnet50", "resnet101") and stride == 8:
        build = getattr(torchvision.models.segmentation, f"deeplabv3_{backbone}")
        found["torchvision"] = partial(build, weights_backbone=None, num_classes=19)
    return found


def peer_sides(backbone: str, stride: int, batch: Batch, *, training: bool) -> dict[str, Step]:
    """A step or a prediction of every peer, in every way of using it."""
    device, sides = batch.images.device, {}
    modes = {"": (False, False)}  # bfloat16 and channels_last, compiled
    if device.type == "cuda":
        modes = {" fp32": (False, False), " bf16": (True, False), " bf16 compiled": (True, True)}
    for peer, build in peers(backbone, stride).items():
        for mode, (fast, compiled) in modes.items():
            layout = torch.channels_last if fast else torch.contiguous_format
            model = Peer(build()).to(device, memory_format=layout).train(training)
            images = normalize(batch.images).contiguous(memory_format=layout)
            if compiled:
                model.compile()
            autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=fast)
            optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)

            def step(_: int, model=model, images=images, autocast=autocast, optimizer=optimizer):
                with autocast():
                    loss = F.cross_entropy(model(images), batch.labels.long(), ignore_index=255)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

            @torch.inference_mode()
            def prediction(_: int, model=model, images=images, autocast=autocast):
                with autocast():
                    return model(images).argmax(1).byte()

            sides[f"{peer}{mode}"] = step if training else prediction
    return sides


def our_network(backbone: str, stride: int) -> nn.Module:
    return build_model("deeplabv3", num_classes=19, backbone=backbone, output_stride=stride)


def our_step(backbone: str, stride: int, batch: Batch) -> Step:
    """train.py's."""
    device = batch.images.device
    model = our_network(backbone, stride).to(device, memory_format=torch.channels_last)
    optimizer = build_optimizer(model, "sgd", base_lr=0.01, weight_decay=5e-4)
    criterion = SegmentationLoss()
    if device.type == "cuda":
        model.compile()
    amp = World(0, 1, device).amp_dtype("auto")
    return lambda _: training_step(model, criterion, optimizer, [batch], amp=amp)


def our_predictions(backbone: str, stride: int, batch: Batch) -> dict[str, Step]:
    """Evaluation's, and what its copy of the network gains over the network as it is."""
    device, size = batch.images.device, tuple(batch.labels.shape[1:])
    plain = our_network(backbone, stride).to(device).eval()
    network, images = inference_copy(plain), normalize(batch.images)
    nchw = images.contiguous()
    autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=device.type == "cuda")

    @torch.inference_mode()
    def prediction(_: int) -> torch.Tensor:
        with autocast():
            return predict(network, batch.images, size=size)

    return {
        "ours": prediction,
        "forward, NCHW": torch.inference_mode()(lambda _: plain(nchw)),
        "forward, folded": torch.inference_mode()(lambda _: network(images)),
    }


def flops(build: Callable[[], nn.Module], size: tuple[int, int], *, training: bool) -> float:
    """Of one image: 2 per multiply-add; nothing is computed."""
    with torch.device("meta"):
        model, images = Peer(build()).train(training), torch.empty(2, 3, *size)
    with FlopCounterMode(display=False) as counter:
        logits = model(images)
        if training:
            logits.sum().backward()
    return counter.get_total_flops() / 2


def compare(name: str, size: tuple[int, int], images: int, *, training: bool, rounds: int) -> dict:
    """One network: seconds, memory and FLOPs of every side, printed and returned."""
    backbone, stride = name.split("-")[0], int(name.split("-")[1])
    device = choose_device()
    noise = torch.Generator().manual_seed(0)
    batch = Batch(
        torch.randint(0, 256, (images, *size, 3), generator=noise, dtype=torch.uint8).to(device),
        torch.randint(0, 19, (images, *size), generator=noise, dtype=torch.uint8).to(device),
        [],
    )
    sides = peer_sides(backbone, stride, batch, training=training)
    ours = our_step if training else our_predictions
    made = ours(backbone, stride, batch)
    sides |= made if isinstance(made, dict) else {"ours": made}
    square = torch.randn(2048, 2048, device=device)
    sides["matrix product"] = lambda _: torch.mm(square, square)
    memory = {side: extra_mib(partial(call, 0), device) for side, call in sides.items()}
    seconds = median_seconds(sides, rounds, warm_up=1 if device.type == "cpu" else 5, device=device)
    work = {
        peer: flops(build, size, training=training)
        for peer, build in peers(backbone, stride).items()
    }
    work["ours"] = flops(partial(our_network, backbone, stride), size, training=training)
    product = 2 * 2048**3 / seconds.pop("matrix product") / 1e9
    kind = "training step" if training else "prediction"
    print(f"\n{name}, {kind}, {images} x {size[0]}x{size[1]}; matrix product {product:.0f} GFLOP/s")
    rows = {}
    for side, value in seconds.items():
        gflops = work.get(side.split()[0], work["ours"]) / 1e9
        rows[side] = {
            "ms": round(1e3 * value, 3),
            "images_per_second": round(images / value, 2),
            "extra_mib": round(memory[side]),
            "gflop_per_image": round(gflops, 1),
            "gflop_per_second": round(images * gflops / value, 1),
            "ours_is_faster": round(value / seconds["ours"], 3),
        }
        print(
            f"  {side:<28} {1e3 * value:9.1f} ms {images / value:8.2f} images/s "
            f"{memory[side]:7.0f} MiB {images * gflops / value:9.1f} GFLOP/s "
            f"{value / seconds['ours']:6.2f}x ours"
        )
    return {
        "network": name, "kind": kind, "images": images, "size": list(size), "rounds": rounds,
        "matrix_product_gflop_per_second": round(product, 1), "sides": rows,
    }  # fmt: skip


def profile(path: Path, steps: int) -> dict:
    """The parts of a step of one config, seconds, and what its whole training would take."""
    config = replace(parse(Config, "", ["--config", str(path)]), backbone_weights=None)
    recipe = config.dataset
    if recipe == "cityscapes":
        config = replace(config, dataset="synthetic")
    device = choose_device()
    torch.backends.cudnn.benchmark = True
    world = World(0, 1, device)
    root = resolve_data_root(config.dataset, config.data_root)
    train_set, val_set = (build_dataset(config.dataset, root, split) for split in ("train", "val"))
    run = build_run(config, train_set.classes.names, world, None)
    weights = read_class_weights(root, train_set.classes) if config.class_weights else None
    criterion = SegmentationLoss(class_weights=weights).to(device)
    if device.type == "cuda":
        run.model.compile()
    marks: list[tuple[str, float]] = []

    def mark(name: str) -> None:
        wait_for(device)
        marks.append((name, time.perf_counter()))

    def marked(function: Callable, name: str) -> Callable:
        def call(*arguments: object) -> object:
            result = function(*arguments)
            mark(name)
            return result

        return call

    run.optimizer.register_step_pre_hook(lambda *_: mark("backward"))
    run.optimizer.register_step_post_hook(lambda *_: mark("optimizer"))
    batches = Batches(
        train_set, batch_size=config.batch_size, crop=config.crop, scale=config.scale,
        flip=config.flip, seed=config.seed, workers=config.workers, device=device,
    ).run(0, steps + 1)  # fmt: skip
    amp = world.amp_dtype(config.precision)
    forward, loss = marked(run.model, "forward"), marked(criterion, "loss")
    seconds = dict.fromkeys(("data", "forward", "loss", "backward", "optimizer"), 0.0)
    for number in range(steps + 1):
        marks.clear()
        mark("start")
        batch = next(batches)
        mark("data")
        training_step(forward, loss, run.optimizer, [batch], amp=amp)
        if number:  # the first one warms up
            for (_, begin), (name, end) in pairwise(marks):
                seconds[name] += (end - begin) / steps
    memory = resident_mib("VmHWM")
    if device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(device) / 2**20
    few = min(len(val_set), 4 if device.type == "cpu" else len(val_set))
    begin = time.perf_counter()
    evaluate(run.model, FirstOf(val_set, few), world=world, scales=config.eval_scales, amp=amp)
    wait_for(device)
    per_image = (time.perf_counter() - begin) / few
    step = sum(seconds.values())
    epochs = config.epochs
    total = (
        config.steps if epochs is None else math.ceil(epochs * len(train_set) / config.batch_size)
    )
    return {
        "config": path.relative_to(REPOSITORY / "configs").as_posix(),
        "batch": f"{config.batch_size} x {config.crop[0]}x{config.crop[1]}",
        "steps_measured": steps,
        "ms": {name: round(1e3 * value, 2) for name, value in seconds.items()},
        "images_per_second": round(config.batch_size / step, 3),
        "peak_gib": round(memory / 1024, 2),
        "evaluation_ms_per_image": round(1e3 * per_image, 1),
        "steps_of_recipe": total,
        "hours_of_recipe": round(total * step / 3600, 2),
    }


class FirstOf:
    """The first images of a data set."""

    def __init__(self, dataset: Dataset, images: int) -> None:
        self.dataset, self.images = dataset, images
        self.classes = dataset.classes

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> dict:
        return self.dataset[index]


def profile_all(steps: int) -> None:
    rows = []
    device = choose_device()
    paths = sorted((REPOSITORY / "configs").glob("*/*.yaml"))
    if device.type == "cpu":  # a step of the large ones takes minutes
        paths = [x for x in paths if x.stem in CHEAP]
    for path in paths:
        command = [sys.executable, __file__, "--profile", "--config", str(path)]
        done = subprocess.run(
            [*command, "--steps", str(steps)], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode == 2:  # its data set is not here; the line above says so
            continue
        done.check_returncode()
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        row = rows[-1]
        step = sum(row["ms"].values())
        shares = ", ".join(f"{name} {value / step:.1%}" for name, value in row["ms"].items())
        print(
            f"{row['config']:<44} {row['batch']:<14} {row['images_per_second']:8.2f} images/s, "
            f"{row['peak_gib']:.1f} GiB, {row['hours_of_recipe']:.1f} h: {shares}; "
            f"evaluation {row['evaluation_ms_per_image']} ms an image"
        )
    record("profile", rows, device)


def main() -> None:
    on_cpu = choose_device().type == "cpu"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=None)
    parser.add_argument("--crop", type=int, nargs=2, default=(256, 512) if on_cpu else (512, 1024))
    parser.add_argument("--size", type=int, nargs=2, default=(256, 512) if on_cpu else (1024, 2048))
    parser.add_argument("--batch", type=int, default=2 if on_cpu else 8)
    parser.add_argument("--rounds", type=int, default=5 if on_cpu else 20)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--steps", type=int, default=3 if on_cpu else 50, help="of a profile")
    parser.add_argument("--config", type=Path, help="profile this one, JSON on stdout")
    given = parser.parse_args()
    cv2.setNumThreads(0)
    if given.profile:
        if given.config is None:
            profile_all(given.steps)
        else:
            print(json.dumps(profile(given.config.resolve(), given.steps)))
        return
    device = choose_device()
    if on_cpu:
        torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True
    print(f"{machine(device)}, torch {torch.__version__}")
    rows = []
    for name in given.networks or (NETWORKS[:1] + NETWORKS[2:4] if on_cpu else NETWORKS):
        for training, size, images in ((False, given.size, 1), (True, given.crop, given.batch)):
            rows.append(compare(name, tuple(size), images, training=training, rounds=given.rounds))
    record("step", rows, device, ("segmentation-models-pytorch",))


if __name__ == "__main__":
    run_command(main)
