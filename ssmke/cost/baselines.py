"""Published runs, priced from their factors: devices x hours x a dated price of the catalogue.

No dollar is typed in. Each baseline names the price it was published with, which is a row of the catalogue, and
says what it leaves out, so that a reader sees where two rows are not alike.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

from ssmke.cost.prices import Catalogue, Price, PriceError, shipped

BASELINES = Path(__file__).parent / "data" / "baselines.json"


@dataclass(frozen=True)
class Baseline:
    """A published training run. ``hours`` is wall time; ``price`` is per hour of an instance of its devices."""

    name: str
    variant: str
    parameters: int
    pairs: int
    device: str
    devices: int
    hours: Decimal
    price: Price
    printed: str
    source: str
    excludes: str
    note: str

    @property
    def device_hours(self) -> Decimal:
        return self.devices * self.hours

    @property
    def usd(self) -> Decimal:
        """Exact: device-hours x price of one device."""
        return self.device_hours * (self.price.usd_per_gpu_hour or Decimal(0))

    @property
    def basis(self) -> str:
        """The price in words, e.g. "$1.05/device-h, aws reserved_3y, 2024-09"."""
        hourly = (self.price.usd_per_gpu_hour or Decimal(0)).normalize()
        return f"${hourly:f}/device-h, {self.price.provider} {self.price.tier}, {self.price.as_of_text}"


def load(path: Path = BASELINES, catalogue: Catalogue | None = None) -> list[Baseline]:
    """The published baselines; PriceError if one names a price that the catalogue does not have."""
    known = {(*p.key, p.as_of_text): p for p in (catalogue or shipped()).prices}
    found: list[Baseline] = []
    for entry in json.loads(path.read_text(encoding="utf-8"))["baselines"]:
        price = known.get(tuple(entry.pop("price")))
        if price is None or not price.gpus:
            raise PriceError(f"{path}: {entry['name']} names a device price that is not in the catalogue")
        found.append(Baseline(**{**entry, "hours": Decimal(entry["hours"])}, price=price))
    return found


def saving(usd: Decimal, against: Decimal) -> str:
    """How much cheaper ``usd`` is, in percent with two decimals: 15.456 against 9,676.80 is "99.84 %"."""
    share = (1 - usd / against) * 100
    return f"{share.quantize(Decimal('0.01'), ROUND_HALF_UP)} %"


def published_saving(baselines: list[Baseline]) -> str:
    """The published claim, computed: how much cheaper S-SMKE is than VLMo (4M pairs) and CLIP."""
    usd = {b.name: b.usd for b in baselines}
    return (
        f"S-SMKE as published: {saving(usd['S-SMKE'], usd['VLMo'])} cheaper than VLMo, "
        f"{saving(usd['S-SMKE'], usd['CLIP'])} than CLIP"
    )
