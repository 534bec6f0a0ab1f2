"""Archives from a real server: fetched once, checked, remembered, and refused when they are others."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssmke.data.download.archives import (
    UNPACKED_MARK,
    Fetched,
    absent_bytes,
    fetch_archives,
    is_unpacked,
    missing_bytes,
    read_record,
    remove_fetched,
    unpack_images,
    write_record,
)
from ssmke.data.remote.fetch import RemoteConfig
from ssmke.data.sources.catalogue import Archive
from ssmke.errors import DataError
from tests.data.remote.server import MisbehavingServer

CONTENT = bytes(range(256)) * 4000
REMOTE = RemoteConfig(retries=1, timeout_seconds=5)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MisbehavingServer]:
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "a.zip").write_bytes(CONTENT)
    with MisbehavingServer(tmp_path / "host") as server:
        yield server


@pytest.fixture
def archive(server: MisbehavingServer) -> Archive:
    digest = hashlib.sha256(CONTENT).hexdigest()
    return Archive("a.zip", f"{server.url}/a.zip", len(CONTENT), ("sha256", digest))


@pytest.fixture
def unchecked(archive: Archive) -> Archive:
    """An archive of which nobody published size or digest."""
    return dataclasses.replace(archive, bytes=None, digest=None, about=10)


def test_what_is_there_is_not_fetched_again(
    archive: Archive, server: MisbehavingServer, tmp_path: Path
) -> None:
    folder = tmp_path / "downloads"
    assert missing_bytes([archive], folder) == len(CONTENT)
    came: list[int] = []
    (first,) = fetch_archives([archive], folder, REMOTE, on_bytes=came.append)
    assert (folder / "a.zip").read_bytes() == CONTENT
    assert sum(came) == len(CONTENT)
    assert first.published
    assert not first.by_hand
    assert missing_bytes([archive], folder) == 0
    requests = server.requests["a.zip"]
    assert fetch_archives([archive], folder, REMOTE) == [first]
    assert server.requests["a.zip"] == requests


def test_what_had_come_before_a_failure_is_not_fetched_again(
    archive: Archive, server: MisbehavingServer, tmp_path: Path
) -> None:
    server.misbehave = lambda name, number: "cut" if number == 0 else ""
    with pytest.raises(DataError, match="what has arrived is kept"):
        fetch_archives([archive], tmp_path / "downloads", RemoteConfig(retries=0, timeout_seconds=5))
    missing = missing_bytes([archive], tmp_path / "downloads")
    assert 0 < missing < len(CONTENT)
    assert absent_bytes([archive], tmp_path / "downloads") == len(CONTENT)
    came: list[int] = []
    fetch_archives([archive], tmp_path / "downloads", REMOTE, on_bytes=came.append)
    assert came[0] == len(CONTENT) - missing
    assert (tmp_path / "downloads" / "a.zip").read_bytes() == CONTENT


def test_a_published_digest_holds(archive: Archive, server: MisbehavingServer, tmp_path: Path) -> None:
    (server.folder / "a.zip").write_bytes(CONTENT[::-1])
    with pytest.raises(DataError, match=r"not the file that was expected.*put it into .*downloads"):
        fetch_archives([archive], tmp_path / "downloads", REMOTE)
    assert not (tmp_path / "downloads" / "a.zip").exists()


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_file_put_there_by_hand_is_checked_and_marked(
    archive: Archive, server: MisbehavingServer, tmp_path: Path, algorithm: str
) -> None:
    archive = dataclasses.replace(archive, digest=(algorithm, hashlib.new(algorithm, CONTENT).hexdigest()))
    (tmp_path / "a.zip").write_bytes(CONTENT)
    for _ in range(2):
        (one,) = fetch_archives([archive], tmp_path, REMOTE)
        assert one.by_hand
    assert not server.requests
    os.truncate(tmp_path / "a.zip", 1000)
    with pytest.raises(DataError, match="it has 1,000 bytes, not 1,024,000"):
        fetch_archives([archive], tmp_path, REMOTE)
    (tmp_path / "a.zip").write_bytes(CONTENT[::-1])
    with pytest.raises(DataError, match=f"its {algorithm} is .* not the one that was published"):
        fetch_archives([archive], tmp_path, REMOTE)


def test_without_a_published_digest_the_first_one_counts(
    unchecked: Archive, server: MisbehavingServer, tmp_path: Path
) -> None:
    said: list[str] = []
    (first,) = fetch_archives([unchecked], tmp_path / "one", REMOTE, say=said.append)
    assert first.digest == hashlib.sha256(CONTENT).hexdigest()
    assert not first.published
    assert any("nobody published a digest of a.zip" in text for text in said)
    # The dataset that was made of it keeps the record, so another file is noticed later and elsewhere.
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    write_record(dataset, [first], dataset="toy")
    (server.folder / "a.zip").write_bytes(CONTENT[::-1])
    with pytest.raises(DataError, match="not the file that was expected"):
        fetch_archives([unchecked], tmp_path / "two", REMOTE, known=dataset)
    (server.folder / "a.zip").write_bytes(CONTENT)
    said.clear()
    fetch_archives([unchecked], tmp_path / "two", REMOTE, known=dataset, say=said.append)
    assert not any("nobody published" in text for text in said)


def test_a_changed_file_is_noticed_by_its_time(unchecked: Archive, tmp_path: Path) -> None:
    fetch_archives([unchecked], tmp_path, REMOTE)
    (tmp_path / "a.zip").write_bytes(CONTENT[::-1])
    with pytest.raises(DataError, match="not the one of the first time"):
        fetch_archives([unchecked], tmp_path, REMOTE)


def test_a_damaged_record_is_said(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "downloads.json").write_text('{"files": [{"name": "a.zip"}]}')
    with pytest.raises(DataError, match=r"downloads\.json is damaged: delete it"):
        read_record(tmp_path)


def tar_of(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def plain(name: str) -> tarfile.TarInfo:
    return tarfile.TarInfo(name)


def test_only_image_files_are_unpacked_and_nothing_outside(tmp_path: Path) -> None:
    link, device = plain("images/link.jpg"), plain("images/device.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device.type = tarfile.CHRTYPE
    members = [
        (plain("images/1.jpg"), b"one"),
        (plain("../../outside.jpg"), b"two"),
        (plain("/absolute.jpg"), b"three"),
        (plain("images/._1.jpg"), b"junk"),
        (plain("images/readme.txt"), b"text"),
        (link, b""),
        (device, b""),
    ]
    folder = tmp_path / "deep" / "downloads"
    folder.mkdir(parents=True)
    tar_of(folder / "a.tar.gz", members)
    unpack_images(folder / "a.tar.gz", folder, "images")
    assert is_unpacked(folder / "images")
    found = {path.name: path.read_bytes() for path in (folder / "images").glob("*.*g")}
    assert found == {"1.jpg": b"one", "outside.jpg": b"two", "absolute.jpg": b"three"}
    assert sorted(path.name for path in folder.iterdir()) == ["a.tar.gz", "images"]
    assert sorted(path.name for path in tmp_path.rglob("*.jpg")) == sorted(found)


def test_a_cut_tar_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar.gz", [(plain(f"{i}.jpg"), os.urandom(5000)) for i in range(20)])
    os.truncate(tmp_path / "a.tar.gz", 60_000)
    with pytest.raises(DataError, match=r"a\.tar\.gz is damaged"):
        unpack_images(tmp_path / "a.tar.gz", tmp_path, "images")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


def test_unpacked_images_are_on_the_disk_before_the_folder_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar_of(tmp_path / "a.tar.gz", [(plain(f"{i}.jpg"), b"x") for i in range(3)])
    flushed: list[int] = []
    sync = os.sync

    def watched() -> None:
        assert not (tmp_path / "images").exists()
        flushed.append(len(list(tmp_path.rglob("*.jpg"))))
        sync()

    monkeypatch.setattr(os, "sync", watched)
    unpack_images(tmp_path / "a.tar.gz", tmp_path, "images")
    assert flushed == [3]


def test_what_the_user_put_there_is_never_deleted(archive: Archive, tmp_path: Path) -> None:
    mine = tmp_path / "images"
    mine.mkdir()
    (mine / "notes.txt").touch()
    tar_of(tmp_path / "a.tar.gz", [(plain("1.jpg"), b"x")])
    unpack_images(tmp_path / "a.tar.gz", tmp_path, "images")
    assert not is_unpacked(mine)
    (one,) = fetch_archives([archive], tmp_path, REMOTE)
    other = Fetched("other.zip", "http://host/other.zip", 1, 1, "sha256", "0", True)
    write_record(tmp_path, [one, other])
    for left in (".a.zip.0123.abcd.partial", ".another.zip.0123.abcd.partial"):
        (tmp_path / left).touch()
    (tmp_path / ".images.partial").mkdir()
    remove_fetched(tmp_path, [one], ["images"])
    here = {path.name for path in tmp_path.iterdir()} - {"host"}
    # Another dataset's download to the same folder keeps its record and what it has begun.
    assert here == {"images", "a.tar.gz", "downloads.json", ".another.zip.0123.abcd.partial"}
    assert [path.name for path in mine.iterdir()] == ["notes.txt"]
    assert read_record(tmp_path) == {"other.zip": other}
    (mine / UNPACKED_MARK).touch()
    remove_fetched(tmp_path, [other], ["images"])
    assert not mine.exists()
    assert not (tmp_path / "downloads.json").exists()
