"""One observed price, and the rules that a row must obey to be one.

The same rules hold for the shipped CSV, the user's TOML and imported catalogues: each is turned into a mapping
of the columns below and read by ``price_of``. They stand against mistakes found in other catalogues: empty or
zero for "unknown", a host's price without its GPUs, spot above on demand, GPU counts that cannot be, prices
without currency, date or source. A row is kept whole or refused with its line and reason; nothing is repaired.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from ssmke.cost.prices.days import day_of, refuse_future
from ssmke.cost.prices.rates import Rate, currency_code, dollars, plausible, rate_for
from ssmke.errors import ConfigError

ON_DEMAND = ("on_demand", "on_demand_secure", "marketplace_median")
TIERS = (*ON_DEMAND, "spot", "reserved_1y", "reserved_3y", "cud_1y", "cud_3y")
COLUMNS = (
    "provider",
    "instance",
    "accelerator",
    "gpu_mem_gib",
    "form",
    "gpus",
    "cpu_vendor",
    "vcpus",
    "host_mem_gib",
    "region",
    "tier",
    "price_per_hour",
    "price_per_gpu_hour",
    "currency",
    "as_of",
    "as_of_kind",
    "source",
    "source_ref",
    "confidence",
    "note",
)
_MOST_PER_GPU_HOUR = 50
_MOST_GPUS = 16


class PriceError(ConfigError):
    """A price that is not in the catalogue, is ambiguous, or a catalogue row that cannot be true."""


@dataclass(frozen=True)
class Price:
    """One observed price. ``usd_per_hour`` is for the whole instance; ``as_of`` None means undated.

    ``accelerator`` is "CPU" and ``gpus`` 0 for an instance without accelerator. ``confidence``: A from the
    provider's own price interface with time, B cited or from a catalogue, C undated, hand-kept or a median.
    A price listed in another currency keeps its ``amount``, and the ``rate`` that made dollars of it.
    ``stated``: the user wrote it down as what they pay.
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
    as_of_kind: str = ""
    amount: Decimal | None = None
    rate: Rate | None = None
    stated: bool = False

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

    @property
    def observation(self) -> tuple[tuple[str, ...], dt.date | None]:
        """Series, without case, and day: two rows with the same one contradict or replace each other."""
        return tuple(part.casefold() for part in self.key), self.as_of


