"""Score a checkpoint on corrupted val images: with noise, blur, bad weather, digital faults.

    python evaluation/robustness.py                                best checkpoint, newest run
    python evaluation/robustness.py --corruptions '[fog,snow]' --severities '[1,3,5]'

Protocol: Kamann and Rother, "Benchmarking the Robustness of Semantic Segmentation Models", 2019
(arXiv 1908.05005, Cityscapes-C): 16 corruptions of Hendrycks and Dietterich at severities 1 to 5,
the four noises at 1 to 3. Images are corrupted in memory. Writes robustness_<run>.json and .png to
training_logs/. Needs: pip install --no-deps imagecorruptions-imaug, pip install numba scikit-image.
"""

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

if __name__ == "__main__":  # else Python looks for modules in evaluation/ first
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

import numpy as np
from tqdm import tqdm

from evaluation.corruptions import CORRUPTIONS, KINDS, PACKAGE, Corrupted
from evaluation.trained import ScoringOptions, Trained
from utils.base.errors import UserError, run_command
from utils.base.parser import check, parse
from utils.base.paths import require_file_name, resolve_log_root, whole, write_json
from utils.base.progress import progress
from utils.data.dataset import Dataset

SEVERITIES = (1, 2, 3, 4, 5)
STRONGEST_NOISE = 3
Scored = dict[str, dict[int, float]]  # corruption -> severity -> mIoU


@dataclass(frozen=True)
class RobustnessConfig(ScoringOptions):
    """Options of robustness.py."""

    corruptions: tuple[str, ...] = CORRUPTIONS
    """Corruptions to score. Default: the 16 of Cityscapes-C."""
    severities: tuple[int, ...] = SEVERITIES
    """Severities from 1 to 5, as strong as Hendrycks and Dietterich define them; noises above 3 are
    left out."""
    output: Path | None = None
    """JSON file to write; the picture lies beside it. Default: robustness_<run>.json in
    --log_root, which is replaced."""

    def __post_init__(self) -> None:
        super().__post_init__()
        known = f"among {', '.join(CORRUPTIONS)}"
        check(self, "corruptions", lambda names: names and {*names} <= {*CORRUPTIONS}, known)
        check(self, "severities", lambda x: x and {*x} <= {*SEVERITIES}, "from 1 to 5")
        check(self, "output", lambda path: path.suffix == ".json", "a file *.json")
        check(self, "severities", lambda _: self.settings(), f"up to {STRONGEST_NOISE} for noises")

    def settings(self) -> dict[str, list[int]]:
        """Severities of each corruption to score."""
        chosen = [x for x in SEVERITIES if x in self.severities]
        noises = [x for x in chosen if x <= STRONGEST_NOISE]
        pairs = {x: noises if x in KINDS["noise"] else chosen for x in self.corruptions}
        return {name: severities for name, severities in pairs.items() if severities}


def mean(values: Iterable[float]) -> float:
    return float(np.mean([*values]))


def row(name: str, scores: dict[int, float]) -> str:
    """A line of the table: mIoU at each severity, and their mean."""
    cells = (f"{100 * scores[x]:.1f}" if x in scores else "" for x in SEVERITIES)
    return f"{name:<18}{''.join(f'{x:>7}' for x in cells)}{100 * mean(scores.values()):>8.1f}"


def plot(clean: float, scored: Scored, path: Path) -> None:
    """A PNG with a panel for each kind of corruption: mIoU over severity."""
    from matplotlib.figure import Figure  # slow import; unlike pyplot it needs no screen

    kinds = {kind: [x for x in names if x in scored] for kind, names in KINDS.items()}
    kinds = {kind: names for kind, names in kinds.items() if names}
    figure = Figure(figsize=(1 + 3.2 * len(kinds), 5), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for panel, (kind, names) in zip(panels, kinds.items(), strict=True):
        panel.axhline(100 * clean, color="gray", linewidth=1, label="clean")
        for name in names:
            severities, values = zip(*scored[name].items(), strict=True)
            panel.plot(severities, [100 * x for x in values], marker="o", label=name)
        panel.set(title=kind, xlabel="severity", xticks=SEVERITIES)
        panel.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.15))
    panels[0].set(ylabel="mean IoU in per cent", ylim=(0, None))
    with whole(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")


def require_sizes(dataset: Dataset) -> None:
    for index, name in enumerate(dataset.names):
        if min(dataset.size(index)) < 32:
            what = f"below 32x32 pixels, too small for {PACKAGE}"
            raise UserError(f"image {name}: {what}. Leave it out of the split")


def end_with_parent() -> None:
    """Let this process end when the command that started it is gone."""

    def watch() -> None:
        parent_process().join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


@contextmanager
def processes(number: int) -> Iterator[ProcessPoolExecutor]:
    """That many processes, which leave Ctrl-C to this one and end with it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited
    with ProcessPoolExecutor(number, get_context("spawn"), end_with_parent) as pool:
        for _ in range(number):
            pool.submit(int)
        signal.signal(signal.SIGINT, before)
        yield pool


def main() -> None:
    config = parse(RobustnessConfig, __doc__)
    try:
        import_module("imagecorruptions")
        package = f"{PACKAGE} {version(PACKAGE)}"
    except ImportError as error:
        advice = f"pip install --no-deps {PACKAGE} && pip install numba scikit-image"
        raise UserError(f"robustness.py: {PACKAGE} cannot be used ({error}). {advice}") from error
    trained = Trained.open(config)
    dataset, settings = trained.dataset(config.split), config.settings()
    table = config.output or resolve_log_root(config.log_root) / f"robustness_{trained.name}.json"
    picture = table.with_suffix(".png")
    for path in (table, picture):
        require_file_name(path)
    require_sizes(dataset)
    times = 1 + sum(map(len, settings.values()))
    print(f"checkpoint {trained.path} on {len(dataset)} images, {dataset.source}; {package}")
    facts = {"split": config.split, "images": len(dataset), "package": package}
    facts = trained.origin | facts
    scored: Scored = {}
    with (
        processes(max(1, config.workers)) as pool,
        progress(times * len(dataset), unit="image", label="evaluate") as bar,
    ):
        clean = trained.evaluate(dataset, bar=bar).miou
        tqdm.write(f"mean IoU {100 * clean:.1f} %; of corrupted images, at severity")
        tqdm.write(f"{'':<18}{''.join(f'{x:>7}' for x in SEVERITIES)}    mean")
        for name, severities in settings.items():
            scored[name] = {
                x: trained.evaluate(Corrupted(dataset, name, x, pool), bar=bar).miou
                for x in severities
            }
            tqdm.write(row(name, scored[name]))
            overall = mean(mean(scores.values()) for scores in scored.values())
            write_json(table, {**facts, "clean": clean, "mean": overall, "miou": scored})
    print(f"mean of {len(scored)} corruptions: {100 * overall:.1f} %")
    plot(clean, scored, picture)
    print(f"table: {table}\npicture: {picture}")


if __name__ == "__main__":
    run_command(main)
