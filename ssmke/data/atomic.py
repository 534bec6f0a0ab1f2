"""Files that are either whole or not there.

Everything a dataset directory holds is written to a hidden temporary beside its final name, flushed to the
disk, and renamed over it. So a reader never sees half a shard, a crash costs the one file that was being
written, and a second writer of the same bytes does no harm. The price is one fsync per file, which is why
shards are big. Failures of the file system (full disk, no permission, a file where a folder should be) become
one `DataError` that says what to do; the temporary is removed and finished files stay.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ssmke.errors import DataError

TEMPORARY_SUFFIX = ".partial"

_REMEDIES = {
    errno.ENOSPC: "The disk is full: free some space, then run the same command again.",
    errno.EDQUOT: "The disk quota is used up: free some space, then run the same command again.",
    errno.EACCES: "There is no permission to write there: choose another folder, or change its permissions.",
    errno.EPERM: "There is no permission to write there: choose another folder, or change its permissions.",
    errno.EROFS: "The file system is read-only: choose another folder.",
    errno.ENOTDIR: "A part of the path is a file, not a folder: choose another folder.",
    errno.EEXIST: "A file of that name is in the way: choose another folder.",
    errno.EISDIR: "A folder of that name is in the way: choose another name.",
}


def write_error(path: Path, error: OSError) -> DataError:
    """The one message for an ``OSError`` met while writing ``path``."""
    remedy = _REMEDIES.get(error.errno or 0, "Check the disk, then run the same command again.")
    return DataError(f"cannot write {path}: {error.strerror or error}. {remedy}")


class HashingWriter:
    """A write-only binary file that knows the size and SHA-256 of what went through it."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path = path
        self._file = file
        self._hash = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes) -> int:
        # Converted here and not around the caller's block, so that an OSError of something that the caller
        # reads meanwhile is never blamed on the disk that is written.
        try:
            self._file.write(data)
        except OSError as error:
            raise write_error(self._path, error) from error
        self._hash.update(data)
        self.bytes += len(data)
        return len(data)

    def tell(self) -> int:
        return self.bytes

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[HashingWriter]:
    """A `HashingWriter` whose content appears under ``path`` when the block ends well, and never otherwise.

    Raises:
        DataError: the file system refused; the message names ``path`` and the remedy.
    """
    if path.name in ("", "..") or os.path.isdir(path):  # noqa: PTH112 - Path.is_dir may raise
        raise write_error(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        try:
            file = temporary.open("xb")
        except OSError as error:
            raise write_error(path, error) from error
        try:
            writer = HashingWriter(path, file)
            yield writer
            try:
                file.flush()
                os.fsync(file.fileno())
                file.close()
                temporary.replace(path)
                _sync_folder(path.parent)
            except OSError as error:
                raise write_error(path, error) from error
        finally:
            # Closing flushes what is buffered, which fails again on a full disk; the first error is the
            # answer.
            with contextlib.suppress(OSError):
                file.close()
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def make_folder(path: Path) -> None:
    """Create ``path`` and its parents; an existing folder is fine.

    Raises:
        DataError: it cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[None]:
    """Create ``path`` and its parents; if the block fails, those of them that are new and still empty go again.

    Raises:
        DataError: it cannot be created.
    """
    new = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    make_folder(path)
    try:
        yield
    except BaseException:
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def encode_json(value: Any, *, indent: int | None = None) -> bytes:
    """UTF-8 JSON that is the same for the same value: sorted keys, text left readable, one final newline."""
    return (json.dumps(value, ensure_ascii=False, sort_keys=True, indent=indent) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_writer(path) as file:
        file.write(encode_json(value, indent=2))


def _sync_folder(folder: Path) -> None:
    """Make the rename itself durable; not every file system lets a folder be synced, and then it is no
    loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
