"""The ledger: what was used, appended as it happened, and nothing derived.

One file per attempt and node, ``RUN_DIR/cost/<attempt>/<node>.jsonl``, one JSON object per line:

    start  v lineage attempt node host boot period devices price facts   opens a segment
    beat   seq phase phases step pairs from d                            every few seconds; sums so far
    phase  name begin                                                    a phase that took a second or more
    note   facts                                                         what became known later
    end    reason, and all that a beat has                               the process closed it itself

and in each ``t`` (kind), ``b`` (CLOCK_BOOTTIME, ns) and ``w`` (wall clock, ns: a label, never a duration).
``phases`` are nanoseconds so far by innermost phase and add up to ``b`` - start's ``b``: a lost beat loses
nothing but the time after it. ``d`` maps device id to ``mj`` (energy counter, millijoules), ``mw`` (mean
power since the last beat, milliwatts), ``util`` (mean, percent) and ``mem`` (peak, MiB); unknown is null.

Durability: a line is one write(2), so SIGKILL loses what was not yet written, at most one beat; fsync at
most every 10 s and at the end, so a power cut loses at most 10 s. A short write (full disk) is fenced off
with a newline before the next line; readers skip what is not a whole record. Cost: about 300 bytes a beat,
3 MB for 12 hours.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssmke.cost.machine import boottime_ns

FORMAT = 1
FOLDER = "cost"
FSYNC_NS = 10_000_000_000
_BUFFERED_RECORDS = 10_000

Record = dict[str, Any]


class LedgerWriter:
    """Appends records to one new file; what the disk refuses is kept and written with the next record.

    ``append`` raises OSError once the record is kept: the caller reports it, and the next call catches up.
    At most 10,000 records are kept (14 hours of beats); beyond that the oldest beats go, whose sums the later
    ones contain.
    """

    def __init__(self, folder: Path, node: str, *, clock: Callable[[], int] = boottime_ns) -> None:
        self.folder = folder
        self.node = node
        self.path: Path | None = None
        self._clock = clock
        self._file: int | None = None
        self._torn = False
        self._synced_ns: int | None = None
        self._waiting: deque[bytes] = deque()

    def append(self, record: Mapping[str, Any], *, durable: bool = False) -> None:
        """Writes one record and all kept ones before it; ``durable`` forces an fsync."""
        line = json.dumps(record, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode() + b"\n"
        self._waiting.append(line)
        if len(self._waiting) > _BUFFERED_RECORDS:
            del self._waiting[1]  # never the start record: without it nothing that follows can be read
        if self._file is None:
            self._open()
        while self._waiting:
            self._write(self._waiting[0])
            self._waiting.popleft()
        now = self._clock()
        if durable or self._synced_ns is None or now - self._synced_ns >= FSYNC_NS:
            os.fsync(self._descriptor())
            self._synced_ns = now

    def close(self) -> None:
        """Closes the file; records that were never written stay lost."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # Never append to a file that another process may be writing: two writers, two files.
        for n in range(1, 10_000):
            path = self.folder / (f"{self.node}.jsonl" if n == 1 else f"{self.node}-{n}.jsonl")
            try:
                self._file = os.open(
                    path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o644
                )
            except FileExistsError:
                continue
            self.path = path
            return
        raise FileExistsError(f"{self.folder}: 9,999 ledgers of node {self.node}")

    def _descriptor(self) -> int:
        if self._file is None:
            raise OSError(f"the ledger of {self.node} is closed")
        return self._file

    def _write(self, line: bytes) -> None:
        data = b"\n" + line if self._torn else line
        self._torn = True
        written = os.write(self._descriptor(), data)
        if written != len(data):
            raise OSError(f"{self.path}: only {written} of {len(data)} bytes written; is the disk full?")
        self._torn = False


def parse(data: bytes) -> Iterator[Record]:
    """The whole records of a ledger; torn, garbled or foreign lines are passed over."""
    for line in data.split(b"\n"):
        if not line.startswith(b"{"):
            continue
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("t"), str) and _is_int(record.get("b")):
            yield record


