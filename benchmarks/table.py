"""benchmarks/results/ -> the tables in README.md, docs/results.md and docs/recipes.md.

python benchmarks/table.py            part of make bench; the tests hold the pages to it
"""

import json
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from utils.errors import UserError, run_command
from utils.files import REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "results"
BEGIN, END = "<!-- made by benchmarks/table.py -->", "<!-- end -->"
Rows = list[list[Any]]


def main() -> None:
    for page in PAGES:
        path = REPOSITORY / page
        path.write_text(filled(page), encoding="utf-8")
        print(f"-> {page}")


def filled(page: str) -> str:
    """The page with its tables between the two marks."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise UserError(f"{page}: needs {BEGIN} and {END} once. Put them where the tables belong")
    folder, make = PAGES[page]
    held = [json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))]
    tables = "\n".join(map(make, held))
    return f"{text.split(BEGIN)[0]}{BEGIN}\n\n{tables}\n{END}{text.split(END)[1]}"


def readme(held: dict) -> str:
    """What a user gains, and what the configs need."""
    figures = {name: section["figures"] for name, section in held.items() if name != "machine"}
    rows = [["", "peer", "peer", "here", "faster", "memory, peer and here"]]
    maps = figures.get("argmax", [])
    for row in [*maps[:1], *(row for row in maps if "checkpoint" in row["case"])]:
        rows.append([f"logits to label map, {row['case']}", "interpolate, argmax", *pair(row)])
    for row in figures.get("loss", [])[:1]:
        rows.append([f"loss and gradient, {row['case']}", "interpolate, cross_entropy", *pair(row)])
    whole = {row["side"]: row for row in figures.get("evaluation", [])}
    if whole:
        peer, ours = whole["fregu856's evaluation + csEval"], whole["ours, packed"]
        both = [milliseconds(side["ms_per_image"]) for side in (peer, ours)]
        gain = times(peer["packed_is"])
        rows.append(["evaluating an image, network left out", "fregu856, csEval", *both, gain, ""])
    rows += [row for measured in figures.get("step", []) for row in sides(measured)]
    return f"{held['machine']}:\n\n{table(rows)}\n{needs(figures.get('profile', []))}"


def pair(row: dict) -> list[str]:
    """Milliseconds of peer and ours, gain, memory."""
    both = [milliseconds(row["ms"][side]) for side in ("torch", "ours")]
    memory = "{extra_mib_torch:.0f}, {extra_mib_ours:.0f} MiB".format(**row)
    return [*both, times(row["gain"]), memory]


def sides(measured: dict) -> Rows:
    """A row for every peer of a network."""
    backbone, stride = measured["network"].split("-")
    size = "x".join(map(str, measured["size"]))
    what = (
        f"{measured['kind']}, ResNet-{backbone[6:]} stride {stride}, {measured['images']} x {size}"
    )
    ours, rows = measured["sides"]["ours"], []
    for name, side in measured["sides"].items():
        if not name.startswith(("ours", "forward")):
            both = [milliseconds(one["ms"]) for one in (side, ours)]
            memory = f"{side['extra_mib']}, {ours['extra_mib']} MiB"
            rows.append([what, name, *both, times(side["ours_is_faster"]), memory])
    return rows


def needs(profile: list[dict]) -> str:
    rows = [["config", "batch", "peak memory", "images/s", "hours for the whole recipe, its steps"]]
    for row in profile:
        hours = f"{number(row['hours_of_recipe'])}, {row['steps_of_recipe']}"
        numbers = [f"{row['peak_gib']:.1f} GiB", f"{row['images_per_second']:.3g}", hours]
        rows.append([f"`{row['config']}`", row["batch"], *numbers])
    return table(rows)


def results(held: dict) -> str:
    """Everything that was measured."""
    parts = [f"### {held['machine']}\n"]
    for name, make in SECTIONS.items():
        if name not in held:
            continue
        versions = ", ".join(f"{key} {value}" for key, value in held[name]["versions"].items())
        parts.append(f"`{held[name]['command']}`, {held[name]['date']}; {versions}:\n")
        parts.append(table(make(held[name]["figures"])))
    return "\n".join(parts)


def argmax_rows(figures: list[dict]) -> Rows:
    rows = [["ms per image", *figures[0]["ms"], "gain over torch", "differing pixels", "extra MiB"]]
    for row in figures:
        count = f"{row['differing_pixels']} of {row['of_pixels'] / 1e6:.1f} million"
        if row["differing_pixels"]:
            count += f", gap {row['largest_gap']:.1e}"
        memory = f"{row['extra_mib_ours']} of {row['extra_mib_torch']}"
        rows.append(
            [row["case"], *map(number, row["ms"].values()), times(row["gain"]), count, memory]
        )
    return rows


def loss_rows(figures: list[dict]) -> Rows:
    rows = [["ms", *figures[0]["ms"], "gain", "extra MiB", "gradient error of torch, ours"]]
    for row in figures:
        memory = f"{row['extra_mib_ours']} of {row['extra_mib_torch']}"
        errors = f"{row['gradient_error_torch']:.1e}, {row['gradient_error_ours']:.1e}"
        rows.append(
            [row["case"], *map(number, row["ms"].values()), times(row["gain"]), memory, errors]
        )
    return rows


def evaluation_rows(figures: list[dict]) -> Rows:
    rows = [["an image, network left out", "ms", "packed is"]]
    return rows + [[x["side"], x["ms_per_image"], times(x["packed_is"])] for x in figures]


def parts_rows(figures: dict[str, float]) -> Rows:
    whole = sum(figures.values())
    names = [f"{name} {value / whole:.1%}" for name, value in figures.items()]
    return [["an image with the network, ms", "shares"], [f"{whole:.0f}", ", ".join(names)]]


def step_rows(figures: list[dict]) -> Rows:
    rows = [
        [
            "",
            "side",
            "ms",
            "images/s",
            "extra MiB",
            "GFLOP an image",
            "of the matrix product",
            "ours",
        ]
    ]
    for measured in figures:
        size = "x".join(map(str, measured["size"]))
        what = f"{measured['network']}, {measured['kind']}, {measured['images']} x {size}"
        for name, side in measured["sides"].items():
            share = side["gflop_per_second"] / measured["matrix_product_gflop_per_second"]
            numbers = [number(side["ms"]), side["images_per_second"], side["extra_mib"]]
            rest = [side["gflop_per_image"], f"{share:.0%}", times(side["ours_is_faster"])]
            rows.append([what, name, *numbers, *rest])
    return rows


def profile_rows(figures: list[dict]) -> Rows:
    rows = [["config", "batch", "step, ms", "shares of a step", "evaluation, ms an image"]]
    for row in figures:
        step = sum(row["ms"].values())
        shares = ", ".join(f"{name} {value / step:.1%}" for name, value in row["ms"].items())
        evaluation = row["evaluation_ms_per_image"]
        rows.append([f"`{row['config']}`", row["batch"], f"{step:.0f}", shares, evaluation])
    return rows


def recipes(runs: list[dict]) -> str:
    """Options by their gain, on val and on a sequence unseen; the shipped config's scores."""
    found: dict[str, list[dict]] = {}
    unseen: dict[str, list[dict]] = {}
    networks: dict[str, list[dict]] = {}
    for run in sorted(runs, key=lambda run: run["seed"]):
        group = unseen if run.get("unseen") else networks if run.get("network") else found
        group.setdefault(run["variant"], []).append(run)
    shipped, former = found.pop("shipped", []), found.pop("shipped without photometric", [])
    plain = {run["seed"]: run["miou"] for run in found["baseline"]}
    gains = {
        name: mean(run["miou"] - plain[run["seed"]] for run in group)
        for name, group in found.items()
    }
    rows = [
        ["one option changed", "option of train.py", "val mIoU", "each seed", "gain, seed by seed"]
    ]
    for name in sorted(found, key=lambda name: -gains[name]):
        values = [run["miou"] for run in found[name]]
        flags = ", ".join(f"`{key} {value}`" for key, value in found[name][0]["options"].items())
        gain = f"{100 * gains[name]:+.1f}" if name != "baseline" else ""
        rows.append([name, flags, spread(values), percent(*values), gain])
    networks = {"BatchNorm, stride 16": found["baseline"], **networks}
    tables = [
        rows,
        network_rows(networks),
        unseen_rows(unseen),
        *(shipped_rows(x) for x in (former, shipped) if x),
    ]
    return "\n".join(map(table, tables))


