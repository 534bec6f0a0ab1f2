"""How two other projects write down prices: each row of their CSV as offers, not yet believed.

SkyPilot's ``vms.csv`` has one row per instance and zone with both prices; gpuhunt's files, one per provider,
have a row per price. Neither says what memory one GPU has in a way that can be relied on: SkyPilot's providers
write one GPU's or all GPUs', in MiB or GB, into the same field. An offer therefore carries every reading, and
``price_import`` takes it only if one of them is a size that the GPU comes with.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

from ssmke.cost.prices.rates import plausible
from ssmke.cost.prices.rows import PriceError, contents

MARKETS = ("vast", "vastai")


@dataclass(frozen=True)
class Offer:
    """One price of a source's row, before it is believed. ``memory``: what one GPU may have, in GiB."""

    line: int
    instance: str
    region: str
    tier: str
    price: str
    accelerator: str
    count: str
    memory: tuple[Decimal, ...]
    form: str
    vcpus: str
    host_mem_gib: str


def read_offers(path: Path, form: str, provider: str) -> tuple[str, list[Offer]]:
    """(SHA-256 of the file, every offer in it). PriceError if it is no catalogue of that form."""
    columns, offers_of = FORMS[form]
    data = contents(path)
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        missing = [name for name in columns if name not in (reader.fieldnames or ())]
        if missing:
            raise PriceError(f"{path}: is no {form} catalogue: columns missing: {', '.join(missing)}")
        offers = [
            offer
            for row in reader
            for offer in offers_of(
                reader.line_num,
                {k: (v or "").strip() for k, v in row.items() if isinstance(k, str)},
                provider,
            )
        ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise PriceError(f"{path}: cannot be read as a {form} catalogue: {error}") from error
    return hashlib.sha256(data).hexdigest(), offers


def _skypilot(line: int, row: Mapping[str, str], provider: str) -> Iterator[Offer]:
    instance, zone = row["InstanceType"], row.get("AvailabilityZone", "")
    accelerator, memory, form = named(row["AcceleratorName"])
    count = row["AcceleratorCount"]
    full = "marketplace_median" if provider in MARKETS else "on_demand"
    if instance.endswith("_SECURE"):
        full = "on_demand_secure"
    asked = [(full, row["Region"], row["Price"])]
    if accelerator and row["SpotPrice"]:  # spot differs by zone, on demand by region
        asked.append(("spot", zone or row["Region"], row["SpotPrice"]))
    for tier, region, price in asked:
        yield Offer(
            line=line,
            instance=instance,
            region=region.strip(", "),
            tier=tier,
            price=price,
            accelerator=accelerator,
            count=count,
            memory=(memory,) if memory else _gpu_info(row.get("GpuInfo", ""), count),
            form=form or named(instance)[2],
            vcpus=_whole(row.get("vCPUs", "")),
            host_mem_gib=_known(row.get("MemoryGiB", "")),
        )


def _gpu_info(text: str, count: str) -> tuple[Decimal, ...]:
    """What one GPU may have, in GiB: providers write one GPU's or all GPUs' memory there, in MiB or GB."""
    found = re.search(r"SizeInMiB\W+([0-9.]+)", text)
    if found is None:
        return ()
    size = optional(found[1])
    if size is None:
        return ()
    size = size / 1024 if size >= 1024 else size
    number = optional(count)
    return (size,) if number is None or number <= 1 else (size, size / number)


def _gpuhunt(line: int, row: Mapping[str, str], provider: str) -> Iterator[Offer]:
    accelerator, memory, form = named(row["gpu_name"])
    told = optional(row["gpu_memory"])
    full = "marketplace_median" if provider in MARKETS else "on_demand"
    yield Offer(
        line=line,
        instance=row["instance_name"],
        region=row["location"],
        tier="spot" if row["spot"].casefold() == "true" else full,
        price=row["price"],
        accelerator=accelerator,
        count=row["gpu_count"],
        memory=tuple(m for m in (told or memory,) if m),
        form=form or named(row["instance_name"])[2],
        vcpus=_whole(row["cpu"]),
        host_mem_gib=_known(row["memory"]),
    )


_Reader = Callable[[int, Mapping[str, str], str], Iterator[Offer]]
FORMS: Mapping[str, tuple[tuple[str, ...], _Reader]] = {
    "skypilot": (
        ("InstanceType", "AcceleratorName", "AcceleratorCount", "Price", "SpotPrice", "Region"),
        _skypilot,
    ),
    "gpuhunt": (
        (
            "instance_name",
            "location",
            "price",
            "cpu",
            "memory",
            "gpu_count",
            "gpu_name",
            "gpu_memory",
            "spot",
        ),
        _gpuhunt,
    ),
}


def named(text: str) -> tuple[str, Decimal | None, str]:
    """("A100-80GB-SXM" as) name, memory in GiB if it is part of it, form."""
    name, memory, form = [], None, ""
    for part in re.split(r"[-_ ]", text):
        if size := re.fullmatch(r"(\d+)GB", part, re.IGNORECASE):
            memory = Decimal(size[1])
        elif re.fullmatch(r"SXM\d?|PCIE", part, re.IGNORECASE):
            form = "PCIe" if part.upper() == "PCIE" else part.upper()
        else:
            name.append(part)
    return "-".join(name), memory, form


def plain(name: str) -> str:
    """A name without case and punctuation, to compare by."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def number(text: str, what: str) -> Decimal:
    """A number above 0; ValueError for an empty field, words, and the zeros that stand for "unknown"."""
    value = optional(text)
    if value is None:
        raise ValueError(f"{what} {text!r} is no number" if text else f"no {what}")
    if value <= 0:
        raise ValueError(f"{what} {text}: unknown, written as a number")
    return value


def optional(text: str) -> Decimal | None:
    """A number of a size that occurs, or None."""
    try:
        value = Decimal(text)
    except InvalidOperation:
        return None
    return value if plausible(value) else None


def _known(text: str) -> str:
    """Text that is a number above 0, else nothing: what the host has is a remark, not a reason to refuse."""
    value = optional(text)
    return text if value is not None and value > 0 else ""


def _whole(text: str) -> str:
    value = optional(text)
    return f"{int(value)}" if value is not None and value == int(value) and value > 0 else ""
