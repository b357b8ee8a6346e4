"""One HTML page on a checkpoint: scores, how sure they are, the worst images, speed, origin.

    python evaluation/report.py                              best checkpoint of the newest run
    python evaluation/report.py --checkpoint r18 --output r18.html
    python evaluation/report.py --checkpoint r50 --compare r18      is the difference real?

The page holds its pictures and needs nothing else. Default: training_logs/report_<run>.html.
"""

import base64
import heapq
import json
import shlex
import sys
import time
from dataclasses import dataclass, field
from html import escape
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Literal

if __name__ == "__main__":  # run by path, Python looks for modules in evaluation/ first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np

from datasets import Dataset
from evaluation.bootstrap import Estimate, ImageCounts, miou_difference, miou_interval
from evaluation.counts import Counts
from evaluation.evaluate import evaluate
from evaluation.inference import Trained
from evaluation.metrics import Scores
from evaluation.visualize import legend, sheet_row, titles
from utils.config import DatasetName, PredictionOptions
from utils.errors import UserError, run_command
from utils.files import resolve_log_root, write_text
from utils.logger import describe_environment, peak_memory_gib
from utils.parser import check, parse
from utils.plots import plot_confusion

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 1240px; padding: 0 1em;
       color: #222; background: #fff }
h1 { font-size: 1.5em } h2 { font-size: 1.15em; margin-top: 2em }
table { border-collapse: collapse } td, th { padding: 2px 14px 2px 0; text-align: left }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
tr + tr td { border-top: 1px solid #eee }
.bar { background: #e8eef5; width: 260px }
.bar i { display: block; height: 11px; background: #4682b4 }
.key { display: inline-block; width: 12px; height: 12px; margin-right: 8px;
       border: 1px solid #888 }
img { max-width: 100%; height: auto; display: block; margin: 4px 0 } .big { font-size: 2.2em }
code { background: #f4f4f4; padding: 1px 4px; overflow-wrap: anywhere } .note { color: #666 }
"""


@dataclass(frozen=True)
class ReportConfig(PredictionOptions):
    """Options of report.py."""

    dataset: DatasetName | None = None
    """Data set to score on. Default: the one the checkpoint was trained on."""
    split: Literal["val", "test"] = "val"
    """Part of the data set; test only where its labels are public (camvid)."""
    compare: str | None = None
    """Another checkpoint, named as --checkpoint is, scored on the same images."""
    worst: int = 20
    """Images to show, those of the lowest mean IoU over the classes in them."""
    output: Path | None = None
    """File to write. Default: report_<run>.html in --log_root."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, "worst", lambda images: images >= 0, "at least 0")


@dataclass
class Result:
    """A checkpoint's scores and what each image adds to them."""

    trained: Trained
    dataset: Dataset
    keep: int
    confusions: dict[str, np.ndarray] = field(default_factory=dict)
    worst: list[tuple[float, str, np.ndarray]] = field(default_factory=list)  # a heap of -IoU
    lock: Lock = field(default_factory=Lock)
    scores: Scores | None = None
    seconds: float = 0.0

    def add(self, name: str, counts: Counts, labels: np.ndarray) -> None:
        """`evaluate`'s on_image."""
        iou = ImageCounts.of([counts.confusion], self.dataset.classes).miou()
        with self.lock:
            self.confusions[name] = counts.confusion
            if np.isfinite(iou):
                heapq.heappush(self.worst, (-float(iou), name, labels))
            if len(self.worst) > self.keep:
                heapq.heappop(self.worst)

    @property
    def counts(self) -> ImageCounts:
        confusions = [self.confusions[name] for name in self.dataset.names]
        return ImageCounts.of(confusions, self.dataset.classes)

    @property
    def name(self) -> str:
        """The run's, or the file's."""
        path = self.trained.path
        return path.parents[1].name if path.parent.name == "checkpoints" else path.stem


def score(config: ReportConfig, checkpoint: str | None, first: Result | None = None) -> Result:
    """first: the result that this one is to be compared with."""
    trained = Trained.open(config, checkpoint)
    dataset = trained.dataset(config.split, config.dataset)
    if first is not None and dataset.names != first.dataset.names:
        what = f"has other images than {first.trained.path}"
        raise UserError(f"{trained.path}: {what}. Give both one --data_root")
    result = Result(trained, dataset, keep=config.worst if first is None else 0)
    print(f"checkpoint {trained.path} on {len(dataset)} images, {dataset.source}")
    begin = time.perf_counter()
    result.scores = evaluate(
        trained.model, dataset, world=trained.world, amp=trained.amp,
        workers=config.workers, on_image=result.add, **trained.options,
    )  # fmt: skip
    result.seconds = time.perf_counter() - begin
    return result


def report(config: ReportConfig) -> None:
    output = config.output
    if output is not None and (output.is_dir() or not output.resolve().parent.is_dir()):
        raise UserError(f"{output}: no file in an existing folder. Name one with --output")
    result = score(config, None)
    other = score(config, config.compare, result) if config.compare else None
    interval = miou_interval(result.counts)
    output = output or resolve_log_root(config.log_root) / f"report_{result.name}.html"
    write_text(output, page(result, other, interval))
    print(f"mIoU {told(interval)}")
    if other is not None:
        print(f"minus {other.name}: {told(miou_difference(result.counts, other.counts), sign='+')}")
    print(f"report: {output.resolve()}")


def told(estimate: Estimate, *, sign: str = "") -> str:
    """In per cent, with the interval; of a difference the p-value as well."""
    value, low, high = (
        format(100 * x, f"{sign}.2f") for x in (estimate.value, estimate.low, estimate.high)
    )
    p = f", p = {estimate.p:.3f}" if sign else ""
    return f"{value} % (95 % interval {low} to {high}{p})"


def page(result: Result, other: Result | None, interval: Estimate) -> str:
    """The whole HTML document."""
    scores, images = result.scores, len(result.dataset)
    title = f"{result.name} on {images} images"
    parts = [
        f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>',
        f"<h1>{escape(title)}</h1><p><span class=big>{100 * scores.miou:.2f} %</span> mean IoU,",
        f"95 % interval {100 * interval.low:.2f} to {100 * interval.high:.2f} over images",
        "<p class=note>The interval says how far mIoU would move with other images of the same "
        "kind (2,000 draws with replacement); other seeds of the training move it as well.",
    ]
    if other is not None:
        parts.append(comparison(result, other))
    parts += ["<h2>Classes</h2>", class_table(result, other), "<h2>Official table</h2>"]
    parts += [f"<pre>{escape(scores.table())}</pre>", "<h2>Confusion</h2>", confusion(result)]
    curves = result.trained.path.parents[1] / "curves.png"
    if curves.is_file():
        parts += ["<h2>Training</h2>", picture(curves.read_bytes(), "png", "curves")]
    if result.worst:
        parts += [f"<h2>The {len(result.worst)} worst images</h2>", worst_images(result)]
    parts += ["<h2>Origin</h2>", origin(result)]
    return "\n".join(parts)


def comparison(result: Result, other: Result) -> str:
    difference = miou_difference(result.counts, other.counts)
    real = "is no accident of these images" if difference.p < 0.05 else "may be an accident"
    return (
        f"<h2>Against {escape(other.name)} ({100 * other.scores.miou:.2f} %)</h2>"
        f"<p>Difference {escape(told(difference, sign='+'))}: it {real}. Paired bootstrap: "
        "both are scored on the same draws of the images."
    )


def class_table(result: Result, other: Result | None) -> str:
    classes = result.dataset.classes
    rows = ["<table><tr><th>class<th class=n>IoU<th>" + ("<th class=n>difference" if other else "")]
    for number, (name, iou) in enumerate(result.scores.classes.items()):
        color = "#{:02x}{:02x}{:02x}".format(*classes.colors[number].tolist())
        width = 0 if np.isnan(iou) else 100 * iou
        shown = "absent" if np.isnan(iou) else f"{width:.1f}"
        rows.append(
            f'<tr><td><span class=key style="background:{color}"></span>{escape(name)}'
            f'<td class=n>{shown}<td><div class=bar><i style="width:{width:.1f}%"></i></div>'
        )
        if other is not None:
            rows.append(f"<td class=n>{100 * (iou - other.scores.classes[name]):+.1f}")
    return "".join([*rows, "</table>"])


def confusion(result: Result) -> str:
    file = BytesIO()
    plot_confusion(result.scores.counts.confusion, result.dataset.classes, file)
    return picture(file.getvalue(), "png", "confusion matrix")


def worst_images(result: Result) -> str:
    dataset = result.dataset
    index = {name: number for number, name in enumerate(dataset.names)}
    rows = [picture_of(titles()), picture_of(legend(dataset.classes, width=titles().shape[1]))]
    for iou, name, labels in sorted(result.worst, reverse=True, key=lambda row: row[:2]):
        rows.append(f"<div>{escape(name)}: {-100 * iou:.1f} %</div>")
        rows.append(picture_of(sheet_row(dataset[index[name]], labels, dataset.classes)))
    return "\n".join(rows)


def origin(result: Result) -> str:
    trained, images = result.trained, len(result.dataset)
    now = describe_environment()
    facts = {
        "checkpoint": f"{trained.path}, step {trained.state['step']}",
        "command": shlex.join(["python", *now["command"]]),
        "data": f"{trained.root()}, {result.dataset.source}",
        "prediction": json.dumps(trained.options | {"precision": str(trained.amp or "float32")}),
        "speed": f"{images / result.seconds:.2f} images/s, files and scores included",
        "peak memory": f"{peak_memory_gib(trained.world.device):.2f} GiB",
        "device": ", ".join(now["gpus"]) or f"CPU, {now['cpu_threads']} threads",
        "versions": json.dumps(now["packages"]),
        "trained with": json.dumps(trained.state["config"]),
        "trained on": json.dumps(trained.state["environment"]),
    }
    rows = (f"<tr><td>{escape(k)}<td><code>{escape(v)}</code>" for k, v in facts.items())
    return f"<table>{''.join(rows)}</table>"


def picture_of(pixels: np.ndarray) -> str:
    """(H,W,3) RGB -> an <img> of a JPEG."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 85]
    encoded = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)[1]
    return picture(encoded.tobytes(), "jpeg", "")


def picture(content: bytes, kind: str, text: str) -> str:
    return f'<img alt="{text}" src="data:image/{kind};base64,{base64.b64encode(content).decode()}">'


def main() -> None:
    report(parse(ReportConfig, __doc__))


if __name__ == "__main__":
    run_command(main)
