"""Exchange rates as dated facts.

A price in euros is a fact; its dollars are a second one, the rate of a day, with a source of its own. Nothing
is looked up online and no rate is built in: a price in another currency without a rate is an error that names
the ``[[rate]]`` to add, never a silent 1:1. Dollars are kept to a millionth, so that sums over nanoseconds
stay exact in 28 digits.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

_MICRO = Decimal("0.000001")
_CODE = re.compile(r"[A-Z]{3}")


def plausible(value: Decimal) -> bool:
    """A finite number that is 0 or between a billionth and a trillion: 1e999999 would hang the arithmetic."""
    return value.is_finite() and (value == 0 or -9 <= value.adjusted() <= 12)


@dataclass(frozen=True)
class Rate:
    """What one unit of ``currency`` (ISO 4217) was worth in US dollars on the day ``as_of``."""

    currency: str
    usd: Decimal
    as_of: dt.date
    source: str

    def __str__(self) -> str:
        return f"1 {self.currency} = {self.usd:f} USD on {self.as_of} ({self.source})"


def currency_code(text: str) -> str:
    """``text`` as an ISO 4217 code; ValueError if it is none."""
    if not _CODE.fullmatch(text):
        raise ValueError(f"currency {text!r} is no ISO 4217 code such as USD or EUR")
    return text


def rate_for(currency: str, on: dt.date | None, rates: Sequence[Rate]) -> Rate | None:
    """The newest rate known on that day, else the first after it; None for dollars. ValueError if none is known."""
    if currency == "USD":
        return None
    known = sorted((r for r in rates if r.currency == currency), key=lambda r: r.as_of)
    if not known:
        day = on or "the day of the price"
        raise ValueError(
            f"no exchange rate is known for {currency}; add to your prices file: [[rate]] "
            f'currency = "{currency}", usd = (US dollars for 1 {currency}), as_of = {day}, source = "..."'
        )
    earlier = [r for r in known if on is None or r.as_of <= on]
    return earlier[-1] if earlier else known[0]


def dollars(amount: Decimal, rate: Rate | None) -> Decimal:
    """``amount`` in US dollars; to a millionth where it was converted, else as given."""
    return amount if rate is None else (amount * rate.usd).quantize(_MICRO)


def micro(usd: Decimal) -> Decimal:
    """US dollars to a millionth."""
    return usd.quantize(_MICRO)
