"""Compressed archives of others: nothing leaves its folder, and nothing grows without bound."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ssmke.data.download import archives, pair_lists
from ssmke.data.download.archives import unpack_images
from ssmke.data.download.packed import packed_members
from ssmke.errors import DataError


def member(name: str, data: bytes = b"pixels", **facts: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for fact, value in facts.items():
        setattr(info, fact, value)
    return info, data


def packed(path: Path, *members: tuple[tarfile.TarInfo, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return path


def test_members_that_lead_elsewhere_write_nothing_there(tmp_path: Path) -> None:
    link = {"type": tarfile.SYMTYPE, "linkname": str(tmp_path / "outside"), "size": 0}
    archive = packed(
        tmp_path / "a.tar.gz",
        member("ok/1.jpg"),
        member("../up.jpg"),
        member(f"{tmp_path}/absolute.jpg"),
        member("images", b"", **link),
        member("link.jpg", b"", **link),
        member("hard.jpg", b"", type=tarfile.LNKTYPE, linkname="../../a.tar.gz", size=0),
        member("pipe.jpg", b"", type=tarfile.FIFOTYPE, size=0),
        member("device.jpg", b"", type=tarfile.CHRTYPE, size=0),
    )
    unpack_images(archive, tmp_path / "out", "images")
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.jpg")}
    assert found == {"out/images/1.jpg", "out/images/up.jpg", "out/images/absolute.jpg"}
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz", "w"])
def test_every_compression_gives_the_same_bytes(tmp_path: Path, mode: str) -> None:
    contents = {f"{size}.jpg": bytes(range(256)) * size for size in (0, 1, 2, 3000)}
    archive = packed(tmp_path / "a", *(member(name, data) for name, data in contents.items()), mode=mode)
    assert {info.name: file.read(1 << 20) for info, file in packed_members(archive, 1 << 30)} == contents


def test_a_bomb_ends_at_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_EXPANSION_FREE", 1 << 20)
    archive = packed(tmp_path / "bomb.tar.gz", member("a.jpg", bytes(32 << 20)))
    assert archive.stat().st_size < 50_000
    with pytest.raises(DataError, match="unpacks to far more than it could hold"):
        unpack_images(archive, tmp_path / "out", "images")
    assert not any(path.is_file() for path in (tmp_path / "out").rglob("*"))


def _sparse() -> bytes:
    info = tarfile.TarInfo("s.jpg")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[483:495] = b"%011o\0" % (8 << 30)  # the size that it claims to have
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def _long_header() -> bytes:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 60 << 20
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(60 << 20) + bytes(1024)


@pytest.mark.parametrize(("content", "said"), [(_sparse, ""), (_long_header, "a header of")])
def test_claims_of_headers_cost_nothing(tmp_path: Path, content: Callable[[], bytes], said: str) -> None:
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(gzip.compress(content(), 1))
    if said:
        with pytest.raises(DataError, match=said):
            unpack_images(archive, tmp_path / "out", "images")
    else:
        unpack_images(archive, tmp_path / "out", "images")
    assert list((tmp_path / "out").rglob("*.jpg")) == []


def test_a_list_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_lists, "_MAX_TEXT_BYTES", 1 << 20)
    archive = packed(tmp_path / "sbu.tar.gz", member(pair_lists.SBU_JSON, b" " * (8 << 20)))
    with pytest.raises(DataError, match="unpacks to far more"):
        pair_lists.count_rows(archive)
    (tmp_path / "sbu.json").write_bytes(b" " * (2 << 20))
    with pytest.raises(DataError, match="fewer than"):
        pair_lists.count_rows(tmp_path / "sbu.json")
