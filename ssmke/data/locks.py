"""Locks between processes on one machine, which a fork does not carry away.

``flock`` locks belong to an open file, and a fork copies open files: a DataLoader worker that was forked while
a thread of its parent held a lock would keep that lock alive after the parent was killed, and everybody else
would wait for ever. So locks are raw descriptors that every child closes right after the fork; the parent
keeps its lock. They end with their process, however it dies, and cost some 20 microseconds. A folder can be
locked itself, which leaves no file in it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from ssmke.data.atomic import write_error

_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
_held: set[int] = set()


def _let_go() -> None:
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True, needed: bool = True) -> Iterator[bool]:
    """Hold the lock of ``path``, a folder or a file (made if missing), during the block.

    Threads exclude each other as processes do; a thread must not take a lock twice.

    Args:
        path: what is locked; whoever renames or deletes it while holding its lock leaves the name to others.
        wait: until it is free; otherwise the block gets False, and no lock, where another holds it.
        needed: False goes on without a lock where the file system has none (some of the network, and most for
            folders): for what is right without, if it is started once.

    Raises:
        DataError: the file cannot be made, or a lock that is needed cannot be had.
    """
    descriptor = _take(path, wait, needed)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            _held.discard(descriptor)
            # Unlocked by name: a process that was forked a moment ago may not have closed its copy yet.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _take(path: Path, wait: bool, needed: bool) -> int | None:
    while True:
        flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
        try:
            descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise write_error(path, error) from error
        _held.add(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _still_named(path, descriptor):
                return descriptor
            _drop(descriptor)
        except OSError as error:
            if not wait and error.errno in _TAKEN:
                _drop(descriptor)
                return None
            if not needed:
                return descriptor
            _drop(descriptor)
            raise write_error(path, error) from error
        except BaseException:
            _drop(descriptor)
            raise


def _drop(descriptor: int) -> None:
    _held.discard(descriptor)
    os.close(descriptor)


def _still_named(path: Path, descriptor: int) -> bool:
    """False if the file was renamed or deleted between being opened and being locked."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