@dataclass(frozen=True)
class Segment:
    """One writer's life in one attempt on one node, as read: the paid interval and what happened in it.

    Times are BOOTTIME nanoseconds, comparable within ``boot`` only. ``phases`` adds up to
    ``end_ns - begin_ns`` exactly. ``reason`` is None when the process never closed the ledger; the interval
    then ends one heartbeat period after the last record. ``readings``: device id -> rows of (time, counter
    mJ or None, mean mW or None) in order of time.
    """

    lineage: str
    attempt: str
    node: str
    host: str
    boot: str
    begin_ns: int
    end_ns: int
    begin_wall_ns: int
    reason: str | None
    records: int
    devices: tuple[tuple[str, str], ...]
    price: Mapping[str, Any] | None
    phases: Mapping[str, int]
    readings: Mapping[str, tuple[tuple[int, int | None, int | None], ...]]
    step: int | None
    pairs: int | None
    resumed_step: int | None
    resumed_pairs: int | None
    facts: Mapping[str, Any]

    @property
    def identity(self) -> tuple[str, str, str, str, int]:
        """Equal for copies of the same segment, however many files hold it."""
        return (self.attempt, self.node, self.host, self.boot, self.begin_ns)


def segments(records: Iterable[Record]) -> list[Segment]:
    """Groups one file's records into segments, each opened by a ``start``; others before it are dropped."""
    found: list[Segment] = []
    current: list[Record] = []
    for record in records:
        if record["t"] == "start":
            _close_group(current, found)
            current = [record]
        elif current:
            current.append(record)
    _close_group(current, found)
    return found


def read_run(run_dir: Path, *, skip_attempt: str | None = None) -> list[Segment]:
    """All segments of a run folder; files that cannot be read (another user's) are passed over."""
    found: list[Segment] = []
    for path in sorted((run_dir / FOLDER).glob("*/*.jsonl")):
        if skip_attempt is not None and path.parent.name == skip_attempt:
            continue
        try:
            data = path.read_bytes()
        except OSError:
            continue
        found.extend(segments(parse(data)))
    return found


def _close_group(records: list[Record], into: list[Segment]) -> None:
    if not records:
        return
    try:
        into.append(_segment(records))
    except (KeyError, TypeError, ValueError):
        return  # a start record of a format that we do not know: nothing can be derived from it


def _segment(records: list[Record]) -> Segment:
    start = records[0]
    if start["v"] != FORMAT:
        raise ValueError(f"ledger format {start['v']}")
    begin, period = int(start["b"]), int(start["period"])
    last = begin
    sums: Mapping[str, Any] = {}
    sums_at, phase = begin, "idle"
    reason: str | None = None
    readings: dict[str, list[tuple[int, int | None, int | None]]] = {}
    facts: dict[str, Any] = dict(start.get("facts") or {})
    step = pairs = resumed_step = resumed_pairs = None
    for record in records:
        b = int(record["b"])
        if b < last:
            continue
        last = b
        if record["t"] == "note":
            facts.update(record.get("facts") or {})
        if isinstance(record.get("phases"), dict):
            sums, sums_at, phase = record["phases"], b, str(record.get("phase") or "idle")
        for device, reading in (record.get("d") or {}).items():
            readings.setdefault(device, []).append((b, reading.get("mj"), reading.get("mw")))
        step, pairs = record.get("step", step), record.get("pairs", pairs)
        resumed_step, resumed_pairs = record.get("from") or (resumed_step, resumed_pairs)
        if record["t"] == "end":
            reason = str(record.get("reason"))
            break
    end = last if reason is not None else last + period
    phases = {str(name): int(ns) for name, ns in sums.items() if int(ns) > 0}
    # Time that no sum covers (after the last beat, or lost with a beat) belongs to the phase then open; a sum
    # that exceeds its interval is not ours to trust and is scaled by dropping it.
    rest = (end - begin) - sum(phases.values())
    if rest < 0 or sums_at < begin:
        phases, rest = {}, end - begin
    if rest:
        phases[phase] = phases.get(phase, 0) + rest
    return Segment(
        lineage=str(start["lineage"]),
        attempt=str(start["attempt"]),
        node=str(start["node"]),
        host=str(start["host"]),
        boot=str(start["boot"]),
        begin_ns=begin,
        end_ns=end,
        begin_wall_ns=int(start["w"]),
        reason=reason,
        records=len(records),
        devices=tuple((str(d["id"]), str(d["name"])) for d in start["devices"]),
        price=start.get("price"),
        phases=phases,
        readings={device: tuple(rows) for device, rows in readings.items()},
        step=step,
        pairs=pairs,
        resumed_step=resumed_step,
        resumed_pairs=resumed_pairs,
        facts=facts,
    )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
