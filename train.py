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

from datasets import SegmentationDataset, build_dataset, read_class_weights
from evaluation.evaluate import evaluate
from evaluation.visualize import ContactSheet
from model import build_model
from model.layers import freeze_norms
from model.losses import SegmentationLoss
from utils import checkpoint, distributed
from utils.checkpoint import Run
from utils.class_uniform import ClassUniform
from utils.config import Config, parse, plain
from utils.distributed import StopRequest, World
from utils.errors import UserError, run_command
from utils.files import resolve_data_root, resolve_log_root
from utils.loader import Batches, dropout_seed, read_labels
from utils.logger import RunLogger, StepClock, default_run_name, open_folder
from utils.optim import AveragedWeights, build_optimizer, poly_schedule
from utils.progress import progress
from utils.step import training_step

# What may change when a run goes on; another value of any other option is another training.
FREE_ON_RESUME = {"run_name", "resume", "overwrite", "log_root", "data_root", "device", "workers"}
FREE_ON_RESUME |= {"compile", "log_every", "save_every", "eval_every", "patience"}
SLOW_DATA = 0.2  # share of the time spent waiting for data from which it is worth a word
PACK_HINT = "More --workers, or python utils/preprocess_data.py --pack true, make it faster"


def train(config: Config) -> None:
    """The whole training, from a fresh start or from the checkpoint that --resume names."""
    world = distributed.start(config.device)
    cv2.setNumThreads(0)  # the loader's threads are the parallelism
    torch.backends.cudnn.benchmark = True
    amp, compiled = world.amp_dtype(config.precision), world.use_compile(config.compile)

    root = resolve_data_root(config.dataset, config.data_root)
    config = replace(config, data_root=root)
    train_set, val_set = (build_dataset(config.dataset, root, x) for x in (config.split, "val"))
    class_weights = read_class_weights(root, train_set.classes) if config.class_weights else None
    images_per_step = config.batch_size * config.accumulate * world.size
    total = config.steps
    if config.epochs is not None:
        total = math.ceil(config.epochs * len(train_set) / images_per_step)

    folder, state = find_run(config)
    run = build_run(config, train_set.classes.names, world, state)
    start = run.step
    if start >= total:
        print(f"{folder}: finished at step {total}. Start a new --run_name to train longer")
        return
    criterion = SegmentationLoss(
        class_weights=class_weights,
        label_smoothing=config.label_smoothing,
        hard_threshold=config.hard_threshold,
        hard_min_kept=config.hard_min_kept,
    ).to(world.device)
    schedule = poly_schedule(
        run.optimizer,
        start=start,
        total=total,
        warmup=config.warmup_steps,
        power=config.power,
        floor=config.min_lr / config.base_lr,
    )
    parallel = DistributedDataParallel(run.model) if world.size > 1 else run.model
    if compiled:
        parallel.compile()  # in place: the state_dict keeps its keys
    class_uniform = None
    if config.class_uniform > 0:
        labels = read_labels(train_set, workers=config.workers, enabled=world.is_main)
        class_uniform = ClassUniform(labels, share=config.class_uniform, seed=config.seed)
    batches = Batches(
        train_set,
        batch_size=config.batch_size,
        crop=config.crop,
        scale=config.scale,
        flip=config.flip,
        seed=config.seed,
        workers=config.workers,
        device=world.device,
        rank=world.rank,
        world=world.size,
        photometric=config.photometric,
        max_class_share=config.max_class_share,
        class_uniform=class_uniform,
    ).run(start * config.accumulate, total * config.accumulate)
    update = partial(
        training_step, parallel, criterion, run.optimizer,
        amp=amp, scaler=run.scaler, clip=config.clip_grad,
    )  # fmt: skip

    validate = partial(
        evaluate,
        dataset=val_set,
        world=world,
        scales=config.eval_scales,
        class_weights=criterion.class_weights,
        amp=amp,
        workers=config.workers,
    )

    if state is None:
        for part in (train_set, val_set):
            if not part.checked:  # an unknown id is better found now than in an hour
                labels = read_labels(part, workers=config.workers, enabled=world.is_main)
                deque(labels, maxlen=0)
    if state is None and world.is_main:
        open_folder(folder, overwrite=config.overwrite)
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
    with StopRequest() as stop, log, bar:
        for step in range(start + 1, total + 1):
            with clock.waiting():
                micro_batches = [next(batches) for _ in range(config.accumulate)]
            torch.manual_seed(dropout_seed(config.seed, step, world.rank))
            run.add_loss(update(micro_batches))
            if run.ema is not None:
                run.ema.update(run.model, step)
            run.step, learning_rate = step, schedule.get_last_lr()[0]
            schedule.step()
            bar.update()

            row: dict[str, float] = {}
            last = step == total
            log_due = last or step % config.log_every == 0
            if log_due:  # the only steps at which the host waits for the device
                row = {
                    "epoch": step * images_per_step / len(train_set),
                    "loss": run.mean_loss(world),
                    "lr": learning_rate,
                    **clock.read(images=step * images_per_step),
                }
                if not math.isfinite(row["loss"]):
                    raise UserError(f"{folder}: loss {row['loss']} at step {step}. Lower --base_lr")
                bar.set_postfix_str(log.summary(row, world.device), refresh=False)
                if hint and row["data_wait"] > SLOW_DATA:
                    words = f"{row['data_wait']:.0%} of the time waits for data. {hint}"
                    bar.write(words, file=sys.stderr)
                    hint = ""

            eval_due = last or step % config.eval_every == 0
            if eval_due:
                sheet = ContactSheet(val_set)
                shown = run.model if run.ema is None else run.ema.model
                distributed.copy_buffers_from_main(shown, world)
                scores = validate(shown, on_image=sheet.add)
                run.note(scores.miou)
                row |= {"val_loss": scores.loss, "miou": scores.miou}
                clock.restart()

            if row:
                log.write(step, row)
            if eval_due and world.is_main:
                log.results(step, scores.plain())
                sheet.save(folder / "samples" / f"step_{step:08d}.png")
                bar.write(f"step {step}\n{scores.table()}", file=sys.stdout)

            stopping = (log_due or world.size == 1) and stop.requested(world)
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


