"""What things are called on the pages, and in which order they stand."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from decimal import Decimal

from ssmke.cost.charts.svg import Part
from ssmke.cost.ledger.outcomes import OUTCOMES
from ssmke.cost.ledger.usage import HOUR_NS, Usage
from ssmke.cost.render.numbers import AT_LEAST, count, hours, money
from ssmke.cost.report import RunReport
from ssmke.words import percent

# Bottom of a stacked chart first: what training is for, then what it needs, then what only costs.
PHASES = {
    "train": "training",
    "evaluation": "evaluation",
    "target_cache": "teacher's targets",
    "setup": "set-up, compile",
    "checkpoint": "checkpoints",
    "data_wait": "waiting for data",
    "idle": "idle",
}
_LEAST = Decimal("0.00001")
WASTE = {
    "useful": "useful",
    "redone": "done again after a crash",
    "failed": "lost to failures",
    "preempted": "lost to preemption",
}


def dollars(usd: Decimal | None, *, partial: bool = False) -> str:
    """Like ``money``, with a real "at least" sign (this is not a terminal) and an end to small numbers."""
    if usd is not None and 0 < usd < _LEAST:
        return f"<${_LEAST:f}"
    return money(usd, partial=partial).replace(AT_LEAST, "≥ ")


def cost(usage: Usage) -> str:
    """Dollars, or "unknown"."""
    return dollars(usage.usd, partial=usage.usd_partial)


def numeral(number: float | None) -> str:
    return count(number).replace(AT_LEAST, "≥ ")


def phase_kind(name: str) -> str:
    """The CSS class of a phase: a ledger may hold names that we do not know."""
    return name if name in PHASES else "rest"


def phase_name(name: str) -> str:
    return PHASES.get(name, name)


def phase_order(names: Iterable[str]) -> list[str]:
    known = list(PHASES)
    return sorted(names, key=lambda n: (known.index(n) if n in known else len(known), n))


def phase_amounts(usage: Usage) -> list[tuple[str, str, str]]:
    """(class, name, "$1.23 · 80.1 %") for a legend, largest first."""
    whole = usage.device_ns or 1
    found = []
    for name, ns in sorted(usage.phases.items(), key=lambda item: (-item[1], item[0])):
        if ns <= 0:
            continue
        if usage.usd is None:
            amount = f"{hours(ns / HOUR_NS)} h"
        else:
            amount = dollars(usage.usd * ns / whole)
        found.append((phase_kind(name), phase_name(name), f"{amount} · {percent(ns / whole)}"))
    return found


def outcome_parts(outcomes: Mapping[str, Usage]) -> list[Part]:
    """An outcome bar: shares of device time."""
    whole = sum(u.device_ns for u in outcomes.values()) or 1
    return [
        Part(name, outcomes[name].device_ns / whole, f"{WASTE[name]}: {_worth(outcomes[name], whole)}")
        for name in OUTCOMES
        if outcomes[name].device_ns
    ]


def outcome_legend(outcomes: Mapping[str, Usage]) -> list[tuple[str, str, str]]:
    whole = sum(u.device_ns for u in outcomes.values()) or 1
    return [
        (name, WASTE[name], _worth(outcomes[name], whole))
        for name in OUTCOMES
        if outcomes[name].device_ns or name == "useful"
    ]


def _worth(usage: Usage, whole: int) -> str:
    amount = f"{hours(usage.device_hours)} device-h" if usage.usd is None else dollars(usage.usd)
    return f"{amount} · {percent(usage.device_ns / whole)}"


def moment(ns: int) -> str:
    """ "24 Nov 2026, 07:31"."""
    when = dt.datetime.fromtimestamp(ns / 1e9, tz=dt.timezone.utc)
    return f"{when.day} {when:%b %Y, %H:%M}"


def period(begin_ns: int, end_ns: int) -> str:
    """ "24 Nov 2026, 07:31 to 08:03 UTC"."""
    begin, end = moment(begin_ns), moment(end_ns)
    day, _, clock = end.partition(", ")
    if begin == end:
        return f"{begin} UTC"
    return f"{begin} to {clock if begin.startswith(day + ',') else end} UTC"


def ended(run: RunReport) -> str:
    """How a run ended, in a few words."""
    last = run.attempts[-1].outcome
    return "running, or killed" if last == "no end" else last


def clock(hours_: float) -> str:
    """A stretch of time: "38 s", "12 min", "3.4 h", "2.1 d"."""
    seconds = hours_ * 3600
    for size, name in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size * (2 if name == "d" else 1):
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.3g} s"
