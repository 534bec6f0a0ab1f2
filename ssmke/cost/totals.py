"""The running totals that a progress line and MLflow show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from ssmke.cost.ledger.usage import HOUR_NS, Usage


@dataclass(frozen=True)
class Totals:
    """The run so far, all its attempts and nodes. None is unknown.

    ``usd_partial``: part of the time has no known price, so ``usd`` is a lower bound; ``energy_coverage`` is
    the share of device time behind ``energy_kwh``. ``phase_hours``: device-hours by phase. ``wasted_*``: what
    crashes and preemptions of earlier attempts cost (known once training has begun). ``price``: the basis, in
    one line.
    """

    device_hours: float = 0.0
    node_hours: float = 0.0
    usd: float | None = None
    usd_partial: bool = False
    usd_per_hour: float | None = None
    energy_kwh: float | None = None
    energy_coverage: float = 0.0
    wasted_device_hours: float | None = None
    wasted_usd: float | None = None
    attempts: int = 0
    price: str = "not measured on this rank"
    phase_hours: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        usage: Usage,
        *,
        wasted: Usage | None = None,
        attempts: int,
        usd_per_hour: Decimal | None,
        price: str,
    ) -> Totals:
        """Exact usage as plain floats; ``usd_per_hour`` of all nodes together."""
        return cls(
            device_hours=usage.device_hours,
            node_hours=usage.node_hours,
            usd=None if usage.usd is None else float(usage.usd),
            usd_partial=usage.usd_partial,
            usd_per_hour=None if usd_per_hour is None else float(usd_per_hour),
            energy_kwh=usage.energy_kwh,
            energy_coverage=usage.energy_coverage,
            wasted_device_hours=None if wasted is None else wasted.device_hours,
            wasted_usd=None if wasted is None or wasted.usd is None else float(wasted.usd),
            attempts=attempts,
            price=price,
            phase_hours={name: ns / HOUR_NS for name, ns in sorted(usage.phases.items())},
        )
