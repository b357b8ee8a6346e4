"""Who may import whom, and how long functions may be: over tests and benchmarks too."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from model import MODELS

REPOSITORY = Path(__file__).resolve().parents[1]
LISTED = subprocess.run(
    ["git", "ls-files", "-co", "--exclude-standard"],
    cwd=REPOSITORY, capture_output=True, text=True, check=True,
).stdout.splitlines()  # fmt: skip
EXISTING = [REPOSITORY / name for name in LISTED if (REPOSITORY / name).is_file()]
FILES = [path for path in EXISTING if path.suffix == ".py"]
# Room -> the rooms that it may import. A file belongs to the longest name that it begins with.
MAY_IMPORT = {
    "model": {"model"},
    "utils.base": {"utils.base"},
    "utils.data": {"utils.base", "utils.data"},
    "utils.training": {"utils.base", "utils.data", "utils.training", "model"},
    "datasets": {"utils.base", "utils.data"},
    "evaluation": {"utils.base", "utils.data", "utils.training", "model", "datasets", "evaluation"},
}
COMMANDS = {
    "train",
    "predict",
    "export",
    "utils.preprocess_data",
    "utils.synthetic",
    "utils.results",
    "utils.doctor",
    "utils.convert_checkpoint",
    "evaluation.eval_on_val_for_metrics",
    "evaluation.report",
    "evaluation.robustness",
    "evaluation.score",
}
OURS = {"utils", "model", "datasets", "evaluation", "train", "predict", "export"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)


def room(name: str) -> str:
    """The room of a module, or of a name imported from one."""
    rooms = [room for room in MAY_IMPORT if name == room or name.startswith(f"{room}.")]
    return max(rooms, key=len, default=name)


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports, also as names of their package."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] in OURS}


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_follow_the_order_of_the_rooms(path):
    name = module_name(path)
    packages = {"utils", *MAY_IMPORT} - {"datasets"}  # as in `from utils.data import voc`
    found = imports(path) - packages
    assert not found & (COMMANDS - {name}), "nobody imports a command"
    if name not in COMMANDS and room(name) in MAY_IMPORT:
        assert {room(other) for other in found} <= MAY_IMPORT[room(name)]


def test_every_room_and_command_exists():
    names = {module_name(path) for path in FILES}
    assert names >= COMMANDS
    assert all(any(room(name) == wanted for name in names) for wanted in MAY_IMPORT)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_functions_are_at_most_80_lines_long(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 80, node.name


def test_utils_has_at_most_eight_entries():
    entries = {path.relative_to(REPOSITORY / "utils").parts[0] for path in FILES
               if path.is_relative_to(REPOSITORY / "utils")}  # fmt: skip
    assert len(entries) <= 8, entries


def test_nothing_unsafe_is_called():
    banned = ["weights_only=" + "False", "pickle" + ".load", "yaml." + "load(", "shell=" + "True"]
    for path in EXISTING:
        if path.suffix in (".py", ".md", ".yaml"):
            text = path.read_text(encoding="utf-8")
            assert not [word for word in banned if word in text], path


def test_files_of_users_are_looked_for_in_one_way():
    """utils/base/find.py; the others look for files of their own, hidden ones among them."""
    own = {"utils.base.find", "utils.base.lock", "utils.training.checkpoint", "utils.training.run"}
    own |= {"utils.data.synthetic"}
    ways = re.compile(r"glob\(|\.iterdir\(|os\.(walk|scandir|listdir)\(|import glob")
    for path in FILES:
        name = module_name(path)
        if name.split(".")[0] not in ("tests", "benchmarks") and name not in own:
            assert not ways.search(path.read_text(encoding="utf-8")), name


def test_only_networks_their_tests_and_benchmarks_know_an_architecture():
    """Nothing but the one default: what is special about an architecture, its class says."""
    words = {*MODELS} | {network.__name__ for network in MODELS.values()}
    found = []
    for path in FILES:
        name = path.relative_to(REPOSITORY).as_posix()
        if not name.startswith(("model/", "tests/", "benchmarks/")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                said = (getattr(node, key, None) for key in ("value", "id", "attr", "name"))
                found += [f"{name}: {x}" for x in said if isinstance(x, str) and x in words]
    assert found == ["utils/training/config.py: deeplabv3"]
