"""The ledger survives what happens to files: cut tails, full disks, kill -9, copies, two writers."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssmke.cost.ledger.reader import parse, read_file, read_run, segments
from ssmke.cost.ledger.usage import total
from ssmke.cost.ledger.writer import LedgerWriter
from ssmke.cost.machine import boottime_ns
from ssmke.cost.probes.probe import Sample
from tests.cost.simulated import PERIOD, SECOND, Clock, Run

RECORD = {"t": "beat", "b": 5, "w": 0}


@pytest.fixture(scope="module")
def bytes_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    run = Run(tmp_path_factory.mktemp("run"))
    run.attempt("a", [("setup", 7), ("train", 31), (None, 2), ("evaluation", 9), ("train", 12)])
    return (run.folder / "cost/a/node0000.jsonl").read_bytes()


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_cut_at_any_byte_it_loses_at_most_one_beat(bytes_of_a_run: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(bytes_of_a_run)))
    whole = list(parse(bytes_of_a_run))
    kept = list(parse(bytes_of_a_run[:cut]))
    assert kept == whole[: len(kept)]  # a torn record never turns into another one
    found = segments(kept)
    if not kept:
        assert found == []
        return
    [segment] = found
    # When the process died, the next record had not been written: the truth lies between the two.
    died_before = whole[len(kept)]["b"] if len(kept) < len(whole) else whole[-1]["b"]
    assert abs(segment.end_ns - died_before) <= PERIOD
    assert sum(segment.phases.values()) == segment.end_ns - segment.begin_ns


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_reading_the_ends_of_a_file_tells_what_reading_it_whole_tells(
    bytes_of_a_run: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    cut = data.draw(st.sampled_from([len(bytes_of_a_run)]) | st.integers(0, len(bytes_of_a_run)))
    path = tmp_path_factory.getbasetemp() / "ledger.jsonl"
    path.write_bytes(bytes_of_a_run[:cut])
    whole = [dataclasses.replace(s, passed=()) for s in segments(parse(bytes_of_a_run[:cut]))]
    assert [dataclasses.replace(s, passed=()) for s in read_file(path)] == whole


@pytest.fixture(scope="module")
def bytes_of_a_long_run(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    run = Run(tmp_path_factory.mktemp("long"))
    readings = [{"GPU-0": Sample(mj=5_000 * i, util=90.0, mem_mib=1000)} for i in range(2000)]
    meter = run.attempt("a", [("setup", 60), ("train", 2000)], readings=readings, close=None)
    meter.saved(1)
    meter.note(parameters=7)
    run.clock.ns += 1000 * SECOND
    for _ in range(100):
        run.clock.ns += PERIOD
        meter.beat()
    return (run.folder / "cost/a/node0000.jsonl").read_bytes()


@given(beats=st.integers(0, 300))
@settings(max_examples=40, deadline=None)
def test_an_open_ledger_is_read_from_its_tail_as_it_is_read_whole(
    bytes_of_a_long_run: bytes, tmp_path_factory: pytest.TempPathFactory, beats: int
) -> None:
    lines = bytes_of_a_long_run.splitlines(keepends=True)
    data = b"".join(lines[: len(lines) - beats])
    path = tmp_path_factory.getbasetemp() / "open.jsonl"
    path.write_bytes(data)
    [whole] = segments(parse(data))
    [found] = read_file(path)
    assert dataclasses.replace(found, passed=()) == dataclasses.replace(whole, passed=())
    assert found.energy["GPU-0"].mj
    # With its middle gone it is the same, so the middle was not read.
    if len(data) > 140_000:
        path.write_bytes(lines[0] + b"~" * (len(data) - len(lines[0]) - 131_000) + b"\n" + data[-131_000:])
        [again] = read_file(path)
        assert dataclasses.replace(again, passed=()) == dataclasses.replace(whole, passed=())


def test_a_file_that_tells_nothing_is_told_of(tmp_path: Path, bytes_of_a_run: bytes) -> None:
    path = tmp_path / "ledger.jsonl"
    problems: list[tuple[Path, str]] = []
    path.write_bytes(bytes_of_a_run.replace(b'"v":1', b'"v":2'))
    assert read_file(path, problems) == []
    assert read_file(tmp_path, problems) == []
    assert [p for p, _ in problems] == [path, tmp_path]
    assert "format" in problems[0][1]


def test_only_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "cost/a").mkdir(parents=True)
    os.mkfifo(tmp_path / "cost/a/node0000.jsonl")
    assert read_run(tmp_path) == []


@given(noise=st.binary(max_size=200), at=st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_garbage_in_the_middle_costs_only_the_line_it_hits(
    bytes_of_a_run: bytes, noise: bytes, at: int
) -> None:
    lines = bytes_of_a_run.splitlines(keepends=True)
    i = 1 + at % (len(lines) - 1)  # after the start record
    [clean] = segments(parse(bytes_of_a_run))
    [dirty] = segments(parse(b"".join([*lines[:i], b"~" + noise + b"\n", *lines[i:]])))
    assert (dirty.begin_ns, dirty.end_ns, dirty.phases) == (clean.begin_ns, clean.end_ns, clean.phases)


def test_records_before_a_start_or_of_an_unknown_format_are_dropped() -> None:
    assert segments([RECORD]) == []
    assert segments([{"t": "start", "v": 99, "b": 1, "w": 1}, RECORD]) == []
    assert list(parse(b'{"t":"beat","b":true}\n{"t":1,"b":1}\n[1]\n{"b":1}\n')) == []


def test_a_full_disk_is_reported_and_caught_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = LedgerWriter(tmp_path, "node", clock=Clock())
    writer.append({"t": "note", "b": 1, "w": 0})
    real = os.write

    def half(file: int, data: bytes) -> int:
        return real(file, data[: len(data) // 2])

    def full(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    for broken in (half, full, half):
        monkeypatch.setattr("ssmke.cost.ledger.writer.os.write", broken)
        with pytest.raises(OSError, match=r"disk full|No space"):
            writer.append({"t": "beat", "b": 2, "w": 0, "pad": "x" * 50})
    monkeypatch.setattr("ssmke.cost.ledger.writer.os.write", real)
    writer.append({"t": "end", "b": 3, "w": 0})
    writer.close()
    assert writer.path is not None
    kinds = [r["t"] for r in parse(writer.path.read_bytes())]
    assert kinds == ["note", "beat", "beat", "beat", "end"]


def test_two_writers_of_one_node_never_share_a_file(tmp_path: Path) -> None:
    first, second = LedgerWriter(tmp_path, "node"), LedgerWriter(tmp_path, "node")
    for writer in (first, second):
        writer.append(RECORD)
        writer.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["node-2.jsonl", "node.jsonl"]


def test_it_is_synced_at_most_every_ten_seconds_and_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr("ssmke.cost.ledger.writer.os.fsync", synced.append)
    clock = Clock()
    writer = LedgerWriter(tmp_path, "node", clock=clock)
    for _ in range(25):  # 25 s, one record a second
        writer.append(RECORD)
        clock.ns += SECOND
    assert len(synced) == 3
    writer.append(RECORD, durable=True)
    assert len(synced) == 4


@pytest.mark.parametrize("alive_s", [0.6, 1.1])
def test_kill_9_loses_at_most_one_beat(tmp_path: Path, alive_s: float) -> None:
    period = 0.2
    script = (
        "import sys, time; from pathlib import Path; from ssmke.cost import CostConfig, CostMeter\n"
        f"m = CostMeter(Path(sys.argv[1]), lineage='l', attempt='a', visible='', "
        f"config=CostConfig(price='3.6', heartbeat_seconds={period}))\n"
        "m.start(); print('started', flush=True)\n"
        "with m.phase('train'): time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    time.sleep(alive_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    killed_ns = boottime_ns()
    [segment] = read_run(tmp_path)
    assert segment.reason is None
    # One period either way, and a little for the scheduler of a busy machine.
    assert abs(segment.end_ns - killed_ns) <= (period + 0.3) * SECOND
    usage = total([segment])
    assert usage.phases["train"] > 0.5 * alive_s * SECOND
    assert usage.usd is not None
    assert float(usage.usd) == pytest.approx(usage.node_ns / SECOND / 1000)
