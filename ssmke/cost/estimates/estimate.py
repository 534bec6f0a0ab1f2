"""Estimates: an interval and its reasons, from device-hours to hours, dollars and kilowatt-hours.

An estimate that hides what it assumes is a rumour, so every one carries its reasons, in words, in the order in
which they were used. The ends of an interval multiply through: cheap and fast together make the low end, dear
and slow the high one. That is wider than a standard deviation would be, and needs no distribution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from ssmke.cost.prices.rent import Rent


@dataclass(frozen=True)
class Interval:
    """A number that is known from ``low`` to ``high``, and most likely ``point``."""

    low: float
    point: float
    high: float

    def __post_init__(self) -> None:
        if not (0 <= self.low <= self.point <= self.high < math.inf):
            raise ValueError(f"no interval: {self.low} {self.point} {self.high}")

    @classmethod
    def exactly(cls, value: float) -> Interval:
        """A number without uncertainty."""
        return cls(value, value, value)

    @classmethod
    def between(cls, first: float, second: float) -> Interval:
        """Two bounds in any order; most likely their geometric mean, as for ratios."""
        low, high = min(first, second), max(first, second)
        return cls(low, min(max(math.sqrt(low * high), low), high), high)

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.low + other.low, self.point + other.point, self.high + other.high)

    def __mul__(self, other: Interval | float) -> Interval:
        if isinstance(other, Interval):
            return Interval(self.low * other.low, self.point * other.point, self.high * other.high)
        return Interval(self.low * other, self.point * other, self.high * other)

    def invert(self) -> Interval:
        """One over it: a rate becomes a time."""
        return Interval(1 / self.high, 1 / self.point, 1 / self.low)


@dataclass(frozen=True)
class Estimate:
    """What a run takes on some hardware. None is unknown. ``price``: the price basis in one line."""

    title: str
    device_hours: Interval
    hours: Interval
    usd: tuple[Decimal, Decimal, Decimal] | None
    kwh: Interval | None
    price: str
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; dollars are exact decimal strings."""
        keys = ("low", "point", "high")
        return {
            "title": self.title,
            "device_hours": _named(self.device_hours),
            "hours": _named(self.hours),
            "usd": None if self.usd is None else dict(zip(keys, map(str, self.usd), strict=True)),
            "kwh": None if self.kwh is None else _named(self.kwh),
            "price": self.price,
            "reasons": list(self.reasons),
        }

    def lines(self) -> list[str]:
        """The estimate for a terminal: four rows of low, point, high, and the reasons."""
        rows = [
            ("hours", _cells(self.hours)),
            ("device-hours", _cells(self.device_hours)),
            ("dollars", ["unknown"] if self.usd is None else [_money(each) for each in self.usd]),
            ("energy, kWh", ["unknown"] if self.kwh is None else _cells(self.kwh)),
        ]
        table = [("", ["low", "point", "high"]), *rows]
        widths = [max(len(cells[i]) for _, cells in table if i < len(cells)) for i in range(3)]
        shown = [
            f"  {name:14}" + "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=False))
            for name, cells in table
        ]
        return [
            self.title,
            *shown,
            f"  price: {self.price}",
            "because",
            *(f"  - {why}" for why in self.reasons),
        ]


def estimate(
    title: str,
    device_hours: Interval,
    devices: int,
    rent: Rent,
    watts: Interval | None,
    reasons: Sequence[str],
) -> Estimate:
    """Device-hours of ``devices`` devices as time, money and energy.

    ``watts`` of one device while it works; None if unknown.
    """
    hours = device_hours * (1 / devices)
    kwh = None if watts is None else device_hours * watts * 1e-3
    why = [*reasons, *rent.reasons]
    usd: tuple[Decimal, Decimal, Decimal] | None = None
    if rent.low is not None and rent.point is not None and rent.high is not None:
        usd = (
            rent.low * _decimal(hours.low),
            rent.point * _decimal(hours.point),
            rent.high * _decimal(hours.high),
        )
        if rent.usd_per_kwh is not None and kwh is not None:
            each = rent.usd_per_kwh
            usd = (
                usd[0] + each * _decimal(kwh.low),
                usd[1] + each * _decimal(kwh.point),
                usd[2] + each * _decimal(kwh.high),
            )
        elif rent.usd_per_kwh is not None:
            why.append("the electricity of this hardware is not in the dollars: its power is not known")
    return Estimate(title, device_hours, hours, usd, kwh, rent.label, tuple(why))


def _named(interval: Interval) -> dict[str, float]:
    return {"low": interval.low, "point": interval.point, "high": interval.high}


def _cells(interval: Interval) -> list[str]:
    return [f"{each:,.4g}" for each in (interval.low, interval.point, interval.high)]


def _money(usd: Decimal) -> str:
    return f"${usd:,.2f}" if usd >= 1 or usd == 0 else f"${float(usd):.3g}"


def _decimal(value: float) -> Decimal:
    return Decimal(repr(value))