def contents(path: Path) -> bytes:
    """A file's bytes. PriceError if there are none to be had, or it is no regular file.

    A pipe would be waited for without end, and a device never ends.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise PriceError(f"{path}: cannot be read: it is no regular file")
        return path.read_bytes()
    except OSError as error:
        raise PriceError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a NUL byte, or what the file system cannot encode
        raise PriceError(f"{str(path)!r}: cannot be read: {error}") from error


def read(
    path: Path, rates: Sequence[Rate] = (), *, today: dt.date | None = None
) -> tuple[list[Price], list[str]]:
    """(valid rows of a CSV, one message per problem with its line number). PriceError if it is no price list.

    Rows observed after ``today`` are problems; None: not looked at.
    """
    data = contents(path)
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        missing = set(COLUMNS) - set(reader.fieldnames or ())
        if missing:
            raise PriceError(f"{path}: columns missing: {', '.join(sorted(missing))}")
        lines = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise PriceError(f"{path}: cannot be read as a price list: {error}") from error
    prices: list[Price] = []
    problems: list[str] = []
    for number, row in lines:
        try:
            prices.append(price_of(row, rates, today=today))
        except ValueError as error:
            problems.append(f"line {number} ({row.get('provider')}/{row.get('instance')}): {error}")
    problems.extend(contradictions(prices))
    return prices, problems


def row_of(price: Price) -> dict[str, str]:
    """The CSV row that reads back as this price."""
    amount = price.usd_per_hour if price.amount is None else price.amount
    row = dict.fromkeys(COLUMNS, "") | {
        name: str(getattr(price, name)) for name in COLUMNS if getattr(price, name, None) is not None
    }
    return row | {
        "as_of": price.as_of_text,
        "price_per_hour": f"{amount:f}",
        "price_per_gpu_hour": f"{(amount / price.gpus).quantize(Decimal('0.000001')):f}"
        if price.gpus
        else "",
    }


def price_of(
    row: Mapping[str, str | None],
    rates: Sequence[Rate] = (),
    *,
    stated: bool = False,
    today: dt.date | None = None,
) -> Price:
    """The price that a row of ``COLUMNS`` states; ValueError says why it cannot be true."""

    def text(column: str, *, required: bool = False) -> str:
        value = (row.get(column) or "").strip()
        if required and not value:
            raise ValueError(f"{column} is empty")
        if not value.isprintable():
            raise ValueError(f"{column} {value!r} has control characters")
        return value

    def part(column: str) -> str:
        value = text(column, required=True)
        if "/" in value:
            raise ValueError(f"{column} {value!r} has a slash, which --cost.price takes as separator")
        return value

    def number(column: str) -> Decimal | None:
        value = text(column)
        if not value:
            return None
        try:
            parsed = Decimal(value)
        except InvalidOperation:
            raise ValueError(f"{column} {value!r} is no number") from None
        if not plausible(parsed) or parsed <= 0:
            raise ValueError(
                f"{column} {value!r} must be above 0 and of a size that occurs; leave unknown empty"
            )
        return parsed

    def one_of(column: str, allowed: tuple[str, ...]) -> str:
        value = text(column, required=True)
        if value not in allowed:
            raise ValueError(f"{column} {value!r} is none of {', '.join(allowed)}")
        return value

    amount = number("price_per_hour")
    if amount is None:
        raise ValueError("price_per_hour is empty: a row without price says nothing")
    accelerator = text("accelerator", required=True)
    count = text("gpus", required=True)
    if not (count.isascii() and count.isdigit()) or int(count) > _MOST_GPUS:
        raise ValueError(f"gpus {count!r} must be 0 to {_MOST_GPUS}")
    gpus, per_gpu = int(count), number("price_per_gpu_hour")
    vcpus, memory, vendor = number("vcpus"), number("host_mem_gib"), text("cpu_vendor")
    as_of_text = text("as_of", required=True)
    as_of = day_of(as_of_text)
    if as_of is not None:
        refuse_future("as_of", as_of, today)
    currency = currency_code(text("currency", required=True))
    rate = rate_for(currency, as_of, rates)
    hourly = dollars(amount, rate)
    if hourly <= 0:
        raise ValueError(f"price_per_hour {amount} {currency} is less than a millionth of a dollar")
    if (accelerator == "CPU") != (gpus == 0):
        raise ValueError(f"accelerator {accelerator} with {gpus} gpus")
    if gpus == 0:
        if vcpus is None or memory is None or vendor not in ("amd", "intel", "arm"):
            raise ValueError("a CPU instance needs vcpus, host_mem_gib and cpu_vendor amd, intel or arm")
        if hourly / vcpus > 1:
            raise ValueError(f"{hourly / vcpus:.2f} USD per vCPU-hour is not credible")
    else:
        if hourly / gpus >= _MOST_PER_GPU_HOUR:
            raise ValueError(f"{hourly / gpus:.2f} USD per GPU-hour is not credible")
        # The two columns check each other: a price per GPU mistaken for one per instance is 8 times off.
        if per_gpu is None or abs(per_gpu * gpus - amount) > Decimal("0.00001") * gpus:
            raise ValueError(f"price_per_gpu_hour {per_gpu} x {gpus} gpus is not price_per_hour {amount}")
        if number("gpu_mem_gib") is None:
            raise ValueError("gpu_mem_gib (of one GPU) is empty")
    if vcpus is not None and vcpus != int(vcpus):
        raise ValueError(f"vcpus {vcpus} must be whole")
    provider = part("provider")
    if provider.casefold() == "own":
        raise ValueError("provider 'own' is for [[own]] hardware; name who you pay")
    return Price(
        provider=provider,
        instance=part("instance"),
        accelerator=accelerator,
        gpus=gpus,
        region=part("region"),
        tier=one_of("tier", TIERS),
        usd_per_hour=hourly,
        as_of=as_of,
        as_of_text=as_of_text,
        source=text("source", required=True),
        source_ref=text("source_ref", required=True),
        confidence=one_of("confidence", ("A", "B", "C")),
        currency=currency,
        form=text("form"),
        gpu_mem_gib=number("gpu_mem_gib"),
        cpu_vendor=vendor,
        vcpus=None if vcpus is None else int(vcpus),
        host_mem_gib=memory,
        note=text("note"),
        as_of_kind=text("as_of_kind"),
        amount=amount,
        rate=rate,
        stated=stated,
    )


def contradictions(prices: Iterable[Price]) -> list[str]:
    """What rows say against each other: one observation twice, spot above on demand on the same day."""
    known = tuple(prices)
    problems: list[str] = []
    seen: set[tuple[tuple[str, ...], dt.date | None]] = set()
    for price in known:
        if price.observation in seen:
            problems.append(f"{price.name} as of {price.as_of_text}: listed twice")
        seen.add(price.observation)
    listed = {(p.provider, p.instance, p.region, p.as_of): p for p in known if p.tier == "on_demand"}
    for price in known:
        full = listed.get((price.provider, price.instance, price.region, price.as_of))
        if price.tier == "spot" and full is not None and price.usd_per_hour > full.usd_per_hour:
            problems.append(f"{price.name}: spot {price.usd_per_hour} above on demand {full.usd_per_hour}")
    return problems
