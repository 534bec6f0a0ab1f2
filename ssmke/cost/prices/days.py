"""Days in price lists: strictly ISO 8601 on every Python, and no observation of what is still to come."""

from __future__ import annotations

import datetime as dt
import re

_DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_MONTH = re.compile(r"\d{4}-\d{2}", re.ASCII)
_MOMENT = re.compile(
    r"(\d{4}-\d{2}-\d{2})[T ]([01]\d|2[0-3]):[0-5]\d(:[0-5]\d(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?", re.ASCII
)


def iso_day(text: str) -> dt.date:
    """``2026-07-20`` as a date; ValueError for anything else, the week and compact forms included."""
    if not _DAY.fullmatch(text):
        raise ValueError(f"{text!r} is no date; write it as 2026-07-20")
    return dt.date.fromisoformat(text)


def day_of(text: str) -> dt.date | None:
    """The day of an observation, with or without time; "2024-09" counts from the first of the month; "unknown" is None.

    ValueError for anything else.
    """
    if text == "unknown":
        return None
    moment = _MOMENT.fullmatch(text)
    day = moment[1] if moment else f"{text}-01" if _MONTH.fullmatch(text) else text
    try:
        return iso_day(day)
    except ValueError:
        raise ValueError(f"as_of {text!r} is neither a date nor 'unknown'") from None


def today_utc() -> dt.date:
    """The day that it is, where nobody says another one."""
    return dt.datetime.now(tz=dt.timezone.utc).date()


def refuse_future(name: str, day: dt.date, today: dt.date | None) -> None:
    """ValueError for a day that has not come; tomorrow may be today elsewhere. ``today`` None: not checked."""
    if today is not None and (day - today).days > 1:
        raise ValueError(f"{name} {day} is in the future (today is {today})")
