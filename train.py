"""Train a segmentation network.

    python train.py                                              DeepLabV3-ResNet18 on Cityscapes
    python train.py --config configs/camvid/deeplabv3_resnet18_os16.yaml --run_name first
    python train.py --config training_logs/first/config.yaml --resume auto       go on after a stop
    torchrun --standalone --nproc-per-node 4 train.py            four GPUs; batch_size is per GPU
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 train.py

Everything a run writes lies in training_logs/<run>/: config.yaml, metrics.csv, curves.png,
samples/, TensorBoard events, checkpoints/best.pth and last.pth.
"""

import math
import sys
from collections import deque
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from datasets import SegmentationDataset, build_dataset
from evaluation.evaluate import evaluate
from evaluation.visualize import ContactSheet
from model import build_model
from model.convert import renamed
from model.layers import freeze_norms, set_momentum
from model.losses import SegmentationLoss
from utils import checkpoint, distributed
from utils.class_uniform import ClassUniform
from utils.class_weights import read_class_weights
from utils.config import Config, plain
from utils.distributed import Interrupted, StopRequest, World
from utils.errors import UserError, out_of_memory, run_command
from utils.files import resolve_data_root, resolve_log_root
from utils.loader import Batches, dropout_seed, read_labels
from utils.lock import hold
from utils.logger import RunLogger, StepClock
from utils.optim import AveragedWeights, build_optimizer, poly_schedule
from utils.parser import parse
from utils.progress import progress
from utils.run import (
    ADVICE,
    FREE_ON_RESUME,
    Run,
    empty_folder,
    find_checkpoint,
    find_run,
    load_run,
    micro_batches,
    remove_leftovers,
)
from utils.step import training_step

SLOW_DATA = 0.2  # share of the time spent waiting for data from which it is worth a word
PACK_HINT = "More --workers, or python utils/preprocess_data.py --pack true, make it faster"


def train(config: Config) -> None:
    """The whole training, from a fresh start or from the checkpoint that --resume names."""
    world = distributed.start(config.device)
    folder, begin = find_run(config, world)
    with hold(folder, enabled=world.is_main):
        train_in(folder, begin, config, world)


