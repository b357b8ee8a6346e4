"""Write an HTML page about a checkpoint: scores with intervals, worst images, speed, origin.

    python evaluation/report.py                              best checkpoint of the newest run
    python evaluation/report.py --checkpoint r18 --output r18.html
    python evaluation/report.py --checkpoint r50 --compare r18      is the difference real?

The page contains its pictures, so it is one file. Default: training_logs/report_<run>.html.
"""

import json
import shlex
import sys
import time
from base64 import b64encode
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from threading import Lock

if __name__ == "__main__":  # else Python looks for modules in evaluation/ first
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import cv2
import numpy as np

from evaluation.bootstrap import Estimate, ImageCounts, estimate
from evaluation.calibration import BINS, Calibration, plot_reliability
from evaluation.counts import Counts
from evaluation.metrics import Scores, mean_of_present
from evaluation.object_size import SIZES, count_by_size
from evaluation.plots import plot_confusion
from evaluation.task import Prediction, Sample
from evaluation.trained import ScoringOptions, Trained
from evaluation.visualize import legend, sheet_row, titles
from utils.base.errors import UserError, run_command
from utils.base.parser import check, parse
from utils.base.paths import require_file_name, resolve_log_root, write_text
from utils.data.dataset import Dataset
from utils.training.logger import describe_environment, peak_memory_gib

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1240px; padding: 0 1em }
td, th { padding: 2px 14px 2px 0; text-align: left } .n { text-align: right }
.key { display: inline-block; width: 12px; height: 12px; margin-right: 8px } meter { width: 260px }
img { display: block; max-width: 100%; margin: 4px 0 } code { overflow-wrap: anywhere }
.big { font-size: 1.6em }
"""


@dataclass(frozen=True)
class ReportConfig(ScoringOptions):
    """Options of report.py."""

    compare: str | None = None
    """Another checkpoint, given like --checkpoint, to score on the same images."""
    worst: int = 20
    """Number of images to show: those with the lowest mean IoU over the classes in them."""
    output: Path | None = None
    """File to write. Default: report_<run>.html in --log_root."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "worst", lambda images: images >= 0, "at least 0")


@dataclass(frozen=True)
class Result:
    """A checkpoint's scores and the counts of each image."""

    trained: Trained
    dataset: Dataset
    scores: Scores
    counts: ImageCounts
    worst: list[tuple[float, str, np.ndarray]]  # mean IoU, name, pictures; lowest first
    calibration: Calibration
    by_size: np.ndarray  # of count_by_size
    seconds: float


def score(trained: Trained, dataset: Dataset, *, keep: int) -> Result:
    """Evaluate a checkpoint; `keep`: number of worst images to keep."""
    classes, task = dataset.classes, trained.task
    images, worst, lock = {}, [], Lock()
    calibration = Calibration()
    by_size = np.zeros((classes.num_classes, len(SIZES), 3), np.int64)

    def add(sample: Sample, counts: Counts, prediction: Prediction) -> None:
        name = sample["name"]
        own = ImageCounts.of(counts.confusion, classes)
        iou = float(own.miou())
        sizes = count_by_size(sample, task.train_ids(prediction), classes)
        with lock:
            images[name] = own
            by_size[...] += sizes
            if np.isfinite(iou) and sum(other <= iou for other, *_ in worst) < keep:
                worst.append((iou, name, sheet_row(sample, prediction, classes, task)))
                worst.sort(key=lambda entry: entry[:2])
                del worst[keep:]

    print(f"checkpoint {trained.path} on {len(dataset)} images, {dataset.source}")
    begin = time.perf_counter()
    scores = trained.evaluate(dataset, on_image=add, on_logits=calibration.add)
    seconds = time.perf_counter() - begin
    counts = ImageCounts.joined([images[name] for name in dataset.names])
    return Result(trained, dataset, scores, counts, worst, calibration, by_size, seconds)


def in_percent(miou: Estimate, *, sign: str = "") -> str:
    """Value and interval in per cent; with a sign (for a difference) also the p-value."""
    value, low, high = (format(100 * x, f"{sign}.2f") for x in (miou.value, miou.low, miou.high))
    p = f", p = {miou.p:.3f}" if sign else ""
    return f"{value} % (95 % interval {low} to {high}{p})"


def page(result: Result, other: Result | None, interval: str, difference: Estimate | None) -> str:
    """The whole HTML document."""
    scores, classes = result.scores, result.dataset.classes
    title = escape(f"{result.trained.name} on {len(result.dataset)} images")
    parts = [
        f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{title}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>',
        f"<h1>{title}</h1><p class=big>mean IoU {interval}",
        "<p>The interval shows how much mIoU varies with the choice of images (2,000 draws with "
        "replacement). It does not include the variation between training seeds.",
    ]
    if other is not None:
        real = "is significant (p < 0.05)" if difference.p < 0.05 else "may be due to chance"
        parts += [
            f"<h2>Against {escape(other.trained.name)} ({100 * other.scores.miou:.2f} %)</h2>",
            f"<p>Difference {in_percent(difference, sign='+')}: it {real}. Paired bootstrap: "
            "both checkpoints are scored on the same draws of the images.",
        ]
    matrix, diagram = BytesIO(), BytesIO()
    plot_confusion(scores.counts.confusion, classes, matrix)
    plot_reliability(result.calibration, diagram)
    parts += ["<h2>Classes</h2>", class_table(result, other)]
    parts += ["<h2>Objects by size</h2>", size_table(result)]
    parts += [
        f"<h2>Calibration</h2><p>Expected calibration error {100 * result.calibration.error():.2f} "
        f"%: how far confidence and accuracy lie apart, over {BINS} bins of confidence. Below the "
        "gray line the network is too sure of itself.",
        picture(diagram.getvalue(), "png", "accuracy over confidence"),
    ]
    parts += ["<h2>Official table</h2><p>The loss is without class weights."]
    parts += [f"<pre>{escape(scores.table())}</pre>"]
    parts += ["<h2>Confusion</h2>", picture(matrix.getvalue(), "png", "confusion matrix")]
    run = result.trained.run
    if run and (curves := run / "curves.png").is_file():
        parts += ["<h2>Training</h2>", picture(curves.read_bytes(), "png", "curves")]
    if result.worst:
        parts.append(f"<h2>The {len(result.worst)} worst images</h2>")
        parts += [picture_of(x) for x in (titles(), legend(classes, width=titles().shape[1]))]
        for iou, name, row in result.worst:
            parts.append(f"<div>{escape(name)}: {100 * iou:.1f} %</div>{picture_of(row)}")
    return "\n".join([*parts, "<h2>Origin</h2>", origin(result, other)])


