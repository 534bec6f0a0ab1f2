"""Prices out of other projects' catalogues, row by row, with the faults that these catalogues are known for.

Reads SkyPilot's ``vms.csv`` and gpuhunt's per-provider CSV and turns each row into a row of our catalogue, or
refuses it with its line and reason; nothing is repaired or guessed. What is refused, each seen in real files: a
host's price without its GPUs (a2-highgpu-1g at 0.94), GPUs without a host, empty or zero for "unknown", spot
above on demand or copied from it, GPU counts that no such machine has, memory that the GPU does not come with,
several sizes of GPU under one name and price, two prices for one thing, and prices far from what the provider
itself said at the time.

Neither catalogue states a currency, and both mean US dollars; the rows say so. Machines without GPUs are left
out and counted: neither catalogue says whose CPUs they have. A file of 20,000 rows with two prices each takes 2 s.
"""

from __future__ import annotations

import contextlib
import csv
import datetime as dt
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from ssmke.cost.efficiency import devices
from ssmke.cost.prices.catalogue import Catalogue
from ssmke.cost.prices.rows import COLUMNS, Price, PriceError, price_of, read, row_of
from ssmke.cost.prices.sources import MARKETS, Offer, number, plain, read_offers
from ssmke.words import counted

# Two observations of a price within a month that differ by more than a quarter: one of them is wrong.
_NEAR_DAYS, _FAR = 31, Decimal("0.25")
# Drivers and catalogues report up to a tenth less than the nominal memory (L4: 22.4 of 24).
_MEMORY = Decimal("0.15")
# Regions and sizes of one provider differ by less than 3; a GPU machine's host alone costs about a quarter.
_HOST_ONLY = 3
_COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 16)
_ALIASES = {"a6000": "RTXA6000"}


@dataclass(frozen=True)
class Rejection:
    """A line of the source that is no price fact, and why."""

    line: int
    name: str
    reason: str


@dataclass(frozen=True)
class Imported:
    """``skipped``: machines without GPUs; ``repeated``: rows that say again what another one said."""

    prices: tuple[Price, ...]
    rejected: tuple[Rejection, ...]
    skipped: int
    repeated: int


def import_prices(
    path: Path, form: str, *, provider: str, as_of: dt.date | None, known: Catalogue
) -> Imported:
    """The prices of a file of ``form`` ("skypilot" or "gpuhunt"), dated ``as_of`` (None: unknown).

    ``known`` is what they are held against. PriceError if the file is not of that form.
    """
    provider = provider.strip().casefold()
    digest, offers = read_offers(path, form, provider)
    check = _Check(
        provider,
        as_of,
        known,
        source=f"{form} catalogue, file {path.name}",
        source_ref=f"sha256 {digest}",
    )
    for offer in offers:
        check.add(offer)
    return check.result()


def write_merged(path: Path, prices: Sequence[Price]) -> int:
    """Adds to a price list in CSV, which need not exist, and replaces what it says of the same series and day.

    Returns the number of rows that were replaced. The file is whole at any moment: a new one is put in its
    place. PriceError if the old one has faults, or the new one cannot be written.
    """
    old: list[Price] = []
    if os.path.exists(path):  # noqa: PTH110 - False, not an error, where it may not be looked at
        old, problems = read(path)
        if problems:
            wrong = counted(len(problems), "wrong row")
            raise PriceError(f"{path}: {wrong}, nothing was added: " + "; ".join(problems))
    new = {p.observation for p in prices}
    kept = [p for p in old if p.observation not in new]
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(row_of(p) for p in (*kept, *prices))
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # e.g. a file where a folder should be
            draft.unlink()
        raise PriceError(f"{path}: cannot be written: {error.strerror or error}") from error
    return len(old) - len(kept)