def network_rows(found: dict[str, list[dict]]) -> Rows:
    rows = [["network", "val mIoU", "each seed", "pixel accuracy", "minutes (threads)"]]
    for name, runs in found.items():
        values, accuracy = ([run[key] for run in runs] for key in ("miou", "pixel_accuracy"))
        minutes = ", ".join(f"{run['seconds'] / 60:.0f} ({run['threads']})" for run in runs)
        rows.append([name, spread(values), percent(*values), spread(accuracy), minutes])
    return rows


def unseen_rows(found: dict[str, list[dict]]) -> Rows:
    def values(name: str) -> list[float]:
        return [run["miou"] for run in found[name]]

    rows = [["on a sequence unseen", "mIoU", "pixel accuracy"]]
    for name in sorted(found, key=lambda name: -mean(values(name))):
        accuracy = [run["pixel_accuracy"] for run in found[name]]
        rows.append([name, spread(values(name)), spread(accuracy)])
    return rows


def shipped_rows(runs: list[dict]) -> Rows:
    title = "test IoU" + ("" if runs[0]["variant"] == "shipped" else ", without photometric")
    rows = [[title, *(f"seed {run['seed']}" for run in runs), "mean"]]
    tests = [run["test"] for run in runs]
    for name in tests[0]["classes"]:
        values = [test["classes"][name] or 0.0 for test in tests]
        rows.append([name, *map(percent, values), percent(mean(values))])
    for title, key in (("**mean IoU**", "miou"), ("pixel accuracy", "pixel_accuracy")):
        values = [test[key] for test in tests]
        rows.append([title, *map(percent, values), spread(values)])
    values = [run["miou"] for run in runs]
    rows.append(["val mean IoU", *map(percent, values), spread(values)])
    minutes = [f"{number(run['seconds'] / 60)} ({run['threads']})" for run in runs]
    return [*rows, ["minutes (threads)", *minutes, ""]]


def percent(*values: float) -> str:
    return ", ".join(f"{100 * value:.1f}" for value in values)


def spread(values: list[float]) -> str:
    """Mean and, of several seeds, standard deviation."""
    deviation = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else f" (n = {len(values)})"
    return percent(mean(values)) + deviation


def milliseconds(value: float) -> str:
    return f"{number(value)} ms" if value < 1000 else f"{value / 1000:.2f} s"


def number(value: float) -> str:
    if value < 1:
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def times(value: float) -> str:
    return f"**{value:.2f} x**" if value < 3 else f"**{value:.1f} x**"


def table(rows: Rows) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join(lines) + "\n"


SECTIONS = {
    "argmax": argmax_rows,
    "loss": loss_rows,
    "evaluation": evaluation_rows,
    "evaluation_parts_ms": parts_rows,
    "step": step_rows,
    "profile": profile_rows,
}
PAGES = {
    "README.md": (RESULTS, readme),
    "docs/results.md": (RESULTS, results),
    "docs/recipes.md": (RESULTS / "recipes", recipes),
}

if __name__ == "__main__":
    run_command(main)
