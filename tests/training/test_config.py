"""Options: defaults, YAML files, one-line mistakes, help."""

import ast
import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from helpers import TRAIN, fails, preprocess, run, train, write_cityscapes
from torch.distributed.run import get_args_parser

from datasets import resolve_data_root
from evaluation import trained
from model import build_model
from utils.base.errors import UserError
from utils.base.parser import examples, parse
from utils.base.paths import REPOSITORY
from utils.data.described import Description
from utils.training.config import Config, plain, write_config
from utils.training.network import network_options

CONFIGS = sorted(
    path
    for path in (REPOSITORY / "configs").glob("*/*.yaml")
    if path.parent.name != "datasets"  # what those describe are data sets
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_read_and_builds_its_network(path):
    config = parse(Config, "", ["--config", str(path)])
    assert config.dataset == path.parent.name
    network = network_options(config, 19)
    model = build_model(**network)
    if "output_stride" in network:
        assert model.backbone.output_stride == config.output_stride
    assert set(yaml.safe_load(path.read_text())) <= {field.name for field in fields(Config)}


@pytest.fixture(scope="module")
def smallest(tmp_path_factory) -> Path:
    root = write_cityscapes(tmp_path_factory.mktemp("smallest"), train=2, val=1)
    preprocess(root)
    return root


DEEP = [path for path in CONFIGS if path.match("*resnet50*") or path.match("*resnet101*")][1:]


@pytest.mark.parametrize(
    "path",
    [pytest.param(x, marks=pytest.mark.slow if x in DEEP else (), id=x.stem) for x in CONFIGS],
)
def test_one_step_of_every_shipped_config(path, smallest, tmp_path):
    """Its network, optimizer and options on small crops."""
    small = ["--dataset", "cityscapes", "--data_root", str(smallest), "--run_name", "run"]
    small += ["--log_root", str(tmp_path), "--device", "cpu", "--backbone_weights", "null"]
    small += ["--crop", "[32,64]", "--batch_size", "2", "--workers", "0", "--split", "train"]
    config = parse(Config, "", ["--config", str(path), *small, "--steps", "1", "--epochs", "null"])
    train(config)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["step"] == 1 and 0 <= results["miou"] <= 1


def test_no_arguments_mean_the_cityscapes_recipe():
    path = REPOSITORY / "configs/cityscapes/deeplabv3_resnet18_os8.yaml"
    assert parse(Config, "", []) == parse(Config, "", ["--config", str(path)]) == Config()


def test_flags_override_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("batch_size: 4\t# tabs separate too\nbase_lr:\t0.02\n")
    config = parse(Config, "", ["--config", str(path), "--batch_size", "6"])
    assert (config.batch_size, config.base_lr) == (6, 0.02)


def test_a_written_config_reads_back_equal(tmp_path):
    config = Config(crop=(64, 96), epochs=1.5, data_root=Path("/data/x"), eval_scales=(0.5, 1.0))
    write_config(config, tmp_path / "config.yaml")
    assert parse(Config, "", ["--config", str(tmp_path / "config.yaml")]) == config
    assert all(
        isinstance(value, (str, int, float, list, type(None))) for value in plain(config).values()
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--ephocs", "3"],
        ["--batch_size", "x"],
        ["--steps", "0"],
        ["--base_lr", "nan"],
        ["--base_lr", "-1"],
        ["--base_lr", "1e999"],
        ["--min_lr", "1"],
        ["--crop", "[8,64]"],
        ["--crop", "[64]"],
        ["--scale", "[2,1]"],
        ["--workers", "-1"],
        ["--epochs", "0"],
        ["--eval_scales", "[]"],
        ["--run_name", "../x"],
        ["--output_stride", "4"],
        ["--config", "nowhere.yaml"],
        ["--flip"],
        ["--accumulate", "0"],
        ["--ema", "1"],
        ["--hard_threshold", "0"],
        ["--label_smoothing", "1"],
        ["--max_class_share", "0"],
        ["--clip_grad", "0"],
        ["--precision", "fp8"],
        ["--split", "test"],
    ],
)
def test_a_mistake_is_one_user_error(arguments):
    with pytest.raises(UserError, match="--help"):
        parse(Config, "", arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "places"], ("--dataset places", "cityscapes, synthetic, voc, ", "camvid")),
        (["--split", "training"], ("--split training", "train, val, test, coarse, trainval")),
        (["--model", "deeplabv4"], ("--model", "deeplabv4", "deeplabv3")),
        (["--backbone", "resnet19"], ("--backbone resnet19", "resnet18, resnet34")),
        (["--batch_size", "1"], ("--batch_size", "at least 2", "--norm gn")),
    ],
    ids=lambda value: value[0],
)
def test_a_name_that_no_table_has_is_one_line(arguments, words, smallest, tmp_path):
    """Data set, architecture and encoder know their names and limits; nothing is written."""
    where = ("--data_root", smallest, "--log_root", tmp_path / "a" / "logs")
    fails(run("train.py", *TRAIN, *where, *arguments), *words)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("batch_sise: 4", "batch_sise"), ("batch_size: [", "c.yaml: line 2 is not YAML"),
        ("batch_size: many", "batch_size: got many"), ("- 1", "c.yaml: empty, or no"),
        ("base_lr: .nan", "base_lr"), ("!!python/object:os.system ls", "c.yaml: empty, or no"),
        ("crop: 7", "crop: got 7"), ("\tbatch_size: 4", "c.yaml: line 1 is not YAML"),
        ("", "c.yaml: empty, or no"), ("seed: 1\nseed: 2", "c.yaml: seed is given twice"),
        (b"seed: \xff", "c.yaml: not text in UTF-8"), ("seed: 18446744073709551616", "below 2"),
    ],
)  # fmt: skip
def test_a_broken_config_file_is_one_user_error(tmp_path, text, words):
    path = tmp_path / "c.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=re.escape(words)):
        parse(Config, "", ["--config", str(path)])


