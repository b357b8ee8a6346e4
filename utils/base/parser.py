"""The command line of all commands: flags override a YAML file, which overrides a dataclass.

This file does not import torch, so that `--help` and error messages appear at once.
"""

import re
from collections.abc import Callable
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints, is_typeddict

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from utils.base.errors import UserError
from utils.base.paths import to_path

Options = TypeVar("Options")  # a dataclass

Factors = tuple[float, ...] | float  # one factor needs no brackets
Color = tuple[int, int, int]
EXAMPLES = {  # values for the types of options and of keys in dataset.yaml
    int: "8", float: "0.5", bool: "true or false", Path: "a/folder",
    str: "name, in quotes if it is yes, no or a number",
    Color: "[1,2,4]", tuple[int, int]: "[512,1024]", tuple[float, float]: "[0.5,2.0]",
    tuple[float, ...]: "[0.5,1.0]", tuple[int, ...]: "[1,3]", tuple[str, ...]: "[fog,snow]",
    list[int]: "[0, 255]", list[str]: '[road, "no", "1"]',
    dict[str, int | list[int]]: '{road: 7, "no": [26, 27]}', dict[str, str]: "{train: training}",
    dict[str, Color]: "{road: [128, 64, 128]}", list[Color]: "[[0, 0, 0]]",
}  # fmt: skip
UNKNOWN = re.compile(r"unrecognized arguments: --([\w-]+).*", re.DOTALL)
NO_VALUE = re.compile(r"argument --(\w+): expected one argument")
WRONG_TYPE = re.compile(r'.*Parser key "(\w+)":.*(?:Given|Got) value: (.*)', re.DOTALL)

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the first, as jsonargparse, accepts tabs

set_parsing_settings(docstring_parse_attribute_docstrings=True)


class YamlParser(ArgumentParser):
    """jsonargparse for files whose faults name the file. Without YAML aliases: a small file with
    aliases could expand without limit."""

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            text = to_path(cfg_path).read_text(encoding="utf-8")
            if any(isinstance(x, yaml.AliasEvent) for x in yaml.parse(text, LOADER)):
                raise ValueError("has aliases (*name). Write their values instead")
            options = yaml.compose(text, LOADER)
            if not isinstance(options, yaml.MappingNode):
                raise ValueError("empty, or no lines of key: value. Write such lines")
            names = [str(name.value) for name, _ in options.value]
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"{twice[0]} is given twice. Keep one")
        except UnicodeDecodeError as error:
            raise ValueError(f"{cfg_path}: not text in UTF-8. Save it as UTF-8") from error
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1
            raise ValueError(f"{cfg_path}: line {line} is not YAML: {error.problem}") from error
        except yaml.YAMLError as error:
            raise ValueError(f"{cfg_path}: not YAML: {str(error).splitlines()[0]}") from error
        except ValueError as error:
            raise ValueError(f"{cfg_path}: {error}") from error
        return super().parse_path(cfg_path, *args, **kwargs)


def parse(config_class: type[Options], description: str, argv: list[str] | None = None) -> Options:
    """Command line and `--config FILE.yaml` -> `config_class`; UserError for a wrong option.

    A field with `help` (and optionally `nargs`) in its metadata is a positional argument.
    """
    parser = YamlParser(description=description.split("\n", 1)[0], exit_on_error=False)
    parser.add_argument("--config", action="config", help="YAML file; flags override it.")
    placed = [field for field in fields(config_class) if field.metadata]
    for field in placed:
        parser.add_argument(field.name, **{"nargs": "?", **field.metadata})
    parser.add_class_arguments(config_class, skip={field.name for field in placed})
    try:
        values = parser.parse_args(argv)
        hints = get_type_hints(config_class).items()
        return config_class(**{name: as_meant(values[name], hint) for name, hint in hints})
    except (ArgumentError, ValueError) as error:
        what = plainly(str(error), config_class)
        raise UserError(f"{parser.prog}: {what}. Options: {parser.prog} --help") from error


def as_meant(value: Any, hint: Any) -> Any:
    """An option's value. Expands ~, because a shell does not in --option=~/x; makes a tuple of a
    single number if the option takes several."""
    if isinstance(value, float) and tuple[float, ...] in get_args(hint):
        return (value,)
    return type(value)(to_path(value)) if str(value).startswith("~") else value


def examples(hint: Any) -> list[str]:
    """Example values of a type."""
    if is_typeddict(hint):
        parts = get_type_hints(hint).items()
        return ["[{" + ", ".join(f"{name}: {examples(part)[0]}" for name, part in parts) + "}]"]
    if hint in EXAMPLES or not get_args(hint):
        return [EXAMPLES.get(hint, str(hint))]
    return [text for part in get_args(hint) if part is not NoneType for text in examples(part)]


def plainly(message: str, config_class: type) -> str:
    """jsonargparse's message in one line, with an example for a value of the wrong type and the
    most similar known option for an unknown one."""
    hints = get_type_hints(config_class)
    if match := WRONG_TYPE.fullmatch(message) or NO_VALUE.fullmatch(message):
        got = match[2] if match.re is WRONG_TYPE else "no value"
        return f"{match[1]}: got {got}. Give a value like {' or '.join(examples(hints[match[1]]))}"
    if match := UNKNOWN.fullmatch(message):
        near = get_close_matches(match[1], hints, n=1)
        return message + "".join(f". Perhaps you meant --{name}" for name in near)
    return re.sub(r'^Parser key "(\w+)": ', r"--\1: ", message)


def chosen(config: Any, names: str) -> dict[str, Any]:
    """Name -> value of the fields in `names`, which are separated by spaces."""
    return {name: getattr(config, name) for name in names.split()}


def check(config: Any, names: str, valid: Callable[[Any], object], expected: str) -> None:
    """ValueError for a field in `names` (separated by spaces) that is neither None nor `valid`."""
    for name, value in chosen(config, names).items():
        if value is not None and not valid(value):
            raise ValueError(f"--{name} must be {expected}, got {value}")


def valid_scales(scales: tuple[float, ...]) -> bool:
    return len(scales) > 0 and all(0.01 <= scale <= 100 for scale in scales)
