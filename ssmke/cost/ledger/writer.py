"""The ledger: what was used, appended as it happened, and nothing derived.

One file per attempt and node, ``RUN_DIR/cost/<attempt>/<node>.jsonl``, one JSON object per line:

    start  v lineage attempt node host boot pid born period devices price facts   opens a segment
    beat   seq phase phases step pairs from d      every few seconds; sums so far
    begun  step phases                             training begins: what came before was set-up
    save   step phases                             a checkpoint of this step is complete
    phase  name begin                              a phase that took a second or more
    note   facts                                   what became known later
    end    reason, all that a beat has, and a summary of the records before it

and in each ``t`` (kind), ``b`` (CLOCK_BOOTTIME, ns) and ``w`` (wall clock, ns: a label, never a duration).
``phases`` are nanoseconds so far by innermost phase and add up to ``b`` - start's ``b``: a lost beat loses
nothing but the time after it. ``d`` maps device id to ``mj`` (energy counter, millijoules), ``mw`` (mean
power since the last beat, milliwatts), ``util`` (mean, percent) and ``mem`` (peak, MiB); unknown is null.
The summary (``begin begun saves energy facts jumps records``) lets a report read the first and the last line
of a closed ledger only; every sixtieth beat has it too, for one that is still open. An ``end`` with ``by``
"reconcile" was written for a process that died.

Durability: a line is one write(2), so SIGKILL loses what was not yet written, at most one beat; fsync at
most every 10 s and at the end, so a power cut loses at most 10 s. A short write (full disk) is fenced off
with a newline before the next line; readers skip what is not a whole record. Cost: about 300 bytes a beat,
3 MB for 12 hours.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ssmke.cost.machine import boottime_ns

FORMAT = 1
FOLDER = "cost"
FSYNC_NS = 10_000_000_000
_BUFFERED_RECORDS = 10_000


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
