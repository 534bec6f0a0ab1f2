"""From ledger segments to usage: device-hours, energy and dollars, counted once each.

Pure functions of the set of segments. Copies of a segment count once; two writers on one node, or two nodes
that report the same device, are a union of half-open intervals per attempt and device, so neither the order
of files nor their duplication changes a total. Integers (nanoseconds, millijoules) and Decimal (dollars)
throughout: totals are exact and sums of parts equal the whole.

Node time is what a cloud bills: dollars = union of a node's intervals x the hourly price of the whole node
that was stored when the attempt started. Energy that no reading covers is unknown, not zero: ``energy_ns``
says how much device time was covered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import pairwise

from ssmke.cost.ledger import Segment

HOUR_NS = 3_600_000_000_000
_MJ_PER_KWH = 3_600_000_000

Reading = tuple[int, "int | None", "int | None"]


@dataclass(frozen=True)
class Usage:
    """What an attempt, or a sum of attempts, used. ``None`` is unknown.

    ``usd_ns`` is dollars-per-hour x nanoseconds, undivided so that sums stay exact (``usd`` divides), over the
    node time whose price is known (``priced_ns`` of ``node_ns``); ``energy_mj``
    over the device time that was measured (``energy_ns`` of ``device_ns``). ``phases``: device nanoseconds by
    phase, adding up to ``device_ns``.
    """

    device_ns: int = 0
    node_ns: int = 0
    usd_ns: Decimal | None = None
    priced_ns: int = 0
    energy_mj: int | None = None
    energy_ns: int = 0
    phases: dict[str, int] = field(default_factory=dict)

    def __add__(self, other: Usage) -> Usage:
        phases = dict(self.phases)
        for name, ns in other.phases.items():
            phases[name] = phases.get(name, 0) + ns
        return Usage(
            device_ns=self.device_ns + other.device_ns,
            node_ns=self.node_ns + other.node_ns,
            usd_ns=self.usd_ns if other.usd_ns is None else other.usd_ns + (self.usd_ns or Decimal(0)),
            priced_ns=self.priced_ns + other.priced_ns,
            energy_mj=self.energy_mj if other.energy_mj is None else other.energy_mj + (self.energy_mj or 0),
            energy_ns=self.energy_ns + other.energy_ns,
            phases=phases,
        )

    @property
    def usd(self) -> Decimal | None:
        return None if self.usd_ns is None else self.usd_ns / HOUR_NS

    @property
    def device_hours(self) -> float:
        return self.device_ns / HOUR_NS

    @property
    def node_hours(self) -> float:
        return self.node_ns / HOUR_NS

    @property
    def energy_kwh(self) -> float | None:
        return None if self.energy_mj is None else self.energy_mj / _MJ_PER_KWH

    @property
    def usd_partial(self) -> bool:
        """Some paid time has no known price: ``usd`` is a lower bound."""
        return self.priced_ns < self.node_ns

    @property
    def energy_coverage(self) -> float:
        """Share of device time for which energy was measured, 0 to 1."""
        return self.energy_ns / self.device_ns if self.device_ns else 0.0


def by_attempt(found: Iterable[Segment]) -> dict[str, Usage]:
    """Usage per attempt id, in order of the attempts' first wall-clock time."""
    groups: dict[str, list[Segment]] = {}
    for segment in distinct(found):
        groups.setdefault(segment.attempt, []).append(segment)
    ordered = sorted(groups.items(), key=lambda item: (min(s.begin_wall_ns for s in item[1]), item[0]))
    return {attempt: _attempt(members) for attempt, members in ordered}


def total(found: Iterable[Segment]) -> Usage:
    """Usage of all attempts together: the lineage, failed and resumed attempts included."""
    return sum(by_attempt(found).values(), Usage())


def distinct(found: Iterable[Segment]) -> list[Segment]:
    """One of each segment, the fullest copy, in an order that does not depend on the files'."""
    best: dict[tuple[str, str, str, str, int], Segment] = {}
    for segment in found:
        known = best.get(segment.identity)
        if known is None or (segment.records, segment.end_ns) > (known.records, known.end_ns):
            best[segment.identity] = segment
    return sorted(best.values(), key=lambda s: (s.boot, s.begin_ns, -s.end_ns, s.identity))


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


def spread(parts: dict[str, int], whole: int) -> dict[str, int]:
    """``parts`` scaled to add up to ``whole`` exactly (largest remainders first, then by name)."""
    size = sum(parts.values())
    if size == whole:
        return dict(parts)
    if size == 0:
        return {"idle": whole} if whole else {}
    scaled = {name: ns * whole // size for name, ns in parts.items()}
    short = whole - sum(scaled.values())
    for name in sorted(parts, key=lambda n: (-(parts[n] * whole % size), n))[:short]:
        scaled[name] += 1
    return {name: ns for name, ns in scaled.items() if ns}


def _attempt(members: Sequence[Segment]) -> Usage:
    usage = Usage()
    nodes: dict[tuple[str, str], _Union] = {}
    devices: dict[tuple[str, str], _Union] = {}
    readings: dict[tuple[str, str], set[Reading]] = {}
    for segment in members:
        new = nodes.setdefault((segment.boot, segment.host), _Union()).add(segment.begin_ns, segment.end_ns)
        hourly = _hourly(segment)
        usage += Usage(
            node_ns=new,
            usd_ns=None if hourly is None else hourly * new,
            priced_ns=0 if hourly is None else new,
        )
        for device, _ in segment.devices:
            key = (segment.boot, device)
            new = devices.setdefault(key, _Union()).add(segment.begin_ns, segment.end_ns)
            usage += Usage(device_ns=new, phases=spread(dict(segment.phases), new))
            readings.setdefault(key, set()).update(segment.readings.get(device, ()))
    for rows in readings.values():
        usage += _energy(rows)
    return usage


def _energy(rows: Iterable[Reading]) -> Usage:
    ordered = sorted(rows, key=lambda r: (r[0], r[1] is None, r[1] or 0, r[2] is None, r[2] or 0))
    energy: int | None = None
    covered = 0
    for before, after in pairwise(ordered):
        mj = energy_between(before, after)
        if mj is not None:
            energy = mj + (energy or 0)
            covered += after[0] - before[0]
    return Usage(energy_mj=energy, energy_ns=covered)


def _hourly(segment: Segment) -> Decimal | None:
    value = (segment.price or {}).get("usd_per_hour")
    return None if value is None else Decimal(str(value))


class _Union:
    """A union of half-open intervals; ``add`` says how much of a new one was not yet in it."""

    def __init__(self) -> None:
        self._intervals: list[tuple[int, int]] = []

    def add(self, begin: int, end: int) -> int:
        if end <= begin:
            return 0
        before = sum(e - b for b, e in self._intervals)
        merged: list[tuple[int, int]] = []
        for b, e in sorted([*self._intervals, (begin, end)]):
            if merged and b <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(e, merged[-1][1]))
            else:
                merged.append((b, e))
        self._intervals = merged
        return sum(e - b for b, e in merged) - before
