"""Dead attempts are closed without changing a total; living ones are left alone."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from ssmke.cost.ledger.outcomes import by_outcome
from ssmke.cost.ledger.reader import parse, read_file, read_run
from ssmke.cost.ledger.reconcile import Open, close, find_open
from ssmke.cost.ledger.usage import total
from ssmke.cost.machine import Machine, process_start
from ssmke.errors import DataError
from tests.cost.simulated import MACHINE, SECOND, Training

HOUR = 3600 * SECOND


def killed(folder: Path) -> Path:
    """The ledger of an attempt that died in its fifth step, after a checkpoint of the third."""
    Training(folder / "run", steps=9, every=3).attempt("a0", 58.0)
    return folder / "run/cost/a0/node0000.jsonl"


def look(
    folder: Path, *, machine: Machine = MACHINE, started: int | None = None, silent_s: float = 0
) -> Open:
    path = folder / "run/cost/a0/node0000.jsonl"
    now = path.stat().st_mtime_ns + round(silent_s * SECOND)
    [found] = find_open(folder, machine=machine, now_wall_ns=now, started=lambda pid: started)
    return found


def test_closing_changes_no_total_and_is_read_from_the_ends_of_the_file(tmp_path: Path) -> None:
    path = killed(tmp_path)
    before = read_file(path)
    assert close(look(tmp_path))
    [after] = read_file(path)
    assert after.reason == "killed"
    assert total([after]) == total(before)
    assert dataclasses.replace(after, reason=None, records=0, passed=()) == dataclasses.replace(
        before[0], records=0, passed=()
    )
    # With the middle gone, the first and the last line tell the same.
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[-1])
    assert read_file(path) == [after]
    assert find_open(tmp_path, machine=MACHINE, now_wall_ns=0) == []


def test_a_torn_tail_is_fenced_off(tmp_path: Path) -> None:
    path = killed(tmp_path)
    whole = read_file(path)
    with path.open("ab") as file:
        file.write(b'{"t":"beat","b":123')
    assert close(look(tmp_path))
    [after] = read_file(path)
    assert after.end_ns == whole[0].end_ns
    assert [r["t"] for r in parse(path.read_bytes())][-1] == "end"


def test_what_died_is_known_and_what_lives_is_left(tmp_path: Path) -> None:
    killed(tmp_path)
    segment = look(tmp_path).segment
    assert segment.pid == os.getpid()
    assert segment.born == process_start(os.getpid())
    assert look(tmp_path, started=None).dead  # no such process
    assert look(tmp_path, started=(segment.born or 0) + 1).dead  # its number was given to another one
    assert not look(tmp_path, started=segment.born).dead
    assert look(tmp_path, machine=dataclasses.replace(MACHINE, boot="c" * 16), started=segment.born).dead
    elsewhere = dataclasses.replace(MACHINE, host="other")
    assert not look(tmp_path, machine=elsewhere, silent_s=599).dead
    assert look(tmp_path, machine=elsewhere, silent_s=601).dead


def test_a_process_that_was_taken_for_dead_goes_on(tmp_path: Path) -> None:
    path = killed(tmp_path)
    assert close(look(tmp_path))
    last = [r for r in parse(path.read_bytes()) if r["t"] == "beat"][-1]
    later = last | {"b": last["b"] + 60 * SECOND, "w": last["w"] + 60 * SECOND, "seq": last["seq"] + 1}
    later["phases"] = last["phases"] | {"train": last["phases"]["train"] + 60 * SECOND}
    import json

    with path.open("ab") as file:
        file.write(json.dumps(later).encode() + b"\n")
    [alive] = read_run(tmp_path / "run")
    assert alive.reason is None
    assert alive.end_ns == later["b"] + alive.period_ns
    assert by_outcome([alive])["useful"] == total([alive])


def test_a_dead_attempt_s_lost_work_shows_once_it_is_closed(tmp_path: Path) -> None:
    killed(tmp_path)
    assert by_outcome(read_run(tmp_path / "run"))["failed"].device_ns == 0
    close(look(tmp_path))
    assert by_outcome(read_run(tmp_path / "run"))["failed"].device_ns > 20 * SECOND


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        find_open(tmp_path / "nowhere", machine=MACHINE, now_wall_ns=0)