def class_table(result: Result, other: Result | None) -> str:
    colors = result.dataset.classes.colors.tolist()
    titles = "<table><tr><th>class<th class=n>IoU<th><th class=n>calibration error"
    rows = [titles + ("<th class=n>difference" if other else "")]
    for number, (name, iou) in enumerate(result.scores.classes.items()):
        color, error = colors[number], result.calibration.error(number)
        shown, width = ("absent", 0) if np.isnan(iou) else (f"{100 * iou:.1f}", f"{iou:.3f}")
        rows.append(
            f'<tr><td><span class=key style="background:rgb{tuple(color)}"></span>{escape(name)}'
            f"<td class=n>{shown}<td><meter value={width}></meter>"
            f"<td class=n>{'' if np.isnan(error) else f'{100 * error:.1f}'}"
        )
        if other is not None:
            gain = 100 * (iou - other.scores.classes[name])
            rows.append(f"<td class=n>{'' if np.isnan(gain) else f'{gain:+.1f}'}")
    return "".join([*rows, "</table>"])


def size_table(result: Result) -> str:
    """IoU and number of the objects of each class and size, and the mean of the classes."""
    hits, union, objects = np.moveaxis(result.by_size, 2, 0)
    iou = np.where(objects > 0, 100 * hits / np.maximum(union, 1), np.nan)
    rows = [f"<table><tr><th>class{''.join(f'<th class=n>{size}' for size in SIZES)}"]
    for name, values, numbers in zip(result.dataset.classes.names, iou, objects, strict=True):
        if numbers.any():
            pairs = zip(values, numbers, strict=True)
            cells = ("<td>" if np.isnan(x) else f"<td class=n>{x:.1f} ({n:,})" for x, n in pairs)
            rows.append(f"<tr><td>{escape(name)}{''.join(cells)}")
    means = ("<td>" if np.isnan(x) else f"<td class=n>{x:.1f}" for x in map(mean_of_present, iou.T))
    text = "<p>IoU in per cent and, in brackets, number of objects."
    return "".join([*rows, f"<tr><td>mean{''.join(means)}", "</table>", text])


def origin(result: Result, other: Result | None) -> str:
    trained, images = result.trained, len(result.dataset)
    now = describe_environment()
    against = {"against": json.dumps(other.trained.origin)} if other else {}
    facts = {
        "command": shlex.join(["python", *now["command"]]),
        "scored": json.dumps(trained.origin),
        **against,
        "data": f"{trained.root}, {result.dataset.source}",
        "speed": f"{images / result.seconds:.2f} images/s, files and scores included",
        "peak memory": f"{peak_memory_gib(trained.world.device):.2f} GiB",
        "device": ", ".join(now["gpus"]) or f"CPU, {now['cpu_threads']} threads",
        "versions": json.dumps(now["packages"]),
        "trained with": json.dumps(trained.state["config"]),
        "trained on": json.dumps(trained.state.get("environment", trained.state.get("source"))),
    }
    rows = (f"<tr><td>{escape(k)}<td><code>{escape(v)}</code>" for k, v in facts.items())
    return f"<table>{''.join(rows)}</table>"


def picture_of(pixels: np.ndarray) -> str:
    """(H,W,3) RGB -> an <img> of a JPEG."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 85]
    encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)[1]
    return picture(encoded.tobytes(), "jpeg", "")


def picture(content: bytes, kind: str, text: str) -> str:
    return f'<img alt="{text}" src="data:image/{kind};base64,{b64encode(content).decode()}">'


def main() -> None:
    config = parse(ReportConfig, __doc__)
    names = [config.checkpoint, config.compare][: 2 if config.compare else 1]
    trained = [Trained.open(config, name) for name in names]
    datasets = [x.dataset(config.split) for x in trained]
    if datasets[0].names != datasets[-1].names:
        what = f"would be scored on other images than {trained[0].path}"
        raise UserError(f"{trained[1].path}: {what}. Give one --data_root for both")
    if datasets[0].classes.names != datasets[-1].classes.names:
        what = f"would be scored on other classes than {trained[0].path}"
        raise UserError(f"{trained[1].path}: {what}. Compare checkpoints of one data set")
    output = config.output or resolve_log_root(config.log_root) / f"report_{trained[0].name}.html"
    require_file_name(output)
    result = score(trained[0], datasets[0], keep=config.worst)
    other = score(trained[1], datasets[1], keep=0) if config.compare else None
    interval = in_percent(estimate(result.counts))
    difference = None if other is None else estimate(result.counts, other.counts)
    write_text(output, page(result, other, interval, difference))
    print(f"mIoU {interval}")
    if difference is not None:
        print(f"minus {other.trained.name}: {in_percent(difference, sign='+')}")
    print(f"report: {output.resolve()}")


if __name__ == "__main__":
    run_command(main)
