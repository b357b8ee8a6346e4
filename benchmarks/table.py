"""Write benchmarks/results/ as tables into README.md and docs/, and draw docs/img/camvid_curve.png.

python benchmarks/table.py                       part of make bench
python benchmarks/table.py --pages FOLDER        in copies of the pages
"""

import json
import sys
from pathlib import Path
from statistics import mean

if __name__ == "__main__":  # else it would replace another folder
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

from matplotlib.figure import Figure

from benchmarks.measure import RESULTS, options
from benchmarks.render import models, readme, recipes, results
from utils.base.errors import UserError, run_command
from utils.base.paths import REPOSITORY, make_folder, write_text

LINES = {  # of the picture, beside the lengths of one recipe
    "long": "this repository, 200 epochs at stride 8",
    "13 epochs of 240x320": "this repository, 13 epochs of 240x320",
}
BEGIN, END = "<!-- made by benchmarks/table.py -->", "<!-- end -->"
PAGES = {
    "README.md": readme,
    "docs/results.md": results,
    "docs/recipes.md": recipes,
    "docs/models.md": models,
}


def main() -> None:
    given = options(__doc__, results=RESULTS, pages=REPOSITORY)
    for page in PAGES:
        write_text(given.pages / page, filled(page, given.pages, given.results))
        print(f"-> {page}")
    for path in given.results.glob("recipes/*.json"):
        picture = given.pages / "docs" / "img" / f"{path.stem}_curve.png"
        draw_curve(json.loads(path.read_text("utf-8")), picture)
        print(f"-> {picture}")


def filled(page: str, pages: Path = REPOSITORY, folder: Path = RESULTS) -> str:
    """Text of the page with new tables between the two marks."""
    text = (pages / page).read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise UserError(f"{page}: needs {BEGIN} and {END} once. Put them where the tables belong")
    paths = folder.glob("recipes/*.json" if PAGES[page] is recipes else "*.json")
    held = (json.loads(path.read_text("utf-8")) for path in sorted(paths, reverse=True))
    tables = "\n".join(filter(None, map(PAGES[page], held)))
    return f"{text.split(BEGIN)[0]}{BEGIN}\n\n{tables}\n{END}{text.split(END)[1]}"


def draw_curve(runs: list[dict], path: Path) -> None:
    """Test mIoU of every training against its arithmetic: ours as one line, a peer's as another."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        if "test" in run and run["group"] != "family":
            peer = run["group"] == "peer"
            kind = "SMP, plain loop" if peer else LINES.get(run["variant"], "this repository")
            lines.setdefault(kind, []).append((run["pflop"], 100 * run["test"]["miou"]))
    for kind, points in sorted(lines.items()):
        means = {x: mean(y for z, y in points if z == x) for x, _ in sorted(points)}
        axes.plot([*means], [*means.values()], label=kind)
        axes.scatter(*zip(*points, strict=True), s=12)
    axes.set(xscale="log", xlabel="arithmetic of the training, PFLOP", ylabel="test mIoU, %")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    make_folder(path.parent)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run_command(main)
