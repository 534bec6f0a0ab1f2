"""Locks of folders and files, also where a file system has none."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssmke.data.locks import locked
from ssmke.errors import DataError

HOLD = """
import sys, time
from pathlib import Path
from ssmke.data.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_another_process_waits_until_the_holder_ends_however_it_does(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "place"
    if kind == "folder":
        place.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with locked(place, wait=False, needed=False) as ours:
            assert not ours
        other.send_signal(signal.SIGKILL)
        with locked(place) as ours:
            assert ours
    with locked(place, wait=False) as ours:
        assert ours
    if kind == "folder":
        assert list(place.iterdir()) == []


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    open_before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for wait in (True, False):
        with locked(tmp_path, wait=wait, needed=False) as ours:
            assert ours
        with pytest.raises(DataError, match="cannot write"), locked(tmp_path / "file", wait=wait):
            pass
    assert len(os.listdir("/proc/self/fd")) == open_before  # noqa: PTH208


FORK_AND_DIE = """
import os, sys, time
from pathlib import Path
from ssmke.data.locks import locked
with locked(Path(sys.argv[1])):
    if os.fork() == 0:
        Path(sys.argv[2]).write_text(str(os.getpid()))
        time.sleep(60)
        os._exit(0)
    time.sleep(60)
"""


def test_a_forked_child_does_not_keep_the_lock_of_its_killed_parent(tmp_path: Path) -> None:
    lock, pid = tmp_path / "lock", tmp_path / "pid"
    with subprocess.Popen([sys.executable, "-c", FORK_AND_DIE, str(lock), str(pid)]) as parent:
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.02)
        try:
            with locked(lock, wait=False) as ours:
                assert not ours
            parent.kill()
            parent.wait()
            with locked(lock, wait=False) as ours:
                assert ours
        finally:
            os.kill(int(pid.read_text()), signal.SIGKILL)
