"""The file search of every command.

It follows links to files and folders, ignores the case of file extensions, and skips __MACOSX and
hidden files (names that begin with a dot, such as macOS's ._x.png).
"""

import os
from collections.abc import Iterator
from fnmatch import translate
from pathlib import Path
from re import compile

from utils.base.errors import UserError


def find(root: Path, pattern: str) -> dict[Path, str]:
    """Paths below `root` that match, sorted folder by folder -> the text that {name} matched.

    `*`, `?` and `[ab]` match within a path part as in a shell, {name} matches any text, and `**`
    any number of folders. A part that exists literally, such as a[1].png, is no pattern.
    """
    found = {root: ""}
    for part in Path(pattern).parts:
        found = {x: new or name for path, name in found.items() for x, new in matches(path, part)}
    return found


def find_named(root: Path, pattern: str) -> dict[str, Path]:
    """The text that {name} matched -> file; UserError if two files have the same name."""
    found: dict[str, Path] = {}
    for path, name in find(root, pattern).items():
        if (first := found.setdefault(name, path)) is not path:
            raise UserError(f"{path}: a second file named {name} beside {first}. Rename one")
    return found


def matches(folder: Path, part: str) -> Iterator[tuple[Path, str]]:
    """Paths in a folder that match one part of a pattern, each with its {name} or ""."""
    if part == "**":
        yield from ((x, "") for x in folders(folder))
    elif os.path.lexists(folder / part):
        yield folder / part, ""
    else:
        stem, ending = os.path.splitext(part)
        begin = "(?P<name>.+)".join(translate(text)[:-2] for text in stem.split("{name}"))
        pattern = compile(f"{begin}(?i:{translate(ending)[:-2]})")
        for match in filter(None, map(pattern.fullmatch, listing(folder))):
            yield folder / match[0], match.groupdict().get("name", "")


def folders(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """A folder and all folders below it; skips links back to a folder in `above`."""
    if (real := os.path.realpath(folder)) not in above:
        yield folder
        for path in map(folder.joinpath, listing(folder)):
            if os.path.isdir(path):
                yield from folders(path, (*above, real))


def listing(folder: Path) -> list[str]:
    """Sorted names in a folder, [] if it does not exist. UserError if it cannot be read."""
    try:
        return sorted(x for x in os.listdir(folder) if not x.startswith(".") and x != "__MACOSX")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}. Give a folder that can be read") from error
