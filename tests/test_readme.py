"""The README's commands exist, its files exist, its options are understood."""

import re
import shlex
from pathlib import Path

import pytest
import reliability

from benchmarks.table import BEGIN, END, filled
from benchmarks.table import PAGES as TABLES
from evaluation.eval_on_val_for_metrics import EvalConfig
from evaluation.report import ReportConfig
from evaluation.score import parse_options
from export import ExportConfig
from predict import PredictConfig
from utils.config import Config
from utils.files import REPOSITORY
from utils.parser import parse
from utils.preprocess_data import PreprocessConfig
from utils.results import ResultsConfig
from utils.synthetic import SyntheticConfig

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
CONFIGS = {
    "train.py": Config,
    "utils/preprocess_data.py": PreprocessConfig,
    "utils/synthetic.py": SyntheticConfig,
    "utils/results.py": ResultsConfig,
    "evaluation/eval_on_val_for_metrics.py": EvalConfig,
    "evaluation/report.py": ReportConfig,
    "predict.py": PredictConfig,
    "export.py": ExportConfig,
}
COMMAND = re.compile(r"^ {4,}(?:python|torchrun)\s.*?(\S+\.py)(.*)$", re.MULTILINE)


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """(script, arguments) of every indented command of a page; comments left out."""
    found = COMMAND.findall(page.read_text(encoding="utf-8"))
    return [
        (script, shlex.split(rest.partition("   ")[0], comments=True)) for script, rest in found
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_are_understood(page, tmp_path):
    for script, arguments in commands(page):
        assert (REPOSITORY / script).is_file(), script
        if any("<run>" in word or "training_logs/" in word for word in arguments):
            continue  # a file that an earlier command makes
        if script == "evaluation/score.py":
            parse_options(arguments)
        if script in CONFIGS:
            arguments = [
                str(REPOSITORY / word) if word.startswith("configs/") else word
                for word in arguments
            ]
            parse(CONFIGS[script], "", arguments)


@pytest.mark.parametrize("page", TABLES)
def test_tables_are_those_of_the_measured_files(page):
    """benchmarks/table.py has nothing to change, and something to show."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    assert filled(page) == text
    assert re.search(r"\d \|$", text.split(BEGIN)[1].split(END)[0], re.MULTILINE)


def test_the_readme_has_commands_to_check():
    scripts = {script for script, _ in commands(REPOSITORY / "README.md")}
    assert {*CONFIGS, "evaluation/score.py"} <= scripts


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
    for *_, test in (row for rows in reliability.ROWS.values() for row in rows):
        file, name = test.split("::")
        assert f"def {name}(" in (REPOSITORY / "tests" / file).read_text(encoding="utf-8"), test
