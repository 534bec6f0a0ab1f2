"""Ledgers, read back: what one process wrote about one attempt on one node (`writer` has the format).

A segment is a paid interval with what happened in it. A closed ledger is read by its first and last line (its
``end`` sums up what lies between), an open one by its first line and its last 128 KB (every sixtieth beat sums
up too), so a workspace of thousands of runs takes seconds. Torn, garbled and foreign lines are passed over; a
file that a start record does not open is no ledger. `read_series` gives the single beats, for charts.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

from ssmke.cost.ledger.record import parse, record_of
from ssmke.cost.ledger.tally import Energy, Moment, Record, Tally
from ssmke.cost.ledger.writer import FOLDER, FORMAT

ENERGY_ERROR = {
    "counter": Decimal("0.05"),
    "power": Decimal("0.10"),
    "tdp": Decimal("0.30"),
    "mig": Decimal("0.30"),
}
"""Share by which an energy may be off, by how it was had. Our choice, wide on purpose: NVIDIA's power sensor samples
25 % of the time on A100 and H100 (arXiv 2312.02741), and no method was compared with a meter at the wall."""

_TAIL = 1 << 17

KILLED = "killed"
"""The reason of an end that `ssmke-cost reconcile` wrote."""
Problems = list[tuple[Path, str]]
"""Files that could not be read, and why."""


@dataclass(frozen=True)
class Segment:
    """One writer's life in one attempt on one node, as read: the paid interval and what happened in it.

    Times are BOOTTIME nanoseconds, comparable within ``boot`` only. ``phases`` adds up to
    ``end_ns - begin_ns`` exactly. ``reason`` is None when the process never closed the ledger; the interval
    then ends one heartbeat period after the last record. ``begun`` and ``saves`` are in order of time;
    ``passed`` are the beats' moments where the ledger was read whole, for a checkpoint whose record was lost.
    ``jumps``: how often the wall clock was set by more than 2 s.
    """

    lineage: str
    attempt: str
    node: str
    host: str
    boot: str
    begin_ns: int
    end_ns: int
    begin_wall_ns: int
    end_wall_ns: int
    period_ns: int
    pid: int | None
    born: int | None
    reason: str | None
    records: int
    jumps: int
    devices: tuple[tuple[str, str], ...]
    price: Mapping[str, Any] | None
    phases: Mapping[str, int]
    energy: Mapping[str, Energy]
    begun: Moment | None
    saves: tuple[Moment, ...]
    passed: tuple[Moment, ...]
    step: int | None
    pairs: int | None
    resumed_step: int | None
    resumed_pairs: int | None
    facts: Mapping[str, Any]

    @property
    def identity(self) -> tuple[str, str, str, str, int]:
        """Equal for copies of the same segment, however many files hold it."""
        return (self.attempt, self.node, self.host, self.boot, self.begin_ns)


@dataclass(frozen=True)
class Beat:
    """One beat: BOOTTIME ``b`` and wall clock ``w`` (ns), sums so far, and device readings since the last."""

    b: int
    w: int
    phase: str
    phases: Mapping[str, int]
    step: int | None
    pairs: int | None
    d: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Series:
    """A segment's beats in order of time."""

    attempt: str
    node: str
    begin_wall_ns: int
    begin_ns: int
    price: Mapping[str, Any] | None
    devices: tuple[tuple[str, str], ...]
    beats: tuple[Beat, ...]


def segments(records: Iterable[Record]) -> list[Segment]:
    """Groups one file's records into segments, each opened by a ``start``; others before it are dropped."""
    found: list[Segment] = []
    for group in _groups(records):
        try:
            found.append(_segment(group))
        except (KeyError, TypeError, ValueError, AttributeError):
            continue  # a start record of a format that we do not know: nothing can be derived from it
    return found


def read_file(path: Path, problems: Problems | None = None) -> list[Segment]:
    """The segments of one ledger file, from its ends where they tell all; none if it cannot be read.

    ``problems`` is told of a file that exists and tells nothing.
    """
    try:
        with path.open("rb") as file:
            first, tail = file.readline(_TAIL), _tail(file)
            found = _closed(first, tail) or _running(first, tail)
            if found is not None:
                return [found]
            file.seek(0)
            data = file.read()
    except OSError as error:  # another user's, or just removed
        _tell(problems, path, error.strerror or str(error))
        return []
    several = segments(parse(data))
    if not several and b"\n" in data:
        _tell(problems, path, "no start record of a format that this version knows")
    return several


