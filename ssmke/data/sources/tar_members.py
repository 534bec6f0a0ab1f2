"""Tars of others, read from front to back, whatever is in them.

webdataset's convention: members of one sample follow each other and share their name up to the first dot of
its last part, ``0000/000012.jpg`` and ``0000/000012.json``. Nothing is ever extracted. Still, a tar from the
network is input like any other: links, devices, sparse files and names that lead out of a folder are refused;
headers are bounded (`tarfile` would read an "extended header" of any stated size into memory) and must go
forward (a negative size makes `tarfile` read the same member forever); a tar that ends early gives all that
comes before. `tarfile` remembers every member; here it must forget them, so memory is that of one header.

A folder as img2dataset's "files" format makes it, ``00000/000000000.jpg``, is read by the same interface.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import stat
import struct
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from ssmke.data.importing import UNREADABLE
from ssmke.errors import BadSample

MAX_HEADER_BYTES = 1 << 20
MAX_UNSAFE = 10_000
"""So many unsafe members are no accident; no more of that tar is read."""
_BLOCK = tarfile.BLOCKSIZE
# Besides its own errors, tarfile lets pass what its parsing of hostile headers runs into.
_DAMAGED = (tarfile.TarError, ValueError, LookupError, OverflowError, RecursionError, TypeError, struct.error)


@dataclasses.dataclass(frozen=True)
class Member:
    """A file in a tar."""

    name: str
    """As it is in the tar; may hold surrogates."""
    key: str
    """The part of the name that all members of a sample share; empty if it is of no sample."""
    extension: str
    """The rest, lower case, without the dot."""
    unsafe: str
    """Why it is refused; empty if it is not."""
    size: int
    read: Callable[[], bytes]
    """Gives the content, while this is the current member. Raises `BadSample` ("broken tar", or unreadable)."""


def tar_members(path: Path) -> Iterator[Member]:
    """The files in a tar, in their order; junk, folders and names without a dot are not among them.

    Raises:
        BadSample: "broken tar" (it is none, or ends early), raised after all members before the damage;
            "unreadable file".
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadSample("broken tar", "it is no file")  # opening a pipe might never end
        with path.open("rb") as file:
            yield from _members(file)
    except OSError as error:
        raise BadSample(UNREADABLE, error.strerror or str(error)) from None


def folder_members(path: Path) -> Iterator[Member]:
    """The files directly in a folder, by name."""
    try:
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file())
        for name in names:
            file = path / name
            member = _member(name, "", file.stat().st_size, functools.partial(_read_file, file))
            if member is not None:
                yield member
    except OSError as error:
        raise BadSample(UNREADABLE, error.strerror or str(error)) from None


def _members(file: BinaryIO) -> Iterator[Member]:
    unsafe = 0
    try:
        # Uncompressed only: in a compressed one nothing bounds what its bytes unpack to.
        tar = tarfile.open(fileobj=_Headers(file), mode="r:")  # type: ignore[call-overload]  # noqa: SIM115
    except _DAMAGED as error:
        raise BadSample("broken tar", f"it is no plain tar ({error})") from None
    position = -1
    while True:
        try:
            info = tar.next()
        except _DAMAGED as error:
            raise BadSample("broken tar", f"{error} at byte {tar.offset:,}") from None
        if info is None:
            break
        tar.members.clear()
        if info.size < 0 or tar.offset <= position:
            raise BadSample("broken tar", f"a header with impossible sizes at byte {info.offset:,}")
        position = tar.offset
        member = _member(info.name, _why_unsafe(info), info.size, _reader(file, info))
        if member is None or info.isdir():
            continue
        unsafe += bool(member.unsafe)
        if unsafe > MAX_UNSAFE:
            raise BadSample("broken tar", f"more than {MAX_UNSAFE:,} unsafe members")
        yield member
    # tarfile takes the end of the file, and anything that is no header, for the end of the archive.
    file.seek(tar.offset)
    end = file.read(_BLOCK)
    if len(end) < _BLOCK or any(end):
        raise BadSample("broken tar", f"it is cut short or damaged at byte {tar.offset:,}")


class _Headers:
    """The file as tarfile sees it: no single read is larger than a header may be."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)


def _reader(file: BinaryIO, info: tarfile.TarInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            file.seek(info.offset_data)
            data = file.read(info.size)
        except OSError as error:
            raise BadSample(UNREADABLE, error.strerror or str(error)) from None
        if len(data) < info.size:
            raise BadSample("broken tar", f"it ends within {storable(info.name)}")
        return data

    return read


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadSample(UNREADABLE, error.strerror or str(error)) from None


def _why_unsafe(info: tarfile.TarInfo) -> str:
    if info.isdir():
        return ""
    if info.issparse():
        return "sparse file"
    if info.issym() or info.islnk():
        return "link"
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
        return "device or other special file"
    if "\0" in info.name or "\\" in info.name:
        return "odd name"
    location = PurePosixPath(info.name)
    if location.is_absolute() or ".." in location.parts:
        return "name outside of the folder"
    return ""


def _member(name: str, unsafe: str, size: int, read: Callable[[], bytes]) -> Member | None:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts:
        return None
    stem, dot, extension = parts[-1].partition(".")
    if not unsafe:
        if not stem or not dot or "__MACOSX" in parts or (stem.startswith("__") and stem.endswith("__")):
            return None  # hidden, without an extension, or what webdataset keeps for facts on the tar itself
        return Member(name, "/".join([*parts[:-1], stem]), extension.lower(), "", size, read)
    return Member(name, "", "", unsafe, size, read)


def storable(name: str) -> str:
    """A foreign name as it can be printed and stored."""
    return name.encode("utf-8", "backslashreplace").decode()[:200]