def train_in(folder: Path, begin: Path | None, config: Config, world: World) -> None:
    """The training of one run, whose lock is held."""
    if world.is_main:
        remove_leftovers(folder)
    cv2.setNumThreads(0)  # the loader's threads are the parallelism
    torch.backends.cudnn.benchmark = True
    amp, compiled = world.amp_dtype(config.precision), world.use_compile(config.compile)

    root = resolve_data_root(config.dataset, config.data_root)
    config = replace(config, data_root=root)
    name, repeats = config.dataset, config.fine_repeats
    train_set = build_dataset(name, root, config.split, fine_repeats=repeats)
    val_set = build_dataset(name, root, "val")
    distributed.require_same((train_set.names, val_set.names), "data set", world)
    free = FREE_ON_RESUME - {"batch_size", "accumulate"}
    recipe = {k: v for k, v in plain(config).items() if k not in free}
    distributed.require_same(recipe, "options", world)
    class_weights = read_class_weights(root, train_set.classes) if config.class_weights else None

    state = load_run(folder, begin, config)
    distributed.require_same(state and state["step"], f"checkpoints of {folder}", world)
    config = replace(config, accumulate=micro_batches(config, world, state))
    images_per_step = config.batch_size * config.accumulate * world.size
    total = config.steps
    if config.epochs is not None:
        total = math.ceil(config.epochs * len(train_set) / images_per_step)
    run = build_run(config, train_set.classes.names, world, state)
    run.images_per_step, start = images_per_step, run.step
    if start >= total and run.pending is None:
        print(f"{folder}: finished at step {total}. Start a new --run_name to train longer")
        return
    criterion = SegmentationLoss(
        class_weights=class_weights, label_smoothing=config.label_smoothing,
        hard_threshold=config.hard_threshold, hard_min_kept=config.hard_min_kept,
    ).to(world.device)  # fmt: skip
    schedule = poly_schedule(
        run.optimizer, start=start, total=total,
        warmup=config.warmup_steps, power=config.power, floor=config.min_lr / config.base_lr,
    )  # fmt: skip
    parallel = DistributedDataParallel(run.model) if world.size > 1 else run.model
    if compiled:
        parallel.compile()  # in place: the state_dict keeps its keys
    class_uniform = None
    if config.class_uniform > 0:
        labels = read_labels(train_set, workers=config.workers, enabled=world.is_main)
        class_uniform = ClassUniform(labels, share=config.class_uniform, seed=config.seed)
    source = Batches(
        train_set, batch_size=config.batch_size, crop=config.crop, scale=config.scale,
        flip=config.flip, photometric=config.photometric, max_class_share=config.max_class_share,
        class_uniform=class_uniform, seed=config.seed, workers=config.workers,
        device=world.device, rank=world.rank, world=world.size,
    )  # fmt: skip
    batches = source.run(start * config.accumulate, total * config.accumulate)
    update = partial(
        training_step, parallel, criterion, run.optimizer,
        amp=amp, scaler=run.scaler, clip=config.clip_grad,
    )  # fmt: skip
    validate = partial(
        evaluate, dataset=val_set, world=world, scales=config.eval_scales,
        class_weights=criterion.class_weights, amp=amp, workers=config.workers,
    )  # fmt: skip

    if state is None:
        for part in (train_set, val_set):
            if not part.checked:  # an unknown id is better found now than in an hour
                labels = read_labels(part, workers=config.workers, enabled=world.is_main)
                deque(labels, maxlen=0)
    val_set[0]  # else read in an hour for the first time
    if world.is_main:
        run.require_space(folder, checkpoints=1 if state else 3)
        if state is None:
            empty_folder(folder)
    config = replace(config, run_name=folder.name, resume=None, overwrite=False)
    log = RunLogger(folder, config, start=start, enabled=world.is_main)
    if world.is_main:
        if compiled:
            print("the first step compiles the network: a minute or more", file=sys.stderr)
        print(
            f"{config.model} {config.backbone} output stride {config.output_stride}, "
            f"{len(train_set)} train and {len(val_set)} val images of {root}, {train_set.source}, "
            f"steps {start + 1} to {total} on {world.size} x {world.device.type}: {folder}"
        )
    bar = progress(total, start=start, unit="step", label="train", enabled=world.is_main)
    clock = StepClock(start * images_per_step)
    hint = PACK_HINT if world.is_main and isinstance(train_set, SegmentationDataset) else ""
    with StopRequest(world) as stop, log, bar:
        # An evaluation that was interrupted comes first.
        for step in range(start + (run.pending is None), total + 1):
            last = step == total
            row, run.pending = run.pending, None
            if row is None:
                try:
                    with clock.waiting(), stop.interrupting():
                        parts = [next(batches) for _ in range(config.accumulate)]
                except Interrupted:
                    run.save(folder / "checkpoints")
                    break
                torch.manual_seed(dropout_seed(config.seed, step, world.rank))
                run.add_loss(step, update(parts))
                if run.ema is not None:
                    run.ema.update(run.model, step)
                run.step, learning_rate = step, schedule.get_last_lr()[0]
                schedule.step()
                bar.update()

                row = {}
                if last or step % config.log_every == 0:  # only here the host waits for the device
                    row = {
                        "epoch": step * images_per_step / len(train_set),
                        "loss": run.mean_loss(world),
                        "lr": learning_rate,
                        **clock.read(images=step * images_per_step),
                    }
                    if not math.isfinite(row["loss"]):
                        bad = int(run.bad_step)
                        images = ", ".join(source.names(bad * config.accumulate - 1))
                        raise UserError(
                            f"{folder}: loss {row['loss']} at step {bad}, learning rate "
                            f"{learning_rate:.1e}, images {images}. {ADVICE}"
                        )
                    if run.scaler is not None and run.scaler.get_scale() < 1:
                        what = f"fp16 overflows in step after step until step {step}"
                        raise UserError(f"{folder}: {what}. Take --precision bf16 or fp32")
                    bar.set_postfix_str(log.summary(row, world.device), refresh=False)
                    if hint and row["data_wait"] > SLOW_DATA:
                        words = f"{row['data_wait']:.0%} of the time waits for data. {hint}"
                        bar.write(words, file=sys.stderr)
                        hint = ""

            stopping = stop.requested()
            eval_due = last or step % config.eval_every == 0
            if eval_due and not stopping:
                sheet = ContactSheet(val_set)
                shown = run.model if run.ema is None else run.ema.model
                distributed.copy_buffers_from_main(shown, world)
                scores = validate(shown, on_image=sheet.add, stop=stop)
                stopping = scores is None
                clock.restart()
            if eval_due and stopping:
                run.pending = row
            elif eval_due:
                run.note(scores.miou)
                row |= {"val_loss": scores.loss, "miou": scores.miou}
            if row and run.pending is None:
                log.write(step, row)
            if eval_due and not stopping and world.is_main:
                log.results(step, scores.plain())
                sheet.save(folder / "samples" / f"step_{step:08d}.png")
                bar.write(f"step {step}\n{scores.table()}", file=sys.stdout)

            stopping |= config.patience is not None and run.stale >= config.patience
            if eval_due or stopping or step % config.save_every == 0:
                if world.is_main:
                    run.save(folder / "checkpoints")
                distributed.wait_for_all(world)
            if stopping:
                break
    distributed.stop(world)
    if stop.signal is not None:
        resume = f"python train.py --config {folder / 'config.yaml'} --resume auto"
        print(f"stopped after step {run.step}; go on with: {resume}", file=sys.stderr)
        sys.exit(128 + stop.signal)
    if world.is_main:
        print(f"best mIoU {run.best_miou:.4f} at step {run.best_step} of {total}: {folder}")


