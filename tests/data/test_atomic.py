from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from ssmke.data.atomic import atomic_writer, encode_json, make_folder
from ssmke.errors import DataError


def test_content_appears_at_the_end_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_writer(path) as file:
        file.write(b"new ")
        file.write(b"content")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new content"
    assert (file.bytes, file.sha256) == (11, hashlib.sha256(b"new content").hexdigest())
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_keeps_the_old_file_and_removes_the_temporary(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def stopped_half_way() -> None:
        with atomic_writer(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped_half_way()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, name, full)
    path = tmp_path / "file"
    with (
        pytest.raises(DataError, match=rf"cannot write {path}.*disk is full.*again"),
        atomic_writer(path) as file,
    ):
        file.write(b"data")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with (
        pytest.raises(DataError, match="is a file, not a folder"),
        atomic_writer(tmp_path / "file" / "below"),
    ):
        pass
    with pytest.raises(DataError, match="choose another folder"):
        make_folder(tmp_path / "file")


@pytest.mark.parametrize("path", [".", "..", "/", "sub", "sub/.."])
def test_a_folder_is_not_a_name_for_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    with (
        pytest.raises(DataError, match=r"A folder of that name is in the way: choose another name"),
        atomic_writer(Path(path)),
    ):
        raise AssertionError("there is nowhere to write to")
    assert [child.name for child in tmp_path.iterdir()] == ["sub"]


def test_an_error_of_what_the_caller_reads_is_not_blamed_on_the_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_writer(tmp_path / "file"):
        (tmp_path / "not there").read_bytes()


def test_json_is_readable_and_the_same_for_the_same_value() -> None:
    assert encode_json({"b": 1, "a": "Größe 犬"}) == '{"a": "Größe 犬", "b": 1}\n'.encode()
