"""Train a segmentation network.

    python train.py                                              DeepLabV3-ResNet18 on Cityscapes
    python train.py --config configs/camvid/deeplabv3_resnet18_os16.yaml --run_name first
    python train.py --config training_logs/first/config.yaml --resume auto       resume after a stop
    torchrun --standalone --nproc-per-node 4 train.py            four GPUs; batch_size is per GPU

Several hosts, SLURM: docs/several_gpus.md.

A run writes to training_logs/<run>/: config.yaml, metrics.csv, curves.png, samples/, TensorBoard
events, checkpoints/best.pth and last.pth.
"""

import math
import shlex
import sys
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path

if __name__ == "__main__":  # PYTHONSAFEPATH keeps this folder out of sys.path
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import cv2
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR

from datasets import (
    SegmentationDataset,
    build_dataset,
    find_data_set,
    listed,
    resolve_data_root,
    with_others,
)
from evaluation.evaluate import evaluate
from evaluation.inference import Predictor
from evaluation.metrics import Scores
from evaluation.task import TASKS, Task
from evaluation.visualize import ContactSheet
from model import describe, model_class
from model.layers import freeze_norms, set_frozen
from model.normalize import FromPixels
from utils.base.errors import UserError, out_of_memory, run_command, warn
from utils.base.lock import hold
from utils.base.parser import chosen, parse
from utils.data.batches import Batch, Batches, Stages, dropout_seed, read_all_train_ids
from utils.data.check import require_labels, warn_of_val_images
from utils.data.class_uniform import ClassUniform
from utils.data.dataset import Dataset
from utils.data.packed import packed_path
from utils.data.prepare import chosen_class_weights
from utils.training import distributed
from utils.training.batch_size import find_batch_size
from utils.training.config import OF_A_PROCESS, Config, plain
from utils.training.distributed import Interrupted, StopRequest, World
from utils.training.logger import RunLogger, StepClock, device_state
from utils.training.network import network_options
from utils.training.optim import lr_schedule
from utils.training.replay import Replay
from utils.training.run import (
    ADVICE_ON_DIVERGENCE,
    Run,
    accumulation,
    build_run,
    empty_folder,
    find_run,
    load_run,
    remove_leftovers,
)
from utils.training.step import training_step

LOSS_OPTIONS = (
    "label_smoothing hard_threshold hard_min_kept focal dice lovasz hardest offset_weight "
    "semantic_weight panoptic_weight"
)
RUN_FACTS = "network images images_per_step"  # written to results.json, too
STAGED = "crop scale batch_size"  # what a stage may change
SLOW_DATA = 0.2  # share of the time spent waiting for data above which packing is advised


@dataclass
class Job:
    """Everything that the training loop works with."""

    config: Config
    world: World
    folder: Path  # of the run
    train_set: Dataset
    val_set: Dataset
    run: Run  # the state that a checkpoint restores
    task: Task
    trained: nn.Module  # wrap() of run.model
    criterion: nn.Module
    schedule: LambdaLR
    batches: Stages
    total: int  # steps of the whole training
    amp: torch.dtype | None  # dtype of autocast in training steps, None for float32
    replay: Replay | None  # CUDA graph of a compiled step, on a single GPU only
    compiled: bool

    def images_after(self, step: int) -> int:
        return self.batches.images(step * self.config.accumulate)

    def evaluates_after(self, step: int) -> bool:
        return step == self.total or step % self.config.eval_every == 0


def train(config: Config) -> int | None:
    """Run or resume a training; return the number of the signal that stopped it, or None."""
    network_options(config, num_classes=1)  # fails early on an option the architecture lacks
    world = distributed.start(config.device)
    if config.find_batch_size and not world.on_gpu:  # a CPU's memory is not refused in time
        raise UserError("--find_batch_size true: for GPUs only. Leave it out")
    folder, checkpoint = find_run(config, world)
    number = None
    with hold(folder, enabled=world.is_main):
        job = set_up(folder, checkpoint, config, world)
        if world.is_main and checkpoint is not None:
            job.run.point_at_best(folder / "checkpoints")
        if job.run.steps(job.total):
            number = train_steps(job, open_run(job, fresh=checkpoint is None))
        elif world.is_main:
            what = "Give a new --run_name to train longer"
            print(f"{folder}: finished at step {job.total}. {what}")
    distributed.stop(world)
    return number


# ---- Before the first step; open_run is the first function to write to the run's folder --------


