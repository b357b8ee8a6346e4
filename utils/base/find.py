"""The one way in which every command looks for files.

Links to files and folders are followed, the ending of a name matches in any case, and hidden files
(names that begin with a dot, so macOS's ._x.png too) and __MACOSX are passed over.
"""

import os
from collections.abc import Iterator
from fnmatch import translate
from pathlib import Path
from re import compile

from utils.base.errors import UserError


def find(root: Path, pattern: str) -> dict[Path, str]:
    """What matches below `root`, in order, folder by folder -> what {name} stands for in its path.

    Between "/" stand `*`, `?`, `[ab]` and {name}, any text; `**` is any number of folders. A part
    that is there just as it is written, such as a[1].png, is taken as it is.
    """
    found = {root: ""}
    for part in Path(pattern).parts:
        found = {x: new or name for path, name in found.items() for x, new in matches(path, part)}
    return found


def find_named(root: Path, pattern: str) -> dict[str, Path]:
    """What {name} stands for -> file; UserError where two files have one name."""
    found: dict[str, Path] = {}
    for path, name in find(root, pattern).items():
        if (first := found.setdefault(name, path)) is not path:
            raise UserError(f"{path}: a second file named {name} beside {first}. Rename one")
    return found


def matches(folder: Path, part: str) -> Iterator[tuple[Path, str]]:
    """What one part of a pattern stands for in a folder, and its {name} or ""."""
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
    """A folder and all below it; a link back to one `above` it ends there."""
    if (real := os.path.realpath(folder)) not in above:
        yield folder
        for path in map(folder.joinpath, listing(folder)):
            if os.path.isdir(path):
                yield from folders(path, (*above, real))


def listing(folder: Path) -> list[str]:
    """Names of what lies in a folder, sorted; [] where there is none. UserError if it is closed."""
    try:
        return sorted(x for x in os.listdir(folder) if not x.startswith(".") and x != "__MACOSX")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}. Choose a folder that can be read") from error
