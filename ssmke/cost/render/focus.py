"""Own runs as cost rows with FOCUS' column names (versions 1.0 to 1.2), so that a FinOps tool reads them beside a bill.

One row for an attempt, outcome and phase: they add up to the attempt's dollars exactly. Dollars and energy of an
attempt are shared among its phases by device time; the energy of one phase was not measured by itself. These are
derived costs and no invoice: there is no billing account, BilledCost equals EffectiveCost, and both are empty where
no price is known (FOCUS would not allow that; a zero would be a lie). ListCost is given where the price is a list
price. Columns with x_ are our own.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ssmke.cost.ledger.usage import HOUR_NS, Usage, spread
from ssmke.cost.published.baselines import LISTED
from ssmke.cost.render.csv import written

if TYPE_CHECKING:
    from ssmke.cost.prices.lines import Line
    from ssmke.cost.report import Attempt, Report, RunReport

COLUMNS = (
    "BilledCost",
    "EffectiveCost",
    "ListCost",
    "BillingCurrency",
    "BillingPeriodStart",
    "BillingPeriodEnd",
    "ChargePeriodStart",
    "ChargePeriodEnd",
    "ChargeCategory",
    "ChargeFrequency",
    "ChargeDescription",
    "PricingCategory",
    "PricingUnit",
    "PricingQuantity",
    "ConsumedUnit",
    "ConsumedQuantity",
    "ProviderName",
    "RegionId",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "SkuId",
    "x_LineageId",
    "x_Attempt",
    "x_Outcome",
    "x_Phase",
    "x_EnergyKwh",
    "x_CostIsLowerBound",
    "x_PriceGuessed",
    "x_PriceAsOf",
    "x_PriceConfidence",
    "x_PriceSource",
)
_COMMITTED = ("reserved_1y", "reserved_3y", "cud_1y", "cud_3y")
_DIGITS = Decimal("1e-12")


def render(report: Report) -> str:
    rows = [row for run in report.runs for attempt in run.attempts for row in _attempt(run, attempt)]
    return written(COLUMNS, [*rows, *(_line(line) for line in report.lines)])


def _attempt(run: RunReport, attempt: Attempt) -> Iterator[dict[str, Any]]:
    for outcome, usage in attempt.outcomes.items():
        whole = usage.device_ns
        nodes, energy = spread(usage.phases, usage.node_ns), spread(usage.phases, usage.energy_mj or 0)
        dollars = _dollars(usage)
        for phase, ns in sorted(usage.phases.items()):
            if not ns or not whole:
                continue
            usd = dollars.get(phase)
            yield {
                **_of_run(run, attempt),
                **_cost(usd, _price_of(run)),
                "ChargeDescription": f"Training, {phase.replace('_', ' ')}, {outcome}",
                "PricingQuantity": _hours(nodes.get(phase, 0)),
                "ConsumedQuantity": _hours(ns),
                "x_Outcome": outcome,
                "x_Phase": phase,
                "x_EnergyKwh": None
                if usage.energy_mj is None
                else _digits(Decimal(energy.get(phase, 0)) / 3_600_000_000),
                "x_CostIsLowerBound": usd is not None and usage.usd_partial,
            }


def _dollars(usage: Usage) -> dict[str, Decimal]:
    """Dollars by phase, which add up to ``usage.usd`` exactly at twelve digits."""
    if usage.usd is None:
        return {}
    left = usage.usd.quantize(_DIGITS)
    parts = {
        phase: (usage.usd * ns / usage.device_ns).quantize(_DIGITS)
        for phase, ns in usage.phases.items()
        if ns and usage.device_ns
    }
    if parts:
        largest = max(parts, key=lambda p: (usage.phases[p], p))
        parts[largest] += left - sum(parts.values())
    return parts


def _of_run(run: RunReport, attempt: Attempt) -> dict[str, Any]:
    price = _price_of(run)
    began, ended = attempt.began_wall_ns, max(attempt.ended_wall_ns, attempt.began_wall_ns + 1_000_000_000)
    first = _time(began).replace(day=1, hour=0, minute=0, second=0)
    # Billing periods are months, and a charge that runs past the end of one is billed in the one it ends in.
    until = (_time(ended).replace(day=28) + dt.timedelta(days=4)).replace(day=1, hour=0, minute=0, second=0)
    return {
        "BillingPeriodStart": _iso(first),
        "BillingPeriodEnd": _iso(until),
        "ChargePeriodStart": _iso(_time(began)),
        "ChargePeriodEnd": _iso(_time(ended)),
        "ProviderName": price.get("provider"),
        "RegionId": price.get("region"),
        "ResourceId": run.lineage,
        "ResourceName": run.name,
        "ResourceType": "; ".join(run.devices),
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": "Model training",
        "SkuId": price.get("instance"),
        "PricingUnit": "Hours",
        "ConsumedUnit": "Device-Hours",
        "x_LineageId": run.lineage,
        "x_Attempt": attempt.name,
        "x_PriceGuessed": price.get("guessed"),
        "x_PriceAsOf": price.get("as_of"),
        "x_PriceConfidence": price.get("confidence"),
        "x_PriceSource": price.get("source") or run.price,
    }


def _cost(usd: Decimal | None, price: Mapping[str, Any]) -> dict[str, Any]:
    tier = price.get("tier")
    category = (
        "Committed"
        if tier in _COMMITTED
        else "Dynamic"
        if tier == "spot"
        else "Standard"
        if tier in LISTED
        else None
    )
    shown = None if usd is None else _digits(usd)
    return {
        "BilledCost": shown,
        "EffectiveCost": shown,
        "ListCost": shown if tier in LISTED else None,
        "BillingCurrency": "USD",
        "ChargeCategory": "Usage",
        "ChargeFrequency": "Usage-Based",
        "PricingCategory": category,
    }


def _price_of(run: RunReport) -> Mapping[str, Any]:
    """The one price that all of a run had; empty where it had several."""
    return run.snapshots[0] if len(run.snapshots) == 1 else {}


def _line(line: Line) -> dict[str, Any]:
    storage = line.kind == "storage"
    return {
        **_cost(line.usd, {}),
        "ChargePeriodStart": None if line.begin is None else f"{line.begin}T00:00:00Z",
        "ChargePeriodEnd": None if line.end is None else f"{line.end}T00:00:00Z",
        "ChargeDescription": f"{line.name}: {line.label}",
        "PricingUnit": "GB-Months" if storage else "GB",
        "ConsumedUnit": "GB",
        "ConsumedQuantity": line.gb,
        "ProviderName": line.provider or None,
        "ResourceId": line.name,
        "ResourceName": line.name,
        "ServiceCategory": "Storage" if storage else "Networking",
        "ServiceName": "Storage" if storage else "Data transfer",
        "x_PriceSource": line.source,
    }


def _time(wall_ns: int) -> dt.datetime:
    return dt.datetime.fromtimestamp(wall_ns // 1_000_000_000, dt.timezone.utc)


def _iso(moment: dt.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _hours(ns: int) -> str:
    return _digits(Decimal(ns) / HOUR_NS)


def _digits(value: Decimal) -> str:
    return f"{value.quantize(_DIGITS):f}"
