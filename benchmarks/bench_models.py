"""Measure size, arithmetic, speed and memory of every architecture; docs/models.md has the table.

    python benchmarks/bench_models.py
    python benchmarks/bench_models.py --models fpn --encoder resnet18

The encoder is --encoder where the architecture takes it, else its only one; the output stride 8
where it has one. A prediction ends with the label map and is in fp32 on a CPU, a training step is
that of train.py.
Weights and images are random.
"""

import inspect
import sys
from functools import partial
from pathlib import Path

if __name__ == "__main__":  # else it would replace another folder
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import measure
from benchmarks.bench_step import AMP, DEVICE, ON_CPU, noise, our_side
from model import MODELS, build_model, encoders_of, option_names
from utils.base.environment import keep_memory
from utils.base.errors import run_command

SIZES = ((512, 1024), (1024, 2048))


def size(name: str, **options: str) -> dict:
    """Parameters in millions, operations of one image in 1e9, lines of the file."""
    with torch.device("meta"):
        model = build_model(name, num_classes=19, **options).eval()
        row = {"million_parameters": round(sum(p.numel() for p in model.parameters()) / 1e6, 2)}
        for height, width in SIZES:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                logits = model(torch.empty(1, 3, height, width))["out"]
            row[f"gflop_{height}x{width}"] = round(counter.get_total_flops() / 1e9)
    file = inspect.getsourcefile(MODELS[name])
    lines = len(Path(file).read_text(encoding="utf-8").splitlines())
    return {"file": Path(file).name, "lines": lines, "stride": width // logits.shape[3], **row}


def speed(name: str, rounds: int, images: int, *, training: bool, **options: str) -> dict:
    """Images per second and memory of a prediction or a training step; images of 256x512."""
    batch = noise(images, (256, 512))
    build = partial(build_model, name, num_classes=19, **options)
    amp = None if ON_CPU and not training else AMP  # as the evaluation
    side = our_side(build, batch, training, amp=amp)
    memory = measure.extra_mib(partial(side, 0), DEVICE)
    how = {"at_once": 1 if ON_CPU else 10, "device": DEVICE}
    seconds = measure.median_seconds({name: side}, rounds, **how)[name]
    return {"images_per_second": round(images / seconds, 3), "mib": round(memory)}


def main() -> None:
    given = measure.options(
        __doc__, models=measure.SEMANTIC, encoder="resnet50", rounds=3, results=measure.RESULTS
    )
    torch.backends.cudnn.benchmark = True
    measure.one_thread()
    keep_memory()
    rows = []
    for name in given.models:
        options = {}
        if "backbone" in option_names(name):
            own = encoders_of(name)
            options = {"backbone": given.encoder if given.encoder in own else own[0]}
        rows.append(
            {
                "model": name,
                "encoder": options.get("backbone", ""),
                **size(name, **options),
                "prediction": speed(name, given.rounds, 1, training=False, **options),
                "training": speed(name, given.rounds, 2, training=True, **options),
            }
        )
        measure.record(given.results, "models", rows)


if __name__ == "__main__":
    run_command(main)
