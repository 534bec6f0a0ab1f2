"""Closing the ledgers of processes that died: kill -9, a machine that went away, a full node.

A ledger without an end is of a process that runs, or of one that was killed. On its own machine the process
itself is asked after (its number and its start time); elsewhere only silence tells, and a writer is given up
after ten heartbeats and ten minutes. The end that is appended changes no total: an open ledger is read up to
one heartbeat after its last record anyway. Should the process have been alive after all, its next record
makes the end void.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ssmke.cost.ledger.reader import KILLED, Segment, closing_record, ledger_files, read_file, read_run
from ssmke.cost.ledger.usage import attempts_of
from ssmke.cost.machine import Machine, process_start
from ssmke.cost.report import find_runs
from ssmke.errors import DataError

_PERIODS = 10
_SILENCE_NS = 600 * 1_000_000_000


@dataclass(frozen=True)
class Open:
    """A ledger without an end. ``dead``: its process is gone; ``why``: how that is known."""

    run_dir: Path
    path: Path
    segment: Segment
    dead: bool
    why: str


def find_open(
    root: Path,
    *,
    machine: Machine,
    now_wall_ns: int,
    started: Callable[[int], int | None] = process_start,
) -> list[Open]:
    """All ledgers below ``root`` without an end; DataError if it is no folder."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name the workspace that holds the run folders")
    found: list[Open] = []
    for run_dir in find_runs(root):
        for path in ledger_files(run_dir):
            for segment in read_file(path):
                if segment.reason is None:
                    dead, why = _dead(segment, path, machine, now_wall_ns, started)
                    found.append(Open(run_dir, path, segment, dead, why))
    return found


def dead_runs(root: Path) -> list[tuple[Path, int]]:
    """Run folders whose last attempt was closed as killed, and the wall-clock nanosecond of its last heartbeat."""
    found: list[tuple[Path, int]] = []
    for run_dir in find_runs(root):
        attempts = list(attempts_of(read_run(run_dir)).values())
        if attempts and all(segment.reason == KILLED for segment in attempts[-1]):
            found.append((run_dir, max(segment.end_wall_ns for segment in attempts[-1])))
    return found


def close(ledger: Open) -> bool:
    """Appends the end to a dead process' ledger; False if it got one meanwhile."""
    record = closing_record(ledger.path)
    if record is None:
        return False
    line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
    with ledger.path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        torn = size > 0 and file.read(1) != b"\n"
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + line if torn else line)
        file.flush()
        os.fsync(file.fileno())
    return True


def _dead(
    segment: Segment,
    path: Path,
    machine: Machine,
    now_wall_ns: int,
    started: Callable[[int], int | None],
) -> tuple[bool, str]:
    if segment.host == machine.host and segment.boot != machine.boot:
        return True, "this machine was started anew since"
    if segment.host == machine.host and segment.pid is not None:
        if started(segment.pid) == segment.born:
            return False, f"process {segment.pid} runs"
        return True, f"process {segment.pid} is gone"
    silent = now_wall_ns - path.stat().st_mtime_ns
    allowed = max(_PERIODS * segment.period_ns, _SILENCE_NS)
    minutes = silent / 60e9
    if silent > allowed:
        return True, f"no beat for {minutes:,.0f} minutes"
    return False, f"on another machine, last beat {max(minutes, 0):.0f} minutes ago"