@dataclass(frozen=True)
class ReportConfig(trained.ScoringOptions):
    """Options of evaluation/report.py, which nobody may import."""

    compare: str | None = None
    output: Path | None = None


@pytest.mark.parametrize("given", ["0.5", "[0.5]", "~"])
@pytest.mark.parametrize("place", ["flag", "file"])
def test_options_as_people_write_them(given, place, tmp_path, monkeypatch):
    """A single number where several may stand; ~ where no shell expands it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    option, value = ("log_root", "~/a b") if given == "~" else ("eval_scales", given)
    (tmp_path / "c.yaml").write_bytes(f"\ufeff{option}: {value}  \r\nseed: 1\r\n".encode())
    flags = {"flag": [f"--{option}={value}"], "file": ["--config", "~/c.yaml"]}
    config = parse(Config, "", flags[place])
    assert (config.eval_scales, config.log_root) in (((0.5,), None), ((1.0,), tmp_path / "a b"))
    assert config.eval_scales == (0.5,) or given == "~"
    texts = ("checkpoint", "~/run"), ("log_root", "~/run"), ("output", "~/x.html")
    for option, value in texts:
        found = getattr(parse(ReportConfig, "", [f"--{option}", value]), option)
        assert str(found) == value.replace("~", str(tmp_path))


@pytest.mark.parametrize(
    ("option", "value", "example"),
    [
        ("crop", "512", "[512,1024]"),
        ("crop", "512x1024", "[512,1024]"),
        ("crop", "[1, 2, 3]", "[512,1024]"),
        ("scale", "2", "[0.5,2.0]"),
        ("eval_scales", "0.5,1", "[0.5,1.0] or 0.5"),
        ("eval_scales", "half", "[0.5,1.0] or 0.5"),
        ("multi_grid", "[1, 2]", "[1,2,4]"),
        ("steps", "many", "8"),
        ("base_lr", "x", "0.5"),
        ("epochs", "x", "0.5"),
        ("flip", "maybe", "true or false"),
        ("precision", "fp8", "auto or fp32 or bf16 or fp16"),
        ("output_stride", "4", "8 or 16 or 32"),
        ("compile", "x", "true or false"),
    ],
)
@pytest.mark.parametrize("place", ["flag", "file"])
def test_a_value_of_another_type_is_one_plain_line_with_an_example(
    option, value, example, place, tmp_path
):
    (tmp_path / "c.yaml").write_text(f"{option}: {value}\n")
    flags = {"flag": [f"--{option}", value], "file": ["--config", str(tmp_path / "c.yaml")]}
    with pytest.raises(UserError) as error:
        parse(Config, "", flags[place])
    words = f": {option}: got {value}. Give a value like {example}. Options: "
    assert words in str(error.value), error.value


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            "--class_weights",
            "class_weights: got no value. Give a value like true or false or a/folder",
        ),
        ("--crop", "crop: got no value. Give a value like [512,1024]"),
        ("--batchsize 4", "unrecognized arguments: --batchsize 4. Perhaps you meant --batch_size"),
        ("--chekpoint x", "unrecognized arguments: --chekpoint x"),
    ],
)
def test_a_mistyped_option_is_one_line_that_says_what_to_type(words, line):
    with pytest.raises(UserError) as error:
        parse(Config, "", words.split())
    assert f": {line}. Options: " in str(error.value), error.value


def test_every_type_of_an_option_has_an_example():
    for kind in (Config, ReportConfig, Description):
        for name, hint in get_type_hints(kind).items():
            assert not [text for text in examples(hint) if "typing" in text or "<" in text], name


def option_names(script: str) -> list[str]:
    """Fields of the dataclass that a command parses its options into; nothing is imported."""
    if script == "train.py":
        return [field.name for field in fields(Config)]
    tree = ast.parse((REPOSITORY / script).read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    (options,) = [node for node in classes if node.name.endswith("Config")]
    names = [node.target.id for node in options.body if isinstance(node, ast.AnnAssign)]
    for base in options.bases:
        names += [field.name for field in fields(getattr(trained, base.id))]
    return names


@pytest.mark.parametrize(
    ("script", "placed"),
    [
        ("train.py", None),
        ("predict.py", "source"),
        ("export.py", None),
        ("evaluation/eval_on_val_for_metrics.py", None),
        ("evaluation/report.py", None),
        ("utils/convert_checkpoint.py", "file"),
        ("utils/preprocess_data.py", None),
        ("utils/results.py", None),
        ("utils/synthetic.py", None),
    ],
)
def test_help_explains_every_option(script, placed):
    done = run(script, "--help")
    assert done.returncode == 0 and done.stderr == ""
    text, names = " ".join(done.stdout.split()), option_names(script)
    assert len(names) >= 2
    for name in names:
        before = "positional arguments: " if name == placed else " --"
        option = text.rpartition(f"{before}{name} ")[2]
        assert "(type:" in option and option != text, name
        assert not option.startswith("(type:"), name


def test_torchrun_takes_no_option_for_its_own():
    """Python 3.11's argparse reads `train.py --run` as torchrun's own --run-path."""
    own = get_args_parser()._option_string_actions
    for field in fields(Config):
        assert not [option for option in own if option.startswith(f"--{field.name}")], field.name


def test_data_roots(monkeypatch, tmp_path):
    monkeypatch.setenv("CITYSCAPES_DATASET", str(tmp_path))
    assert resolve_data_root("cityscapes", None) == tmp_path.resolve()
    assert resolve_data_root("camvid", None) == REPOSITORY / "data" / "camvid"
    monkeypatch.chdir(tmp_path)
    assert resolve_data_root("cityscapes", Path("here")) == tmp_path.resolve() / "here"
