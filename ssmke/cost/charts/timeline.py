"""A run over its paid time, for charts: phases, power and utilisation, thinned to what a screen can show.

Time is paid time: attempts stand one after the other, the gaps between them cost nothing and are left out.
Beats say how the time of an attempt was spent; its totals are the report's, so the last point of each attempt
is exact and a chart ends where the report's number is. Long series are thinned: sums at every n-th beat, rates
as means over the beats in between, at most ``points`` in all.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ssmke.cost.ledger.reader import Beat, Series
from ssmke.cost.ledger.usage import HOUR_NS
from ssmke.cost.report import Attempt, RunReport

POINTS = 400


@dataclass(frozen=True)
class Track:
    """One device over paid time. ``busy``: mean utilisation of each interval in percent; ``watts`` likewise.

    ``mean`` weighs by time, over what was read; None where nothing was.
    """

    device: str
    name: str
    busy: tuple[float | None, ...]
    watts: tuple[float | None, ...]
    mean_busy: float | None
    mean_watts: float | None
    peak_memory_mib: int | None


@dataclass(frozen=True)
class Timeline:
    """``hours``: paid hours since the first attempt began. ``spent``: by phase, dollars so far (device-hours if
    ``priced`` is False). ``begins``: (hours, attempt's name). Tracks have one value for each of ``edges``."""

    hours: tuple[float, ...]
    spent: Mapping[str, tuple[float, ...]]
    priced: bool
    begins: tuple[tuple[float, str], ...]
    edges: tuple[float, ...]
    tracks: tuple[Track, ...]

    @property
    def total_hours(self) -> float:
        return self.hours[-1] if self.hours else 0.0


def timeline(run: RunReport, series: Iterable[Series], *, points: int = POINTS) -> Timeline:
    """``run`` over time from its beats; without any, each attempt is a straight line to its total."""
    groups: dict[str, list[Series]] = {}
    for one in series:
        groups.setdefault(one.attempt, []).append(one)
    priced = run.usage.usd is not None
    lengths = [_length_ns(a, groups.get(a.name, [])) for a in run.attempts]
    whole = sum(lengths) or 1
    hours: list[float] = []
    rows: list[dict[str, float]] = []
    begins: list[tuple[float, str]] = []
    before: dict[str, float] = {}
    start = 0
    for attempt, length in zip(run.attempts, lengths, strict=True):
        begins.append((start / HOUR_NS, attempt.name))
        share = max(2, points * length // whole - 1)
        scale = _per_device_ns(attempt, priced)
        for at, phases in _progress(attempt, groups.get(attempt.name, []), length, share):
            hours.append((start + at) / HOUR_NS)
            rows.append(_added(before, {name: ns * scale for name, ns in phases.items()}))
        before = rows[-1]
        start += length
    names = sorted({name for row in rows for name in row})
    edges, tracks = _tracks(run, groups, lengths, points)
    return Timeline(
        hours=tuple(hours),
        spent={name: tuple(row.get(name, 0.0) for row in rows) for name in names},
        priced=priced,
        begins=tuple(begins),
        edges=edges,
        tracks=tracks,
    )


def _length_ns(attempt: Attempt, series: Sequence[Series]) -> int:
    """From an attempt's begin to its end, by the clock that cannot be set where there are beats."""
    beaten = max((s.beats[-1].b - s.begin_ns for s in series if s.beats), default=0)
    return max(1, beaten or attempt.ended_wall_ns - attempt.began_wall_ns)


def _per_device_ns(attempt: Attempt, priced: bool) -> float:
    """What one device nanosecond is worth: dollars, or device-hours."""
    if not priced:
        return 1 / HOUR_NS
    if attempt.usage.usd is None or not attempt.usage.device_ns:
        return 0.0
    return float(attempt.usage.usd) / attempt.usage.device_ns


def _progress(
    attempt: Attempt, series: Sequence[Series], length: int, points: int
) -> list[tuple[int, Mapping[str, float]]]:
    """(ns since the attempt's begin, device ns by phase so far), ending in the attempt's own totals."""
    final = {name: float(ns) for name, ns in attempt.usage.phases.items()}
    moments = sorted({beat.b - s.begin_ns for s in series for beat in s.beats})
    inner = _thin([m for m in moments if 0 < m < length], points)
    rows: list[tuple[int, Mapping[str, float]]] = [(0, {})]
    offsets = [[beat.b - s.begin_ns for beat in s.beats] for s in series]
    for moment in inner:
        row: dict[str, float] = {}
        for one, times in zip(series, offsets, strict=True):
            for name, ns in _phases_at(one, times, moment).items():
                row[name] = row.get(name, 0.0) + ns * len(one.devices)
        # Two writers of one device count twice here and once in the totals, which are right.
        rows.append((moment, {name: min(ns, final.get(name, 0.0)) for name, ns in row.items()}))
    return [*rows, (length, final)]


def _phases_at(series: Series, times: Sequence[int], moment: int) -> Mapping[str, float]:
    """Nanoseconds by phase at ``moment``, between the beats around it."""
    after = bisect.bisect_left(times, moment)
    if after == len(times):
        return series.beats[-1].phases if series.beats else {}
    high = series.beats[after].phases
    low: Mapping[str, int] = series.beats[after - 1].phases if after else {}
    begin = times[after - 1] if after else 0
    share = (moment - begin) / (times[after] - begin) if times[after] > begin else 1.0
    return {name: low.get(name, 0) + (ns - low.get(name, 0)) * share for name, ns in high.items()}


def _added(before: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    return {name: before.get(name, 0.0) + more.get(name, 0.0) for name in {*before, *more}}


def _thin(values: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of them, the first and the last among them."""
    if len(values) <= count:
        return list(values)
    chosen = sorted({round(i * (len(values) - 1) / max(count - 1, 1)) for i in range(count)})
    return [values[i] for i in chosen]


@dataclass
class _Cells:
    """Sums of value x time per cell of the time axis."""

    count: int

    def __post_init__(self) -> None:
        self.sums = [0.0] * self.count
        self.time = [0.0] * self.count

    def add(self, value: float, begin: float, end: float) -> None:
        """``begin`` and ``end`` in cells."""
        for cell in range(max(0, int(begin)), min(self.count - 1, int(end)) + 1):
            overlap = min(end, cell + 1) - max(begin, cell)
            if overlap > 0:
                self.sums[cell] += value * overlap
                self.time[cell] += overlap

    @property
    def means(self) -> tuple[float | None, ...]:
        # A cell that is barely touched says nothing about itself.
        return tuple(s / t if t > 0.05 else None for s, t in zip(self.sums, self.time, strict=True))

    @property
    def mean(self) -> float | None:
        return sum(self.sums) / sum(self.time) if any(self.time) else None


def _tracks(
    run: RunReport, groups: Mapping[str, list[Series]], lengths: Sequence[int], points: int
) -> tuple[tuple[float, ...], tuple[Track, ...]]:
    whole = sum(lengths) or 1
    # Fewer cells than beats, or every other cell would be empty.
    beats = sum(max((len(s.beats) for s in group), default=0) for group in groups.values())
    count = max(1, min(points // 2, beats))
    busy: dict[str, _Cells] = {}
    watts: dict[str, _Cells] = {}
    memory: dict[str, int] = {}
    names: dict[str, str] = {}
    start = 0
    for attempt, length in zip(run.attempts, lengths, strict=True):
        for one in groups.get(attempt.name, []):
            for device, name in one.devices:
                names[device] = name
            for before, after in pairwise(one.beats):
                begin = (start + before.b - one.begin_ns) * count / whole
                end = (start + after.b - one.begin_ns) * count / whole
                for device, reading in after.d.items():
                    util, mib = reading.get("util"), reading.get("mem")
                    if util is not None:
                        busy.setdefault(device, _Cells(count)).add(float(util), begin, end)
                    power = _watts(before, after, device)
                    if power is not None:
                        watts.setdefault(device, _Cells(count)).add(power, begin, end)
                    if mib is not None:
                        memory[device] = max(memory.get(device, 0), int(mib))
        start += length
    empty = _Cells(count)
    tracks = tuple(
        Track(
            device=device,
            name=name,
            busy=busy.get(device, empty).means,
            watts=watts.get(device, empty).means,
            mean_busy=busy.get(device, empty).mean,
            mean_watts=watts.get(device, empty).mean,
            peak_memory_mib=memory.get(device),
        )
        for device, name in sorted(names.items(), key=lambda item: (item[1], item[0]))
    )
    edges = tuple((i + 0.5) * whole / count / HOUR_NS for i in range(count))
    return edges, tracks


def _watts(before: Beat, after: Beat, device: str) -> float | None:
    """Mean power between two beats: from the energy counter, else as it was sampled."""
    seconds = (after.b - before.b) / 1e9
    if seconds <= 0:
        return None
    old, new = before.d.get(device, {}).get("mj"), after.d.get(device, {}).get("mj")
    if old is not None and new is not None and new >= old:
        return float(new - old) / 1000 / seconds
    mw = after.d.get(device, {}).get("mw")
    return None if mw is None else float(mw) / 1000