def build_run(
    config: Config, classes: tuple[str, ...], world: World, state: dict[str, Any] | None
) -> Run:
    """Model, average and optimizer at step 0, or as `state`, a checkpoint, holds them."""
    torch.manual_seed(config.seed)
    network = {
        "name": config.model,
        "num_classes": len(classes),
        "backbone": config.backbone,
        "output_stride": config.output_stride,
        "norm": config.norm,
        "multi_grid": list(config.multi_grid),
        "aux": config.aux,
    }
    spec = None if state or config.init_from else config.backbone_weights
    weights = checkpoint.load_backbone_weights(spec, config.backbone, norm=config.norm)
    model = build_model(**network, backbone_weights=weights)
    if state is None and config.init_from is not None:
        path = find_checkpoint(config.init_from, resolve_log_root(config.log_root))
        left = checkpoint.take_over(model, path, renamed)
        if world.is_main:
            print(f"weights of {path}; random: {', '.join(left) or 'none'}")
    if config.sync_bn and world.size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    set_momentum(model, *config.bn_momentum)
    if config.freeze_bn:
        freeze_norms(model)
    model = model.to(world.device, memory_format=torch.channels_last)
    optimizer = build_optimizer(
        model,
        config.optimizer,
        base_lr=config.base_lr,
        weight_decay=config.weight_decay,
        head_lr_factor=config.head_lr_factor,
        decay_norm=config.decay_norm,
    )
    loss_sum = torch.zeros((), device=world.device)
    run = Run(model, optimizer, network, plain(config), list(classes), loss_sum)
    if config.ema is not None:
        run.ema = AveragedWeights(model, config.ema)
    if config.precision == "fp16":
        run.scaler = torch.amp.GradScaler(world.device.type)
    if state is not None:
        run.restore(state)
    return run


def main() -> None:
    config = parse(Config, __doc__)
    try:
        train(config)
    except (RuntimeError, MemoryError, cv2.error) as error:
        if not out_of_memory(error):
            raise
        crops = f"{config.batch_size} crops of {config.crop[0]}x{config.crop[1]}"
        raise UserError(
            f"out of memory with {crops}, {config.backbone} at stride {config.output_stride}; "
            "checkpoints are whole. Lower --batch_size and raise --accumulate as much, lower "
            "--crop, or take --output_stride 16"
        ) from error


if __name__ == "__main__":
    run_command(main)
