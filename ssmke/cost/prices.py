"""Dated price facts, their validation, and their lookup.

The catalogue is a CSV of observations: "at this time, this source listed this price". A later observation of
the same instance, region and tier replaces the earlier one from its date on, so a run is priced with what was
charged when it ran. Prices are of whole instances: eight GPUs in one box cost another amount per GPU than
one, so a price per GPU is a property of the instance, not of the GPU.

Every row is validated on load, against the mistakes found in other catalogues (empty or zero price for
"unknown", a host's price without its GPU, spot above on demand, GPU counts that cannot be). Money is Decimal.
Loading 150 rows takes 2 ms; no network, ever.
"""

from __future__ import annotations

import csv
import datetime as dt
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from difflib import get_close_matches
from pathlib import Path

from ssmke.errors import ConfigError

CATALOGUE = Path(__file__).parent / "data" / "prices.csv"
ON_DEMAND = ("on_demand", "on_demand_secure", "marketplace_median")
TIERS = (*ON_DEMAND, "spot", "reserved_1y", "reserved_3y", "cud_1y", "cud_3y")
COLUMNS = (
    "provider",
    "instance_type",
    "accelerator",
    "mem_gib",
    "form",
    "gpus",
    "cpu_vendor",
    "vcpus",
    "host_mem_gib",
    "region",
    "tier",
    "usd_per_instance_hour",
    "usd_per_gpu_hour",
    "currency",
    "as_of",
    "as_of_kind",
    "source",
    "source_ref",
    "confidence",
    "note",
)


class PriceError(ConfigError):
    """A price that is not in the catalogue, is ambiguous, or a catalogue row that cannot be true."""


@dataclass(frozen=True)
class Price:
    """One observed price. ``usd_per_hour`` is for the whole instance; ``as_of`` None means undated.

    ``accelerator`` is "CPU" and ``gpus`` 0 for an instance without accelerator. ``confidence``: A from the
    provider's own price interface with time, B cited or from a catalogue, C undated, hand-kept or a median.
    """

    provider: str
    instance: str
    accelerator: str
    gpus: int
    region: str
    tier: str
    usd_per_hour: Decimal
    as_of: dt.date | None
    as_of_text: str
    source: str
    source_ref: str
    confidence: str
    currency: str = "USD"
    form: str = ""
    gpu_mem_gib: Decimal | None = None
    cpu_vendor: str = ""
    vcpus: int | None = None
    host_mem_gib: Decimal | None = None
    note: str = ""

    @property
    def usd_per_gpu_hour(self) -> Decimal | None:
        return self.usd_per_hour / self.gpus if self.gpus else None

    @property
    def name(self) -> str:
        """What ``--cost.price`` takes to get this row back (up to its date)."""
        return f"{self.provider}/{self.instance}/{self.region}/{self.tier}"

    @property
    def key(self) -> tuple[str, str, str, str]:
        """The price series that this observation belongs to."""
        return (self.provider, self.instance, self.region, self.tier)


class Catalogue:
    """Price observations, looked up by instance, region, tier and date."""

    def __init__(self, prices: Iterable[Price]) -> None:
        self.prices = tuple(prices)

    @classmethod
    def load(cls, path: Path = CATALOGUE) -> Catalogue:
        """The CSV at ``path``; PriceError names every row that is wrong."""
        prices, problems = read(path)
        if problems:
            raise PriceError(f"{path}: {len(problems)} wrong rows: " + "; ".join(problems))
        return cls(prices)

    def find(
        self,
        *,
        provider: str | None = None,
        instance: str | None = None,
        accelerator: str | None = None,
        region: str | None = None,
        tiers: Iterable[str] | None = None,
        on: dt.date | None = None,
    ) -> list[Price]:
        """The price of each matching series at ``on`` (default: the newest), names compared without case."""
        wanted = None if tiers is None else tuple(tiers)
        series: dict[tuple[str, str, str, str], list[Price]] = {}
        for price in self.prices:
            if (
                _matches(provider, price.provider)
                and _matches(instance, price.instance)
                and _matches(accelerator, price.accelerator)
                and _matches(region, price.region)
                and (wanted is None or price.tier in wanted)
            ):
                series.setdefault(price.key, []).append(price)
        return [_at(observations, on) for observations in series.values()]

    def lookup(
        self,
        provider: str,
        instance: str,
        *,
        region: str | None = None,
        tier: str | None = None,
        on: dt.date | None = None,
    ) -> Price:
        """The one price of an instance; without ``tier``, on demand. PriceError if none or many fit."""
        found = self.find(
            provider=provider,
            instance=instance,
            region=region,
            tiers=None if tier is None else (tier,),
            on=on,
        )
        if tier is None and len(found) > 1:
            found = [p for p in found if p.tier in ON_DEMAND] or found
        if len(found) == 1:
            return found[0]
        asked = "/".join(x for x in (provider, instance, region, tier) if x)
        if found:
            choices = ", ".join(sorted(p.name for p in found))
            raise PriceError(
                f"price {asked!r} is ambiguous: {choices}; say which as provider/instance/region/tier"
            )
        names = sorted({f"{p.provider}/{p.instance}" for p in self.prices})
        folded = {n.casefold(): n for n in names}
        close = [folded[n] for n in get_close_matches(f"{provider}/{instance}".casefold(), list(folded), n=3)]
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise PriceError(
            f"no price known for {asked!r}{hint or ';'} see `ssmke-cost prices list`, or give the US dollars "
            "per hour of the whole node"
        )


@functools.lru_cache(maxsize=1)
def shipped() -> Catalogue:
    """The catalogue in the package, read once per process."""
    return Catalogue.load()