def closing_record(path: Path) -> Record | None:
    """The end that a dead process did not write, as `ssmke-cost reconcile` appends it; None if there is one.

    It closes the interval one heartbeat period after the last record, as a reader of the open ledger does, so
    it changes no total. None too for a file that holds anything but one ledger.
    """
    groups = list(_groups(parse(path.read_bytes())))
    if len(groups) != 1 or any(record["t"] == "end" for record in groups[0]):
        return None
    start = groups[0][0]
    try:
        tally, _ = _replay(start, groups[0][1:])
        at = tally.last_ns + int(start["period"])
        return {
            "t": "end",
            "b": at,
            "w": int(start["w"]) + at - int(start["b"]),
            "by": "reconcile",
            "reason": KILLED,
            "phase": tally.phase,
            "phases": dict(tally.phases),
            "step": tally.step,
            "pairs": tally.pairs,
            "from": tally.resumed,
            "begin": int(start["b"]),
            **tally.summary(),
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def ledger_files(run_dir: Path, problems: Problems | None = None) -> list[Path]:
    """The ledger files of a run folder, by name."""
    found: list[Path] = []
    try:
        attempts = [entry for entry in os.scandir(run_dir / FOLDER) if entry.is_dir()]
    except OSError:
        return []
    for attempt in attempts:
        try:
            files = [f for f in os.scandir(attempt.path) if f.name.endswith(".jsonl") and f.is_file()]
        except OSError as error:
            _tell(problems, Path(attempt.path), error.strerror or str(error))
            continue
        found += [Path(f.path) for f in files]
    return sorted(found)


def read_run(
    run_dir: Path, *, skip_attempt: str | None = None, problems: Problems | None = None
) -> list[Segment]:
    """All segments of a run folder; files that cannot be read are passed over, and told to ``problems``."""
    return [
        segment
        for path in ledger_files(run_dir, problems)
        if path.parent.name != skip_attempt
        for segment in read_file(path, problems)
    ]


def read_series(run_dir: Path) -> list[Series]:
    """All beats of a run folder, by segment, in order of their begin; a copied file counts once."""
    found: dict[tuple[str, str, int], Series] = {}
    for path in ledger_files(run_dir):
        try:
            data = path.read_bytes()
        except OSError:
            continue
        for group in _groups(parse(data)):
            try:
                series = _series(group)
            except (KeyError, TypeError, ValueError, AttributeError):
                continue
            key = (series.attempt, series.node, series.begin_ns)
            if key not in found or len(series.beats) > len(found[key].beats):
                found[key] = series
    return sorted(found.values(), key=lambda s: (s.begin_wall_ns, s.attempt, s.node))


def _tell(problems: Problems | None, path: Path, why: str) -> None:
    if problems is not None:
        problems.append((path, why))


def _tail(file: BinaryIO) -> list[bytes]:
    """The whole lines at the end of a file; not all of the first one if the file is longer than what is read."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL))
    lines = file.read().split(b"\n")
    return lines[1 if size > _TAIL else 0 : -1]


def _closed(first: bytes, tail: list[bytes]) -> Segment | None:
    """A segment from its start and an end that sums up what lies between; None if they are not such a pair."""
    start, end = record_of(first), record_of(tail[-1]) if tail else None
    if start is None or end is None or start["t"] != "start" or end["t"] != "end":
        return None
    if end.get("begin") != start["b"] or "energy" not in end:
        return None
    return _first(segments([start, end]))


def _running(first: bytes, tail: list[bytes]) -> Segment | None:
    """A segment from its start, the last beat with a summary, and what came after it."""
    start = record_of(first)
    if start is None or start["t"] != "start":
        return None
    later: list[Record] = []
    for line in reversed(tail):
        record = record_of(line)
        if record is None:
            continue
        if record["t"] == "start":
            return None  # the file is shorter than its tail, or holds several ledgers
        later.append(record)
        if record["t"] == "beat" and "energy" in record and record.get("begin") == start["b"]:
            return _first(segments([start, *reversed(later)]))
    return None


def _first(found: list[Segment]) -> Segment | None:
    return found[0] if found else None


def _groups(records: Iterable[Record]) -> Iterator[list[Record]]:
    current: list[Record] = []
    for record in records:
        if record["t"] == "start":
            if current:
                yield current
            current = [record]
        elif current:
            current.append(record)
    if current:
        yield current


def _segment(records: list[Record]) -> Segment:
    start = records[0]
    if start["v"] != FORMAT:
        raise ValueError(f"ledger format {start['v']}")
    begin, period = int(start["b"]), int(start["period"])
    tally, end = _replay(start, records[1:])
    end_ns = tally.last_ns + period if end is None else max(int(end["b"]), tally.last_ns)
    resumed = tally.resumed or (None, None)
    return Segment(
        lineage=str(start["lineage"]),
        attempt=str(start["attempt"]),
        node=str(start["node"]),
        host=str(start["host"]),
        boot=str(start["boot"]),
        begin_ns=begin,
        end_ns=end_ns,
        begin_wall_ns=int(start["w"]),
        end_wall_ns=int(start["w"]) + end_ns - begin,
        period_ns=period,
        pid=start.get("pid"),
        born=start.get("born"),
        reason=None if end is None else str(end.get("reason")),
        records=tally.records,
        jumps=tally.jumps,
        devices=tuple((str(d["id"]), str(d["name"])) for d in start["devices"]),
        price=start.get("price"),
        phases=_phases(tally, begin, end_ns),
        energy=tally.energy,
        begun=tally.begun,
        saves=tuple(tally.saves),
        passed=tuple(tally.passed),
        step=tally.step,
        pairs=tally.pairs,
        resumed_step=resumed[0],
        resumed_pairs=resumed[1],
        facts=tally.facts,
    )


def _replay(start: Record, records: list[Record]) -> tuple[Tally, Record | None]:
    """The sums over a segment's records, and its end if it has one."""
    tally, end = Tally(start, keep_beats=True), None
    for record in records:
        if record["t"] != "end":
            end = None  # an end that `ssmke-cost reconcile` wrote too early: the process was alive after all
            tally.add(record)
            if "energy" in record:
                tally.take_summary(record)
            continue
        end = record
        if record.get("by") is None:
            tally.add(record)
            break
    if end is not None and "energy" in end:
        tally.take_summary(end)
    return tally, end


def _phases(tally: Tally, begin_ns: int, end_ns: int) -> dict[str, int]:
    """Nanoseconds by phase, adding up to the interval."""
    phases = {str(name): int(ns) for name, ns in tally.phases.items() if int(ns) > 0}
    # Time that no sum covers (after the last beat, or lost with a beat) belongs to the phase then open; sums
    # that exceed their interval are not to be trusted and are dropped.
    rest = (end_ns - begin_ns) - sum(phases.values())
    if rest < 0:
        phases, rest = {}, end_ns - begin_ns
    if rest:
        phases[tally.phase] = phases.get(tally.phase, 0) + rest
    return phases


def _series(records: list[Record]) -> Series:
    start = records[0]
    if start["v"] != FORMAT:
        raise ValueError(f"ledger format {start['v']}")
    beats = [
        Beat(
            int(r["b"]),
            int(r["w"]),
            str(r.get("phase") or "idle"),
            r["phases"],
            r.get("step"),
            r.get("pairs"),
            r.get("d") or {},
        )
        for r in records
        if r["t"] in ("beat", "end") and r.get("by") is None and isinstance(r.get("phases"), dict)
    ]
    return Series(
        attempt=str(start["attempt"]),
        node=str(start["node"]),
        begin_wall_ns=int(start["w"]),
        begin_ns=int(start["b"]),
        price=start.get("price"),
        devices=tuple((str(d["id"]), str(d["name"])) for d in start["devices"]),
        beats=tuple(sorted(beats, key=lambda beat: beat.b)),
    )
