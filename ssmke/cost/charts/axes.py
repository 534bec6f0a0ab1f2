"""Axes: where a value lies between two ends, and the few round numbers that are worth a label.

Pure arithmetic; the words of a tick are the caller's (``text``), except for times, which are their own.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

_NICE = (1.0, 2.0, 2.5, 5.0, 10.0)
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_DURATIONS = (
    1, 2, 5, 10, 15, 30, _MINUTE, 2 * _MINUTE, 5 * _MINUTE, 10 * _MINUTE, 15 * _MINUTE, 30 * _MINUTE,
    _HOUR, 2 * _HOUR, 3 * _HOUR, 6 * _HOUR, 12 * _HOUR, _DAY, 2 * _DAY, 5 * _DAY, 10 * _DAY, 30 * _DAY,
    100 * _DAY, 365 * _DAY,
)  # fmt: skip
_CALENDAR = (
    _MINUTE, 5 * _MINUTE, 15 * _MINUTE, 30 * _MINUTE, _HOUR, 3 * _HOUR, 6 * _HOUR, 12 * _HOUR, _DAY,
    2 * _DAY, 4 * _DAY, 7 * _DAY, 14 * _DAY, 30 * _DAY, 91 * _DAY, 365 * _DAY,
)  # fmt: skip


@dataclass(frozen=True)
class Axis:
    """From ``low`` to ``high``, with (value, text) ticks in order."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    log: bool = False

    def at(self, value: float) -> float:
        """Where ``value`` lies: 0 at ``low``, 1 at ``high``, never outside."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(max(value, low)), math.log10(low), math.log10(high)
        return min(1.0, max(0.0, (value - low) / (high - low)))


def linear(high: float, text: Callable[[float], str], *, low: float = 0.0, count: int = 4) -> Axis:
    """An axis of about ``count`` round steps whose ends are round too."""
    high = high if high > low else low + 1.0
    step = _nice((high - low) / count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # Rounded, or 3 x 0.1 shows as 0.30000000000000004.
    values = [round(n * step, 12) for n in range(first, last + 1)]
    return Axis(values[0], values[-1], tuple((v, text(v)) for v in values))


def logarithmic(low: float, high: float, text: Callable[[float], str]) -> Axis:
    """Round ends around ``low`` to ``high`` (both above 0): steps of 1, 2, 5 where they are near, else decades."""
    steps = (1.0, 2.0, 5.0) if high / low <= 200 else (1.0,)
    grid = [
        s * 10.0**n
        for n in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
        for s in steps
    ]
    first = max(i for i, v in enumerate(grid) if v <= low * (1 + 1e-9))
    last = min(i for i, v in enumerate(grid) if v >= high * (1 - 1e-9))
    if last == first:
        first, last = first - 1, last + 1
    shown = grid[first : last + 1 : math.ceil((last - first) / 8)]
    return Axis(grid[first], grid[last], tuple((v, text(v)) for v in shown), log=True)


def duration(hours: float) -> Axis:
    """From 0 to exactly ``hours``, with ticks in the unit that fits."""
    seconds = max(hours * _HOUR, 1e-3)
    step = next((s for s in _DURATIONS if seconds / s <= 6), None) or _nice(seconds / _DAY / 6) * _DAY
    count = int(seconds / step + 1e-9)
    unit, name = next((u, n) for u, n in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min"), (1, "s")) if step >= u)
    ticks = tuple((n * step / _HOUR, f"{n * step / unit:g} {name}" if n else "0") for n in range(count + 1))
    return Axis(0.0, seconds / _HOUR, ticks)


def calendar(begin_ns: int, end_ns: int) -> Axis:
    """Wall-clock time (ns since 1970) in UTC, ticks at round hours, days or months."""
    begin, end = begin_ns / 1e9, max(end_ns / 1e9, begin_ns / 1e9 + 1)
    step = next((s for s in _CALENDAR if (end - begin) / s <= 6), None) or _nice((end - begin) / 6)
    if step >= 30 * _DAY:
        moments = _months(begin, end, max(1, round(step / (30 * _DAY))))
    else:
        moments = [n * step for n in range(math.ceil(begin / step), math.floor(end / step) + 1)]
    ticks: list[tuple[float, str]] = []
    day = None
    for moment in moments:
        when = dt.datetime.fromtimestamp(moment, tz=dt.timezone.utc)
        if step >= 30 * _DAY:
            words = f"{when:%b %Y}"
        elif step >= _DAY:
            words = f"{when.day} {when:%b}"
        else:
            words = f"{when:%H:%M}" if when.date() == day else f"{when.day} {when:%b %H:%M}"
        day = when.date()
        ticks.append((moment * 1e9, words))
    return Axis(begin * 1e9, end * 1e9, tuple(ticks))


def tick_money(usd: float) -> str:
    """Dollars on an axis: "$77k", "$0.05"."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if usd >= size:
            return f"${usd / size:g}{letter}"
    return f"${usd:g}" if usd >= 1 or usd == 0 else f"${Decimal(repr(round(usd, 12))).normalize():f}"


def _months(begin: float, end: float, every: int) -> list[float]:
    first = dt.datetime.fromtimestamp(begin, tz=dt.timezone.utc)
    month = first.year * 12 + first.month
    found: list[float] = []
    while True:
        if month % every == 0:
            moment = dt.datetime(month // 12, month % 12 + 1, 1, tzinfo=dt.timezone.utc).timestamp()
            if moment > end:
                return found
            found.append(moment)
        month += 1


def _nice(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(n for n in _NICE if n * power >= step * (1 - 1e-9)) * power
