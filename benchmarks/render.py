"""Format measured figures as tables, for the screen and for the pages."""

from collections import defaultdict
from statistics import mean, stdev
from typing import Any

Rows = list[list[Any]]
Runs = dict[str, list[dict]]  # variant of a recipe -> a run per seed
CAPTIONS = (  # of docs/recipes.md
    "score by length", "options of the shipped config", "options in a short training", "networks",
    "other networks", "the unseen sequence after a short training", "classes",
)  # fmt: skip
TITLES = {  # trainings whose classes are shown
    "30 minutes": "test IoU, 6000 steps",
    "120 minutes": "test IoU, 24000 steps",
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
    first = {(row["kind"], row["network"]): row for row in reversed(figures["step"])}
    for kind in ("training step", "prediction"):
        for row in figures["step"]:
            if row["kind"] == kind and row["network"] in ends and row in first.values():
                backbone, stride = row["network"].split("-")
                size = "x".join(map(str, row["size"]))
                what = f"{kind}, ResNet-{backbone[6:]} stride {stride}, {row['images']} x {size}"
                for name, side in row["sides"].items():
                    in_fp32 = "bf16" not in name
                    if not name.startswith("ours") and not (in_fp32 and "kept" in name):
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
        what = "evaluation of an image without its network"
        add(what, "fregu856/deeplabv3, then csEval", *both, whole[0]["packed_is"])
    versions = {}
    for section in held.values():
        versions |= section["versions"] if isinstance(section, dict) else {}
    packages = {"torch": "torch", "SMP": "segmentation-models-pytorch"}
    known = "".join(f", {k} {versions[x]}" for k, x in packages.items() if x in versions)
    return f"{held['machine']}{known}:\n\n{table(rows)}" if rows[1:] else ""


def models(held: dict) -> str:
    """docs/models.md: size and speed of every architecture, if they were measured there."""
    if "models" not in held:
        return ""
    section = held["models"]
    titles = ["`--model`", "backbone", "file, lines", "stride", "million parameters"]
    titles += ["GFLOP, 512x1024", "1024x2048", "prediction, images/s", "its MiB"]
    rows = [[*titles, "training, images/s", "its MiB"]]
    for row in section["figures"]:
        cell = [f"`{row['model']}`", row["encoder"], f"model/{row['file']}, {row['lines']}"]
        cell += [row["stride"], row["million_parameters"]]
        cell += [f"{row[f'gflop_{size}']:,}" for size in ("512x1024", "1024x2048")]
        for kind in ("prediction", "training"):
            cell += [number(row[kind]["images_per_second"]), f"{row[kind]['mib']:,}"]
        rows.append(cell)
    where = f"{held['machine']}, torch {section['versions']['torch']}, {section['date']}"
    text = f"{where}, `{section['command']}`:\n\n{table(rows)}"
    if "overfit" in held:
        small, command = table(figure_rows(held["overfit"]["figures"])), held["overfit"]["command"]
        text += f"\nSteps until a network has learnt four CamVid crops, `{command}`:\n\n{small}"
    return text


def recipes(runs: list[dict]) -> str:
    """docs/recipes.md: test scores by length, options sorted by gain, networks, classes."""
    groups: dict[str | None, Runs] = defaultdict(dict)
    for run in sorted(runs, key=lambda run: run["seed"]):
        groups[run["group"]].setdefault(run["variant"], []).append(run)
    trainings = {**groups[None], **groups["peer"]}
    plain = groups["options"].get("baseline")
    baseline = {"BatchNorm, stride 16": plain} if plain else {}
    titles = ["val mIoU", "each seed", "pixel accuracy", "CPU minutes (threads)"]
    network_rows = [["network", *titles]]
    for name, group in {**baseline, **groups["networks"]}.items():
        miou, accuracy = column(group), spread(column(group, "pixel_accuracy"))
        network_rows.append([name, spread(miou), percent(*miou), accuracy, minutes(group)])
    unseen = groups["unseen"]
    unseen_rows = [["on a sequence unseen", "mIoU", "pixel accuracy"]]
    for name in sorted(unseen, key=lambda name: -mean(column(unseen[name]))):
        scores = [spread(column(unseen[name], key)) for key in ("miou", "pixel_accuracy")]
        unseen_rows.append([name, *scores])
    family = {**groups["family"]}
    if "15 minutes" in trainings:
        family["DeepLabV3, 3000 steps"] = trainings["15 minutes"]
    for name in ("DeepLabV3", "PSPNet"):  # whose 3,000 steps take 30 minutes
        if same := family.get(f"{name}, 3000 steps"):
            family[f"{name}, 30 thread-minutes"] = same
    classes = [class_rows(trainings[name]) for name in TITLES if name in trainings]
    tables = [
        curve_rows(trainings),
        gain_rows(groups["half size"], "half size", "mIoU on a sequence unseen"),
        gain_rows(groups["options"], "baseline", "val mIoU"),
        network_rows,
        family_rows(family, groups["speed"]),
        unseen_rows,
    ]
    texts = [*map(table, tables), "\n".join(map(table, classes))]
    numbered = enumerate(zip(CAPTIONS, texts, strict=True), 1)
    return "\n".join(f"**Table {n}, {caption}**\n\n{text}" for n, (caption, text) in numbered)


def curve(trainings: Runs) -> list[tuple[str, list[dict]]]:
    """Trainings scored on test, those with the least arithmetic first."""
    return sorted(trainings.items(), key=lambda item: item[1][0]["pflop"])


def curve_rows(trainings: Runs) -> Rows:
    titles = ["steps", "PFLOP", "test mIoU", "each seed", "pixel accuracy", "CPU minutes (threads)"]
    rows = [["training", *titles]]
    for name, group in curve(trainings):
        tests = [run["test"] for run in group]
        miou, accuracy = column(tests), spread(column(tests, "pixel_accuracy"))
        size = [f"{group[0]['steps']:,}", f"{group[0]['pflop']:.2f}"]
        rows.append([name, *size, spread(miou), percent(*miou), accuracy, minutes(group)])
    return rows


def family_rows(trainings: Runs, speeds: Runs) -> Rows:
    """Networks at equal steps, then at equal time; speeds of the network: of any training."""
    titles = ["million parameters", "steps", "PFLOP", "test mIoU", "each seed", "pixel accuracy"]
    rows = [["network, training", *titles, "training, images/s", "prediction, images/s"]]
    for name in sorted(trainings, key=lambda x: (" 3000 steps" not in x, "DeepLabV3," not in x, x)):
        group = trainings[name]
        tests, first = [run["test"] for run in group], group[0]
        cell = [f"{first['parameters'] / 1e6:.2f}", f"{first['steps']:,}", f"{first['pflop']:.2f}"]
        miou, accuracy = column(tests), spread(column(tests, "pixel_accuracy"))
        speed = speeds.get(name.partition(", ")[0], [{}])[0]
        fast = [number(speed[key]) if speed else "" for key in ("training", "prediction")]
        rows.append([name, *cell, spread(miou), percent(*miou), accuracy, *fast])
    return rows


def gain_rows(runs: Runs, base: str, score: str) -> Rows:
    """Options sorted by their gain over `base`."""
    plain = {run["seed"]: run["miou"] for run in runs.get(base, [])}
    titles = ["option of train.py", score, "each seed", "gain, seed by seed", "pixel accuracy"]
    rows = [["one option changed", *titles]]
    gains = {name: mean(x["miou"] - plain[x["seed"]] for x in runs[name]) for name in runs}
    for name in sorted(runs, key=lambda name: -gains[name]):
        flags = ", ".join(f"`{key} {value}`" for key, value in runs[name][0]["options"].items())
        gain = f"{100 * gains[name]:+.1f}" if name != base else ""
        miou, accuracy = column(runs[name]), spread(column(runs[name], "pixel_accuracy"))
        shown = "baseline" if name == base else name.removeprefix(f"{base}, ")
        rows.append([shown, flags, spread(miou), percent(*miou), gain, accuracy])
    return rows


def minutes(runs: list[dict]) -> str:
    """Of the trainings on a CPU that were not interrupted."""
    timed = [run for run in runs if run["seconds"] and "no GPU" in run["machine"]]
    return ", ".join(f"{number(run['seconds'] / 60)} ({run['threads']})" for run in timed)


def column(runs: list[dict], key: str = "miou") -> list[float]:
    return [run[key] for run in runs]


def class_rows(runs: list[dict]) -> Rows:
    tests = [run["test"] for run in runs]
    rows = [[TITLES[runs[0]["variant"]], *(f"seed {run['seed']}" for run in runs), "mean"]]
    for name in tests[0]["classes"]:
        values = [test["classes"][name] or 0.0 for test in tests]
        rows.append([name, *map(percent, values), percent(mean(values))])
    means = {"**mean IoU**": column(tests), "pixel accuracy": column(tests, "pixel_accuracy")}
    for name, values in {**means, "val mean IoU": column(runs)}.items():
        rows.append([name, *map(percent, values), spread(values)])
    return rows
