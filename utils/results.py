"""The runs as a table: network, data, scores; seeds of one recipe in one line, with their spread.

    python utils/results.py
    python utils/results.py --log_root /data/runs --dataset camvid

mIoU and pixel accuracy of the last evaluation on val, in per cent, mean and standard deviation. The
same as numbers, with each recipe's options and seeds, goes to <log_root>/results.json.
"""

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run by path, Python looks for modules in utils/ first
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from utils.config import DatasetName
from utils.errors import UserError, run_command
from utils.files import resolve_log_root, write_json
from utils.parser import parse

# Options in which runs of one recipe may differ.
NOT_RECIPE = {"seed", "run_name", "log_root", "data_root", "device", "workers", "compile"}
NOT_RECIPE |= {"resume", "overwrite", "log_every", "save_every", "eval_every"}
TITLES = ("data", "network", "steps", "batch", "runs", "mIoU", "pixel accuracy", "hours", "machine")
Run = dict[str, Any]


@dataclass(frozen=True)
class ResultsConfig:
    """Options of results.py."""

    log_root: Path | None = None
    """Folder of all runs. Default: training_logs/."""
    dataset: DatasetName | None = None
    """Only runs on this data set."""


def read_runs(log_root: Path) -> list[Run]:
    """results.json of every run that has one; others' are named on stderr and left out."""
    runs = []
    for path in sorted(log_root.glob("*/results.json")):
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            keep = ("config", "environment", "step", "seconds", "miou", "pixel_accuracy")
            runs.append({name: run[name] for name in keep})
        except (ValueError, KeyError):
            print(f"warning: {path}: not a run's results, left out", file=sys.stderr)
    return runs


def recipe(run: Run) -> str:
    """Equal for runs that differ by seed and place only."""
    options = {key: value for key, value in run["config"].items() if key not in NOT_RECIPE}
    return json.dumps([options, run["step"]], sort_keys=True)


def line(runs: list[Run]) -> tuple[str, ...]:
    """The table's line of the runs of one recipe."""
    config, environment = runs[0]["config"], runs[0]["environment"]
    gpus = environment["gpus"]
    machine = f"{len(gpus)} x {gpus[0]}" if gpus else f"CPU, {environment['cpu_threads']} threads"
    crop = "x".join(map(str, config["crop"]))
    return (
        config["dataset"],
        f"{config['model']} {config['backbone']} stride {config['output_stride']}",
        str(runs[0]["step"]),
        f"{config['batch_size']} x {crop}",
        ", ".join(run["config"]["run_name"] for run in runs),
        spread([100 * run["miou"] for run in runs]),
        spread([100 * run["pixel_accuracy"] for run in runs]),
        f"{statistics.mean(run['seconds'] for run in runs) / 3600:.2f}",
        machine,
    )


def summary(runs: list[Run]) -> dict[str, Any]:
    """The runs of one recipe as numbers; scores from 0 to 1, the deviation None for one run."""

    def numbers(name: str) -> dict[str, Any]:
        values = [run[name] for run in runs]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return {"mean": statistics.mean(values), "deviation": deviation, "values": values}

    config = runs[0]["config"]
    return {
        "recipe": {key: value for key, value in config.items() if key not in NOT_RECIPE},
        "step": runs[0]["step"],
        "runs": [run["config"]["run_name"] for run in runs],
        "seeds": [run["config"]["seed"] for run in runs],
        **{name: numbers(name) for name in ("miou", "pixel_accuracy", "seconds")},
        "environment": runs[0]["environment"],
    }


def spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def main() -> None:
    config = parse(ResultsConfig, __doc__)
    log_root = resolve_log_root(config.log_root)
    recipes: dict[str, list[Run]] = {}
    for run in read_runs(log_root):
        if config.dataset in (None, run["config"]["dataset"]):
            recipes.setdefault(recipe(run), []).append(run)
    if not recipes:
        raise UserError(f"{log_root}: no finished evaluation. Train first: python train.py")
    path = log_root / "results.json"
    write_json(path, [summary(runs) for runs in recipes.values()])
    lines = sorted((line(runs) for runs in recipes.values()), key=lambda x: (x[0], x[5]))
    for row in (TITLES, ("---",) * len(TITLES), *lines):
        print("| " + " | ".join(row) + " |")
    print(f"-> {path}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
