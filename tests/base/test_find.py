"""The one way in which files are looked for."""

import os
from pathlib import Path

import pytest

from utils.base.errors import UserError
from utils.base.find import find, find_named, listing


def grow(root: Path, *names: str) -> None:
    """Empty files; "a -> b" is a link to b, a path relative to the link's folder."""
    for name in names:
        path, _, target = name.partition(" -> ")
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(target) if target else (root / path).touch()


CASES = {  # what lies there, pattern, what is found
    "every folder": (["b/x.png", "a.png", "b/c/y.png"], "**/*.png", "a.png b/x.png b/c/y.png"),
    "endings in any case": (["a.jpg", "b.JPG", "c.Jpg", "d.png"], "*.jpg", "a.jpg b.JPG c.Jpg"),
    "no other letters in any case": (["A_l.png", "a_L.png"], "{name}_L.png", "a_L.png"),
    "hidden files": (["a.png", "._a.png", ".b.png"], "**/*.png", "a.png"),
    "hidden folders": ([".git/a.png", "__MACOSX/a.png", "b/__MACOSX/._a.png"], "**/*", "b"),
    "a hidden file that is named": ([".a.png", ".b/x.png"], ".b/*.png", ".b/x.png"),
    "a linked folder": (["far/x.png", "top/near -> ../far"], "top/*/*.png", "top/near/x.png"),
    "a linked folder below": (["far/x.png", "a/b -> ../far"], "a/**/*.png", "a/b/x.png"),
    "a linked file": (["far.png", "top/x.png -> ../far.png"], "top/*", "top/x.png"),
    "a link that leads nowhere": (["x.png -> none.png"], "*.png", "x.png"),
    "a loop": (["top/x.png", "top/back -> ."], "top/**/*.png", "top/x.png"),
    "a loop of two": (["a/x.png", "a/b -> ../b", "b/a -> ../a"], "a/**/*.png", "a/x.png"),
    "a folder by two ways": (["b/x.png", "a -> b"], "**/*.png", "a/x.png b/x.png"),
    "a link to itself": (["a -> a", "x.png"], "**/*.png", "x.png"),
    "brackets": (["a[1].png", "a1.png"], "a[1].png", "a[1].png"),
    "brackets that are none": (["a1.png", "a2.png", "a3.png"], "a[12].png", "a1.png a2.png"),
    "a folder with brackets": (["a[1]/x.png", "a1/x.png"], "a[1]/*.png", "a[1]/x.png"),
    "signs": (["a *#?%&+ b/1 #%.png"], "a *#?%&+ b/*.png", "a *#?%&+ b/1 #%.png"),
    "slashes and dots": (["a/x.png"], ".//a/./*.png", "a/x.png"),
    "the folder above": (["a/b/c", "a/x.png"], "a/b/../*.png", "a/b/../x.png"),
    "a file where a folder should be": (["a", "b/x.png"], "*/*.png", "b/x.png"),
    "nothing": (["a"], "none/*.png", ""),
    "in order": (["10/a.png", "9/b.png", "9/a.png"], "*/*.png", "10/a.png 9/a.png 9/b.png"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_found(case, tmp_path):
    root = tmp_path / "[root] #1"  # its own name is never a pattern
    names, pattern, expected = CASES[case]
    grow(root, *names)
    found = [str(path.relative_to(root)) for path in find(root, pattern)]
    if expected and " " in names[0] and " -> " not in names[0]:
        assert found == [expected]
    else:
        assert found == expected.split()


NAMES = {
    "before the ending": ("{name}.*", ["a.b.png"], {"a.b": "a.b.png"}),
    "a folder": ("{name}/i.png", ["x/i.png", "y/i.png"], {"x": "x/i.png", "y": "y/i.png"}),
    "between stars": ("*_{name}_*.png", ["u_1_v.png"], {"1": "u_1_v.png"}),
    "without an ending": ("{name}", ["a.JPG"], {"a.JPG": "a.JPG"}),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMES)
def test_what_name_stands_for(case, tmp_path):
    pattern, files, expected = NAMES[case]
    grow(tmp_path, *files)
    assert find_named(tmp_path, pattern) == {x: tmp_path / y for x, y in expected.items()}


@pytest.mark.parametrize("files", [["x.jpg", "x.JPG"], ["a/x.jpg", "b/x.jpg"]])
def test_two_files_of_one_name_are_one_line(files, tmp_path):
    grow(tmp_path, *files)
    with pytest.raises(UserError, match=r"x\.jpg: a second file named x beside \S+\. Rename one"):
        find_named(tmp_path, "*/{name}.jpg" if "/" in files[0] else "{name}.jpg")


def test_a_folder_that_cannot_be_listed_is_one_line(tmp_path):
    """Links in a circle stand for all of these: root may read every folder."""
    grow(tmp_path, "a -> b", "b -> a")
    with pytest.raises(UserError, match=f"/a: {os.strerror(40)}. Give a folder"):
        listing(tmp_path / "a")
