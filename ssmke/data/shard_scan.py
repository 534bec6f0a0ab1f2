"""The structure of a shard's tar, and how it is told that a file is not (or no longer) a shard.

`scan` reads a tar without its images: how an index is rebuilt, and half of what `ssmke data verify` checks.
It is strict where `tarfile` is lenient: that takes a tar which ends within or after any header for a complete
one, so a shard that was cut there would just have fewer samples. Here the closing zero blocks must be there.
Costs about 60 microseconds a sample.
"""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ssmke.data.hostile_tar import DAMAGED, BoundedInfo
from ssmke.errors import BadSample, DataError

IMAGE_EXTENSIONS = ("jpg", "png", "webp")
MAX_RECORD_BYTES = 64 << 20
"""Of the JSON of a sample; what importers keep of one has some kilobytes."""
_BLOCK = tarfile.BLOCKSIZE

ShardRow = tuple[int, int, int, int, int]
"""Offset and size of the image; offset, size and CRC-32 of the JSON."""


class ShardTable:
    """The rows of an index, while they are gathered."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.extensions: list[str] = []
        self.captions: list[int] = []
        self.rows: list[ShardRow] = []
        self.seen: set[str] = set()

    def add(self, key: str, extension: str, row: ShardRow, captions: int) -> None:
        self.keys.append(key)
        self.extensions.append(extension)
        self.seen.add(key)
        self.rows.append(row)
        self.captions.append(captions)

    def captions_array(self) -> NDArray[np.int32]:
        return np.array(self.captions, np.int32)

    def rows_array(self) -> NDArray[np.int64]:
        return np.array(self.rows, np.int64).reshape(-1, 5)


def scan(path: Path) -> ShardTable:
    """Read the structure of a shard from its tar, without its images.

    `tarfile` takes a tar that ends within or after any header for a complete one; here the closing zero
    blocks must be there, so a shard that was cut anywhere is noticed.

    Raises:
        DataError: cut short, empty, not a tar, a member that is no plain file, or a sample that is not an
            image followed by its JSON.
    """
    size = tar_size(path)
    table = ShardTable()
    try:
        with path.open("rb") as file, _open(file) as tar:
            members = _members(tar)
            for image in members:
                key = _member_key(path, image, IMAGE_EXTENSIONS)
                record = next(members, None)
                if record is None or _member_key(path, record, ("json",)) != key:
                    found = "nothing" if record is None else repr(record.name)
                    if record is None:
                        _check_end(file, path, image, size)
                    raise DataError(
                        not_a_shard(path, f"{image.name!r} is followed by {found}, not {key}.json")
                    )
                if key in table.seen:
                    raise DataError(not_a_shard(path, f"the key {key!r} comes twice"))
                captions, checksum = _look_into(file, path, record, size)
                row = (image.offset_data, image.size, record.offset_data, record.size, checksum)
                table.add(key, image.name.partition(".")[2], row, captions)
                last = record
            if table.keys:
                _check_end(file, path, last, size)
    except tarfile.TarError as error:
        if size and ("unexpected end" in str(error) or "truncated" in str(error)):
            raise DataError(cut_short(path, "its last member is incomplete")) from None
        what = "it is empty" if size == 0 else f"it is no plain tar ({error})"
        raise DataError(not_a_shard(path, what)) from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from error
    if not table.keys:
        raise DataError(not_a_shard(path, "it holds no samples"))
    return table


def _member_key(path: Path, member: tarfile.TarInfo, extensions: tuple[str, ...]) -> str:
    key, _, extension = member.name.partition(".")
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
        raise DataError(not_a_shard(path, f"member {member.name!r} is not a plain file"))
    if "/" in member.name or "\\" in member.name or not key:
        raise DataError(not_a_shard(path, f"member {member.name!r} is not a plain name"))
    if extension not in extensions:
        expected = " or ".join(f"{key}.{extension}" for extension in extensions)
        raise DataError(not_a_shard(path, f"member {member.name!r} stands where {expected} should"))
    return key


def _check_end(file: io.BufferedReader, path: Path, last: tarfile.TarInfo, size: int) -> None:
    end = last.offset_data + -(-last.size // _BLOCK) * _BLOCK
    if end > size:
        raise DataError(cut_short(path, f"{last.name!r} is incomplete"))
    file.seek(end)
    if file.read(2 * _BLOCK) != bytes(2 * _BLOCK):
        raise DataError(cut_short(path, f"no end of archive after {last.name!r}"))


def _open(file: io.BufferedReader) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=file, mode="r:", tarinfo=BoundedInfo)
    except DAMAGED as error:
        raise _read_error(error) from None


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while True:
        try:
            member = tar.next()
        except DAMAGED as error:
            raise _read_error(error) from None
        if member is None:
            return
        yield member


def _read_error(error: Exception) -> tarfile.TarError:
    if isinstance(error, tarfile.TarError):
        return error
    return tarfile.ReadError(f"a damaged header: {error}")


def _look_into(file: io.BufferedReader, path: Path, member: tarfile.TarInfo, size: int) -> tuple[int, int]:
    """Number of captions and CRC-32 of a JSON member."""
    if member.offset_data + member.size > size:
        raise DataError(cut_short(path, f"{member.name!r} is incomplete"))
    if member.size > MAX_RECORD_BYTES:
        raise DataError(not_a_shard(path, f"{member.name!r} has {member.size:,} bytes"))
    file.seek(member.offset_data)
    text = file.read(member.size)
    try:
        captions = len(parse_record(text)["captions"])
    except BadSample:
        captions = 0  # no pairs are drawn from it; `ssmke data verify` names it
    return captions, zlib.crc32(text)


def tar_size(path: Path) -> int:
    """Size in bytes. Raises `DataError` where there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        raise DataError(
            f"the shard {path} is missing: restore it, or run the command that made it again."
        ) from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}.") from error


def parse_record(data: bytes) -> dict[str, Any]:
    """The JSON of a sample; bytes that are not UTF-8 survive as surrogates, to cost only their caption.

    Raises:
        BadSample: "broken JSON": not an object with a "key" and a list of "captions" that are text.
    """
    try:
        record = json.loads(data.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError) as error:
        raise BadSample("broken JSON", str(error)) from None
    if not isinstance(record, dict) or not isinstance(record.get("key"), str):
        raise BadSample("broken JSON", 'no "key"')
    captions = record.get("captions")
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise BadSample("broken JSON", '"captions" is not a list of text')
    return record


def cut_short(path: Path, what: str) -> str:
    return (
        f"the shard {path} is cut short ({what}): copy it again from its source, or delete it and run the "
        f"command that made it again."
    )


def not_a_shard(path: Path, what: str) -> str:
    return f"{path} is not a shard of ssmke: {what}. Delete it and run the command that made it again."