def set_up(folder: Path, checkpoint: Path | None, config: Config, world: World) -> Job:
    """Build data, network, criterion and batches; UserError if an option or a file is wrong."""
    if world.is_main:
        remove_leftovers(folder)
    cv2.setNumThreads(0)  # the loader's threads already use the cores
    torch.backends.cudnn.benchmark = True
    name, root = config.dataset, resolve_data_root(config.dataset, config.data_root)
    config = replace(config, data_root=root)
    task = TASKS[model_class(config.model).task]
    needed = {"instances": task.instances}
    train_set = build_dataset(name, root, config.split, fine_repeats=config.fine_repeats, **needed)
    if config.train_list is not None:
        train_set = listed(train_set, config.train_list)
    train_set = with_others(train_set, config.also, **needed)
    val_set = build_dataset(name, root, "val", **needed)
    distributed.require_same((train_set.names, val_set.names), "data set", world)
    options = {k: v for k, v in plain(config).items() if k not in OF_A_PROCESS}
    distributed.require_same(options, "options", world)
    criterion = build_criterion(config, train_set, task, world)

    state = load_run(folder, checkpoint, config)
    distributed.require_same(state and state["step"], f"checkpoints of {folder}", world)
    config = replace(config, accumulate=accumulation(config, world, state))
    run = build_run(config, train_set.classes, world, state, names=train_set.names)
    amp = run.amp_dtype(world)
    if config.find_batch_size:
        config = find_batch_size(config, run.model, criterion, amp, world)
        run.config = plain(config)
    run.images_per_step = config.batch_size * config.accumulate * world.size
    total = config.steps
    if config.epochs is not None:
        images_per_step = config.mean_batch_size() * config.accumulate * world.size
        total = math.ceil(config.epochs * len(train_set) / images_per_step)
    schedule = lr_schedule(
        run.optimizer,
        start=run.step,
        total=total,
        warmup=config.warmup_steps,
        power=config.power,
        floor=config.min_lr / config.base_lr,
        schedule=config.schedule,
        milestones=config.milestones,
    )
    wanted = False if getattr(run.model, "dynamic", False) else config.compile
    compiled = world.use_compile(wanted, sync_bn=config.sync_bn and world.size > 1)
    if compiled and world.is_main:
        print("the first step compiles the network, for a minute or more", file=sys.stderr)
    if run.step < config.freeze_encoder_steps:
        set_frozen(run.model.backbone, True)
    trained = wrap(run.model, world, compiled=compiled)
    batches = build_batches(config, train_set, task, world, total=total)
    replay = Replay() if compiled and world.on_gpu and world.size == 1 else None
    return Job(
        config, world, folder, train_set, val_set, run, task, trained, criterion, schedule,
        batches, total, amp, replay, compiled,
    )  # fmt: skip


def wrap(model: nn.Module, world: World, *, compiled: bool) -> nn.Module:
    """FromPixels around the network, in DDP if there are several processes, compiled or not."""
    trained = FromPixels(model)
    if world.size > 1:
        trained = DistributedDataParallel(trained, gradient_as_bucket_view=True)
        trained.broadcast_buffers = False  # validate copies BatchNorm's statistics when needed
    if compiled:  # in place: the state_dict keeps its keys
        trained.compile(dynamic=False)  # one compilation per size of a stage's crops
    return trained


def release_encoder(job: Job) -> None:
    """Train the backbone from now on. DDP and CUDA graphs are built for a fixed set of weights."""
    set_frozen(job.run.model.backbone, False)
    if job.config.freeze_bn:
        freeze_norms(job.run.model)
    job.trained = wrap(job.run.model, job.world, compiled=job.compiled)
    job.replay = job.replay and Replay()


def build_criterion(config: Config, train_set: Dataset, task: Task, world: World) -> nn.Module:
    """The loss of the task, on the device, with class weights if the config asks for them."""
    class_weights = None
    if config.class_weights:
        data_set = find_data_set(config.dataset, config.data_root)
        found = chosen_class_weights(config.class_weights, data_set, config.data_root)
        class_weights = torch.from_numpy(found) ** config.class_weight_power
    names, taken = LOSS_OPTIONS.split(), signature(task.criterion).parameters
    names += [] if hasattr(task.criterion, "weigh") else ["class_weights_from"]
    odd = [x for x in names if x not in taken and getattr(config, x) != getattr(Config, x)]
    if odd:
        raise UserError(f"--{odd[0]}: not for {config.model}. Leave it out")
    options = chosen(config, " ".join(x for x in names if x in taken))
    return task.criterion(class_weights=class_weights, **options).to(world.device)


def build_batches(
    config: Config, train_set: Dataset, task: Task, world: World, *, total: int
) -> Stages:
    class_uniform = None
    if config.class_uniform > 0:
        labels = read_all_train_ids(train_set, workers=config.workers, enabled=world.is_main)
        class_uniform = ClassUniform(labels, share=config.class_uniform, seed=config.seed)
    names = "batch_size crop scale flip photometric max_class_share seed workers"
    batches = Batches(
        train_set,
        **chosen(config, names),
        planes=task.criterion.planes,
        class_uniform=class_uniform,
        device=world.device,
        rank=world.rank,
        world_size=world.size,
    )
    parts = [(x, replace(batches, **chosen(part, STAGED))) for x, part in config.parts()]
    return Stages([(round(until * total) * config.accumulate, part) for until, part in parts])


