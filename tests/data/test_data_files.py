import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tippingpoint.data import read_lengths
from tippingpoint.data.files import Wanted, find_files, stream_files
from tippingpoint.data.records import suffix_of
from tippingpoint.errors import InputError


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one two three")


def found(*paths: Path | str) -> list[str]:
    files, _ = find_files([str(path) for path in paths], (".txt",), "text")
    return [os.path.basename(file) for file in files]


def test_files_of_a_folder_come_before_those_below_it_each_sorted(tmp_path):
    write(tmp_path, "b/z.txt", "b/a/c.txt", "x.txt", "a/y.txt", "w.TXT")
    assert found(tmp_path) == ["w.TXT", "x.txt", "y.txt", "z.txt", "c.txt"]


@given(order=st.permutations(["a", "a/b", "link.txt", "a/x.txt", "a/*.txt", "**/*.txt", "other", "hard", "."]))
def test_every_file_is_reached_once_however_the_paths_overlap(order, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    write(folder, "a/x.txt", "a/b/y.txt", "c/z.txt", "a/.hidden.txt")
    (folder / "link.txt").symlink_to(folder / "a" / "x.txt")
    (folder / "a" / "b" / "again.txt").symlink_to(folder / "c" / "z.txt")
    (folder / "other").symlink_to(folder / "a")
    (folder / "hard").symlink_to(folder / "a" / "b")
    files, _ = find_files([str(folder / path) for path in order], (".txt",), "text")
    real = [os.path.relpath(os.path.realpath(file), os.path.realpath(folder)) for file in files]
    assert sorted(real) == ["a/b/y.txt", "a/x.txt", "c/z.txt"]


def test_a_link_to_a_file_that_is_hidden_where_it_lies_is_read_once(tmp_path):
    write(tmp_path, "data/.kept/a.txt", "data/.b.txt")
    (tmp_path / "data" / "first.txt").symlink_to(tmp_path / "data" / ".kept" / "a.txt")
    (tmp_path / "data" / "second.txt").symlink_to(tmp_path / "data" / ".kept" / "a.txt")
    (tmp_path / "data" / "third.txt").symlink_to(tmp_path / "data" / ".b.txt")
    assert found(tmp_path) == ["first.txt", "third.txt"]


def test_links_in_circles_and_to_nowhere_and_what_is_no_file_are_passed_over(tmp_path):
    write(tmp_path, "a.txt")
    (tmp_path / "self").symlink_to(tmp_path)
    (tmp_path / "b.txt").symlink_to(tmp_path / "c.txt")
    (tmp_path / "c.txt").symlink_to(tmp_path / "b.txt")
    (tmp_path / "d.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "e.txt")
    (tmp_path / "f.txt").mkdir()
    assert found(tmp_path) == ["a.txt"]


def test_a_folder_that_cannot_be_listed_is_named_and_the_rest_is_read(tmp_path, monkeypatch):
    write(tmp_path, "a/x.txt", "b/y.txt")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    data = read_lengths(tmp_path, "text")
    assert (data.count, [str(item) for item in data.skipped]) == (1, [f"{tmp_path}/a (Permission denied)"])


def test_files_are_streamed(tmp_path):
    write(tmp_path, "a/x.txt", "b/y.txt")
    stream = stream_files([str(tmp_path)], Wanted(modality="text", suffixes=(".txt",)))
    assert str(next(stream)).endswith("x.txt")
    write(tmp_path, "b/z.txt")
    assert [os.path.basename(str(file)) for file in stream] == ["y.txt", "z.txt"]


def test_a_path_that_leads_nowhere_is_an_error_before_anything_is_read(tmp_path):
    write(tmp_path, "a.txt")
    with pytest.raises(InputError, match="there is no file or folder"):
        next(stream_files([str(tmp_path), str(tmp_path / "none")], Wanted(modality="text", suffixes=(".txt",))))


def test_the_suffix_of_compressed_lines_is_both_parts():
    names = {"a.JSONL.gz": ".jsonl.gz", "x/b.csv": ".csv", "a.b/c": "", ".txt": "", "a": "", "a.tar.gz": ".tar.gz"}
    assert {name: suffix_of(name) for name in names} == names
