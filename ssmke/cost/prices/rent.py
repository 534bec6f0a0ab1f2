"""What holding a number of devices costs per hour, before there is a machine to look at.

Every entry of the catalogue for the device is turned into whole instances, as they are sold: two GPUs out of a
box of eight cost the box. The cheapest and the dearest make the interval; the point is the cheapest among the
entries of the best confidence. A chosen price (``--price``) is that price, without interval, and must be one of
that device: a V100's says nothing about an H100.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from ssmke.cost.efficiency.devices import DeviceSpec, find
from ssmke.cost.prices import sources
from ssmke.cost.prices.catalogue import ON_DEMAND, TIERS, Catalogue, Price
from ssmke.cost.prices.quote import quote
from ssmke.cost.prices.sources import plain as _plain
from ssmke.cost.probes.probe import Device
from ssmke.errors import ConfigError

FLAG = "--price"
_SAME_MEMORY = Decimal("0.15")


@dataclass(frozen=True)
class Rent:
    """US dollars per hour for all devices together; None: no price is known, ``label`` says why.

    ``usd_per_kwh``: what a kilowatt-hour costs besides, on hardware of one's own.
    """

    low: Decimal | None
    point: Decimal | None
    high: Decimal | None
    label: str
    reasons: tuple[str, ...] = ()
    usd_per_kwh: Decimal | None = None


def rent(
    catalogue: Catalogue,
    spec: DeviceSpec,
    devices: int,
    *,
    price: str | None = None,
    provider: str | None = None,
    region: str | None = None,
    tier: str = "on_demand",
    on: dt.date | None = None,
) -> Rent:
    """The hourly price of ``devices`` devices.

    Args:
        catalogue, spec, devices: what is wanted, and the known prices.
        price: as for ``--cost.price``; then the other choices must be left out. "auto" is None.
        provider, region, tier: narrow the entries down; "on_demand" takes marketplaces in.
        on: the day for which prices are wanted; None: the newest.

    Raises:
        ConfigError: no such tier, or the chosen price fits nothing, or is another device's.
    """
    if price is not None and price.strip() != "auto":
        return _chosen(catalogue, spec, devices, price, on)
    if tier not in TIERS:
        raise ConfigError(f"--tier {tier!r} is none of {', '.join(TIERS)}")
    tiers = ON_DEMAND if tier == "on_demand" else (tier,)
    found = catalogue.find(accelerator=spec.accelerator, provider=provider, region=region, tiers=tiers, on=on)
    same = [entry for entry in found if _is(entry, spec)]
    # Nobody takes a box of eight for one device where single ones are sold.
    fitting = [entry for entry in same if devices % entry.gpus == 0] or same
    asked = " ".join(x for x in (provider, region, tier) if x)
    if not fitting:
        return Rent(
            None,
            None,
            None,
            f"unknown (no {asked} price of {spec.key} is known; give --price)",
            (f"the catalogue has no {asked} entry for {spec.key}: dollars are unknown",),
        )
    costs = {entry.name: _cost(entry, devices) for entry in fitting}
    best = min(fitting, key=lambda entry: (entry.confidence, costs[entry.name], entry.name))
    count = math.ceil(devices / best.gpus)
    reasons = [
        f"{len(fitting)} {asked} {'entry fits' if len(fitting) == 1 else 'entries fit'} {spec.key}: the cheapest and "
        f"the dearest make the interval, {best.name} of {best.as_of_text[:10]} (confidence {best.confidence}) the point"
    ]
    if count * best.gpus > devices:
        reasons.append(
            f"{best.name} is sold with {best.gpus} devices: {count * best.gpus - devices} would be idle, and paid"
        )
    times = f"{count} x " if count > 1 else ""
    return Rent(
        min(costs.values()),
        costs[best.name],
        max(costs.values()),
        f"${costs[best.name].normalize():f}/h ({times}{best.name}, {best.as_of_text[:10]})",
        tuple(reasons),
    )


def _chosen(catalogue: Catalogue, spec: DeviceSpec, devices: int, price: str, on: dt.date | None) -> Rent:
    wanted: Sequence[Device] = [
        Device(id=f"wanted-{i}", name=spec.key, memory_mib=spec.memory_gb << 10) for i in range(devices)
    ]
    found = quote(price, catalogue, devices=wanted, machine=None, on=on, flag=FLAG)
    hourly, reasons = found.usd_per_hour, [f"price: {found.why}"]
    entry, own = found.price, found.own
    if own is not None and own.accelerator and _kind(own.accelerator) != _plain(spec.accelerator):
        raise ConfigError(f"{FLAG} {price.strip()}: is the price of {own.accelerator}, not of {spec.key}")
    if entry is not None and entry.gpus:
        memory = entry.gpu_mem_gib
        if _kind(entry.accelerator) != _plain(spec.accelerator) or not _same_memory(memory, spec):
            size = "" if memory is None else f" {memory:f} GB"
            raise ConfigError(
                f"{FLAG} {price.strip()}: is the price of {entry.accelerator}{size}, not of {spec.key} "
                f"{spec.memory_gb} GB"
            )
        if not _same_form(entry, spec):
            reasons.append(
                f"{entry.name} has the {entry.form} form of the {entry.accelerator}, not {spec.form}"
            )
    return Rent(hourly, hourly, hourly, found.label, tuple(reasons), found.usd_per_kwh)


def _kind(accelerator: str) -> str:
    """What a user calls a GPU, reduced to what the catalogue calls it: "NVIDIA A100-SXM4-80GB" is an A100."""
    known = find(accelerator)
    name = _plain(sources.named(accelerator)[0] if known is None else known.accelerator)
    for maker in ("nvidia", "tesla", "geforce"):
        name = name.removeprefix(maker)
    return name


def _same_memory(memory: Decimal | None, spec: DeviceSpec) -> bool:
    return memory is None or abs(memory / spec.memory_gb - 1) <= _SAME_MEMORY


def _same_form(entry: Price, spec: DeviceSpec) -> bool:
    return not entry.form or entry.form[:3].casefold() == spec.form[:3].casefold()


def _is(entry: Price, spec: DeviceSpec) -> bool:
    if not entry.gpus or entry.gpu_mem_gib is None:
        return False
    return _same_memory(entry.gpu_mem_gib, spec) and _same_form(entry, spec)


def _cost(entry: Price, devices: int) -> Decimal:
    return entry.usd_per_hour * math.ceil(devices / entry.gpus)