class _Check:
    """Collects the rows of one file, and judges those that only the whole file can judge at the end."""

    def __init__(
        self, provider: str, as_of: dt.date | None, known: Catalogue, *, source: str, source_ref: str
    ) -> None:
        self._provider = provider
        self._as_of = as_of
        self._source, self._source_ref = source, source_ref
        self._known = [p for p in known.prices if p.gpus and p.provider.casefold() == provider]
        self._told: dict[tuple[str, ...], list[Price]] = {}
        for price in self._known:
            if price.confidence == "A":
                self._told.setdefault(price.observation[0], []).append(price)
        sizes = [(p.accelerator, p.gpu_mem_gib) for p in known.prices if p.gpus and p.gpu_mem_gib]
        sizes += [(spec.accelerator, Decimal(spec.memory_gb)) for spec in devices.table()]
        self._names = {plain(name): name for name, _ in sizes} | _ALIASES
        self._sizes: dict[str, set[Decimal]] = {}
        for name, size in sizes:
            self._sizes.setdefault(name, set()).add(size)
        self._kept: list[tuple[int, Price]] = []
        self._rejected: list[Rejection] = []
        self._skipped = 0

    def add(self, offer: Offer) -> None:
        """Judges one offer by itself."""
        try:
            price = self._price(offer)
        except ValueError as error:
            name = f"{offer.instance or offer.accelerator or 'unnamed'} {offer.tier}"
            self._rejected.append(Rejection(offer.line, name, str(error)))
            return
        if price is None:
            self._skipped += 1
        else:
            self._kept.append((offer.line, price))

    def result(self) -> Imported:
        """What is left after the rows were held against each other."""
        self._refuse(self._two_sizes(), "GPUs of several sizes under this name and price")
        self._refuse(self._two_prices(), "other prices for the same instance, region and tier in this file")
        self._refuse(self._dear_spot(), "spot above on demand")
        self._refuse(self._copied_spot(), "in the whole file spot equals on demand: a copy, spot is unknown")
        best: dict[tuple[tuple[str, ...], dt.date | None], Price] = {}
        for _, price in self._kept:
            best.setdefault(price.observation, price)
        return Imported(
            prices=tuple(best.values()),
            rejected=tuple(sorted(self._rejected, key=lambda r: (r.line, r.name))),
            skipped=self._skipped,
            repeated=len(self._kept) - len(best),
        )

    def _price(self, offer: Offer) -> Price | None:
        if not offer.instance:
            raise ValueError("no instance: the price of GPUs without the machine that they are in")
        if not offer.accelerator and not offer.count.strip("0."):
            self._without_gpu(offer)
            return None
        amount = number(offer.price, "price")
        count = self._count(offer)
        accelerator, memory = self._identity(offer)
        price = price_of(
            {
                "provider": self._provider,
                "instance": offer.instance,
                "accelerator": accelerator,
                "gpus": str(count),
                "gpu_mem_gib": f"{memory:f}",
                "form": offer.form,
                "vcpus": offer.vcpus,
                "host_mem_gib": offer.host_mem_gib,
                "region": offer.region or "-",
                "tier": offer.tier,
                "price_per_hour": f"{amount:f}",
                "price_per_gpu_hour": f"{amount / count:f}",
                "currency": "USD",
                "as_of": "unknown" if self._as_of is None else self._as_of.isoformat(),
                "as_of_kind": "imported",
                "source": self._source,
                "source_ref": self._source_ref,
                "confidence": "C" if self._as_of is None or self._provider in MARKETS else "B",
                "note": "currency not stated by the source: US dollars by its convention",
            }
        )
        self._against_known(price)
        return price

    def _without_gpu(self, offer: Offer) -> None:
        known = next((p for p in self._known if p.instance == offer.instance), None)
        if known is not None or "gpu" in offer.instance.casefold():
            has = f"has {known.gpus} x {known.accelerator}" if known else "is named after its GPUs"
            raise ValueError(f"lists no GPU, but the instance {has}: the price is the host's alone")

    def _count(self, offer: Offer) -> int:
        value = number(offer.count, "GPU count")
        if value != int(value):
            raise ValueError(f"{value} GPUs: a share of a GPU is no instance of its own")
        count = int(value)
        known = next((p for p in self._known if p.instance == offer.instance), None)
        if known is not None and known.gpus != count:
            raise ValueError(f"{counted(count, 'GPU')}, but this instance has {known.gpus} ({known.source})")
        if count not in _COUNTS and not (self._provider in MARKETS and count <= 16):
            raise ValueError(f"{count} GPUs: no such machine has that many")
        return count

    def _identity(self, offer: Offer) -> tuple[str, Decimal]:
        """(the catalogue's name of the GPU, its nominal memory), if the row says both without doubt."""
        name = self._names.get(plain(offer.accelerator), offer.accelerator)
        if "NVL" in re.split(r"[^A-Z0-9]+", offer.instance.upper()) and f"{name}-NVL" in self._sizes:
            name = f"{name}-NVL"
        sizes = self._sizes.get(name)
        if sizes is None:
            if len(set(offer.memory)) != 1:
                raise ValueError(f"{name}: the memory of one GPU is not told, and the GPU is not known")
            return name, offer.memory[0].quantize(Decimal(1))
        listed = ", ".join(f"{size:f}" for size in sorted(sizes))
        if not offer.memory:
            if len(sizes) > 1:
                raise ValueError(f"{name} comes with {listed} GiB; the row does not say which")
            return name, next(iter(sizes))
        fitting = {s for s in sizes for m in offer.memory if abs(m / s - 1) < _MEMORY}
        if not fitting:
            told = ", ".join(f"{m:.0f}" for m in offer.memory)
            raise ValueError(f"{name} with {told} GiB, but it comes with {listed} GiB")
        if len(fitting) > 1:
            raise ValueError(f"{name} comes with {listed} GiB; the row can be read as more than one")
        return name, fitting.pop()

    def _against_known(self, price: Price) -> None:
        """Holds a price against what the provider's own interface said (confidence A)."""
        same = [
            p
            for p in self._told.get(price.observation[0], ())
            if (self._as_of is None or (p.as_of and abs((p.as_of - self._as_of).days) <= _NEAR_DAYS))
        ]
        if same and all(abs(price.usd_per_hour / p.usd_per_hour - 1) > _FAR for p in same):
            latest = max(same, key=lambda p: p.as_of or dt.date.min)
            raise ValueError(
                f"{price.usd_per_hour:f} USD/h, but {latest.source} said {latest.usd_per_hour:f} "
                f"({latest.as_of_text[:10]})"
            )
        alike = [
            p.usd_per_hour / p.gpus
            for series in self._told.values()
            for p in series
            if (p.accelerator, p.gpu_mem_gib, p.tier) == (price.accelerator, price.gpu_mem_gib, price.tier)
        ]
        if alike and price.usd_per_hour / price.gpus * _HOST_ONLY < min(alike):
            raise ValueError(
                f"{price.usd_per_hour / price.gpus:.4f} USD per GPU-hour is less than a third of this provider's "
                f"cheapest known {price.accelerator} ({min(alike):.4f}): probably the host alone"
            )

    def _two_sizes(self) -> set[int]:
        sizes: dict[tuple[str, str, Decimal], set[Decimal | None]] = {}
        for _, p in self._kept:
            sizes.setdefault((p.instance, p.tier, p.usd_per_hour), set()).add(p.gpu_mem_gib)
        return {
            n for n, (_, p) in enumerate(self._kept) if len(sizes[p.instance, p.tier, p.usd_per_hour]) > 1
        }

    def _two_prices(self) -> set[int]:
        asked: dict[tuple[str, ...], set[Decimal]] = {}
        for _, p in self._kept:
            asked.setdefault(p.observation[0], set()).add(p.usd_per_hour)
        return {n for n, (_, p) in enumerate(self._kept) if len(asked[p.observation[0]]) > 1}

    def _dear_spot(self) -> set[int]:
        return {n for n, spot, full in self._spots() if full is not None and spot > full}

    def _copied_spot(self) -> set[int]:
        spots = self._spots()
        return {n for n, _, _ in spots} if all(spot == full for _, spot, full in spots) else set()

    def _spots(self) -> list[tuple[int, Decimal, Decimal | None]]:
        """(index, spot, on demand) of every spot price: SkyPilot has both in a row, gpuhunt in one place."""
        row = {(line, p.instance): p.usd_per_hour for line, p in self._kept if p.tier != "spot"}
        place = {(p.instance, p.region): p.usd_per_hour for _, p in self._kept if p.tier != "spot"}
        return [
            (n, p.usd_per_hour, row.get((line, p.instance), place.get((p.instance, p.region))))
            for n, (line, p) in enumerate(self._kept)
            if p.tier == "spot"
        ]

    def _refuse(self, numbers: set[int], reason: str) -> None:
        for at in sorted(numbers):
            line, price = self._kept[at]
            self._rejected.append(Rejection(line, f"{price.instance} {price.tier}", reason))
        self._kept = [row for at, row in enumerate(self._kept) if at not in numbers]
