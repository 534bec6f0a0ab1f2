"""Storage and transfer: money that is spent whether or not anything trains.

Storage is gigabytes x price per gigabyte-month x months; a part of a month counts by its days, each month by
its own length, so that two consecutive periods add up to the whole. A disk that is still rented has no end
and no total of its own: ``closed`` gives it one, and without it the dollars are unknown. Transfer is
gigabytes x price per gigabyte.
"""

from __future__ import annotations

import calendar
import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction

from ssmke.cost.prices.rates import Rate, currency_code, dollars, micro, rate_for
from ssmke.cost.prices.toml_entry import Entry

KINDS = ("storage", "transfer")


@dataclass(frozen=True)
class Line:
    """One ``[[line]]``: ``price`` per GB and month (storage, ``begin`` to before ``end``) or per GB (transfer)."""

    name: str
    kind: str
    gb: Decimal
    price: Decimal
    currency: str
    source: str
    begin: dt.date | None = None
    end: dt.date | None = None
    provider: str = ""
    rate: Rate | None = None
    running: bool = False

    @property
    def usd(self) -> Decimal | None:
        """US dollars to a millionth; None for storage that has no end yet."""
        whole = Fraction(self.gb) * Fraction(self.price) * Fraction(1 if self.rate is None else self.rate.usd)
        if self.kind == "storage":
            if self.begin is None or self.end is None:
                return None
            whole *= months(self.begin, self.end)
        return micro(Decimal(whole.numerator) / Decimal(whole.denominator))

    @property
    def usd_per_unit(self) -> Decimal:
        """US dollars per GB-month or GB."""
        return dollars(self.price, self.rate)

    @property
    def label(self) -> str:
        """The factors in words."""
        per = f"{self.gb.normalize():f} GB x {self.price.normalize():f} {self.currency}/GB"
        if self.kind == "transfer":
            return per
        until = "now" if self.end is None else f"{self.end}{' (still running)' if self.running else ''}"
        return f"{per}-month, {self.begin} to {until}"

    def closed(self, on: dt.date) -> Line:
        """This line up to that day: running storage ends there; what ended before, or is a transfer, stays."""
        if self.kind != "storage" or self.begin is None or self.end is not None:
            return self
        return replace(self, end=max(on, self.begin), running=True)


def months(begin: dt.date, end: dt.date) -> Fraction:
    """Months from ``begin`` to before ``end``, exactly: each day is one part of its own month."""
    return _month(end) - _month(begin)


def _month(day: dt.date) -> Fraction:
    length = calendar.monthrange(day.year, day.month)[1]
    return 12 * day.year + day.month + Fraction(day.day - 1, length)


def line_of(entry: Entry, rates: Sequence[Rate]) -> Line:
    """The ``[[line]]`` entry; ValueError says what is wrong with it."""
    name, kind = entry.text("name"), entry.one_of("kind", KINDS)
    currency = currency_code(entry.text("currency", "USD"))
    begin = entry.day("from") if kind == "storage" else entry.day_or_none("from")
    end = entry.day_or_none("to") if kind == "storage" else None
    line = Line(
        name=name,
        kind=kind,
        gb=entry.number("gb"),
        price=entry.number("per_gb_month" if kind == "storage" else "per_gb"),
        currency=currency,
        source=entry.text("source"),
        begin=begin,
        end=end,
        provider=entry.text("provider", ""),
        rate=rate_for(currency, begin, rates),
    )
    entry.done()
    if begin is not None and end is not None and end < begin:
        raise ValueError(f"to {end} is before from {begin}")
    return line