def open_run(job: Job, *, fresh: bool) -> RunLogger:
    """Check now what would otherwise fail hours later, then start to write the run's folder."""
    config, world, run = job.config, job.world, job.run
    if fresh:
        how = {"workers": config.workers, "enabled": world.is_main}
        require_labels(job.train_set, job.val_set, config.data_root, **how)
        data_set = find_data_set(config.dataset, config.data_root)
        warn_of_val_images(data_set, config.data_root, config.split)
        if config.warmup_steps >= job.total:
            what = f"the training has {job.total} steps, in which the learning rate only rises"
            warn(f"--warmup_steps {config.warmup_steps}: {what}. Give a tenth of them")
    predict_extremes(job)
    if world.is_main:
        run.require_space(job.folder, checkpoints=3 if fresh else 1)
        if fresh:
            empty_folder(job.folder)
    config = replace(config, run_name=job.folder.name, resume=None, overwrite=False)
    config = replace(config, log_root=config.log_root and job.folder.parent)  # absolute
    log = RunLogger(job.folder, config, start=run.step, total=job.total, enabled=world.is_main)
    log.say(
        f"{' '.join(describe(run.network))}, {len(job.train_set)} train and {len(job.val_set)} val "
        f"images of {' and '.join((str(config.data_root), *config.also))}, "
        f"{job.train_set.source}, steps {run.step + 1} to "
        f"{job.total} on {world.size} x {world.device.type}"
        f"{' in bf16' if job.amp == torch.bfloat16 else ''}: {job.folder}"
    )
    return log


def predict_extremes(job: Job) -> None:
    """Predict the largest and the smallest val image, to fail now, not at the first evaluation."""
    sizes = [job.val_set.size(index) for index in range(len(job.val_set))]
    largest = max(range(len(sizes)), key=lambda index: math.prod(sizes[index]))
    smallest = min(range(len(sizes)), key=lambda index: min(sizes[index]))
    how = {"amp": job.world.amp_dtype(job.config.precision), "scales": job.config.eval_scales}
    how |= {"task": job.task, "classes": job.val_set.classes}
    predictor = Predictor(job.run.model, device=job.world.device, **how)
    for index in dict.fromkeys((largest, smallest)):
        predictor.predict(job.val_set[index]["image"])


# ---- The loop ----------------------------------------------------------------------------------


def train_steps(job: Job, log: RunLogger) -> int | None:
    """Run the remaining steps; return the number of the signal that stopped them, or None."""
    run, config, done = job.run, job.config, job.run.step
    batches = job.batches.run(done * config.accumulate, job.total * config.accumulate)
    clock = StepClock(images=job.images_after(done))
    with StopRequest(job.world) as stop, log:
        for step in run.steps(job.total):
            # The checkpoint of an interrupted evaluation holds this step's update and row, so only
            # the evaluation is missing. Otherwise row is None and the step runs.
            row = run.take_pending()
            if row is None:
                try:
                    with clock.waiting(), stop.interrupting():
                        parts = [next(batches) for _ in range(config.accumulate)]
                except Interrupted:  # single process only; the step has changed nothing yet
                    run.save(job.folder / "checkpoints")
                    break
                row = update(job, log, clock, step, parts)

            # Collective operation: every process calls it once a step and gets the same answer.
            stopping = stop.requested()
            if job.evaluates_after(step):
                scores = None if stopping else validate(job, log, stop)
                clock.restart(job.images_after(step))
                if scores is None:  # stopped before or during it: the resumed run evaluates
                    run.pending, stopping = row, True
                else:
                    row |= {"val_loss": scores.loss, **scores.curve}
            if row and run.pending is None:
                log.write(step, row)
                if "miou" in row:
                    log.results(step, scores.plain(), chosen(run, RUN_FACTS))

            if config.patience is not None and run.stale >= config.patience:
                stopping = True
            if stopping or job.evaluates_after(step) or step % config.save_every == 0:
                if job.world.is_main:
                    run.save(job.folder / "checkpoints")
                distributed.wait_for_all(job.world)
            if stopping:
                break
    report_end(job, log, stop)  # after `with`, so that it prints below the closed progress line
    return stop.signal


