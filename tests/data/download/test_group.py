"""What we start ends with us, whatever ends us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ssmke.data.download.group import ProcessGroup

GRANDCHILD = (
    "import subprocess, time; child = subprocess.Popen(['sleep', '600']); "
    "print(child.pid, flush=True); time.sleep(600)"
)


def wait_for(what: object, *, gone: int) -> None:
    """Until the process ``gone`` is no more."""
    for _ in range(200):
        if not psutil.pid_exists(gone) or psutil.Process(gone).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    pytest.fail(f"{what} survived")


def test_output_is_logged_and_told_line_by_line(tmp_path: Path) -> None:
    told: list[str] = []
    code = "import sys; print('one'); print('', flush=True); sys.stderr.write('two\\n'); sys.exit(3)"
    with ProcessGroup(
        [sys.executable, "-c", code], os.environ, log=tmp_path / "log", on_line=told.append
    ) as group:
        assert group.wait() == 3
    assert group.last_lines == told == ["one", "two"]
    assert (tmp_path / "log").read_text() == "one\n\ntwo\n"


def test_leaving_the_block_ends_grandchildren_too() -> None:
    told: list[str] = []
    with ProcessGroup([sys.executable, "-c", GRANDCHILD], os.environ, on_line=told.append) as group:
        while not told:
            assert group.wait(0.05) is None
    wait_for("a grandchild", gone=int(told[0]))


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_guard_ends_its_group_when_we_are_killed(end: signal.Signals, tmp_path: Path) -> None:
    """With the guard's own watch, in a child that would sleep for long."""
    guard = Path(__file__).resolve().parents[3] / "ssmke" / "data" / "download" / "guard" / "main.py"
    child = (
        f"import sys, threading, runpy; main = runpy.run_path({str(guard)!r}, run_name='guard'); "
        f"threading.Thread(target=main['_end_with_parent'], daemon=True).start(); {GRANDCHILD}"
    )
    code = (
        "import functools, os, sys, time; from ssmke.data.download.group import ProcessGroup\n"
        "show = functools.partial(print, flush=True)\n"
        f"with ProcessGroup([sys.executable, '-c', {child!r}], os.environ, on_line=show):\n"
        "    time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        try:
            grandchild = int(parent.stdout.readline())
            assert psutil.pid_exists(grandchild)
            parent.send_signal(end)
            parent.wait(20)
        finally:
            parent.kill()
    wait_for(f"a grandchild of a parent that got {end.name}", gone=grandchild)
