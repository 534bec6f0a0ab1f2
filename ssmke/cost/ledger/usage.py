"""From ledger segments to usage: device-hours, energy and dollars, counted once each.

Pure functions of the set of segments. Copies of a segment count once; two writers on one node, or two nodes
that report the same device, are a union of half-open intervals per attempt and device, so neither the order
of files nor their duplication changes a total. Integers (nanoseconds, millijoules) and Decimal (dollars)
throughout: totals are exact and sums of parts equal the whole.

Node time is what a cloud bills: dollars = union of a node's intervals x the hourly price of the whole node
that was stored when the attempt started, and for hardware of one's own the measured energy x the price of a
kilowatt-hour besides. Energy that no reading covers is unknown, not zero: ``energy_ns`` says how much device
time was covered, ``energy_error_mj`` how far the sum may be off.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from ssmke.cost.ledger.reader import ENERGY_ERROR, Segment

HOUR_NS = 3_600_000_000_000
_MJ_PER_KWH = 3_600_000_000
_NS_PER_MJ_KWH = HOUR_NS // _MJ_PER_KWH
# Beats are seconds apart, so the ends of a run are never quite covered by readings.
_COVERED = Decimal("0.9")


@dataclass(frozen=True)
class Usage:
    """What an attempt, or a sum of attempts, used. ``None`` is unknown.

    ``usd_ns`` is dollars-per-hour x nanoseconds, undivided so that sums stay exact (``usd`` divides), over the
    node time whose price is known (``priced_ns`` of ``node_ns``); ``energy_mj``, give or take
    ``energy_error_mj``, over the device time that was measured (``energy_ns`` of ``device_ns``). ``phases``:
    device nanoseconds by phase, adding up to ``device_ns``.
    """

    device_ns: int = 0
    node_ns: int = 0
    usd_ns: Decimal | None = None
    priced_ns: int = 0
    energy_mj: int | None = None
    energy_ns: int = 0
    energy_error_mj: int = 0
    phases: Mapping[str, int] = field(default_factory=dict)

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
            energy_error_mj=self.energy_error_mj + other.energy_error_mj,
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
    def energy_kwh_error(self) -> float | None:
        """Kilowatt-hours by which ``energy_kwh`` may be off, either way."""
        return None if self.energy_mj is None else self.energy_error_mj / _MJ_PER_KWH

    @property
    def usd_partial(self) -> bool:
        """Some paid time has no known price: ``usd`` is a lower bound."""
        return self.priced_ns < self.node_ns

    @property
    def energy_coverage(self) -> float:
        """Share of device time for which energy was measured, 0 to 1."""
        return self.energy_ns / self.device_ns if self.device_ns else 0.0


def attempts_of(found: Iterable[Segment]) -> dict[str, list[Segment]]:
    """Distinct segments by attempt id, in order of time.

    By the wall clock, and within one boot of one machine by the clock that cannot be set: an attempt keeps its
    place among those before and after a clock that was moved.
    """
    groups: dict[str, list[Segment]] = {}
    for segment in distinct(found):
        groups.setdefault(segment.attempt, []).append(segment)
    first = {name: min(members, key=lambda s: s.identity) for name, members in groups.items()}
    order = sorted(groups, key=lambda name: (first[name].begin_wall_ns, name))
    by_boot: dict[str, list[str]] = {}
    for name in order:
        by_boot.setdefault(first[name].boot, []).append(name)
    queues = {
        boot: iter(sorted(names, key=lambda n: (first[n].begin_ns, n))) for boot, names in by_boot.items()
    }
    return {name: groups[name] for name in (next(queues[first[n].boot]) for n in order)}


def by_attempt(found: Iterable[Segment]) -> dict[str, Usage]:
    """Usage per attempt id, in order of time."""
    return {attempt: usage_of(members) for attempt, members in attempts_of(found).items()}


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


def spread(parts: Mapping[str, int], whole: int) -> dict[str, int]:
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


def usage_of(members: Sequence[Segment]) -> Usage:
    """Usage of one attempt from its distinct segments."""
    usage = Usage()
    nodes: dict[tuple[str, str], _Union] = {}
    devices: dict[tuple[str, str], _Union] = {}
    for segment in members:
        spent = _devices(segment, devices)
        new = nodes.setdefault((segment.boot, segment.host), _Union()).add(segment.begin_ns, segment.end_ns)
        usage += spent + dollars(segment.price or {}, new, spent)
    return usage


def dollars(price: Mapping[str, object], node_ns: int, spent: Usage) -> Usage:
    """Node time and its dollars at a stored price, electricity of one's own hardware (``spent``) included."""
    hourly, per_kwh = _decimal(price.get("usd_per_hour")), _decimal(price.get("usd_per_kwh"))
    if hourly is None:
        return Usage(node_ns=node_ns)
    usd_ns, priced_ns = hourly * node_ns, node_ns
    if per_kwh is not None:
        if spent.energy_mj is not None:
            usd_ns += per_kwh * spent.energy_mj * _NS_PER_MJ_KWH
        if spent.energy_ns < _COVERED * spent.device_ns:
            priced_ns = 0  # the electricity is not in it: a lower bound
    return Usage(node_ns=node_ns, usd_ns=usd_ns, priced_ns=priced_ns)


def _devices(segment: Segment, counted: dict[tuple[str, str], _Union]) -> Usage:
    """Device time and energy of a segment that ``counted`` does not hold yet."""
    usage = Usage()
    whole = segment.end_ns - segment.begin_ns
    for device, _ in segment.devices:
        union = counted.setdefault((segment.boot, device), _Union())
        new = union.add(segment.begin_ns, segment.end_ns)
        usage += Usage(device_ns=new, phases=spread(segment.phases, new))
        energy = segment.energy.get(device)
        if energy is not None and energy.mj is not None and new:
            # A second report of the same time (another rank's) adds only what it saw beyond the first.
            mj = energy.mj * new // whole
            error = ENERGY_ERROR.get(energy.method or "", Decimal(1))
            usage += Usage(
                energy_mj=mj, energy_ns=energy.covered_ns * new // whole, energy_error_mj=int(mj * error)
            )
    return usage


def _decimal(value: object) -> Decimal | None:
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
