"""A ledger's records, summed up one by one: the meter keeps one while it writes, a reader while it reads.

So the summary in a closed ledger's ``end`` and what a reader finds in the single records are the same by
construction. Times are BOOTTIME nanoseconds. A record whose clock went back is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_JUMP_NS = 2_000_000_000

Record = dict[str, Any]
Reading = tuple[int, "int | None", "int | None"]
"""Time (ns), energy counter (mJ) and mean power since the last reading (mW) of one device."""


@dataclass(frozen=True)
class Energy:
    """What one device used in one segment. ``mj`` None: unknown; ``covered_ns``: the time behind it."""

    mj: int | None
    covered_ns: int
    method: str | None


@dataclass(frozen=True)
class Moment:
    """Phase sums (ns) when training stood at ``step``: where it began, or a checkpoint was complete."""

    step: int
    at_ns: int
    phases: Mapping[str, int]

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Moment:
        return cls(int(record["step"]), int(record["b"]), record["phases"])


class Tally:
    """The sums over a segment's records so far, the ``start`` record first.

    ``keep_beats``: hold the beats' moments too (``passed``), which grow with the run.
    """

    def __init__(self, start: Mapping[str, Any], *, keep_beats: bool = False) -> None:
        self._keep_beats = keep_beats
        self.last_ns = self.sums_ns = int(start["b"])
        self.phase = "idle"
        self.phases: Mapping[str, int] = {}
        self.facts: dict[str, Any] = dict(start.get("facts") or {})
        self.begun: Moment | None = None
        self.saves: list[Moment] = []
        self.passed: list[Moment] = []
        self.step: int | None = None
        self.pairs: int | None = None
        self.resumed: tuple[int, int] | None = None
        self.energy: dict[str, Energy] = {}
        self.jumps = 0
        self.records = 1
        self._wall_ns = int(start["w"])
        self._methods = {str(d["id"]): d.get("energy") for d in start["devices"]}
        self._readings: dict[str, Reading] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        """Takes one record into account."""
        b, w, kind = int(record["b"]), int(record["w"]), record["t"]
        if b < self.last_ns:
            return
        self.records += 1
        self.jumps += abs((w - self._wall_ns) - (b - self.last_ns)) > _JUMP_NS
        self.last_ns, self._wall_ns = b, w
        if kind == "note":
            self.facts.update(record.get("facts") or {})
        for device, reading in (record.get("d") or {}).items():
            self._read(device, (b, reading.get("mj"), reading.get("mw")))
        if not isinstance(record.get("phases"), dict):
            return
        self.phases, self.sums_ns, self.phase = record["phases"], b, str(record.get("phase") or self.phase)
        if kind == "begun":
            self.begun = self.begun or Moment.of(record)
            return
        if kind == "save":
            self.saves.append(Moment.of(record))
            return
        self.step, self.pairs = record.get("step", self.step), record.get("pairs", self.pairs)
        if record.get("from"):
            self.resumed = tuple(record["from"])
        if self._keep_beats and self.step is not None:
            self.passed.append(Moment(self.step, b, self.phases))

    def summary(self) -> Record:
        """What an ``end`` record holds besides its own sums."""
        return {
            "begun": None if self.begun is None else _row(self.begun),
            "saves": [_row(m) for m in self.saves],
            "energy": {device: [e.mj, e.covered_ns, e.method] for device, e in self.energy.items()},
            "facts": self.facts,
            "jumps": self.jumps,
            "records": self.records,
        }

    def take_summary(self, end: Mapping[str, Any]) -> None:
        """The state that the writer had when it wrote ``end``."""
        self.energy = {d: Energy(mj, int(ns), method) for d, (mj, ns, method) in end["energy"].items()}
        self.facts = dict(end["facts"])
        self.begun = None if end["begun"] is None else Moment(*end["begun"])
        self.saves = [Moment(*row) for row in end["saves"]]
        self.jumps, self.records = int(end["jumps"]), int(end["records"])
        self.phases, self.phase = end["phases"], str(end["phase"])
        self.step, self.pairs = end["step"], end["pairs"]
        self.resumed = tuple(end["from"]) if end["from"] else None

    def _read(self, device: str, after: Reading) -> None:
        known = self.energy.get(device, Energy(None, 0, self._methods.get(device)))
        before = self._readings.get(device)
        spent = None if before is None else energy_between(before, after)
        if before is not None and spent is not None:
            known = Energy((known.mj or 0) + spent, known.covered_ns + after[0] - before[0], known.method)
        self.energy[device] = known
        self._readings[device] = after


def energy_between(before: Reading, after: Reading) -> int | None:
    """Millijoules between two readings of a device, or None.

    The counter's difference where both have it; a counter that went back was reset (driver reload), and what
    it had counted in between is lost: unknown, never negative. Else mean power x time.
    """
    if after[0] <= before[0]:
        return None
    if before[1] is not None and after[1] is not None:
        return after[1] - before[1] if after[1] >= before[1] else None
    if after[2] is not None:
        return after[2] * (after[0] - before[0]) // 1_000_000_000
    return None


def _row(moment: Moment) -> list[Any]:
    return [moment.step, moment.at_ns, dict(moment.phases)]
