"""The command line that all commands share: a typed dataclass, a YAML file, flags over it.

Imports no torch: `--help` and a mistyped option answer at once.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from utils.base.errors import UserError

Options = TypeVar("Options")  # a dataclass

set_parsing_settings(docstring_parse_attribute_docstrings=True)


class YamlParser(ArgumentParser):
    """jsonargparse; a file with aliases is refused: a small one could unfold without end."""

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Any:
        text = Path(cfg_path).read_text(encoding="utf-8")
        with suppress(yaml.YAMLError):  # jsonargparse describes these better
            if any(isinstance(x, yaml.AliasEvent) for x in yaml.parse(text, yaml.SafeLoader)):
                raise ValueError(f"{cfg_path}: has aliases (*name), which are not taken")
        return super().parse_path(cfg_path, *args, **kwargs)


class OneLineParser(YamlParser):
    """Says in one line what is wrong, without the whole usage."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        raise UserError(f"{self.prog}: {message}. Options: {self.prog} --help") from ex


def parse(config_class: type[Options], description: str, argv: list[str] | None = None) -> Options:
    """Command line, over `--config FILE.yaml` -> `config_class`; UserError on a mistake.

    A field with a `help` in its metadata is given by its place, without a name.
    """
    parser = OneLineParser(description=description.split("\n", 1)[0])
    parser.add_argument("--config", action="config", help="YAML file; flags override it.")
    placed = [field for field in fields(config_class) if field.metadata]
    for field in placed:
        parser.add_argument(field.name, nargs="?", help=field.metadata["help"])
    parser.add_class_arguments(config_class, skip={field.name for field in placed})
    try:
        values = parser.parse_args(argv)
        return config_class(**{field.name: values[field.name] for field in fields(config_class)})
    except ValueError as error:
        parser.error(str(error))


def check(config: Any, names: str, valid: Callable[[Any], object], expected: str) -> None:
    """ValueError for a field, of `names` with spaces between them, that is set and not `valid`."""
    for name in names.split():
        value = getattr(config, name)
        if value is not None and not valid(value):
            raise ValueError(f"--{name} must be {expected}, got {value}")


def valid_scales(scales: tuple[float, ...]) -> bool:
    return len(scales) > 0 and all(0.01 <= scale <= 100 for scale in scales)