def read(path: Path) -> tuple[list[Price], list[str]]:
    """(valid rows, one message per problem with its line number). PriceError if it cannot be read at all."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = set(COLUMNS) - set(reader.fieldnames or ())
            if missing:
                raise PriceError(f"{path}: columns missing: {', '.join(sorted(missing))}")
            lines = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise PriceError(f"{path}: cannot be read as a price list: {error}") from error
    prices: list[Price] = []
    problems: list[str] = []
    for number, row in lines:
        try:
            prices.append(_price(row))
        except ValueError as error:
            problems.append(f"line {number} ({row.get('provider')}/{row.get('instance_type')}): {error}")
    problems.extend(_contradictions(prices))
    return prices, problems


def _price(row: Mapping[str, str | None]) -> Price:
    def text(column: str, *, required: bool = False) -> str:
        value = (row.get(column) or "").strip()
        if required and not value:
            raise ValueError(f"{column} is empty")
        return value

    def number(column: str) -> Decimal | None:
        value = text(column)
        if not value:
            return None
        try:
            parsed = Decimal(value)
        except InvalidOperation:
            raise ValueError(f"{column} {value!r} is no number") from None
        if not parsed.is_finite() or parsed <= 0:
            raise ValueError(f"{column} {value!r} must be above 0; leave unknown empty")
        return parsed

    def one_of(column: str, allowed: tuple[str, ...]) -> str:
        value = text(column, required=True)
        if value not in allowed:
            raise ValueError(f"{column} {value!r} is none of {', '.join(allowed)}")
        return value

    hourly = number("usd_per_instance_hour")
    if hourly is None:
        raise ValueError("usd_per_instance_hour is empty: a row without price says nothing")
    accelerator = text("accelerator", required=True)
    count = text("gpus", required=True)
    if not count.isdigit() or int(count) > 16:
        raise ValueError(f"gpus {count!r} must be 0 to 16")
    gpus, per_gpu = int(count), number("usd_per_gpu_hour")
    vcpus, memory, vendor = number("vcpus"), number("host_mem_gib"), text("cpu_vendor")
    if (accelerator == "CPU") != (gpus == 0):
        raise ValueError(f"accelerator {accelerator} with {gpus} gpus")
    if gpus == 0:
        if vcpus is None or memory is None or vendor not in ("amd", "intel", "arm"):
            raise ValueError("a CPU instance needs vcpus, host_mem_gib and cpu_vendor amd, intel or arm")
        if hourly / vcpus > 1:
            raise ValueError(f"{hourly / vcpus:.2f} USD per vCPU-hour is not credible")
    else:
        if hourly / gpus >= 50:
            raise ValueError(f"{hourly / gpus:.2f} USD per GPU-hour is not credible")
        if per_gpu is None or abs(per_gpu * gpus - hourly) > Decimal("0.00001") * gpus:
            raise ValueError(
                f"usd_per_gpu_hour {per_gpu} x {gpus} gpus is not usd_per_instance_hour {hourly}"
            )
        if number("mem_gib") is None:
            raise ValueError("mem_gib (of one GPU) is empty")
    if vcpus is not None and vcpus != int(vcpus):
        raise ValueError(f"vcpus {vcpus} must be whole")
    as_of_text = text("as_of", required=True)
    return Price(
        provider=text("provider", required=True),
        instance=text("instance_type", required=True),
        accelerator=accelerator,
        gpus=gpus,
        region=text("region", required=True),
        tier=one_of("tier", TIERS),
        usd_per_hour=hourly,
        as_of=_date(as_of_text),
        as_of_text=as_of_text,
        source=text("source", required=True),
        source_ref=text("source_ref", required=True),
        confidence=one_of("confidence", ("A", "B", "C")),
        # One currency, spelled out: adding another needs dated exchange rates, not a default.
        currency=one_of("currency", ("USD",)),
        form=text("form"),
        gpu_mem_gib=number("mem_gib"),
        cpu_vendor=vendor,
        vcpus=None if vcpus is None else int(vcpus),
        host_mem_gib=memory,
        note=text("note"),
    )


def _date(text: str) -> dt.date | None:
    """The day of an observation; "2024-09" counts from the first of the month; "unknown" is None."""
    if text == "unknown":
        return None
    try:
        return dt.date.fromisoformat(f"{text}-01" if len(text) == 7 else text[:10])
    except ValueError:
        raise ValueError(f"as_of {text!r} is neither a date nor 'unknown'") from None


def _contradictions(prices: list[Price]) -> list[str]:
    problems: list[str] = []
    seen: set[tuple[tuple[str, str, str, str], str]] = set()
    for price in prices:
        if (price.key, price.as_of_text) in seen:
            problems.append(f"{price.name} as of {price.as_of_text}: listed twice")
        seen.add((price.key, price.as_of_text))
    listed = {(p.provider, p.instance, p.region, p.as_of_text): p for p in prices if p.tier == "on_demand"}
    for price in prices:
        full = listed.get((price.provider, price.instance, price.region, price.as_of_text))
        if price.tier == "spot" and full is not None and price.usd_per_hour > full.usd_per_hour:
            problems.append(f"{price.name}: spot {price.usd_per_hour} above on demand {full.usd_per_hour}")
    return problems


def _matches(wanted: str | None, value: str) -> bool:
    return wanted is None or wanted.casefold() == value.casefold()


def _at(observations: list[Price], on: dt.date | None) -> Price:
    # The newest known at that date, else the first after it; undated ones only where nothing is dated.
    dated = sorted((p for p in observations if p.as_of is not None), key=lambda p: p.as_of or dt.date.min)
    if not dated:
        return observations[-1]
    earlier = [p for p in dated if on is None or (p.as_of or dt.date.min) <= on]
    return earlier[-1] if earlier else dated[0]
