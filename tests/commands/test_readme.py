"""The README's commands exist, its files exist, its options are understood."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from helpers import REPOSITORY, fails, run
from test_commands import COMMANDS

from benchmarks.table import BEGIN, END, filled
from benchmarks.table import PAGES as TABLES
from model.encoders import ENCODERS

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
COMMAND = re.compile(r"^ {4,}(?:python|torchrun)\s.*?(\S+\.py)(.*)$", re.MULTILINE)


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """(script, arguments) of every indented command of a page; comments left out."""
    found = COMMAND.findall(page.read_text(encoding="utf-8"))
    return [
        (script, shlex.split(rest.partition("   ")[0], comments=True)) for script, rest in found
    ]


# The option of each command that names a folder; where there is none, the command ends there.
FOLDERS = dict.fromkeys(COMMANDS, "--log_root")
for name in ("train", "utils/preprocess_data", "utils/synthetic", "evaluation/score"):
    FOLDERS[f"{name}.py"] = "--data_root"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page, tmp_path):
    """The commands themselves take the documented options, and then miss data or a checkpoint."""
    (tmp_path / "file").touch()
    nowhere = tmp_path / "file" / "none"  # cannot be made either
    for script, arguments in commands(page):
        assert (REPOSITORY / script).is_file(), script
        if any("<run>" in word or "training_logs/" in word for word in arguments):
            continue  # a file that an earlier command makes
        if script not in COMMANDS or arguments == ["hub:"]:
            continue  # a benchmark, or the list of published networks
        if "--backbone" in arguments:
            assert arguments[arguments.index("--backbone") + 1] in ENCODERS
        logs = ["--log_root", tmp_path / "logs"] if script == "train.py" else []
        done = run(script, *arguments, *logs, FOLDERS[script], nowhere)
        fails(done)
        values = [word for word in arguments if not word.startswith("--")]
        missing = [x for x in (nowhere, *values) if done.stderr.startswith(f"error: {x}")]
        assert missing or str(nowhere) in done.stderr, (script, arguments, done.stderr)
        assert "--help" not in done.stderr, (script, arguments, done.stderr)
        assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize("script", sorted({*COMMANDS} - {"evaluation/score.py"}))
def test_options_are_shown_as_yaml(script):
    done, shown = run(script, "--print_config"), run(script, "--help").stdout
    assert done.returncode == 0, done.stderr
    options = yaml.safe_load(done.stdout)
    assert options and all(re.search(rf"^ +(?:--)?{name} ", shown, re.M) for name in options)


def test_flags_override_a_file_of_options():
    file = "configs/camvid/deeplabv3_resnet18_os16.yaml"
    done = run("train.py", "--config", file, "--seed", "7", "--print_config")
    options = yaml.safe_load(done.stdout)
    assert (options["dataset"], options["output_stride"], options["seed"]) == ("camvid", 16, 7)


@pytest.mark.parametrize("page", TABLES)
def test_tables_are_those_of_the_measured_files(page):
    """benchmarks/table.py has nothing to change, and something to show."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    assert filled(page) == text
    assert re.search(r"\d.* \|$", text.split(BEGIN)[1].split(END)[0], re.MULTILINE)


def test_the_readme_has_commands_to_check():
    scripts = {script for script, _ in commands(REPOSITORY / "README.md")}
    assert scripts >= {*COMMANDS} - {"utils/convert_checkpoint.py"}  # docs/ has that one


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_pictures_named_exist(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    names = re.findall(r"`((?:configs|docs|evaluation|utils|model|benchmarks)/[\w./]+\.\w+)`", text)
    for name in links:
        assert (page.parent / name).is_file(), name
    for name in names:
        assert (REPOSITORY / name).is_file(), name


def test_the_card_s_ten_names_are_there():
    names = ["model", "utils", "evaluation", "datasets.py", "train.py", "requirements.txt"]
    names += ["README.md", "data", "pretrained_models", "training_logs"]
    assert all((REPOSITORY / name).exists() for name in names)


def test_the_reliability_page_names_tests_that_exist():
    page = (REPOSITORY / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ")][2:]
    tests = re.findall(r"\| `(\w+/test_\w+\.py)::(test_\w+)` \|$", page, re.MULTILINE)
    assert len(tests) == len(rows) > 20
    for file, name in tests:
        assert f"def {name}(" in (REPOSITORY / "tests" / file).read_text(encoding="utf-8"), name
