"""Files that are written whole or not at all, and where things lie."""

import json
import os
import shutil

import pytest
from helpers import REPOSITORY

from utils.base.errors import UserError
from utils.base.paths import (
    make_folder,
    read_bytes,
    read_names,
    require_file_name,
    resolve_data_folder,
    resolve_log_root,
    whole,
    write_json,
    write_text,
)


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_takes_the_place_of_the_old_file(tmp_path):
    path = tmp_path / "scores.json"
    for content in ("old", "new and longer", ""):
        with whole(path) as temporary:
            assert temporary.parent == tmp_path and temporary != path
            before = path.read_text() if path.exists() else None
            temporary.write_text(content)
            assert (path.read_text() if path.exists() else None) == before  # until the end
        assert path.read_text() == content and names(tmp_path) == ["scores.json"]


@pytest.mark.parametrize("error", [ValueError, UserError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("begun", [False, True])
def test_a_failure_inside_leaves_the_old_file_and_nothing_else(tmp_path, error, begun):
    path = tmp_path / "scores.json"
    path.write_text("old")
    with pytest.raises(error, match="^within$"), whole(path) as temporary:
        if begun:
            temporary.write_text("half of the n")
        raise error("within")
    assert path.read_text() == "old" and names(tmp_path) == ["scores.json"]


def test_where_there_was_no_file_a_failure_leaves_none(tmp_path):
    with pytest.raises(ValueError, match="within"), whole(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise ValueError("within")
    assert names(tmp_path) == []


def test_a_full_disk_is_the_users_error(tmp_path):
    path = tmp_path / "scores.json"
    path.write_text("old")
    with pytest.raises(UserError) as error, whole(path) as temporary:
        temporary.write_text("half")
        with open("/dev/full", "w", buffering=1) as full:
            full.write("the other half\n")
    cause = os.strerror(28)
    assert str(error.value).startswith(f"{path}: cannot be written ({cause}). Free space")
    assert path.read_text() == "old" and names(tmp_path) == ["scores.json"]


@pytest.mark.parametrize("place", ["none/x.txt", "file/x.txt", "folder"])
def test_a_place_that_takes_no_file_is_the_users_error(tmp_path, place):
    """No folder, a file in its place, and a folder of the file's name."""
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(UserError, match=f"{place}: cannot be written"):
        write_text(tmp_path / place, "new")
    assert names(tmp_path) == ["file", "folder"] and (tmp_path / "file").read_text() == "old"


def test_a_folder_that_vanishes_is_the_users_error(tmp_path):
    path = tmp_path / "folder" / "x"
    path.parent.mkdir()
    with pytest.raises(UserError, match="x: cannot be written"), whole(path) as temporary:
        temporary.write_text("half")
        shutil.rmtree(path.parent)


def test_processes_that_write_the_same_file_do_not_meet(tmp_path):
    with whole(tmp_path / "x") as temporary:
        temporary.write_text("mine")
        assert temporary.name == f".tmp-{os.getpid()}-x"


def test_text_and_json_are_read_back_as_they_were(tmp_path):
    write_text(tmp_path / "x.txt", "größe\r\n\n")
    assert read_bytes(tmp_path / "x.txt") == "größe\r\n\n".encode()
    assert read_names(tmp_path / "x.txt") == ["größe"]
    write_json(tmp_path / "x.json", {"a": [1, None]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1, None]}
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match=f"{path.name}: cannot be read"):
            read_names(path)


def test_folders_are_made_or_refused(tmp_path):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="c: cannot be created"):
        make_folder(tmp_path / "file" / "c")


def test_a_file_name_is_no_folder_and_lies_in_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    require_file_name(tmp_path / "x.mp4")
    require_file_name(type(tmp_path)("x.mp4"))
    for path in (tmp_path, tmp_path / "none" / "x.mp4"):
        with pytest.raises(UserError, match="not a file name in an existing folder"):
            require_file_name(path)


def test_folders_of_data_and_runs_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SOME_DATASET", raising=False)
    here = type(tmp_path)("here")
    assert resolve_log_root(None) == REPOSITORY / "training_logs"
    assert resolve_log_root(here) == tmp_path / "here"
    assert resolve_data_folder("voc", None, None) == REPOSITORY / "data" / "voc"
    assert resolve_data_folder("voc", None, "SOME_DATASET") == REPOSITORY / "data" / "voc"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SOME_DATASET", "~/a b")
    assert resolve_data_folder("voc", None, "SOME_DATASET") == tmp_path / "a b"
    monkeypatch.setenv("SOME_DATASET", "there")
    assert resolve_data_folder("voc", None, "SOME_DATASET") == tmp_path / "there"
    assert resolve_data_folder("voc", here, "SOME_DATASET") == tmp_path / "here"


@pytest.mark.parametrize("name", ["a" * 251 + ".png", "ß" * 125 + ".webm", "." + "a" * 254])
def test_a_name_of_the_greatest_length_is_written(tmp_path, name):
    path = tmp_path / name
    with whole(path) as temporary, whole(tmp_path / ("b" + name[1:])) as other:
        assert temporary != other and temporary.name.startswith(".tmp-")
        assert name[0] == "." or temporary.suffix == path.suffix
        for place in (temporary, other):
            place.write_text("new")
    assert path.read_text() == "new" and len(names(tmp_path)) == 2


def test_a_name_beyond_it_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"png: cannot be written \(File name too long\).*shorter"):
        write_text(tmp_path / ("a" * 252 + ".png"), "new")
    assert names(tmp_path) == []


LISTS = {
    "trailing blanks and CRLF": b"a b  \r\n c\t\r\n\r\n",
    "a byte order mark": b"\xef\xbb\xbfa b\nc\n",
    "UTF-16": "a b\r\nc\r\n".encode("utf-16"),
    "UTF-16, the other order": b"\xfe\xff" + "a b\nc".encode("utf-16-be"),
    "no end of the last line": b"a b\nc",
    "old Macs": b"a b\rc\r",
}


@pytest.mark.parametrize("case", LISTS)
def test_lists_of_names_as_people_save_them(tmp_path, case):
    (tmp_path / "x.txt").write_bytes(LISTS[case])
    assert read_names(tmp_path / "x.txt") == ["a b", "c"]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_name_that_stands_there_again_counts_once_and_is_said(
    tmp_path, capsys, monkeypatch, rank
):
    monkeypatch.setenv("RANK", rank)
    path = tmp_path / "x.txt"
    path.write_text("a\nb\na \nc\nb\na\n")
    for _ in range(2):
        assert read_names(path) == ["a", "b", "c"]
    line = f"warning: {path}: 2 duplicate names, such as a; each counts once\n"
    assert capsys.readouterr().err == ("" if rank == "1" else line)  # once, by one process
