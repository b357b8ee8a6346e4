"""The command line that all commands share: a typed dataclass, a YAML file, flags over it.

Imports no torch: `--help` and a mistyped option answer at once.
"""

import sys
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from utils.errors import UserError

ConfigClass = TypeVar("ConfigClass")

set_parsing_settings(docstring_parse_attribute_docstrings=True)


class YamlParser(ArgumentParser):
    """jsonargparse; a file with aliases is refused: a small one could unfold without end."""

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Any:
        text = Path(cfg_path).read_text(encoding="utf-8")
        with suppress(yaml.YAMLError):  # told better by jsonargparse
            if any(isinstance(x, yaml.AliasEvent) for x in yaml.parse(text, yaml.SafeLoader)):
                raise ValueError(f"{cfg_path}: has aliases (*name), which are not taken")
        return super().parse_path(cfg_path, *args, **kwargs)


class OneLineParser(YamlParser):
    """A mistake is told in one line instead of the whole usage."""

    def error(self, message: str, ex: Exception | None = None) -> None:
        raise UserError(f"{self.prog}: {message}. Options: {self.prog} --help") from ex


def parse(
    config_class: type[ConfigClass], description: str, argv: list[str] | None = None
) -> ConfigClass:
    """Command line, over `--config FILE.yaml` -> `config_class`; UserError on a mistake.

    An option that is a list is given once per item: jsonargparse writes that `--name+ ITEM`.
    A field with a `help` in its metadata is given by its place, without a name.
    """
    lists = {f"--{field.name}" for field in fields(config_class) if field.default_factory is list}
    given = sys.argv[1:] if argv is None else argv
    argv = [f"{word}+" if word in lists else word for word in given]
    parser = OneLineParser(description=description.split("\n", 1)[0])
    parser.add_argument(
        "--config", action="config", help="YAML file of options; flags override it."
    )
    placed = {
        field.name: field.metadata["help"] for field in fields(config_class) if field.metadata
    }
    for name, text in placed.items():
        parser.add_argument(name, nargs="?", help=text)
    parser.add_class_arguments(config_class, skip=set(placed))
    try:
        values = parser.parse_args(argv)
        return config_class(**{field.name: values[field.name] for field in fields(config_class)})
    except ValueError as error:
        parser.error(str(error))


def check(config: Any, name: str, valid: Any, expected: str) -> None:
    """Raise ValueError when the field is set and not `valid`."""
    value = getattr(config, name)
    if value is not None and not valid(value):
        raise ValueError(f"--{name} must be {expected}, got {value}")


def valid_scales(scales: tuple[float, ...]) -> bool:
    return len(scales) > 0 and all(0.01 <= scale <= 100 for scale in scales)
