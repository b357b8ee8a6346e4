"""Run all checks that need a GPU, in one command of at most 20 minutes: make gpu

    python benchmarks/gpu.py
    python benchmarks/gpu.py --sections data training profile      some of doctor, data, tests,
                           training, stopping, evaluation, commands, processes, profile, throughput

Prints each row (check, wanted, measured, ok) immediately and writes it to results/gpu/<GPU>.json.
If a section fails, its error becomes a row and the next sections run. The data are synthetic
scenes, drawn and packed once. Exit code 1 if a row is not ok.
"""

import csv
import gc
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import traceback
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":  # else it would replace another folder
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure
from datasets import JoinedDataset, build_dataset
from evaluation.trained import PredictionOptions, Trained
from model import build_model
from model.losses import SegmentationLoss
from model.normalize import FromPixels
from model.ops.bilinear import setting
from utils.base.environment import usual_workers
from utils.base.errors import UserError, run_command
from utils.base.paths import REPOSITORY, make_folder, write_json
from utils.data.batches import Batches
from utils.training.config import Config
from utils.training.distributed import World
from utils.training.optim import build_optimizer
from utils.training.replay import Replay
from utils.training.step import training_step

LIMIT = 600  # seconds of one command
GOALS = {  # images/s of an H100-class GPU, for 512x1024 crops and 1024x2048 images
    ("training step", "resnet50-8"): 135.0,
    ("prediction", "resnet18-8"): 350.0,
}
PEERS = {"fp32": 3.0, "bf16": 1.3, "bf16 compiled": 1.0}  # mode of a peer -> minimum speed-up


@dataclass
class Proof:
    """The rows so far, and helpers of the sections."""

    given: Namespace
    rows: list[dict] = field(default_factory=list)

    @property
    def logs(self) -> Path:
        return self.given.root.with_name(f"{self.given.root.name}_runs")

    def row(self, check: str, wanted: str, measured: object, ok: bool) -> None:
        self.rows.append({"check": check, "wanted": wanted, "measured": measured, "ok": bool(ok)})
        print(f"{'ok  ' if ok else 'FAIL'}  {check}: {measured} (wanted: {wanted})", flush=True)
        name = measure.machine(torch.device(self.given.device))
        path = self.given.results / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
        date, versions = time.strftime("%Y-%m-%d"), measure.versions()
        make_folder(path.parent)
        write_json(path, {"machine": name, "date": date, "versions": versions, "rows": self.rows})

    def command(self, *words: object, **environment: str) -> subprocess.CompletedProcess:
        """Run one of the repository's scripts and wait for it."""
        return subprocess.run(
            [sys.executable, *map(str, words)], cwd=REPOSITORY, text=True, check=False,
            capture_output=True, timeout=LIMIT, env={**os.environ, **environment},
        )  # fmt: skip

    def ends_well(self, check: str, *words: object) -> None:
        done = self.command(*words)
        what = "exit code 0" if done.returncode == 0 else (done.stderr or done.stdout)[-500:]
        self.row(check, "exit code 0", what, done.returncode == 0)

    def train_words(self, name: str, *options: object) -> list[object]:
        place = ["--dataset", "synthetic", "--data_root", self.given.root, "--log_root", self.logs]
        how = ["--backbone_weights", "null", "--device", self.given.device, "--run_name", name]
        return ["train.py", *place, *how, *shlex.split(self.given.train), *options]

    def train(self, name: str, *options: object, **environment: str) -> tuple[list[dict], str]:
        """Train a new run; return the rows of its metrics.csv, and its stderr."""
        words = self.train_words(name, "--overwrite", "true", *options)
        done = self.command(*words, **environment)
        if done.returncode:
            raise RuntimeError(f"{shlex.join(map(str, words))}\n{done.stderr[-2000:]}")
        return read_rows(self.logs / name), done.stderr


