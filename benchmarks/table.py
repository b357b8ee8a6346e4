"""Write benchmarks/results/ as tables into README.md, docs/results.md and docs/recipes.md.

python benchmarks/table.py                       part of make bench
python benchmarks/table.py --pages FOLDER        in copies of the pages
"""

import json
import sys
from pathlib import Path

sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parents[1])]

from benchmarks.measure import RESULTS, options
from benchmarks.render import readme, recipes, results
from utils.base.errors import UserError, run_command
from utils.base.paths import REPOSITORY, write_text

BEGIN, END = "<!-- made by benchmarks/table.py -->", "<!-- end -->"
PAGES = {"README.md": readme, "docs/results.md": results, "docs/recipes.md": recipes}


def main() -> None:
    given = options(__doc__, results=RESULTS, pages=REPOSITORY)
    for page in PAGES:
        write_text(given.pages / page, filled(page, given.pages, given.results))
        print(f"-> {page}")


def filled(page: str, pages: Path = REPOSITORY, folder: Path = RESULTS) -> str:
    """Text of the page with new tables between the two marks."""
    text = (pages / page).read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise UserError(f"{page}: needs {BEGIN} and {END} once. Put them where the tables belong")
    paths = folder.glob("recipes/*.json" if PAGES[page] is recipes else "*.json")
    tables = "\n".join(
        PAGES[page](json.loads(path.read_text("utf-8"))) for path in sorted(paths, reverse=True)
    )
    return f"{text.split(BEGIN)[0]}{BEGIN}\n\n{tables}\n{END}{text.split(END)[1]}"


if __name__ == "__main__":
    run_command(main)
