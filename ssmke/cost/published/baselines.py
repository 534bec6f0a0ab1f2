"""Published runs, priced from their factors: devices x hours x a dated price of the catalogue.

No dollar is typed in. Each run is priced in three bases side by side, because published comparisons mix them:

    cited      the price that the source used, of its date (three-year reservations for CLIP, on demand for S-SMKE)
    on demand  a provider's dated list price of the same device, the newest in the catalogue
    spot       the cheapest spot price of that kind of device in the catalogue; often none is known

and ``listed`` gives the dollars at the lowest and the highest list price of that kind of device. Hours are an
interval where the source gives one. "Unpublished" and "no less than" are values of their own (``unpublished``,
``at_least``), never a zero. The thesis' own tables and what is wrong with them are in ``thesis``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

from ssmke.cost.prices.catalogue import Catalogue, Price, PriceError, shipped

BASELINES = Path(__file__).parents[1] / "data" / "baselines.json"
BASES = ("as cited", "on demand", "cheapest spot")
LISTED = ("on_demand", "on_demand_secure")
"""Tiers with a list price of a provider; a marketplace's median is what others happened to ask."""

Span = tuple[Decimal, Decimal]
"""Lowest and highest; equal where there is one value."""


@dataclass(frozen=True)
class Basis:
    """A baseline at one price. ``usd`` None: not known, and ``why`` says the reason in two or three words."""

    name: str
    price: Price | None
    usd: Span | None
    why: str = ""


@dataclass(frozen=True)
class Baseline:
    """A published training run. ``kind``: "published" (spec's table) or "peer" (today's cheap ones).

    ``hours`` is wall time on all ``devices`` together, None if it was never published. ``lowest`` and ``highest``:
    the extreme list prices of such a device. ``at_least``: another run that cannot have cost more.
    """

    name: str
    variant: str
    kind: str
    parameters: int | None
    pairs: int | None
    accelerator: str | None
    devices: int | None
    hours: Span | None
    cited: Price | None
    on_demand: Price | None
    spot: Price | None
    lowest: Price | None
    highest: Price | None
    printed: str
    source: str
    excludes: str
    note: str
    pairs_at_least: bool = False
    at_least: Baseline | None = None

    @property
    def label(self) -> str:
        """Name and variant."""
        return f"{self.name} ({self.variant})" if self.variant else self.name

    @property
    def unpublished(self) -> bool:
        return self.devices is None or self.hours is None

    @property
    def device_hours(self) -> Span | None:
        if self.devices is None or self.hours is None:
            return None
        return self.devices * self.hours[0], self.devices * self.hours[1]

    @property
    def bases(self) -> tuple[Basis, Basis, Basis]:
        """The dollars in each of BASES."""
        return (
            self._basis(BASES[0], self.cited, "not priced there"),
            self._basis(BASES[1], self.on_demand, "no list price"),
            self._basis(BASES[2], self.spot, "no spot price known"),
        )

    @property
    def usd(self) -> Decimal | None:
        """Exact dollars as cited; None where the source names no price or no compute."""
        found = self.at(self.cited)
        return None if found is None else found[1]

    @property
    def estimate(self) -> Span | None:
        """One interval to draw: as cited, else on demand."""
        return self.at(self.cited) or self.at(self.on_demand)

    @property
    def listed(self) -> Span | None:
        """Dollars at the lowest and the highest list price of such a device."""
        low, high = self.at(self.lowest), self.at(self.highest)
        return None if low is None or high is None else (low[0], high[1])

    def at(self, price: Price | None) -> Span | None:
        """Exact dollars at ``price``: device-hours x the price of one device."""
        hours = self.device_hours
        if hours is None or price is None or price.usd_per_gpu_hour is None:
            return None
        return hours[0] * price.usd_per_gpu_hour, hours[1] * price.usd_per_gpu_hour

    def _basis(self, name: str, price: Price | None, missing: str) -> Basis:
        if self.unpublished:
            return Basis(name, None, None, "unpublished")
        return Basis(name, price, self.at(price), "" if price else missing)


def load(path: Path = BASELINES, catalogue: Catalogue | None = None) -> list[Baseline]:
    """The published runs and the peers; PriceError if one names a price that the catalogue does not have."""
    catalogue = catalogue or shipped()
    found: list[Baseline] = []
    for entry in json.loads(path.read_text(encoding="utf-8"))["baselines"]:
        where = f"{path}: {entry['name']}"
        listed = _of_kind(catalogue, entry["accelerator"], LISTED)
        spot = _of_kind(catalogue, entry["accelerator"], ("spot",))
        hours = entry.pop("hours")
        at_least = entry.pop("at_least", None)
        cited_at, on_demand = (priced(catalogue, entry.pop(name), where) for name in ("cited", "on_demand"))
        baseline = Baseline(
            **entry,
            cited=cited_at,
            on_demand=on_demand,
            hours=None if hours is None else (Decimal(hours[0]), Decimal(hours[1])),
            spot=spot[0] if spot else None,
            lowest=listed[0] if listed else None,
            highest=listed[-1] if listed else None,
            at_least=next((b for b in found if b.name == at_least), None),
        )
        found.append(baseline)
    return found


def priced(catalogue: Catalogue, key: Sequence[str] | None, where: str) -> Price | None:
    """The catalogue's row of ``key``: provider, instance, region, tier, and a date or none for the newest."""
    if key is None:
        return None
    if len(key) == 5:
        rows = [p for p in catalogue.prices if (*p.key, p.as_of_text) == tuple(key)]
    else:
        provider, instance, region, tier = key
        rows = catalogue.find(provider=provider, instance=instance, region=region, tiers=(tier,))
    if len(rows) != 1 or not rows[0].gpus:
        raise PriceError(f"{where} names a device price that is not in the catalogue: {'/'.join(key)}")
    return rows[0]


def saving(usd: Decimal, against: Decimal) -> str:
    """How much cheaper ``usd`` is, in percent with two decimals: 15.456 against 9,676.80 is "99.84 %"."""
    share = (1 - usd / against) * 100
    return f"{share.quantize(Decimal('0.01'), ROUND_HALF_UP)} %"


def published_saving(baselines: Sequence[Baseline]) -> str:
    """The published claim, computed: how much cheaper S-SMKE is than VLMo (4M pairs) and CLIP, as cited."""
    usd = by_name(baselines)
    ours, vlmo, clip = (cited(usd[name]) for name in ("S-SMKE", "VLMo", "CLIP"))
    return f"S-SMKE as published: {saving(ours, vlmo)} cheaper than VLMo, {saving(ours, clip)} than CLIP"


def by_name(baselines: Sequence[Baseline]) -> Mapping[str, Baseline]:
    """The published ones by name."""
    return {b.name: b for b in baselines if b.kind == "published"}


def cited(baseline: Baseline) -> Decimal:
    """Dollars as cited, of one that has them."""
    if baseline.usd is None:
        raise PriceError(f"{baseline.name} has no price as cited: {BASELINES} must name one")
    return baseline.usd


def _of_kind(catalogue: Catalogue, accelerator: Any, tiers: tuple[str, ...]) -> list[Price]:
    """Prices of one kind of device, cheapest device-hour first, the newest of each series."""
    if accelerator is None:
        return []
    found = [
        p for p in catalogue.find(accelerator=accelerator, tiers=tiers) if p.usd_per_gpu_hour is not None
    ]
    return sorted(found, key=lambda p: (p.usd_per_gpu_hour or Decimal(0), p.gpus, p.name))
