"""What all runs together had spent at any moment, by phase.

An attempt's dollars are spread evenly between its begin and its end. One sweep over all begins and ends, so
10,000 runs cost a tenth of a second; what is drawn is thinned by time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from ssmke.cost.dashboard.words import dollars, moment, phase_name
from ssmke.cost.ledger.usage import HOUR_NS
from ssmke.cost.render.numbers import hours
from ssmke.cost.report import RunReport

POINTS = 400


@dataclass(frozen=True)
class Spending:
    """``spent`` by phase at each of ``moments`` (wall clock, ns): dollars, or device-hours if not ``priced``."""

    moments: tuple[float, ...]
    spent: Mapping[str, tuple[float, ...]]
    priced: bool

    def text(self, i: int, order: Sequence[str]) -> str:
        """What was spent up to moment ``i``, in words."""

        def amount(value: float) -> str:
            return dollars(Decimal(repr(round(value, 9)))) if self.priced else f"{hours(value)} device-h"

        whole = amount(sum(self.spent[n][i] for n in order))
        parts = [f"{phase_name(n)} {amount(self.spent[n][i])}" for n in order if self.spent[n][i] > 0]
        return "\n".join([f"{moment(int(self.moments[i]))} UTC: {whole}", *parts])


def spending(runs: Sequence[RunReport], *, points: int = POINTS) -> Spending:
    """Sums so far over all attempts of ``runs``; dollars where any run has a price."""
    priced = any(r.usage.usd is not None for r in runs)
    changes: list[tuple[int, dict[str, float], int]] = []
    for run in runs:
        for attempt in run.attempts:
            usage = attempt.usage
            if priced and (usage.usd is None or not usage.device_ns):
                continue
            worth = float(usage.usd or 0) / usage.device_ns if priced else 1 / HOUR_NS
            begin, end = attempt.began_wall_ns, max(attempt.ended_wall_ns, attempt.began_wall_ns + 1)
            rates = {name: ns * worth / (end - begin) for name, ns in usage.phases.items() if ns}
            changes += [(begin, rates, 1), (end, rates, -1)]
    changes.sort(key=lambda change: change[0])
    if not changes:
        now = float(max((r.ended_wall_ns for r in runs), default=0))
        return Spending((now, now + 1), {"idle": (0.0, 0.0)}, priced)
    first, last = changes[0][0], changes[-1][0]
    cell = max(1, (last - first) // points)
    names = sorted({name for _, rates, _ in changes for name in rates})
    rate, spent = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    moments: list[float] = []
    rows: list[tuple[float, ...]] = []
    at = first
    for i, (when, rates, sign) in enumerate(changes):
        for name in names:
            spent[name] += rate[name] * (when - at)
        at = when
        for name, value in rates.items():
            rate[name] = max(0.0, rate[name] + sign * value)
        nearest = i + 1 == len(changes) or (changes[i + 1][0] - first) // cell != (when - first) // cell
        if nearest or not moments:
            moments.append(float(when))
            rows.append(tuple(spent.values()))
    return Spending(tuple(moments), {n: tuple(row[k] for row in rows) for k, n in enumerate(names)}, priced)
