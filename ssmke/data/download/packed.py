"""A compressed tar of others, read from front to back within bounds.

Nothing bounds what a few kilobytes unpack to, and `tarfile` reads headers of any stated size into memory, takes sparse
members for plain files, and remembers every member. So the stream behind it is counted and ends in an error where it
gives more than it could honestly hold, no single read is larger than a header may be, and members are forgotten. gzip,
bzip2 and xz are told from the content. Nothing is extracted here: whoever reads a member decides what becomes of it.
Costs nothing beside the unpacking.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ssmke.data import hostile_tar

MAX_READ = 1 << 20
"""Of a member as well: who wants it whole reads it in pieces."""
DAMAGED = (*hostile_tar.DAMAGED, gzip.BadGzipFile)
"""What damaged or hostile content makes the modules raise, besides their own errors."""


def packed_members(path: Path, room: int) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """The plain files of the tar in ``path``, compressed or not, each to be read before the next is asked for.

    Args:
        path: of the tar.
        room: bytes that all of it may unpack to.

    Raises:
        OSError: the file cannot be read.
        DAMAGED: it is no tar, is cut short, or unpacks to more than ``room``.
    """
    with (
        _unpacked(path) as stream,
        tarfile.open(  # type: ignore[call-overload]
            fileobj=_Forward(stream, room),
            mode="r:",
            tarinfo=hostile_tar.BoundedInfo,
        ) as tar,
    ):
        while (member := tar.next()) is not None:
            tar.members.clear()
            if member.isreg() and not member.issparse():
                content = tar.extractfile(member)
                assert content is not None  # a plain file
                yield member, content


class _Forward:
    """A stream as `tarfile` wants to see it: it may go forward, and the one byte back that it looks at."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, room: int) -> None:
        self._stream, self._room = stream, room
        self._at, self._last, self._back = 0, b"", False

    def tell(self) -> int:
        return self._at - self._back

    def seek(self, position: int) -> None:
        self._back = position == self._at - 1
        if position < self._at - 1:
            raise tarfile.ReadError(f"it leads back to byte {position:,}")
        while self._at < position and self._read(min(position - self._at, MAX_READ)):
            pass

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_READ:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        if self._back and size:
            self._back = False
            return self._last + self._read(size - 1)
        return self._read(size)

    def _read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._at += len(data)
        self._last = data[-1:] or self._last
        if self._at > self._room:
            raise tarfile.ReadError("it unpacks to far more than it could hold")
        return data


def _unpacked(path: Path) -> IO[bytes] | gzip.GzipFile:
    with path.open("rb") as file:
        head = file.read(6)
    if head.startswith(b"\x1f\x8b"):
        return gzip.open(path)
    if head.startswith(b"BZh"):
        return bz2.open(path)
    if head.startswith(b"\xfd7zXZ\0"):
        return lzma.open(path)
    return path.open("rb")
