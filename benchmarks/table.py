"""benchmarks/results/*.json -> the tables in README.md and docs/results.md.

    python benchmarks/table.py            part of make bench; the tests hold the pages to it
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from utils.errors import UserError, run_command
from utils.files import REPOSITORY

RESULTS = REPOSITORY / "benchmarks" / "results"
Rows = list[list[Any]]


def main() -> None:
    machines = [json.loads(path.read_text("utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    for name, make in PAGES.items():
        page = REPOSITORY / name
        page.write_text(filled(page.read_text("utf-8"), make(machines), page), encoding="utf-8")
        print(f"-> {page.relative_to(REPOSITORY)}")


def filled(text: str, content: str, page: Path) -> str:
    """`text` with `content` between its two marks."""
    begin, end = "<!-- made by benchmarks/table.py -->", "<!-- end -->"
    if text.count(begin) != 1 or end not in text:
        raise UserError(f"{page}: needs one {begin} ... {end}. Put it where the tables belong")
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{content}\n{end}{rest.split(end, 1)[1]}"


def short(machines: list[dict]) -> str:
    """For the README: what a user gains, and what the configs need."""
    parts = []
    for held in machines:
        parts.append(f"On {held['machine']}:\n\n{table(gains(held))}")
        parts.append(table(needs(held["profile"]["figures"])))
    return "\n".join(parts)


def gains(held: dict) -> Rows:
    rows = [["", "peer", "peer, ms", "ours, ms", "ours is", "memory, peer", "ours"]]
    for row in held["argmax"]["figures"]:
        case = f"label map 1024x2048 from logits: {row['case']}"
        rows.append([case, "F.interpolate, argmax", *against(row, "torch")])
    for row in held["loss"]["figures"]:
        case = f"loss and gradient, {row['case']}"
        rows.append([case, "F.interpolate, F.cross_entropy", *against(row, "torch")])
    whole = {row["side"]: row for row in held["evaluation"]["figures"]}
    peer, ours = whole["fregu856's evaluation + csEval"], whole["ours, packed"]
    rows.append([
        "evaluation without its network, an image", "fregu856/deeplabv3, csEval",
        f"{peer['ms_per_image']:.0f}", f"{ours['ms_per_image']:.0f}", times(peer["packed_is"]), "", "",
    ])  # fmt: skip
    for measured in held["step"]["figures"]:
        sides, size = measured["sides"], "x".join(map(str, measured["size"]))
        for side in sides:
            if not side.startswith(("ours", "forward")):
                case = f"{measured['kind']}, {label(measured['network'])}, {measured['images']} x {size}"
                mine = sides["ours"]
                rows.append([
                    case, side, f"{sides[side]['ms']:.0f}", f"{mine['ms']:.0f}",
                    times(sides[side]["ours_is_faster"]),
                    f"{sides[side]['extra_mib']} MiB", f"{mine['extra_mib']} MiB",
                ])  # fmt: skip
    return rows


def against(row: dict, side: str) -> list[str]:
    memory = [f"{row[f'extra_mib_{name}']:.0f} MiB" for name in (side, "ours")]
    return [f"{row['ms'][side]:.1f}", f"{row['ms']['ours']:.1f}", times(row["gain"]), *memory]


def needs(profile: list[dict]) -> Rows:
    rows = [["config", "batch", "memory", "images/s", "hours of the whole recipe"]]
    for row in profile:
        hours = f"{row['hours_of_recipe']:.3g} ({row['steps_of_recipe']} steps)"
        speed = f"{row['images_per_second']:.2f}"
        rows.append([f"`{row['config']}`", row["batch"], f"{row['peak_gib']:.1f} GiB", speed, hours])
    return rows


def times(value: float) -> str:
    return f"**{value:.2f} x**" if value < 3 else f"**{value:.1f} x**"


def label(network: str) -> str:
    backbone, stride = network.split("-")
    return f"{backbone.replace('resnet', 'R')} stride {stride}"


def table(rows: Rows) -> str:
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    return "\n".join(lines) + "\n"


PAGES = {"README.md": short}


if __name__ == "__main__":
    run_command(main)