def find_run(config: Config) -> tuple[Path, dict[str, Any] | None]:
    """The run's folder and, when the run goes on, its newest checkpoint."""
    log_root = resolve_log_root(config.log_root)
    if config.resume is None:
        return log_root / (config.run_name or default_run_name(config)), None
    spec = config.run_name if config.resume == "auto" else config.resume
    path = checkpoint.find_checkpoint(spec, log_root, prefer="last.pth").resolve()
    folder, state, now = path.parents[1], checkpoint.load_checkpoint(path), plain(config)
    held = plain(Config()) | state["config"]  # an older checkpoint lacks newer options
    changed = [k for k in now if k not in FREE_ON_RESUME and now[k] != held[k]]
    if changed:
        raise UserError(
            f"{path}: made with another {', '.join(changed)}. Go on with "
            f"--config {folder / 'config.yaml'}, or start a new --run_name"
        )
    return folder, state


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
        "multi_grid": list(config.multi_grid),
        "aux": config.aux,
    }
    weights = None
    if state is None and config.init_from is None:
        weights = checkpoint.load_backbone_weights(config.backbone_weights, config.backbone)
    model = build_model(**network, backbone_weights=weights)
    if state is None and config.init_from is not None:
        path = checkpoint.find_checkpoint(config.init_from, resolve_log_root(config.log_root))
        left = checkpoint.take_over(model, path)
        if world.is_main:
            print(f"weights of {path}; random: {', '.join(left) or 'none'}")
    if config.sync_bn and world.size > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
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
    train(parse(Config, __doc__))


if __name__ == "__main__":
    run_command(main)
