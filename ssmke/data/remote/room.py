"""The bound of a mirror: which tars give way for the next one.

Every tar counts with its size, and every tar that is on its way counts whole from its first byte on: its
partial file carries the size in its name, and is made under the lock of the folder, before anything is
fetched. So many processes may fetch at once, and their sum never exceeds the bound. What goes first is what
was used longest ago (the time of a tar's last change is set to that of its last use). A tar may be deleted
while others read it: on POSIX they go on, and its space is free when they close it. Costs one listing of the
folder for every shard that is fetched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import time
from collections.abc import Collection
from pathlib import Path

from ssmke.data.atomic import TEMPORARY_SUFFIX, write_error
from ssmke.data.locks import locked

LOCKS = ".locks"
_AHEAD_NS = 10_000_000_000
"""How far the clocks of machines that share a folder may be apart."""
_PARTIAL = re.compile(rf"\.(?P<tar>.+\.tar)\.(?P<bytes>\d+)\.[0-9a-f]{{8}}{re.escape(TEMPORARY_SUFFIX)}")


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file that counts against the bound."""

    path: Path
    tar: str
    """Name of the tar that it is, or will be."""
    bytes: int
    used: int
    """When it was used last, in nanoseconds."""

    @property
    def partial(self) -> bool:
        return self.path.name != self.tar


def lock_of(folder: Path, name: str) -> Path:
    """Lock of a file of the mirror ``folder``."""
    return folder / LOCKS / f"{name}.lock"


def listing_lock(folder: Path) -> contextlib.AbstractContextManager[bool]:
    """To be held while a file that counts is made or renamed: a listing may miss one that changes its name."""
    return locked(lock_of(folder, "room"))


def make_room(partial: Path, need: int, bound: int, keep: Collection[str] = ()) -> bool:
    """Delete tars until ``need`` bytes fit, and reserve them by making ``partial``.

    The caller holds the lock of the tar that ``partial`` will be.

    Args:
        partial: of the tar that is needed (see `ssmke.data.remote.fetch.partial_path`).
        need: its bytes.
        bound: of the folder.
        keep: names of tars that may not give way.

    Returns:
        Whether it fits. If not, what is in the way are tars in ``keep``, and tars that others are fetching.

    Raises:
        DataError: the folder cannot be written.
    """
    folder = partial.parent
    with listing_lock(folder):
        try:
            others = [entry for entry in entries(folder) if entry.path != partial]
            used = sum(entry.bytes for entry in others)
            for entry in sorted(others, key=lambda entry: entry.used):
                if used + need <= bound:
                    break
                if entry.tar not in keep and _give_way(folder, entry):
                    used -= entry.bytes
            if used + need > bound:
                return False
            partial.touch()
        except OSError as error:
            raise write_error(partial, error) from error
    return True


def entries(folder: Path) -> list[Entry]:
    """What counts against the bound now: tars, and partial files of tars."""
    found = []
    with os.scandir(folder) as listing:
        for item in listing:
            partial = _PARTIAL.fullmatch(item.name)
            if partial is None and not item.name.endswith(".tar"):
                continue
            with contextlib.suppress(FileNotFoundError):  # files may vanish at any time, which does no harm
                stat = item.stat()
                tar = partial["tar"] if partial else item.name
                size = int(partial["bytes"]) if partial else stat.st_size
                # A time to come is of a clock that was set back since: such a tar would never give way again.
                used = stat.st_mtime_ns if stat.st_mtime_ns <= time.time_ns() + _AHEAD_NS else 0
                found.append(Entry(folder / item.name, tar, size, used))
    return found


def _give_way(folder: Path, entry: Entry) -> bool:
    if entry.partial:
        # Left over by a process that was killed, unless somebody holds the lock.
        with locked(lock_of(folder, entry.tar), wait=False) as ours:
            if ours:
                entry.path.unlink(missing_ok=True)
            return ours
    entry.path.unlink(missing_ok=True)
    return True
