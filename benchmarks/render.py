"""Format measured figures as tables, for the screen and for the pages."""

from collections import defaultdict
from statistics import mean, stdev
from typing import Any

Rows = list[list[Any]]
Runs = dict[str, list[dict]]  # variant of a recipe -> a run per seed
TITLES = {
    "shipped without photometric": "test IoU, without photometric",
    "shipped": "test IoU",
    "long": "test IoU, 200 epochs",
}


def table(rows: Rows) -> str:
    """Markdown table; the first row holds the titles."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join(lines) + "\n"


def number(value: float) -> str:
    return f"{value:.2f}" if value < 1 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def milliseconds(value: float) -> str:
    return f"{number(value)} ms" if value < 1000 else f"{value / 1000:.2f} s"


def times(value: float) -> str:
    return f"**{value:.2f} x**" if value < 3 else f"**{value:.1f} x**"


def percent(*values: float) -> str:
    return ", ".join(f"{100 * value:.1f}" for value in values)


def spread(values: list[float]) -> str:
    """Mean and, with several seeds, standard deviation."""
    deviation = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else f" (n = {len(values)})"
    return percent(mean(values)) + deviation


def results(held: dict) -> str:
    """docs/results.md: all measured figures."""
    parts = [f"### {held['machine']}\n"]
    for section in (value for value in held.values() if isinstance(value, dict)):
        versions = ", ".join(f"{key} {value}" for key, value in section["versions"].items())
        parts.append(f"`{section['command']}`, {section['date']}; {versions}:\n")
        parts.append(table(figure_rows(section["figures"])))
    return "\n".join(parts)


def figure_rows(figures: list[dict]) -> Rows:
    """One row per dictionary, or per entry of its "sides"; one column per value."""
    rows = []
    for row in figures:
        common = {key: value for key, value in row.items() if key != "sides"}
        sides = row.get("sides", {row.get("side", ""): {}})
        rows += [cells(common | {"side": side} | sides[side]) for side in sides]
    return [[*rows[0]], *([row.get(title, "") for title in rows[0]] for row in rows)]


def cells(row: dict, prefix: str = "") -> dict[str, Any]:
    """{title: text}; the values of a nested dictionary become separate columns."""
    found = {}
    for key, value in row.items():
        title = f"{prefix}{key}".replace("_", " ").replace(" mib", " MiB").replace(" gib", " GiB")
        if isinstance(value, dict):
            found |= cells(value, f"{title}, ")
        elif isinstance(value, float):
            found[title] = f"{value:,.0f}" if value > 1000 else f"{value:.3g}"
        elif value != "":
            found[title] = "x".join(map(str, value)) if isinstance(value, list) else value
    return found


def readme(held: dict) -> str:
    """README.md: speed-up for the user, with the smallest and the largest network measured."""
    figures = defaultdict(list, {k: x["figures"] for k, x in held.items() if k != "machine"})
    rows = [["", "compared with", "its time", "here", "faster"]]

    def add(what: str, peer: str, theirs: float, ours: float, gain: float) -> None:
        rows.append([what, peer, milliseconds(theirs), milliseconds(ours), times(gain)])

    ends = {row["network"] for row in (*figures["step"][:1], *figures["step"][-1:])}
    for kind in ("training step", "prediction"):
        for row in figures["step"]:
            if row["kind"] == kind and row["network"] in ends:
                backbone, stride = row["network"].split("-")
                size = "x".join(map(str, row["size"]))
                what = f"{kind}, ResNet-{backbone[6:]} stride {stride}, {row['images']} x {size}"
                for name, side in row["sides"].items():
                    if not name.startswith("ours"):
                        both = (side["ms"], row["sides"]["ours"]["ms"])
                        add(what, name, *both, side["ours_is_faster"])
    pairs = [("logits to label map", "argmax"), ("loss and gradient", "cross_entropy")]
    for (what, peer), section in zip(pairs, ("argmax", "loss"), strict=True):
        for row in figures[section][:1]:
            both = (row["ms"]["torch"], row["ms"]["ours"])
            case = row["case"].partition(", noise")[0]
            add(f"{what}, {case}", f"interpolate, {peer}", *both, row["gain"])
    if whole := figures["evaluation"]:
        both = (whole[0]["ms_per_image"], whole[2]["ms_per_image"])
        what = "loss, label map, PNG and score of an image, network left out"
        add(what, "fregu856/deeplabv3, then csEval", *both, whole[0]["packed_is"])
    versions = {}
    for section in held.values():
        versions |= section["versions"] if isinstance(section, dict) else {}
    packages = {"torch": "torch", "SMP": "segmentation-models-pytorch"}
    known = "".join(f", {k} {versions[x]}" for k, x in packages.items() if x in versions)
    return f"{held['machine']}{known}:\n\n{table(rows)}"


def recipes(runs: list[dict]) -> str:
    """docs/recipes.md: options sorted by gain, networks, an unseen sequence, shipped configs."""
    found, unseen, networks = Runs(), Runs(), Runs()
    for run in sorted(runs, key=lambda run: run["seed"]):
        group = unseen if run.get("unseen") else networks if run.get("network") else found
        group.setdefault(run["variant"], []).append(run)
    shipped = [found.pop(name, []) for name in TITLES]
    plain = {run["seed"]: run["miou"] for run in found["baseline"]}
    titles = ["option of train.py", "val mIoU", "each seed", "gain, seed by seed"]
    options = [["one option changed", *titles]]
    gains = {name: mean(x["miou"] - plain[x["seed"]] for x in found[name]) for name in found}
    for name in sorted(found, key=lambda name: -gains[name]):
        flags = ", ".join(f"`{key} {value}`" for key, value in found[name][0]["options"].items())
        gain = f"{100 * gains[name]:+.1f}" if name != "baseline" else ""
        miou = column(found[name])
        options.append([name, flags, spread(miou), percent(*miou), gain])
    titles = ["val mIoU", "each seed", "pixel accuracy", "minutes (threads)"]
    network_rows = [["network", *titles]]
    for name, group in {"BatchNorm, stride 16": found["baseline"], **networks}.items():
        miou, accuracy = column(group), spread(column(group, "pixel_accuracy"))
        minutes = ", ".join(f"{run['seconds'] / 60:.0f} ({run['threads']})" for run in group)
        network_rows.append([name, spread(miou), percent(*miou), accuracy, minutes])
    unseen_rows = [["on a sequence unseen", "mIoU", "pixel accuracy"]]
    for name in sorted(unseen, key=lambda name: -mean(column(unseen[name]))):
        scores = [spread(column(unseen[name], key)) for key in ("miou", "pixel_accuracy")]
        unseen_rows.append([name, *scores])
    tables = [options, network_rows, unseen_rows, *map(shipped_rows, filter(None, shipped))]
    return "\n".join(map(table, tables))


def column(runs: list[dict], key: str = "miou") -> list[float]:
    return [run[key] for run in runs]


def shipped_rows(runs: list[dict]) -> Rows:
    tests = [run["test"] for run in runs]
    rows = [[TITLES[runs[0]["variant"]], *(f"seed {run['seed']}" for run in runs), "mean"]]
    for name in tests[0]["classes"]:
        values = [test["classes"][name] or 0.0 for test in tests]
        rows.append([name, *map(percent, values), percent(mean(values))])
    means = {"**mean IoU**": column(tests), "pixel accuracy": column(tests, "pixel_accuracy")}
    for name, values in {**means, "val mean IoU": column(runs)}.items():
        rows.append([name, *map(percent, values), spread(values)])
    minutes = [f"{number(run['seconds'] / 60)} ({run['threads']})" for run in runs]
    return [*rows, ["minutes (threads)", *minutes, ""]]
