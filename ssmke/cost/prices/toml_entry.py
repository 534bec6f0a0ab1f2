"""One table of a prices file, read key by key with its type, range and presence checked.

TOML leaves types to the writer: ``purchase = "6200"`` or ``gpus = true`` would pass through arithmetic and come
out as nonsense. Every value is asked for by name here, and ``done`` refuses the keys nobody asked for, with the
nearest name that exists.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from decimal import Decimal
from difflib import get_close_matches
from enum import Enum
from typing import Any

from ssmke.cost.prices.days import iso_day, refuse_future
from ssmke.cost.prices.rates import plausible


class _Required(Enum):
    REQUIRED = 0


REQUIRED = _Required.REQUIRED


class Entry:
    """The keys of one ``[[table]]``. ValueError names the key and what it must be.

    ``today``: `past_day` refuses what is later; None: it does not look.
    """

    def __init__(self, values: Mapping[str, Any], *, today: dt.date | None = None) -> None:
        self.today = today
        self._values = values
        self._asked: list[str] = []

    def has(self, key: str) -> bool:
        return key in self._values

    def text(self, key: str, default: str | _Required = REQUIRED) -> str:
        """A string of one printable line."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise ValueError(f"{key} {value!r} must be text in quotes")
        value = value.strip()
        if not value and default is REQUIRED:
            raise ValueError(f"{key} is empty")
        if not value.isprintable():
            raise ValueError(f"{key} {value!r} has control characters")
        return value

    def one_of(self, key: str, allowed: tuple[str, ...], default: str | _Required = REQUIRED) -> str:
        value = self.text(key, default)
        if value not in allowed:
            raise ValueError(f"{key} {value!r} is none of {', '.join(allowed)}")
        return value

    def number(
        self,
        key: str,
        default: Decimal | _Required = REQUIRED,
        *,
        at_least: int = 0,
        above: int | None = None,
        most: int | None = None,
    ) -> Decimal:
        """A finite number, exactly as written."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | Decimal):
            raise ValueError(f"{key} {value!r} must be a number")
        number = Decimal(value)
        if not plausible(number):
            raise ValueError(f"{key} {str(value)[:20]} must be finite and of a size that occurs")
        if above is not None and number <= above:
            raise ValueError(f"{key} {value} must be above {above}")
        if number < at_least:
            raise ValueError(f"{key} {value} must be {at_least} or more")
        if most is not None and number > most:
            raise ValueError(f"{key} {value} must be {most} or less")
        return number

    def whole(self, key: str, default: int | _Required = REQUIRED, *, most: int) -> int:
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise ValueError(f"{key} {value!r} must be a whole number, 0 to {most}")
        return value

    def day(self, key: str, default: dt.date | _Required = REQUIRED) -> dt.date:
        """A date, as TOML's own (2026-03-01) or in quotes."""
        return self._day(self._value(key, default), key)

    def past_day(self, key: str, default: dt.date | _Required = REQUIRED) -> dt.date:
        """The date of a fact: one that has come."""
        day = self.day(key, default)
        refuse_future(key, day, self.today)
        return day

    def day_or_none(self, key: str) -> dt.date | None:
        """A date that may be left out."""
        value = self._value(key, None)
        return None if value is None else self._day(value, key)

    def done(self) -> None:
        """Refuses keys that nothing asked for."""
        for key in self._values:
            if key not in self._asked:
                close = get_close_matches(key, self._asked, n=1)
                hint = f"; did you mean {close[0]}?" if close else f"; known: {', '.join(self._asked)}"
                raise ValueError(f"unknown key {key!r}{hint}")

    def _value(self, key: str, default: object) -> object:
        self._asked.append(key)
        if key in self._values:
            return self._values[key]
        if default is REQUIRED:
            raise ValueError(f"{key} is missing")
        return default

    @staticmethod
    def _day(value: object, key: str) -> dt.date:
        if isinstance(value, dt.datetime):
            return value.date()
        if isinstance(value, dt.date):
            return value
        if isinstance(value, str):
            try:
                return iso_day(value)
            except ValueError:
                pass
        raise ValueError(f"{key} {value!r} is no date; write it as 2026-03-01")
