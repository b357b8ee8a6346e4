"""Print a table of all runs: data, network, options, scores. Runs that differ only by seed share a
line.

    python utils/results.py
    python utils/results.py --log_root /data/runs --dataset camvid

mIoU and pixel accuracy are those of the last evaluation on val, in per cent, as mean and standard
deviation; "options" are those that are not train.py's defaults, without those of every line.
<log_root>/results.json gets the same numbers with the options and seeds of each recipe.
"""

import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # run by path, Python looks for modules in utils/ first
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

from utils.base.errors import UserError, run_command
from utils.base.find import find
from utils.base.parser import parse
from utils.base.paths import resolve_log_root, write_json
from utils.training.config import FREE_ON_RESUME, Config, plain

NOT_RECIPE = FREE_ON_RESUME | {"seed"}  # what may differ between runs of one recipe
SHOWN = ("dataset", "model", "backbone", "output_stride", "steps", "epochs", "batch_size")
SHOWN += ("accumulate", "crop")  # columns of the table
SINCE = ("network", "images", "images_per_step", "start")  # older runs lack them
Results = dict[str, Any]  # a run's results.json


@dataclass(frozen=True)
class ResultsConfig:
    """Options of results.py."""

    log_root: Path | None = None
    """Folder of all runs. Default: training_logs/."""
    dataset: str | None = None
    """Show only runs on this data set."""


def read_runs(log_root: Path) -> list[Results]:
    """results.json of every run that has one; skips other files of that name with a warning."""
    runs = []
    for path in find(log_root, "*/results.json"):
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            keep = ("config", "environment", "step", "seconds", "miou", "pixel_accuracy")
            run = {name: run[name] for name in keep} | {name: run.get(name) for name in SINCE}
            line(summary([run]))  # fails here, not later, if an entry is missing
            runs.append(run)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            print(f"warning: {path}: not a run's results, skipped", file=sys.stderr)
    return runs


def recipe(run: Results) -> dict[str, Any]:
    """Options, images and step: equal for runs that differ only in the options of NOT_RECIPE."""
    options = {key: value for key, value in run["config"].items() if key not in NOT_RECIPE}
    if options["dataset"] == "custom":  # the folder says which
        options["data_root"] = run["config"]["data_root"]
    trained_on = {name: run[name] for name in ("images", "images_per_step") if run[name]}
    return {"recipe": options, **trained_on, "step": run["step"]}


def network_of(run: Results) -> str:
    """Architecture, and backbone and stride if the network has them."""
    config = run["config"]
    network = run["network"] or {"backbone", "output_stride"}  # older runs: DeepLabV3
    words = {"backbone": config["backbone"], "output_stride": f"stride {config['output_stride']}"}
    return " ".join([config["model"], *(words[name] for name in words if name in network)])


def summary(runs: list[Results]) -> dict[str, Any]:
    """The runs of one recipe as numbers; scores are 0 to 1, the deviation of one run is None."""

    def numbers(name: str, runs: list[Results] = runs) -> dict[str, Any]:
        values = [run[name] for run in runs]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        mean = statistics.mean(values) if values else None
        return {"mean": mean, "deviation": deviation, "values": values}

    machines = dict.fromkeys(map(machine, runs))
    # Of a resumed run only the end is timed; times of several machines have no mean.
    whole = [run for run in runs if not run["start"] and len(machines) == 1]
    return {
        **recipe(runs[0]),
        "network": network_of(runs[0]),
        "runs": [run["config"]["run_name"] for run in runs],
        "seeds": [run["config"]["seed"] for run in runs],
        **{name: numbers(name) for name in ("miou", "pixel_accuracy")},
        "seconds": numbers("seconds", whole),
        "environment": runs[0]["environment"],
        "machines": [*machines],
    }


def machine(run: Results) -> str:
    gpus, own = run["environment"]["gpus"], run["config"]["batch_size"]
    own *= run["config"].get("accumulate", 1)
    cpu = f"CPU, {run['environment']['cpu_threads']} threads"
    return f"{(run['images_per_step'] or own) // own} x {gpus[0]}" if gpus else cpu


def changed_options(summaries: list[dict[str, Any]]) -> list[str]:
    """Of each recipe the options that are not the defaults, except those of all recipes."""
    usual = plain(Config())
    own = [
        {f"{k} {v}" for k, v in one["recipe"].items() if k not in SHOWN and v != usual.get(k)}
        for one in summaries
    ]
    return [", ".join(sorted(options - set.intersection(*own))) for options in own]


def line(one: dict[str, Any]) -> dict[str, str]:
    """Heading -> cell: a line of the table."""
    options, seconds = one["recipe"], one["seconds"]["mean"]
    own = options["batch_size"] * options.get("accumulate", 1)
    images = one.get("images_per_step") or own
    return {
        "data": options.get("data_root") or options["dataset"],
        "network": one["network"],
        "steps": str(one["step"]),
        "batch": f"{images} x {'x'.join(map(str, options['crop']))}",
        "runs": ", ".join(one["runs"]),
        "mIoU": percent(one["miou"]),
        "pixel accuracy": percent(one["pixel_accuracy"]),
        "hours": "" if seconds is None else f"{seconds / 3600:.2f}",
        "machine": "; ".join(one["machines"]),
    }


def percent(score: dict[str, Any]) -> str:
    mean, deviation = 100 * score["mean"], score["deviation"]
    return f"{mean:.1f}" if deviation is None else f"{mean:.1f} ± {100 * deviation:.1f}"


def main() -> None:
    config = parse(ResultsConfig, __doc__)
    log_root = resolve_log_root(config.log_root)
    recipes: dict[str, list[Results]] = {}
    for run in read_runs(log_root):
        if config.dataset in (None, run["config"]["dataset"]):
            recipes.setdefault(json.dumps(recipe(run), sort_keys=True), []).append(run)
    if not recipes:
        raise UserError(
            f"{log_root}: no results of a training. Run python train.py up to its first evaluation"
        )
    path = log_root / "results.json"
    summaries = [summary(runs) for runs in recipes.values()]
    summaries.sort(key=lambda one: (line(one)["data"], one["miou"]["mean"]))
    write_json(path, summaries)
    changed = changed_options(summaries)
    lines = [{**line(x), "options": own} for x, own in zip(summaries, changed, strict=True)]
    for row in (lines[0], ["---"] * len(lines[0]), *(one.values() for one in lines)):
        print("| " + " | ".join(row) + " |")
    print(f"-> {path}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main)
