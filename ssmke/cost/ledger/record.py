"""One record of a ledger, checked: a line is what `writer` writes, or it is passed over.

Ledgers are copied between machines, cut, edited and merged by hand; what reads them further on may rely on types
and ranges, so that one damaged line costs itself and never the report of a workspace. Free are the ``facts``
only, which are any JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

from ssmke.cost.ledger.tally import Record

_MOST = 1 << 62


def parse(data: bytes) -> Iterator[Record]:
    """The whole records of a ledger; torn, garbled or foreign lines are passed over."""
    for line in data.split(b"\n"):
        record = record_of(line)
        if record is not None:
            yield record


def record_of(line: bytes) -> Record | None:
    """The record in a line, or None."""
    if not line.startswith(b"{"):
        return None
    try:
        record = json.loads(line, parse_constant=_refused, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return record if _sound(record) else None


def _sound(record: Any) -> bool:
    if not isinstance(record, dict) or not isinstance(record.get("t"), str):
        return False
    if not (_count(record.get("b")) and _count(record.get("w"))):
        return False
    fields = _START if record["t"] == "start" else _LATER
    if record["t"] in ("begun", "save"):
        fields = _MOMENT
    elif record["t"] in ("beat", "end") and "energy" in record:
        fields = _SUMMARY
    return all(good(record.get(name)) for name, good in fields.items())


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no number")
    return value


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MOST


def _number(value: Any) -> bool:
    return _count(value) or (isinstance(value, float) and 0 <= value < _MOST)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _optional(good: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or good(value)


def _phases(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_count, value.values()))


def _two_counts(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_count, value))


def _readings(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(row, dict)
        and all(_optional(_count)(row.get(name)) for name in ("mj", "mw", "mem"))
        and _optional(_number)(row.get("util"))
        for row in value.values()
    )


def _devices(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(d, dict)
        and _text(d.get("id"))
        and _text(d.get("name"))
        and _optional(_text)(d.get("energy"))
        for d in value
    )


def _price(value: Any) -> bool:
    money = ("usd_per_hour", "usd_per_kwh", "usd_per_hour_low", "usd_per_hour_high")
    words = (
        "label",
        "provider",
        "instance",
        "region",
        "tier",
        "as_of",
        "source",
        "source_ref",
        "confidence",
        "why",
    )
    return (
        isinstance(value, dict)
        and all(_optional(_money)(value.get(name)) for name in money)
        and all(_optional(_text)(value.get(name)) for name in words)
        and _optional(_count)(value.get("quantity"))
        and _optional(lambda known: isinstance(known, dict) and all(map(_text, known.values())))(
            value.get("assumptions")
        )
    )


def _money(value: Any) -> bool:
    try:
        amount = Decimal(value) if isinstance(value, str) else None
    except InvalidOperation:
        return False
    return amount is not None and amount.is_finite() and 0 <= amount < 10**9


def _moment(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and _count(value[0])
        and _count(value[1])
        and _phases(value[2])
    )


def _moments(value: Any) -> bool:
    return isinstance(value, list) and all(map(_moment, value))


def _energies(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(row, list)
        and len(row) == 3
        and _optional(_count)(row[0])
        and _count(row[1])
        and _optional(_text)(row[2])
        for row in value.values()
    )


def _mapping(value: Any) -> bool:
    return isinstance(value, dict)


_START: dict[str, Callable[[Any], bool]] = {
    "v": _count,
    "lineage": _text,
    "attempt": _text,
    "node": _text,
    "host": _text,
    "boot": _text,
    "period": _count,
    "pid": _optional(_count),
    "born": _optional(_count),
    "devices": _devices,
    "price": _optional(_price),
    "facts": _optional(_mapping),
}
_LATER: dict[str, Callable[[Any], bool]] = {
    "phase": _optional(_text),
    "phases": _optional(_phases),
    "step": _optional(_count),
    "pairs": _optional(_count),
    "from": _optional(_two_counts),
    "d": _optional(_readings),
    "facts": _optional(_mapping),
    "by": _optional(_text),
    "reason": _optional(_text),
}
_MOMENT = {**_LATER, "step": _count, "phases": _phases}
_SUMMARY = {
    **_LATER,
    "phases": _phases,
    "phase": _text,
    "begin": _count,
    "begun": _optional(_moment),
    "saves": _moments,
    "energy": _energies,
    "facts": _mapping,
    "jumps": _count,
    "records": _count,
}