def read_rows(folder: Path) -> list[dict]:
    with (folder / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return [*csv.DictReader(file)]


def near(value: float, reference: float, share: float) -> bool:
    return abs(value / reference - 1) <= share


# ---- Sections ----------------------------------------------------------------------------------


def doctor(proof: Proof) -> None:
    done = proof.command("utils/doctor.py")
    print(done.stdout)
    proof.row("doctor", "exit code 0", done.returncode, done.returncode == 0)


def data(proof: Proof) -> None:
    root = ["--data_root", proof.given.root]
    proof.ends_well("synthetic.py", "utils/synthetic.py", *root, "--train", 64, "--val", 32)
    words = ["--dataset", "synthetic", *root, "--pack", "true"]
    proof.ends_well("preprocess_data.py", "utils/preprocess_data.py", *words)


def tests(proof: Proof) -> None:
    done = proof.command("-m", "pytest", "-m", "gpu", "-n", "0", "-p", "no:cacheprovider")
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    what = "; ".join([*lines, *done.stdout.splitlines()[-1:]]) or done.stderr[-500:]
    proof.row("pytest -m gpu", "all pass", what, done.returncode == 0)


def training(proof: Proof) -> None:
    """The default recipe; then precisions and options, for fewer steps."""
    steps, few = proof.given.steps, max(2, proof.given.steps // 6)
    often = ["--steps", steps, "--eval_every", max(1, steps // 3), "--log_every", few // 2]
    rows, said = proof.train("default", *often, TORCH_LOGS="recompiles,graph_breaks")
    cuts = re.findall(r"Recompiling function.*|Graph break.*", said)
    proof.row("recompiles and graph breaks of the default recipe", "none", cuts or 0, not cuts)
    losses = [float(row["loss"]) for row in rows]
    proof.row("loss, first and last row", "lower", [losses[0], losses[-1]], losses[-1] < losses[0])
    for name in ("images_per_second", "data_wait", "memory_gib", "gpu_utilization"):
        value = rows[-1][name] and float(rows[-1][name])
        proof.row(f"default recipe, {name}", "known", value, value != "")

    short = ["--steps", few, "--log_every", few, "--warmup_steps", 0, "--base_lr", 1e-3]
    reference = None
    for name, options in {
        "fp32, eager": ["--compile", "false", "--precision", "fp32"],
        "eager": ["--compile", "false"],
        "compiled": ["--compile", proof.given.compiled],
    }.items():
        loss = float(proof.train(name.replace(", ", "-"), *short, *options)[0][-1]["loss"])
        reference = reference or loss
        wanted = f"within 2 % of {reference:.4f}"
        proof.row(f"mean loss of {few} steps, {name}", wanted, loss, near(loss, reference, 0.02))
    loss = float(proof.train("fp16", *short, "--precision", "fp16")[0][-1]["loss"])
    proof.row("fp16", "a loss", loss, loss > 0)
    every = ["--ema", 0.99, "--hard_threshold", 0.7, "--photometric", "true", "--accumulate", 2]
    loss = float(proof.train("options", *short, *every)[0][-1]["loss"])
    proof.row("EMA, hard pixels, colours, 2 micro-batches", "a loss", loss, loss > 0)


def stopping(proof: Proof) -> None:
    """SIGUSR1 during training, then --resume auto."""
    steps = proof.given.steps
    often = ["--steps", steps, "--log_every", 1, "--eval_every", steps]
    words = proof.train_words("stopped", "--overwrite", "true", *often)
    process = subprocess.Popen([sys.executable, *map(str, words)], cwd=REPOSITORY)
    folder, deadline = proof.logs / "stopped", time.monotonic() + LIMIT
    begun = time.time()
    while process.poll() is None and time.monotonic() < deadline:
        path = folder / "metrics.csv"
        if path.is_file() and path.stat().st_mtime > begun and len(read_rows(folder)) >= 2:
            process.send_signal(signal.SIGUSR1)
            break
        time.sleep(0.1)
    code = process.wait(LIMIT)
    wanted = 128 + signal.SIGUSR1
    proof.row("exit code after SIGUSR1", str(wanted), code, code == wanted)
    done = proof.command(*proof.train_words("stopped", "--resume", "auto", *often))
    last = read_rows(folder)[-1]["step"] if done.returncode == 0 else done.stderr[-500:]
    proof.row("last step after --resume auto", str(steps), last, last == str(steps))


def evaluation(proof: Proof) -> None:
    """One network at three precisions; then many images, with nIoU and output files."""
    device, scores = proof.given.device, {}
    for name, options in {
        "CPU": {"device": "cpu"},
        "fp32": {"device": device, "precision": "fp32"},
        "auto": {"device": device},
    }.items():
        trained = Trained.open(
            PredictionOptions(checkpoint="default", log_root=proof.logs, **options)
        )
        dataset = trained.dataset("val")
        with setting(torch.backends.cudnn, "allow_tf32", name == "auto"):
            scores[name] = trained.evaluate(dataset, on_image=lambda *_: None).miou
    for name, most in (("fp32", 1e-4), ("auto", 2e-3)):
        apart = abs(scores[name] - scores["CPU"])
        proof.row(f"mIoU, {name} and CPU apart", f"at most {most:g}", apart, apart <= most)

    folder = proof.logs / "predictions"
    make_folder(folder)

    def write(sample: dict, _counts: object, prediction: object) -> None:
        trained.task.save(folder / f"{sample['name']}.png", prediction, dataset.classes)

    many = JoinedDataset([dataset] * max(1, proof.given.images // len(dataset)))
    begin = time.perf_counter()
    trained.evaluate(many, on_image=write)
    seconds = time.perf_counter() - begin
    what = f"{len(many)} of {dataset.size(0)} predicted, scored with nIoU, written ({trained.amp})"
    proof.row(what, "at most 10 s", f"{seconds:.1f} s", seconds <= 10)


def commands(proof: Proof) -> None:
    root, out = proof.given.root, proof.logs / "out"
    image = min((root / "leftImg8bit" / "val").rglob("*.png"))
    here = ["--checkpoint", "default", "--log_root", proof.logs, "--device", proof.given.device]
    folder = [image.parent, "--video", "true"]
    for what, words in (("an image", [image]), ("a folder as video", folder)):
        proof.ends_well(f"predict.py {what}", "predict.py", *words, *here, "--output", out)
    proof.ends_well("predict.py a video", "predict.py", next(out.glob("*.webm")), *here,
                    "--output", out / "video", "--frames", 4)  # fmt: skip
    proof.ends_well("eval_on_val", "evaluation/eval_on_val_for_metrics.py", *here)
    proof.ends_well("report.py", "evaluation/report.py", *here)
    proof.ends_well("export.py", "export.py", "--checkpoint", "default", "--log_root", proof.logs)


def processes(proof: Proof) -> None:
    """Two GPUs: loss as on one GPU with frozen norms; SyncBatchNorm compiled or not; scores."""
    on_gpu = proof.given.device == "cuda"
    count = torch.cuda.device_count() if on_gpu else 2
    if count < 2:
        proof.row("two processes", "two GPUs", f"{count} GPU: left out", True)
        return
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    short = ["--steps", 10, "--log_every", 10, "--overwrite", "true"]
    frozen = [*short, "--freeze_bn", "true", "--precision", "fp32", "--compile", "false"]
    cases = {"one": ([], [*frozen, "--batch_size", 4]), "two": (launch, frozen)}
    if on_gpu:
        synchronized = [*short, "--sync_bn", "true", "--bn_momentum", "[0.05,0.05]"]
        cases |= {
            "sync": (launch, synchronized),
            "cut": (launch, [*synchronized, "--compile=true"]),
        }
    losses = {}
    for name, (start, options) in cases.items():
        words = proof.train_words(name, "--batch_size", 2, *options)
        done = proof.command(*start, *words)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        losses[name] = float(read_rows(proof.logs / name)[-1]["loss"])
    for name, other, share in (("two", "one", 1e-3), ("cut", "sync", 0.02)):
        if name in losses:
            ratio, wanted = losses[name] / losses[other], f"within {share:.1%}"
            proof.row(f"loss of 10 steps, {name} / {other}", wanted, ratio, near(ratio, 1, share))
    words = ["--checkpoint", "two", "--log_root", proof.logs, "--device", proof.given.device]
    proof.ends_well("eval_on_val, two processes", *launch,
                    "evaluation/eval_on_val_for_metrics.py", *words)  # fmt: skip


def profiled(proof: Proof) -> None:
    """Ten steps of the default recipe: idle time, waits, layout changes, largest kernels."""
    device = torch.device(proof.given.device)
    world, config = World(0, 1, device), Config()
    on_gpu, amp = device.type == "cuda", world.amp_dtype("auto")
    size = {} if on_gpu else {"batch_size": 2, "crop": (32, 64)}
    batch, crop = size.get("batch_size", config.batch_size), size.get("crop", config.crop)
    dataset = build_dataset("synthetic", proof.given.root, "train")
    model = build_model("deeplabv3", num_classes=dataset.classes.num_classes)
    model = model.to(device, memory_format=torch.channels_last)
    trained, criterion = FromPixels(model), SegmentationLoss()
    if on_gpu:
        torch.backends.cudnn.benchmark = True
        trained.compile()
    optimizer = build_optimizer(model, "sgd", base_lr=0.01, weight_decay=5e-4)
    how = {"amp": amp, "replay": Replay() if on_gpu else None}
    batches = Batches(
        dataset, batch_size=batch, crop=crop, scale=config.scale, flip=True, seed=0,
        workers=usual_workers(), device=device,
    ).run(0, 30)  # fmt: skip

    def steps(number: int) -> None:
        for _ in range(number):
            training_step(trained, criterion, optimizer, [next(batches)], **how)

    steps(10)
    measure.wait_for(device)
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU  # both slow the host
    with profile(activities=[activity]) as profiler:
        begin = time.perf_counter()
        steps(10)
        measure.wait_for(device)
        wall = time.perf_counter() - begin
    kernels: dict[str, float] = defaultdict(float)
    for event in profiler.events():
        annotation = event.name.startswith("Mem") or event.is_user_annotation
        if str(event.device_type).endswith("CUDA") and not annotation:
            kernels[event.name] += event.time_range.elapsed_us() / 1e6
    how["replay"] = None  # a CUDA graph would hide the operations
    with FlopCounterMode(display=False) as flops:
        steps(1)
    if on_gpu:
        idle = 1 - sum(kernels.values()) / wall
        proof.row("GPU idle in ten steps", "at most 5 %", f"{idle:.1%}", idle <= 0.05)
        names = [event.name for event in profiler.events()]
        waits = sum(name.startswith("cudaStreamSynchronize") for name in names)
        proof.row("waits for the device in ten steps", "0", waits, waits == 0)
        layouts = [kernels[name] for name in kernels if re.search("nchwToNhwc|nhwcToNchw", name)]
        share = sum(layouts) / wall  # cuDNN changes some layouts for 3 channels and 19 classes
        proof.row("kernels that change the layout", "at most 1 %", f"{share:.1%}", share <= 0.01)
    largest = sorted(kernels.items(), key=lambda item: -item[1])[:10]
    shares = {name[:160]: f"{seconds / wall:.1%}" for name, seconds in largest}
    proof.row("ten largest kernels, share of the time", "known", shares, True)
    rate = flops.get_total_flops() / (wall / 10) / 1e12
    most = product_rate(device, amp)
    what = f"{rate:.3g} TFLOP/s, {rate / most:.0%} of a matrix product's {most:.3g}"
    proof.row(f"arithmetic of a step ({amp})", "known", what, rate > 0)


def product_rate(device: torch.device, dtype: torch.dtype | None) -> float:
    """TFLOP/s of a large matrix product in `dtype`."""
    side = 8192 if device.type == "cuda" else 512
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    sides = {"product": lambda _: a @ b}
    seconds = measure.median_seconds(sides, 5, at_once=10, device=device)
    return 2 * side**3 / seconds["product"] / 1e12


def throughput(proof: Proof) -> None:
    """bench_step.py for each network: comparison with SMP and torchvision."""
    results = proof.logs / "bench_step"
    for network in proof.given.networks:
        words = ["--networks", network, "--others", "--results", results]
        words += shlex.split(proof.given.bench)
        done = proof.command("benchmarks/bench_step.py", *words)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        held = json.loads(next(results.glob("*.json")).read_text(encoding="utf-8"))
        for figures in held["step"]["figures"]:
            compared(proof, figures)


def compared(proof: Proof, figures: dict) -> None:
    kind, network, sides = figures["kind"], figures["network"], figures["sides"]
    name = f"{kind}, {network}, {figures['images']} x {figures['size']}"
    rate, goal = sides["ours"]["images_per_second"], GOALS.get((kind, network), 0.0)
    proof.row(f"{name}, images/s", f"at least {goal:g}", rate, rate >= goal)
    for side, values in sides.items():
        if not side.startswith("ours"):
            least, gain = PEERS.get(side.partition(" ")[2], 0.0), values["ours_is_faster"]
            proof.row(f"{name}, faster than {side}", f"at least {least:g} x", gain, gain >= least)


SECTIONS: dict[str, Callable[[Proof], None]] = {
    "doctor": doctor,
    "data": data,
    "tests": tests,
    "training": training,
    "stopping": stopping,
    "evaluation": evaluation,
    "commands": commands,
    "processes": processes,
    "profile": profiled,
    "throughput": throughput,
}


def main() -> None:
    given = measure.options(
        __doc__, sections=tuple(SECTIONS), device="cuda", steps=300, images=500, train="",
        compiled="true", networks=("resnet18-8", "resnet50-8"), bench="",
        root=REPOSITORY / "data" / "gpu_synthetic", results=measure.RESULTS / "gpu",
    )  # fmt: skip
    if given.device == "cuda" and not torch.cuda.is_available():
        raise UserError("make gpu: PyTorch finds no GPU. Run python utils/doctor.py")
    proof = Proof(given)
    for name in given.sections:
        begin = time.monotonic()
        try:
            SECTIONS[name](proof)
        except Exception:  # of any kind, because the other sections must still run
            proof.row(name, "no error", traceback.format_exc(limit=-3)[-1500:], False)
        gc.collect()
        torch.cuda.empty_cache()  # the next section may start other processes
        print(f"      {name}: {time.monotonic() - begin:.0f} s", flush=True)
    failed = [row["check"] for row in proof.rows if not row["ok"]]
    print(f"{len(proof.rows) - len(failed)} of {len(proof.rows)} rows are ok")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    run_command(main)