def update(
    job: Job, log: RunLogger, clock: StepClock, step: int, micro_batches: list[Batch]
) -> dict[str, float]:
    """Update the weights once; return the step's row of metrics.csv, {} between log steps."""
    run, config = job.run, job.config
    if step == config.freeze_encoder_steps + 1 > 1:
        release_encoder(job)
    if config.class_weights_from:
        job.criterion.weigh(step > config.class_weights_from * job.total)
    torch.manual_seed(dropout_seed(config.seed, step, job.world.rank))
    how = {"amp": job.amp, "scaler": run.scaler, "clip": config.clip_grad, "replay": job.replay}
    loss = training_step(job.trained, job.criterion, run.optimizer, micro_batches, **how)
    run.add_loss(step, loss)
    if run.ema is not None:
        run.ema.update(step)
    run.step, learning_rate = step, job.schedule.get_last_lr()[0]
    job.schedule.step()
    log.bar.update()
    if step < job.total and step % config.log_every:
        return {}
    images = job.images_after(step)
    row = {
        "epoch": images / len(job.train_set),
        "loss": run.mean_loss(job.world),  # the only place where the host waits for the device
        "lr": learning_rate,
        **clock.read(images=images),
        **device_state(job.world.device),
    }
    require_finite(job, row)
    log.show(row)
    slow = row["data_wait"] > SLOW_DATA and isinstance(job.train_set, SegmentationDataset)
    if slow and not log.hinted:
        advice = "Raise --workers"
        if config.split == "train":  # others, as VOC's trainaug, have no packed file
            root, own = config.data_root, {"instances": job.task.instances}
            again = find_data_set(config.dataset, root).prepare_again
            advice += f", or pack the images. {again(root, packed_path(root, 'train'), **own)}"
        log.say(f"{row['data_wait']:.0%} of the time is waiting for data. {advice}", error=True)
        log.hinted = True
    return row


def require_finite(job: Job, row: dict[str, float]) -> None:
    """UserError with the step and its images if the loss is not finite, or if fp16 overflows."""
    run = job.run
    if not math.isfinite(row["loss"]):
        bad = int(run.bad_step)
        last = bad * job.config.accumulate
        numbers = range(last - job.config.accumulate, last)
        images = ", ".join(name for x in numbers for name in job.batches.names(x))
        what = f"loss {row['loss']} at step {bad}, learning rate {row['lr']:.1e}, images {images}"
        raise UserError(f"{job.folder}: {what}. {ADVICE_ON_DIVERGENCE}")
    if run.scaler is not None and run.scaler.get_scale() < 1:
        what = f"fp16 overflowed at many steps, last at step {run.step}"
        raise UserError(f"{job.folder}: {what}. Give --precision bf16 or fp32")


def validate(job: Job, log: RunLogger, stop: StopRequest) -> Scores | None:
    """Val scores of the averaged weights, else of the trained ones; None if a stop interrupts."""
    run, config, world = job.run, job.config, job.world
    model = run.model if run.ema is None else run.ema.model
    if job.replay is not None:
        job.replay.forget()  # whole images need the memory of the CUDA graph
    distributed.copy_buffers_from_main(model, world)
    sheet = ContactSheet(job.val_set, job.task)
    how = {"amp": world.amp_dtype(config.precision), **chosen(config, "workers")}
    how |= {"scales": config.eval_scales, "class_weights": job.criterion.final_weights}
    how |= {"on_image": sheet.add, "stop": stop}
    scores = evaluate(model, job.val_set, world=world, task=job.task, **how)
    if scores is not None:
        run.note(scores.best)
        if world.is_main:
            sheet.save(job.folder / "samples" / f"step_{run.step:08d}.png")
        log.say(f"step {run.step}\n{scores.table()}")
    return scores


def report_end(job: Job, log: RunLogger, stop: StopRequest) -> None:
    run = job.run
    if stop.signal is not None:
        file = shlex.quote(str(job.folder / "config.yaml"))
        resume = f"python train.py --config {file} --resume auto"
        log.say(f"stopped after step {run.step}; resume with: {resume}", error=True)
    else:
        best = f"best {job.task.measure} {run.best_miou:.4f} at step {run.best_step} of {job.total}"
        score = "score it with: python evaluation/eval_on_val_for_metrics.py --checkpoint"
        log.say(f"{best}: {job.folder}\n{score} {shlex.quote(str(job.folder))}")


def main() -> None:
    config = parse(Config, __doc__)
    try:
        number = train(config)
    except (RuntimeError, MemoryError, cv2.error) as error:
        if not out_of_memory(error):
            raise
        what = "{} crops of {}x{}, ".format(config.batch_size, *config.largest_crop())
        network = network_options(config, 1)
        what += " ".join(describe(network))
        advice = "Lower --crop, or lower --batch_size and raise --accumulate alike"
        advice += ", or give --output_stride 16" if network.get("output_stride") == 8 else ""
        raise UserError(f"out of memory with {what}. {advice}") from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        what = f"--batch_size {config.batch_size}: BatchNorm of {config.model} sees a single value"
        raise UserError(f"{what}. Raise it or --crop, or give --norm gn") from error
    if number is not None:
        sys.exit(128 + number)


if __name__ == "__main__":
    run_command(main)
